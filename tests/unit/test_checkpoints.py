"""Public weights: files of their real key layout, made here, and files that are broken or hostile."""

from __future__ import annotations

import hashlib
import pickle
import re
import threading
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torchvision import models

from retrieval_utils import checkpoints
from retrieval_utils.checkpoints import CHECKPOINTS, TIMM_NAMES, get_checkpoint, read_checkpoint
from retrieval_utils.networks import load_network, load_weights, save_network
from retrieval_utils.transforms import MEAN, STD


def images(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def resnet(depth: int = 18, seed: int = 1) -> models.ResNet:
    torch.manual_seed(seed)
    network = getattr(models, f"resnet{depth}")(weights=None).eval()
    for module in network.modules():  # statistics as after training, not 0 and 1
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network


def under(prefix: str, state: dict, drop: str = "fc.") -> OrderedDict:
    return OrderedDict((prefix + key, value) for key, value in state.items() if not key.startswith(drop))


def published(name: str, state: dict) -> dict:
    """A checkpoint as its authors wrap it, with what lies beside the trunk."""
    two = torch.zeros(2, 2)
    if name == "moco-v2":
        beside = {"module.queue": two, "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
        key_encoder = under("module.encoder_k.", {key: value + 1 for key, value in state.items()})
        heads = {f"module.encoder_{side}.fc.{layer}.weight": two for side in "qk" for layer in (0, 2)}
        both = {**under("module.encoder_q.", state), **key_encoder, **heads, **beside}
        optimizer = {"state": {0: {"momentum_buffer": two}}, "param_groups": [{"lr": 0.03, "params": [0]}]}
        return {"epoch": 800, "arch": "resnet50", "state_dict": both, "optimizer": optimizer}
    if name == "swav":
        heads = {"module.projection_head.0.weight": two, "module.projection_head.1.running_mean": two[0]}
        return {**under("module.", state), **heads, "module.prototypes.weight": two}
    if name == "byol":
        momentum = under("student_backbone.", {key: value + 1 for key, value in state.items()})
        heads = {"projection_head.layers.0.weight": two, "online_classifier.linear.weight": two}
        wrapped = {**under("backbone.", state), **momentum, **heads}
        return {"epoch": 99, "pytorch-lightning_version": "2.1.0", "state_dict": wrapped, "hyper_parameters": {"n": 1}}
    if name == "simclr":
        return {"state_dict": OrderedDict(state)}  # with fc, the linear classifier
    if name == "dino":
        return under("", state)
    return under("", state)  # barlow-twins, vicreg: the trunk alone


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub folder for the test."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def serve(tmp_path, hub, monkeypatch):
    """Puts a file in the place of a public one: its address is a local server, its known hash its own."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def put(name: str, content: dict, **changes) -> None:
        torch.save(content, folder / f"{name}.pth")
        url = f"http://127.0.0.1:{server.server_port}/{name}.pth"
        kind, _, digits = CHECKPOINTS[name].digest.partition(":")
        own = kind and hashlib.new(kind, (folder / f"{name}.pth").read_bytes()).hexdigest()[: len(digits)]
        changes = {"url": url, "digest": kind and f"{kind}:{own}", **changes}
        monkeypatch.setitem(checkpoints.CHECKPOINTS, name, replace(CHECKPOINTS[name], **changes))

    put.folder = folder
    yield put
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_public_layout_gives_the_pooled_features_of_the_network_it_was_saved_from(serve, name):
    teacher = resnet()
    serve(name, published(name, teacher.state_dict()), architecture="resnet18")
    network = load_network("resnet18", weights=name, pooling="spoc")
    raw = images().abs() % 1  # RGB in [0, 1]
    entry = CHECKPOINTS[name]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (entry.mean, entry.std))
    seen = (raw - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)  # what `to_tensor` gives
    torch.testing.assert_close(teacher.fc(network.pooled(seen)), teacher((raw - mean) / std), atol=1e-4, rtol=1e-4)


def test_a_resnet50_of_moco_loads_once_and_is_held_to_its_first_hash(serve, hub):
    teacher = resnet(50)
    serve("moco-v2", published("moco-v2", teacher.state_dict()))
    network = load_network("resnet50", weights="moco-v2", pooling="spoc")
    torch.testing.assert_close(teacher.fc(network.pooled(images(1))), teacher(images(1)), atol=1e-4, rtol=1e-4)
    assert sorted(file.name for file in hub.iterdir()) == ["moco-v2-moco-v2.pth", "moco-v2-moco-v2.pth.sha256"]
    (serve.folder / "moco-v2.pth").unlink()
    assert get_checkpoint("moco-v2") == hub / "moco-v2-moco-v2.pth"  # from the hub, not from the server
    with (hub / "moco-v2-moco-v2.pth").open("ab") as file:
        file.write(b"changed")
    with pytest.raises(ValueError, match="moco-v2.pth' have sha256 .* when they were loaded first; delete"):
        get_checkpoint("moco-v2")


@pytest.mark.parametrize("name", [name for name, entry in CHECKPOINTS.items() if entry.digest])
def test_a_download_with_another_hash_than_published_is_deleted(serve, hub, name):
    kind, _, digits = CHECKPOINTS[name].digest.partition(":")
    serve(name, {"state_dict": {}}, digest=CHECKPOINTS[name].digest)
    with pytest.raises(ValueError, match=f"has {kind} .*, expected {digits}...; it was deleted"):
        load_network("resnet50", weights=name)
    assert list(hub.iterdir()) == []


def test_the_table_is_complete():
    for name, entry in CHECKPOINTS.items():
        assert entry.url.startswith("https://") and entry.licence and entry.source, name
        assert entry.architecture == "resnet50" and entry.epochs > 0, name
        assert re.fullmatch(r"((md5|sha256):[0-9a-f]{8,64})?", entry.digest), name
        assert len(entry.mean) == len(entry.std) == 3 and min(entry.std) > 0, name
    timm = pytest.importorskip("timm")
    for name in TIMM_NAMES.values():
        config = timm.get_pretrained_cfg(name.removeprefix("timm/"))
        assert config.license == "apache-2.0" and (config.mean, config.std) == (MEAN, STD), name


def test_a_torch_checkpoint_is_read_from_its_path_whatever_its_layout(tmp_path):
    teacher = resnet()
    for name in ("moco-v2", "swav", "byol", "simclr", "vicreg"):
        torch.save(published(name, teacher.state_dict()), tmp_path / f"{name}.pth.tar")
        network = load_network("resnet18", weights=tmp_path / f"{name}.pth.tar", pooling="spoc")
        torch.testing.assert_close(teacher.fc(network.pooled(images())), teacher(images()), atol=1e-4, rtol=1e-4)


def test_older_checkpoints_without_counts_of_batches_fit(tmp_path):
    state = {key: value for key, value in resnet().state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_network("resnet18", weights=tmp_path / "old.pth")(images()).isfinite().all()


def test_mean_and_std_stay_with_a_network_that_is_saved(serve, tmp_path):
    serve("simclr", published("simclr", resnet().state_dict()), architecture="resnet18")
    network = load_network("resnet18", weights="simclr")
    assert (network.mean, network.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    save_network(network, tmp_path / "net.safetensors")
    again = load_network("resnet18", weights=tmp_path / "net.safetensors")
    assert torch.equal(again(images()), network(images()))
    save_network(load_network("resnet18"), tmp_path / "plain.safetensors")
    plain = load_weights(again, tmp_path / "plain.safetensors")
    assert (plain.mean, plain.std) == (MEAN, STD)


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"state_dict": {"conv1.weight": evil}}])
@pytest.mark.parametrize("write", ["pickle", "zip", "legacy"])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run_it(tmp_path, wrap, write):
    path, trace = tmp_path / "evil.pth", tmp_path / "ran"
    if write == "pickle":
        path.write_bytes(pickle.dumps(wrap(RunsCode(trace)), protocol=2))
    else:
        torch.save(wrap(RunsCode(trace)), path, _use_new_zipfile_serialization=write == "zip")
    with pytest.raises(ValueError, match="'evil.pth' holds more than tensors, which could run code") as caught:
        load_network("resnet18", weights=path)
    assert not trace.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_checkpoint_is_one_sentence(tmp_path, new, part):
    path = tmp_path / "half.pth"
    state = {"conv1.weight": torch.zeros(64, 64), "bn1.weight": torch.zeros(64)}
    torch.save(state, path, _use_new_zipfile_serialization=new)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(ValueError, match="'half.pth' is not a whole torch checkpoint") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(3), {"state_dict": 7}])
def test_a_checkpoint_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="'other.pth' holds no tensors under their keys"):
        read_checkpoint(tmp_path / "other.pth")


def test_a_checkpoint_of_another_architecture_is_refused_with_what_is_missing_and_unknown(tmp_path):
    torch.save({"module.encoder_q.patch_embed.weight": torch.zeros(2)}, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match="'vit.pth' does not fit resnet18: 100 keys missing") as caught:
        load_network("resnet18", weights=tmp_path / "vit.pth")
    message = str(caught.value)
    missing = message.split("keys missing (")[1].split(")")[0].split(", ")
    assert {"bn1.bias", "conv1.weight", "layer1.0: 10", "layer4.0: 15", "layer4.1: 10"} <= set(missing)
    assert sum(int(group.partition(": ")[2] or 1) for group in missing) == 100  # every one of them
    assert message.endswith("1 unknown (module.encoder_q.patch_embed.weight), 0 of another shape.")
    assert len(message) < 500
    torch.save(resnet(34).state_dict(), tmp_path / "34.pth")
    with pytest.raises(
        ValueError,
        match=r"'34.pth' does not fit resnet18: 0 keys missing, 96 unknown \(layer1.2: 12, .*layer4.2: 12",
    ):
        load_network("resnet18", weights=tmp_path / "34.pth")
    state = resnet().state_dict()
    del state["layer3.0.conv2.weight"]
    torch.save(state | {"layer9.weight": torch.zeros(1)}, tmp_path / "one.pth")
    with pytest.raises(ValueError, match=r"1 keys missing \(layer3.0.conv2.weight\), 1 unknown \(layer9.weight\)"):
        load_network("resnet18", weights=tmp_path / "one.pth")


def test_weights_that_are_not_there_or_of_another_network_are_named():
    with pytest.raises(ValueError, match=r"no weights 'moco-v3'; give none, imagenet.*Did you mean 'moco-v2'\?"):
        load_network("resnet50", weights="moco-v3")
    with pytest.raises(ValueError, match="weights 'moco-v2' are of resnet50, not of resnet18; give 'imagenet'"):
        load_network("resnet18", weights="moco-v2")
    with pytest.raises(ValueError, match="'imagenet' are of another kind of network.*give 'pretrained'"):
        load_network("dinov2-vits14", weights="imagenet")
    with pytest.raises(FileNotFoundError, match="no weights 'runs/moco-v2'"):
        load_network("resnet50", weights="runs/moco-v2")
