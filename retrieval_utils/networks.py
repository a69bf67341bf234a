"""Backbone + pooling + head = `DescriptorNetwork`: images in, one L2-normalised descriptor an image out."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet

from retrieval_utils.checkpoints import (
    CHECKPOINTS,
    TIMM_NAMES,
    TORCH_SUFFIXES,
    check_fit,
    file_sha256,
    get_checkpoint,
    near,
    read_checkpoint,
    read_safetensors,
    trunk_state,
)
from retrieval_utils.pooling import SPoC, l2_normalize, make_pooling
from retrieval_utils.timm_trunk import TimmTrunk
from retrieval_utils.transforms import MEAN, STD

BACKBONES = ("resnet18-thin", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


class DescriptorNetwork(nn.Module):
    """forward: images (B, 3, H, W) float32, ImageNet-normalised -> descriptors (B, D) float32, L2-normalised.

    settings: what `load_network` needs to build it again (name, pooling), and mean and std of the pixel values that
    its weights expect if they are not ImageNet's; the network converts to them itself. dim: D, the channels C of the
    last feature map, or the outputs of the head. The head, a linear layer after pooling and a first normalisation, is
    where a network learns its whitening (Radenovic et al. 2018; Revaud et al. 2019); off the shelf there is none.
    """

    def __init__(self, trunk: nn.Module, pooling: nn.Module, channels: int, settings: dict[str, object]):
        super().__init__()
        self.trunk, self.pooling = trunk, pooling
        self.channels, self.dim, self.head = channels, channels, nn.Identity()
        self.use_settings(settings)

    def use_settings(self, settings: dict[str, object]) -> None:
        """Takes over `settings`: name, pooling, and mean and std (three numbers each, of RGB in [0, 1]) if given."""
        self.settings = settings
        self.mean, self.std = tuple(settings.get("mean", MEAN)), tuple(settings.get("std", STD))
        same = (self.mean, self.std) == (MEAN, STD)
        self.renormalize = nn.Identity() if same else _Renormalize(self.mean, self.std)

    def add_head(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Puts a linear head after pooling: weight (D, C), bias (D,)."""
        self.dim = len(weight)
        self.head = nn.Linear(self.channels, self.dim)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, C, h, w) before pooling; h and w are a 32nd (thin: a 16th) of the image's."""
        return self.trunk(self.renormalize(images))

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (B, C) before normalisation: what projection and classification heads are fed."""
        return self.pooling(self.features(images))  # (B, C)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        descriptors = l2_normalize(self.pooled(images))  # (B, C)
        return descriptors if isinstance(self.head, nn.Identity) else l2_normalize(self.head(descriptors))  # (B, D)


class _Renormalize(nn.Module):
    """Images (B, 3, H, W) normalised with ImageNet's mean and std -> normalised with others."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        scale = torch.tensor(STD) / torch.tensor(std)  # (3,)
        shift = (torch.tensor(MEAN) - torch.tensor(mean)) / torch.tensor(std)  # (3,)
        self.register_buffer("scale", scale.view(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.scale + self.shift  # (B, 3, H, W)


def load_network(name: str, weights: str | Path = "none", pooling: str = "gem", seed: int = 0) -> DescriptorNetwork:
    """A descriptor network by name.

    name: one of BACKBONES, `timm/<name in timm>`, a short name in TIMM_NAMES such as dinov2-vits14, or "autoret", which
    pools in its own way. weights: "none" (random, drawn with `seed`), "imagenet" (torchvision's IMAGENET1K_V1), a name
    in CHECKPOINTS such as "moco-v2" (of a ResNet-50), "pretrained" (for timm: those its name means), or the path of a
    file of `save_network` or, for a ResNet, of a torch checkpoint. What is downloaded is checked against its hash.
    pooling: "gem" (Radenovic et al. 2018), "mac", "spoc", "rmac", "crow", or "cls", a vision transformer's class token.
    Raises ValueError, FileNotFoundError or OSError, one sentence.
    """
    name, weights = TIMM_NAMES.get(name, name), str(weights)
    if name == "autoret":
        from retrieval_utils.recurrent_network import load_autoret  # which builds on this module

        return load_autoret(weights, seed)
    of_timm = name.startswith("timm/")
    if not of_timm and name not in BACKBONES:
        names = [*BACKBONES, "autoret", *TIMM_NAMES]
        raise ValueError(f"There is no network '{name}'; choose one of {', '.join(names)} or timm/NAME.")
    _check_weights(name, weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if of_timm:
            trunk = TimmTrunk(name.removeprefix("timm/"), weights == "pretrained", pooling == "cls")
            channels, expected = trunk.model.num_features, trunk.model.pretrained_cfg
        else:
            resnet = _thin_resnet18() if name == "resnet18-thin" else models.get_model(name, weights=None)
            trunk, channels, expected = _trunk(resnet), resnet.fc.in_features, {}
        pool = SPoC() if of_timm and pooling == "cls" else make_pooling(pooling)
        settings = {"name": name, "pooling": pooling, **_normalization(expected)}
        network = DescriptorNetwork(trunk, pool, channels, settings)
    if weights == "imagenet":
        network.trunk.load_state_dict(trunk_state(_imagenet_state(name), network.trunk.state_dict(), prefix=""))
    elif weights in CHECKPOINTS:
        entry = CHECKPOINTS[weights]
        _load_trunk(network, get_checkpoint(weights), entry.prefix)
        network.use_settings(settings | _normalization({"mean": entry.mean, "std": entry.std}))
    elif weights not in ("none", "pretrained"):
        load_weights(network, weights)
    return network.eval()


def _check_weights(name: str, weights: str) -> None:
    """Raises ValueError or FileNotFoundError unless there may be such weights for the network `name`."""
    of_timm = name.startswith("timm/")
    if weights in ("none", "pretrained" if of_timm else "imagenet"):
        return
    if weights in CHECKPOINTS and name == CHECKPOINTS[weights].architecture:
        return
    if weights in ("imagenet", "pretrained", *CHECKPOINTS):
        own = "'pretrained'" if of_timm else "'imagenet'"
        of = CHECKPOINTS[weights].architecture if weights in CHECKPOINTS else "another kind of network"
        raise ValueError(f"The weights '{weights}' are of {of}, not of {name}; give {own}, 'none' or a path.")
    if not Path(weights).is_file():
        if Path(weights).suffix or len(Path(weights).parts) != 1:
            message = f"There are no weights '{weights}'; give 'none', 'imagenet' or the path of a checkpoint."
            raise FileNotFoundError(message)
        names = ["none", "imagenet", "pretrained", *CHECKPOINTS]
        raise ValueError(
            f"There are no weights '{weights}'; give {', '.join(names)} or the path of a file.{near(weights, names)}"
        )


def _normalization(expected: dict[str, object]) -> dict[str, list[float]]:
    """mean and std for the settings, if they differ from ImageNet's."""
    mean, std = tuple(expected.get("mean", MEAN)), tuple(expected.get("std", STD))
    return {} if (mean, std) == (MEAN, STD) else {"mean": list(mean), "std": list(std)}


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
    """Loads a file of `save_network` into `network`, or a torch checkpoint (.pth, .pt, .tar, .ckpt) into its trunk.

    Raises FileNotFoundError, or ValueError when the file is truncated, holds code or belongs to another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There are no weights '{path}'; give 'none', 'imagenet' or the path of a checkpoint.")
    if path.suffix.lower() in TORCH_SUFFIXES:
        return _load_trunk(network, path)
    state, metadata = read_safetensors(path)
    if {"head.weight", "head.bias"} <= state.keys() and state["head.weight"].shape[1:] == (network.channels,):
        network.add_head(state["head.weight"], state["head.bias"])
    check_fit(state, network.state_dict(), path.name, network.settings["name"])
    network.load_state_dict(state)
    saved = json.loads(metadata.get("settings", "{}"))
    network.use_settings(
        {key: value for key, value in network.settings.items() if key not in ("mean", "std")}
        | {key: saved[key] for key in ("mean", "std") if key in saved}
    )
    return network


def _load_trunk(network: DescriptorNetwork, path: Path, prefix: str | None = None) -> DescriptorNetwork:
    own = network.trunk.state_dict()
    state = trunk_state(read_checkpoint(path), own, prefix)
    check_fit(state, own, path.name, network.settings["name"])
    network.trunk.load_state_dict(state)
    return network


def resolve_device(device: str = "auto") -> torch.device:
    """A device by name; "auto" is the first CUDA card, or the CPU. Raises ValueError for one that is not there."""
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
