from __future__ import annotations

import pytest
import torch
from torchvision import models

from retrieval_utils.networks import load_network, resolve_device, save_network
from retrieval_utils.transforms import MEAN, STD


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
    with pytest.raises(ValueError, match=r"does not fit resnet18-thin: 0 keys missing, 1 unknown \(pooling.p\), 0 of"):
        load_network("resnet18-thin", weights=path, pooling="mac")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="'net.safetensors' is not a whole safetensors file"):
        load_network("resnet18-thin", weights=path)
    with pytest.raises(FileNotFoundError, match="no weights '.*gone.safetensors'"):
        load_network("resnet18-thin", weights=tmp_path / "gone.safetensors")


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match="no network 'resnet51'; choose one of resnet18-thin, resnet18"):
        load_network("resnet51")


def test_networks_of_timm_give_their_own_features_as_maps():
    network = load_network("timm/resnet18", pooling="spoc", seed=2)
    assert network.features(images()).shape == (2, 512, 2, 2) and network.dim == 512
    expected = network.trunk.model.forward_features(images()).mean((2, 3))  # (2, 512)
    torch.testing.assert_close(network.pooled(images()), expected)
    assert torch.equal(load_network("timm/resnet18", pooling="spoc", seed=2)(images()), network(images()))


def test_a_vision_transformer_takes_any_size_and_gives_patches_or_its_class_token(tmp_path):
    network = load_network("timm/vit_tiny_patch16_224", pooling="spoc")
    model, size = network.trunk.model, 224
    tokens = model.forward_features(network.renormalize(images(1, size)))  # (1, 1 + 14 * 14, 192)
    torch.testing.assert_close(network.pooled(images(1, size)), tokens[:, 1:].mean(1), atol=1e-5, rtol=1e-4)
    assert network.features(torch.zeros(1, 3, 50, 70)).shape == (1, 192, 4, 5)  # padded to whole patches
    save_network(network, tmp_path / "vit.safetensors")
    classes = load_network("timm/vit_tiny_patch16_224", weights=tmp_path / "vit.safetensors", pooling="cls")
    torch.testing.assert_close(classes.pooled(images(1, size)), tokens[:, 0], atol=1e-5, rtol=1e-4)
    assert classes.mean == (0.5, 0.5, 0.5)  # this network's own, not ImageNet's
    raw = images(1, size) * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert torch.allclose(network.renormalize(images(1, size)), (raw - 0.5) / 0.5, atol=1e-6)


def test_dinov2_by_its_short_name_pools_the_class_token_before_the_registers():
    network = load_network("dinov2-vits14-reg", pooling="cls")
    tokens = network.trunk.model.forward_features(images(1, 56))  # (1, 1 + 4 + 16, 384)
    torch.testing.assert_close(network.pooled(images(1, 56)), tokens[:, 0], atol=1e-5, rtol=1e-4)
    assert network.settings["name"] == "timm/vit_small_patch14_reg4_dinov2.lvd142m"


def test_what_timm_does_not_have_is_one_sentence(monkeypatch):
    with pytest.raises(ValueError, match="timm has no network 'resnet18x'. Did you mean 'resnet18'"):
        load_network("timm/resnet18x")
    with pytest.raises(ValueError, match="timm cannot make 'resnet18.nonsense': Invalid pretrained tag"):
        load_network("timm/resnet18.nonsense")
    with pytest.raises(ValueError, match="'resnet18' has no class token for the pooling 'cls'"):
        load_network("timm/resnet18", pooling="cls")
    with pytest.raises(ValueError, match="no pooling 'cls'"):
        load_network("resnet18", pooling="cls")

    def offline(*_, **__):
        raise FileNotFoundError("cannot reach the hub")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(OSError, match="weights of timm's 'resnet18' could not be loaded .cannot reach the hub.; go on"):
        load_network("timm/resnet18", weights="pretrained")


def test_a_device_that_is_not_there_is_named():
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="no device 'cuda:99'"):
        resolve_device("cuda:99")
    with pytest.raises(ValueError, match="'gpu7' is not a device"):
        resolve_device("gpu7")
