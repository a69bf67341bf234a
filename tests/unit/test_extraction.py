from __future__ import annotations

import pytest
import torch
from PIL import Image

from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.networks import load_network
from retrieval_utils.pooling import l2_normalize
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


def test_scores_are_cosines_and_ties_keep_the_order_of_the_database():
    queries = torch.tensor([[1.0, 0.0], [0.6, 0.8]])  # (2, 2)
    database = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])  # (3, 2)
    scores = cosine_scores(queries, database)
    torch.testing.assert_close(scores, torch.tensor([[0.0, 1.0, 0.0], [0.8, 0.6, 0.8]]))
    assert rank(scores).tolist() == [[1, 0, 2], [0, 2, 1]]
    with pytest.raises(ValueError, match="2 dimensions and the database 3"):
        cosine_scores(queries, torch.ones(4, 3))
