from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from retrieval_utils import extraction
from retrieval_utils.cache import DescriptorCache
from retrieval_utils.extraction import extract_descriptors, precision
from retrieval_utils.networks import DescriptorNetwork, load_network
from retrieval_utils.pooling import l2_normalize, make_pooling
from retrieval_utils.ranking import cosine_scores, rank
from retrieval_utils.transforms import load_image, to_tensor


@pytest.fixture(scope="module")
def network():
    return load_network("resnet18-thin")


def one_after_the_other(network, paths, boxes=None, scales=(1.0,), image_size=40):
    """The loop that every code base of the field uses: batch of one, in order."""
    rows = []
    for number, path in enumerate(paths):
        image = to_tensor(load_image(path, boxes[number] if boxes else None, image_size))[None]
        parts = [network(image)]
        for scale in scales[1:]:
            smaller = torch.nn.functional.interpolate(image, scale_factor=scale, mode="bilinear", antialias=True)
            parts.append(network(smaller))
        rows.append(l2_normalize(sum(parts))[0])
    return torch.stack(rows)


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 2**-0.5, 0.5)])
def test_batches_by_size_equal_the_plain_loop_in_the_order_given(network, cards, scales):
    paths = [cards.images[i] for i in (5, 0, 17, 3, 30, 2, 11)]  # two aspect ratios, mixed
    fast = extract_descriptors(network, paths, scales=scales, image_size=40, batch_size=3, device="cpu")
    with torch.inference_mode():
        slow = one_after_the_other(network, paths, scales=scales)
    assert (fast * slow).sum(1).min() > 0.9999


def test_boxes_are_cropped(network, cards_benchmark):
    fast = extract_descriptors(network, cards_benchmark.queries, cards_benchmark.boxes, image_size=40, device="cpu")
    with torch.inference_mode():
        slow = one_after_the_other(network, cards_benchmark.queries, cards_benchmark.boxes)
    assert (fast * slow).sum(1).min() > 0.9999
    whole = extract_descriptors(network, cards_benchmark.queries, image_size=40, device="cpu")
    assert (fast * whole).sum(1).min() < 0.9999


def test_the_mode_of_the_network_is_left_as_it_was(network, cards):
    network.train()
    extract_descriptors(network, cards.images[:2], image_size=32, device="cpu")
    assert network.training
    network.eval()


def test_a_corrupt_image_in_the_middle_is_named(network, cards, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 nothing more")
    with pytest.raises(ValueError, match="broken.jpg' cannot be read"):
        extract_descriptors(network, [*cards.images[:3], tmp_path / "broken.jpg"], image_size=32, device="cpu")
    with pytest.raises(ValueError, match="no images to describe"):
        extract_descriptors(network, [])
    with pytest.raises(ValueError, match="3 images but 1 boxes"):
        extract_descriptors(network, cards.images[:3], [(0, 0, 9, 9)])


def test_grey_and_transparent_photos_are_described(network, tmp_path):
    Image.new("L", (40, 30), 90).save(tmp_path / "grey.png")
    Image.new("RGBA", (30, 40), (1, 2, 3, 4)).save(tmp_path / "transparent.png")
    paths = [tmp_path / "grey.png", tmp_path / "transparent.png"]
    assert extract_descriptors(network, paths, image_size=32, device="cpu").shape == (2, 256)


def photos_of_many_sizes(folder, count: int = 24) -> list:
    """JPEGs of six sizes, mixed, most of them larger than the 40 pixels they are described at."""
    random, paths = np.random.default_rng(0), []
    for number in range(count):
        size = [(90, 60), (60, 90), (50, 50), (97, 33), (30, 20), (101, 76)][number % 6]
        pixels = random.integers(0, 256, (6, 6, 3), np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@pytest.fixture
def calls(monkeypatch):
    """The number of images of every batch that a network described."""
    seen, forward = [], DescriptorNetwork.forward

    def counted(self, images):
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(DescriptorNetwork, "forward", counted)
    return seen


def test_the_result_does_not_depend_on_the_number_of_workers(network, tmp_path):
    paths = photos_of_many_sizes(tmp_path)
    few, more, many = (
        extract_descriptors(network, paths, scales=(1, 0.5), image_size=40, device="cpu", workers=workers)
        for workers in (1, 2, 5)
    )
    assert torch.equal(few, more) and torch.equal(few, many)
    assert torch.get_num_threads() == 1  # as the tests set it


def test_equal_sizes_share_batches_over_the_whole_list(network, tmp_path, calls, monkeypatch):
    paths = photos_of_many_sizes(tmp_path)
    fast = extract_descriptors(network, paths, image_size=40, device="cpu")
    assert sorted(calls) == [4] * 6
    with torch.inference_mode():
        assert (fast * one_after_the_other(network, paths)).sum(1).min() > 0.9999
    calls.clear()
    monkeypatch.setitem(extraction.PIXELS, "cpu", 3000)
    extract_descriptors(network, paths, image_size=40, device="cpu", batch_size=3)
    assert sorted(calls) == [1] * 6 + [2] * 6 + [3] * 2  # 40 x 40 pixels alone, 40 x 30 in twos, 40 x 14 in threes


@pytest.mark.parametrize("size", [24, 40, 64, 1024])
def test_the_size_read_from_the_header_is_the_size_of_the_image(tmp_path, size):
    paths = photos_of_many_sizes(tmp_path, 6)
    for path in paths:
        for box in (None, (2.5, 3.0, 19.2, 17.9), (0, 0, 30.5, 20.5)):
            if box is None or Image.open(path).size == (30, 20) or box[2] < 30:
                assert extraction._size(path, box, size) == load_image(path, box, size).size


def test_photos_stored_on_their_side_are_described_upright_and_share_batches(network, tmp_path, calls):
    upright, sideways, exif = photos_of_many_sizes(tmp_path, 6), [], Image.Exif()
    exif[0x0112] = 8  # to be turned back by 90 degrees
    for path in upright:
        sideways.append(path.with_suffix(".png"))
        with Image.open(path) as image:
            image.transpose(Image.Transpose.ROTATE_270).save(sideways[-1], exif=exif)
    for box in (None, (2.5, 3.0, 29.2, 19.9)):  # in pixels of the upright photo
        boxes = [box] * 12
        found = extract_descriptors(network, [*upright, *sideways], boxes, image_size=200, device="cpu")
        assert (found[:6] * found[6:]).sum(1).min() > 0.9999
        for path in sideways:
            assert extraction._size(path, box, 25) == load_image(path, box, 25).size
    assert sorted(calls) == [2] * 6 + [12]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "timm/resnet18"])
def test_trained_networks_and_networks_of_timm_equal_the_plain_loop(name, cards):
    network = load_network(name)
    for module in network.modules():  # statistics as after training, not 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in ((module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 2)):
                values.uniform_(low, high)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    fast = extract_descriptors(network, cards.images[:4], image_size=48, device="cpu")
    with torch.inference_mode():
        slow = one_after_the_other(network, cards.images[:4], image_size=48)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=0)
    norms = [m for m in extraction._fold_batch_norm(network).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert bool(norms) == name.startswith("timm/")


def test_half_precision_stays_within_a_thousandth(network, cards):
    whole = extract_descriptors(network, cards.images[:12], scales=(1, 0.5), image_size=48, device="cpu")
    half = extract_descriptors(network, cards.images[:12], scales=(1, 0.5), image_size=48, device="cpu", autocast=True)
    assert not torch.equal(half, whole)
    assert (half * whole).sum(1).min() >= 0.999


def test_the_network_of_the_caller_stays_as_it_is(cards):
    network = load_network("resnet18-thin").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    extract_descriptors(network, cards.images[:6], image_size=32, device="cpu", autocast=True)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert network.trunk.layer1[0].conv1.weight.is_contiguous() and network.training


def test_a_second_call_reads_the_cache_and_describes_only_what_is_new(network, tmp_path, calls):
    paths, cache = photos_of_many_sizes(tmp_path), tmp_path / "cache"
    settings = {"image_size": 40, "device": "cpu", "scales": (1, 0.5)}
    plain = extract_descriptors(network, paths, **settings)
    calls.clear()
    extract_descriptors(network, paths[:10], cache=cache, **settings)
    extract_descriptors(network, list(reversed(paths)), cache=cache, **settings)
    assert sum(calls) == 2 * len(paths)  # two scales, every image once
    calls.clear()
    shutil.copy(paths[3], tmp_path / "renamed.jpg")  # found by its content
    again = extract_descriptors(network, [*paths, tmp_path / "renamed.jpg"], cache=cache, **settings)
    assert calls == [] and torch.equal(again[3], again[-1])
    assert (again[:-1] * plain).sum(1).min() > 0.9999


def test_the_cache_tells_networks_settings_boxes_and_content_apart(network, tmp_path, calls):
    paths, cache = photos_of_many_sizes(tmp_path, 6), tmp_path / "cache"
    path, settings = [paths[0]], {"image_size": 40, "device": "cpu", "cache": cache}
    guest = DescriptorNetwork(network.trunk, make_pooling("mac"), network.dim, network.settings)
    for change in (
        {},
        {"image_size": 36},
        {"scales": (0.5,)},
        {"scales": (1.0, 0.5)},
        {"autocast": True},
        {"boxes": [(0, 0, 30, 30)]},
        {"boxes": [(0, 0, 30, 31)]},
        {"network": guest},
        {"network": load_network("resnet18-thin", seed=1)},
        {"images": [paths[1]]},
    ):
        first = extract_descriptors(**{"network": network, "images": path, **settings, **change})
        assert calls, change
        calls.clear()
        again = extract_descriptors(**{"network": network, "images": path, **settings, **change})
        assert calls == [] and torch.equal(first, again), change


def test_damaged_entries_of_the_cache_are_made_again(network, tmp_path, calls):
    paths, cache = photos_of_many_sizes(tmp_path, 6), tmp_path / "cache"
    settings = {"image_size": 40, "device": "cpu", "cache": cache}
    whole = extract_descriptors(network, paths, **settings)
    entries = sorted(cache.rglob("*.safetensors"))
    assert len(entries) == 6
    entries[0].write_bytes(b"")
    entries[1].write_bytes(entries[1].read_bytes()[:-5])
    changed = bytearray(entries[2].read_bytes())
    changed[-2] ^= 1
    entries[2].write_bytes(changed)
    entries[3].write_bytes(pickle.dumps(network.settings))
    save_file({"descriptor": torch.ones(3)}, entries[4])
    calls.clear()
    assert torch.allclose(extract_descriptors(network, paths, **settings), whole, atol=1e-6)
    assert sum(calls) == 5
    calls.clear()
    extract_descriptors(network, paths, **settings)
    assert calls == [] and list(cache.rglob("*.part")) == []


def test_a_corrupt_photo_among_many_is_named_and_costs_none_of_the_others(network, tmp_path, calls):
    paths, cache = photos_of_many_sizes(tmp_path), tmp_path / "cache"
    whole = paths[10].read_bytes()
    paths[10].write_bytes(whole[:-60])
    assert Image.open(paths[10]).size == (30, 20)  # its header is sound
    settings = {"image_size": 40, "device": "cpu", "cache": cache, "batch_size": 1, "workers": 2}
    with pytest.raises(ValueError, match=r"The image '.*10.jpg' cannot be read \(.*truncated") as caught:
        extract_descriptors(network, paths, **settings)
    assert "\n" not in str(caught.value)
    done = len(list(cache.rglob("*.safetensors")))
    assert done == sum(calls) > 0
    paths[10].write_bytes(whole)
    calls.clear()
    resumed = extract_descriptors(network, paths, **settings)
    assert sum(calls) == len(paths) - done
    assert (resumed * extract_descriptors(network, paths, image_size=40, device="cpu")).sum(1).min() > 0.9999


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_killed_run_goes_on(network, tmp_path, calls, monkeypatch):
    paths, cache = photos_of_many_sizes(tmp_path), tmp_path / "cache"
    settings = {"image_size": 40, "device": "cpu", "cache": cache, "batch_size": 1}

    def killed_after_seven():
        put = DescriptorCache.put

        def counted(self, key, descriptor):
            put(self, key, descriptor)
            if len(list(cache.rglob("*.safetensors"))) == 7:
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(DescriptorCache, "put", counted)
        extract_descriptors(network, paths, **settings)

    process = multiprocessing.get_context("fork").Process(target=killed_after_seven)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    extract_descriptors(network, paths, **settings)
    assert sum(calls) == len(paths) - 7


def test_a_cache_that_cannot_be_written_is_one_sentence(network, cards, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/.*' cannot be written .*choose another folder"):
        extract_descriptors(network, cards.images[:2], image_size=32, device="cpu", cache=tmp_path / "file")

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(ValueError, match="The disk is full, '.*' was not made"):
        extract_descriptors(network, cards.images[:2], image_size=32, device="cpu", cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("device", "autocast", "expected"),
    [
        ("cpu", None, "float32"),
        ("cpu", False, "float32"),
        ("cpu", True, "bfloat16"),
        ("cuda", None, "float16"),
        ("cuda", False, "float32"),
        ("auto", None, "float16"),
    ],
)
def test_the_precision_is_what_the_network_computes_with(network, cards, monkeypatch, device, autocast, expected):
    found, resolve = [], {"cpu": "cpu"}.get
    monkeypatch.setattr(extraction, "resolve_device", lambda name: torch.device(resolve(name, "cuda")))
    assert precision(device, autocast) == expected
    # The same with the network itself; a card is where it would be, and the work is left out.
    monkeypatch.setattr(DescriptorNetwork, "to", lambda network, *args, **kwargs: network)
    monkeypatch.setattr(extraction, "_in_threads", lambda job, *args: found.append(job.half) or ())
    extract_descriptors(network, cards.images[:2], device=device, autocast=autocast)
    assert found == [None if expected == "float32" else getattr(torch, expected)]


def test_boxes_scales_and_networks_that_cannot_be_used_are_named(network, cards):
    def describe(net=network, **change):
        extract_descriptors(net, cards.images[:3], image_size=32, device="cpu", **change)

    with pytest.raises(ValueError, match=r"box \(1.0, 2.0, 90.0, 9.0\) does not lie inside '0_1.png'"):
        describe(boxes=[(0, 0, 9, 9), (1, 2, 90, 9), None])
    for scales in ((), (1.0, 0.0)):
        with pytest.raises(ValueError, match="scales .* cannot be used"):
            describe(scales=scales)
    broken = load_network("resnet18-thin")
    broken.trunk.conv1.weight.data[:] = float("nan")
    with pytest.raises(ValueError, match="no finite descriptor for '.*.png'; check its weights"):
        describe(broken)
    with pytest.raises(FileNotFoundError, match="no image 'gone.jpg'"):
        extract_descriptors(network, ["gone.jpg"], device="cpu")


@pytest.mark.real_data
def test_real_photos_equal_the_plain_loop(photos):
    found = sorted((photos / "GroceryStoreDataset/dataset/iconic-images-and-descriptions").rglob("*.jpg"))[:6]
    network, scales = load_network("resnet18"), (1.0, 2**-0.5, 0.5)
    boxes = [(10, 20, 150, 90), None, (0, 0, 60, 120), None, None, (5, 5, 100, 100)]
    fast = extract_descriptors(network, found, boxes, scales, image_size=160, device="cpu", workers=2)
    with torch.inference_mode():
        slow = one_after_the_other(network, found, boxes, scales, image_size=160)
    assert (fast * slow).sum(1).min() > 0.9999


def test_scores_are_cosines_and_ties_keep_the_order_of_the_database():
    queries = torch.tensor([[1.0, 0.0], [0.6, 0.8]])  # (2, 2)
    database = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])  # (3, 2)
    scores = cosine_scores(queries, database)
    torch.testing.assert_close(scores, torch.tensor([[0.0, 1.0, 0.0], [0.8, 0.6, 0.8]]))
    assert rank(scores).tolist() == [[1, 0, 2], [0, 2, 1]]
    with pytest.raises(ValueError, match="2 dimensions and the database 3"):
        cosine_scores(queries, torch.ones(4, 3))
