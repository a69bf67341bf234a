from __future__ import annotations

import pytest
import torch
from torchvision import models

from retrieval_utils.networks import load_network, resolve_device, save_network


def images(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "dim", "side"), [("resnet18-thin", 256, 4), ("resnet18", 512, 2)])
def test_descriptors_are_unit_vectors_of_the_stated_dimension(name, dim, side):
    network = load_network(name)
    assert network.features(images()).shape == (2, dim, side, side)
    descriptors = network(images())
    assert descriptors.shape == (2, network.dim) == (2, dim)
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(2))


def test_random_weights_follow_the_seed_and_leave_the_global_stream_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (load_network("resnet18-thin", seed=seed)(images()) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_imagenet_weights_of_torchvision_fit_under_their_own_keys(monkeypatch):
    classifier = models.resnet18(weights=None).eval()
    weights = models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, **_: classifier.state_dict())
    network = load_network("resnet18", weights="imagenet", pooling="spoc")
    pooled = network.pooled(images())  # (2, 512), what torchvision feeds its last layer
    torch.testing.assert_close(classifier.fc(pooled), classifier(images()))


def test_offline_imagenet_weights_are_one_clear_sentence(monkeypatch):
    def offline(self, **_):
        raise OSError("no route to host")

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(OSError, match="weights of 'resnet18' could not be downloaded .*no route"):
        load_network("resnet18", weights="imagenet")
    with pytest.raises(ValueError, match="no ImageNet weights for 'resnet18-thin'"):
        load_network("resnet18-thin", weights="imagenet")


def test_a_saved_network_comes_back_exactly(tmp_path):
    network = load_network("resnet18-thin", seed=5)
    first = save_network(network, tmp_path / "net.safetensors")
    assert first == save_network(network, tmp_path / "again.safetensors")
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".part"] == []
    loaded = load_network("resnet18-thin", weights=tmp_path / "net.safetensors")
    assert torch.equal(loaded(images()), network(images()))


def test_a_head_is_saved_and_found_again(tmp_path):
    network = load_network("resnet18-thin")
    network.add_head(torch.randn(8, 256, generator=torch.Generator().manual_seed(0)), torch.zeros(8))
    save_network(network, tmp_path / "net.safetensors")
    loaded = load_network("resnet18-thin", weights=tmp_path / "net.safetensors")
    assert loaded.dim == 8
    assert torch.equal(loaded(images()), network(images()))
    torch.testing.assert_close(loaded(images()).norm(dim=1), torch.ones(2))


def test_a_checkpoint_that_does_not_fit_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "net.safetensors"
    save_network(load_network("resnet18-thin"), path)
    with pytest.raises(ValueError, match="'net.safetensors' does not fit resnet18: .* of another shape"):
        load_network("resnet18", weights=path)
    with pytest.raises(ValueError, match=r"does not fit resnet18-thin: 0 keys missing \[\], 1 unknown \['pooling.p'\]"):
        load_network("resnet18-thin", weights=path, pooling="mac")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="'net.safetensors' is not a whole safetensors file"):
        load_network("resnet18-thin", weights=path)
    with pytest.raises(FileNotFoundError, match="no weights '.*gone.safetensors'"):
        load_network("resnet18-thin", weights=tmp_path / "gone.safetensors")


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match="no network 'resnet51'; choose one of resnet18-thin, resnet18"):
        load_network("resnet51")


def test_a_device_that_is_not_there_is_named():
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="no device 'cuda:99'"):
        resolve_device("cuda:99")
    with pytest.raises(ValueError, match="'gpu7' is not a device"):
        resolve_device("gpu7")
