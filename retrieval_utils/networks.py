"""Backbone + pooling + head = `DescriptorNetwork`: images in, one L2-normalised descriptor an image out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet

from retrieval_utils.pooling import l2_normalize, make_pooling

BACKBONES = ("resnet18-thin", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


class DescriptorNetwork(nn.Module):
    """forward: images (B, 3, H, W) float32, ImageNet-normalised -> descriptors (B, D) float32, L2-normalised.

    settings: what `load_network` needs to build it again (name, pooling). dim: D, the channels C of the last feature
    map, or the outputs of the head. The head, a linear layer after pooling and a first normalisation, is where a
    network learns its whitening (Radenovic et al. 2018; Revaud et al. 2019); off the shelf there is none.
    """

    def __init__(self, trunk: nn.Module, pooling: nn.Module, channels: int, settings: dict[str, str]):
        super().__init__()
        self.trunk, self.pooling, self.settings = trunk, pooling, settings
        self.channels, self.dim, self.head = channels, channels, nn.Identity()

    def add_head(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Puts a linear head after pooling: weight (D, C), bias (D,)."""
        self.dim = len(weight)
        self.head = nn.Linear(self.channels, self.dim)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, C, h, w) before pooling; h and w are a 32nd (thin: a 16th) of the image's."""
        return self.trunk(images)

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (B, C) before normalisation: what projection and classification heads are fed."""
        return self.pooling(self.features(images))  # (B, C)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        descriptors = l2_normalize(self.pooled(images))  # (B, C)
        return descriptors if isinstance(self.head, nn.Identity) else l2_normalize(self.head(descriptors))  # (B, D)


def load_network(name: str, weights: str | Path = "none", pooling: str = "gem", seed: int = 0) -> DescriptorNetwork:
    """A descriptor network by name.

    name: one of BACKBONES. weights: "none" (random, drawn with `seed`), "imagenet" (torchvision's IMAGENET1K_V1,
    downloaded and checked against its hash), or the path of a file written by `save_network`.
    pooling: "gem" (Radenovic et al. 2018), "mac" or "spoc". Raises ValueError or FileNotFoundError, one sentence.
    """
    if name not in BACKBONES:
        raise ValueError(f"There is no network '{name}'; choose one of {', '.join(BACKBONES)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "resnet18-thin":
            resnet = _thin_resnet18()
        else:
            resnet = models.get_model(name, weights=None)
        settings = {"name": name, "pooling": pooling}
        network = DescriptorNetwork(_trunk(resnet), make_pooling(pooling), resnet.fc.in_features, settings)
    if str(weights) == "imagenet":
        network.trunk.load_state_dict(_trunk_state(_imagenet_state(name), network.trunk))
    elif str(weights) != "none":
        load_weights(network, weights)
    return network.eval()


def _thin_resnet18(width: int = 32) -> ResNet:
    """ResNet-18 at half its width with a 3 x 3 stem, and no stride in its last stage: 64 pixels keep a 4 x 4 map.

    On two CPU cores it trains four times faster than with the stride moved from the max-pooling to the last stage.
    """
    resnet = ResNet(BasicBlock, (2, 2, 2, 2))
    resnet.inplanes = width
    resnet.conv1, resnet.bn1 = nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
    for stage, stride in enumerate((1, 2, 2, 1)):
        setattr(resnet, f"layer{stage + 1}", resnet._make_layer(BasicBlock, width << stage, 2, stride=stride))
    resnet.fc = nn.Linear(width << 3, 1000)
    for module in resnet.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return resnet


_STAGES = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


def _trunk(resnet: ResNet) -> nn.Sequential:
    """Everything before average pooling, under torchvision's own layer names, so that its checkpoints fit."""
    trunk = nn.Sequential()
    for stage in _STAGES:
        trunk.add_module(stage, getattr(resnet, stage))
    return trunk


def _imagenet_state(name: str) -> dict[str, torch.Tensor]:
    try:
        weights = models.get_model_weights(name)["IMAGENET1K_V1"]
    except (KeyError, ValueError):
        message = f"There are no ImageNet weights for '{name}'; take resnet18 or larger, or weights='none'."
        raise ValueError(message) from None
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise OSError(f"The ImageNet weights of '{name}' could not be downloaded ({error}); go online once.") from None


def _trunk_state(state: dict[str, torch.Tensor], trunk: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if key.split(".")[0] in _STAGES}


def save_network(network: DescriptorNetwork, path: str | Path) -> str:
    """Writes weights and settings as safetensors, under the final name only when whole; returns the file's sha256."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    save_file(state, part, metadata={"settings": json.dumps(network.settings)})
    part.replace(path)
    return file_sha256(path)


def load_weights(network: DescriptorNetwork, path: str | Path) -> DescriptorNetwork:
    """Loads a file of `save_network` into `network`.

    Raises FileNotFoundError, or ValueError when the file is truncated or belongs to another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There are no weights '{path}'; give 'none', 'imagenet' or the path of a checkpoint.")
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except SafetensorError as error:
        message = f"The checkpoint '{path.name}' is not a whole safetensors file ({error}); train or get it again."
        raise ValueError(message) from None
    if {"head.weight", "head.bias"} <= state.keys() and state["head.weight"].shape[1:] == (network.channels,):
        network.add_head(state["head.weight"], state["head.bias"])
    own = network.state_dict()
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if missing or foreign or shapes:
        raise ValueError(
            f"The checkpoint '{path.name}' does not fit {network.settings['name']}: {len(missing)} keys missing "
            f"{missing[:3]}, {len(foreign)} unknown {foreign[:3]}, {len(shapes)} of another shape {shapes[:3]}."
        )
    network.load_state_dict(state)
    return network


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve_device(device: str = "auto") -> torch.device:
    """The first CUDA card if there is one, else the CPU, for "auto"; ValueError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ValueError(f"'{device}' is not a device; give auto, cpu, cuda or cuda:N.") from None
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        cards = torch.cuda.device_count()
        raise ValueError(f"There is no device '{device}': torch sees {cards} CUDA cards; use cpu or auto.")
    return wanted
