"""AutoRet's network: patches of an image through one convolutional network, fused by a recurrent layer; reconstructed.

Known of the paper (Sensors 22(6):2188, 2022): embeddings of several patches are fused by a recurrent network, and
spatial pooling makes it independent of resolution. The rest is in `PatchSettings`, a choice of ours each.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrieval_utils.checkpoints import read_safetensors
from retrieval_utils.networks import BACKBONES, DescriptorNetwork, load_network, load_weights
from retrieval_utils.pooling import _spread, l2_normalize

MIN_PATCH = 8  # pixels: the small network leaves one cell of it
FUSIONS = ("lstm", "mean")


@dataclass(frozen=True)
class PatchSettings:
    """How an image becomes a sequence of patches, and the sequence one embedding; the paper's values are unknown."""

    backbone: str = "small"  # three convolutions of stride 2, or one of networks.BACKBONES without its pooling
    width: int = 32  # channels after the first convolution of "small"; doubled by each further one
    grid: int = 2  # patches along each side; 1: the whole image is the only one
    overlap: float = 0.5  # of neighbouring patches, share of their side
    whole: bool = True  # the whole image, shrunk to the size of a patch, ends the sequence
    snake: bool = False  # every second row of patches backwards, so that neighbours in the sequence touch
    rates: int = 3  # atrous pooling: dilations 1 to this, side by side
    pyramid: int = 2  # spatial pyramid: grids of 1 x 1 to this x this
    patch_dim: int = 128  # embedding of a patch
    fusion: str = "lstm"  # "lstm", bidirectional, or the control "mean" over the patches
    hidden: int = 128  # of the recurrent layer, each direction
    dim: int = 128  # embedding of the image

    def __post_init__(self) -> None:
        if self.backbone != "small" and self.backbone not in BACKBONES:
            names = ", ".join(("small", *BACKBONES))
            raise ValueError(f"There is no backbone '{self.backbone}' for patches; choose one of {names}.")
        if self.fusion not in FUSIONS:
            raise ValueError(f"There is no fusion '{self.fusion}'; choose {' or '.join(FUSIONS)}.")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"The overlap is a share of a patch's side in [0, 1), got {self.overlap}.")
        for name in ("width", "grid", "rates", "pyramid", "patch_dim", "hidden", "dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"The setting {name} must be at least 1, got {getattr(self, name)}.")

    def __str__(self) -> str:
        patches = "whole image" if self.grid == 1 else f"{self.grid} x {self.grid} patches, overlap {self.overlap:g}"
        whole = " and the whole image" if self.whole and self.grid > 1 else ""
        return f"{patches}{whole}, {self.fusion}"


class AutoRetNetwork(DescriptorNetwork):
    """forward: images (B, 3, H, W), of any H and W -> descriptors (B, D), L2-normalised. pooled: embeddings (B, D).

    The loss works on Euclidean distances of the embeddings, which are not normalised; a shift of all of them changes
    nothing there. Cosines are another matter: from far away, everything lies in one direction. So `centre`, the mean
    embedding of the training images, is subtracted before descriptors are normalised.
    """

    def __init__(self, settings: PatchSettings):
        trunk, channels = _backbone(settings)
        known = {"name": "autoret", "pooling": str(settings), "architecture": asdict(settings)}
        super().__init__(trunk, SpatialPooling(channels, settings), settings.dim, known)
        self.patching = settings
        self.fusion = _Recurrent(settings) if settings.fusion == "lstm" else _Mean(settings)
        self.embed = nn.Linear(2 * settings.hidden, settings.dim)
        self.register_buffer("centre", torch.zeros(settings.dim))

    def pooled(self, images: Tensor) -> Tensor:
        """Embeddings (B, D), neither centred nor normalised, of images (B, 3, H, W)."""
        patches = image_patches(self.renormalize(images), self.patching)  # (B, T, 3, h, w)
        embedded = self.pooling(self.trunk(patches.flatten(0, 1)))  # (B * T, P)
        return self.embed(self.fusion(embedded.unflatten(0, patches.shape[:2])))  # (B, D)

    def forward(self, images: Tensor) -> Tensor:
        descriptors = l2_normalize(self.pooled(images) - self.centre)  # (B, D)
        return descriptors if isinstance(self.head, nn.Identity) else l2_normalize(self.head(descriptors))


def image_patches(images: Tensor, settings: PatchSettings) -> Tensor:
    """Patches (B, T, C, h, w) of images (B, C, H, W), of one size, in reading order; T = grid^2, + 1 for the whole.

    A patch has the shape of its image: its side is the image's divided by 1 + (grid - 1) (1 - overlap).
    Raises ValueError for an image whose patches would have a side below MIN_PATCH.
    """
    height, width = images.shape[-2:]
    parts = 1 + (settings.grid - 1) * (1 - settings.overlap)
    h, w = int(height / parts), int(width / parts)
    if min(h, w) < MIN_PATCH:
        raise ValueError(
            f"An image of {width} x {height} pixels is too small for {settings.grid} x {settings.grid} patches of at "
            f"least {MIN_PATCH} pixels; take larger images or a smaller grid."
        )
    tops, lefts = _spread(height - h, settings.grid), _spread(width - w, settings.grid)
    corners = [
        (top, left) for row, top in enumerate(tops) for left in (lefts[::-1] if settings.snake and row % 2 else lefts)
    ]
    patches = [images[..., top : top + h, left : left + w] for top, left in corners]
    if settings.whole and settings.grid > 1:
        patches.append(F.interpolate(images, (h, w), mode="bilinear", antialias=True))
    return torch.stack(patches, dim=1)  # (B, T, C, h, w)


class SpatialPooling(nn.Module):
    """Feature maps (B, C, h, w) of any size -> (B, P): atrous pooling, then a spatial pyramid, then a linear layer.

    Atrous pooling: convolutions of growing dilation side by side, a large field of view (Chen et al., DeepLab, 2017).
    Spatial pyramid: maxima over grids of 1 x 1, 2 x 2, ... cells, a vector of one length whatever the size of the map
    (He et al., ECCV 2014).
    """

    def __init__(self, channels: int, settings: PatchSettings):
        super().__init__()
        part, self.pyramid = max(1, channels // 4), settings.pyramid
        self.atrous = nn.ModuleList(_convolution(channels, part, dilation=rate + 1) for rate in range(settings.rates))
        self.mix = _convolution(settings.rates * part, settings.patch_dim, kernel=1)
        cells = sum(level**2 for level in range(1, settings.pyramid + 1))
        self.project = nn.Linear(cells * settings.patch_dim, settings.patch_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(torch.cat([branch(x) for branch in self.atrous], dim=1))  # (B, P, h, w)
        levels = [F.adaptive_max_pool2d(x, level).flatten(1) for level in range(1, self.pyramid + 1)]  # (B, P l l)
        return self.project(torch.cat(levels, dim=1))  # (B, P)


class _Recurrent(nn.Module):
    """Patches (B, T, P) -> (B, 2 H): the last state of each direction, which has seen every patch."""

    def __init__(self, settings: PatchSettings):
        super().__init__()
        self.lstm = nn.LSTM(settings.patch_dim, settings.hidden, batch_first=True, bidirectional=True)

    def forward(self, patches: Tensor) -> Tensor:
        _, (states, _) = self.lstm(patches)  # (2, B, H)
        return states.transpose(0, 1).flatten(1)  # (B, 2 H)


class _Mean(nn.Module):
    """The control: each patch through a layer of the same width, then their mean; no order, no memory."""

    def __init__(self, settings: PatchSettings):
        super().__init__()
        self.each = nn.Linear(settings.patch_dim, 2 * settings.hidden)

    def forward(self, patches: Tensor) -> Tensor:
        return self.each(patches).tanh().mean(dim=1)  # (B, T, P) -> (B, 2 H)


def load_autoret(weights: str | Path = "none", seed: int = 0, settings: PatchSettings | None = None) -> AutoRetNetwork:
    """An AutoRet network in evaluation mode: random, drawn with `seed`, or from a file of `save_network`.

    settings: of a random one; a file names its own. Raises FileNotFoundError, or ValueError for a file of another
    network.
    """
    if str(weights) != "none":
        if not Path(weights).is_file():
            raise FileNotFoundError(f"There are no weights '{weights}' of AutoRet; give 'none' or the path of a file.")
        saved = json.loads(read_safetensors(Path(weights))[1].get("settings", "{}"))
        if "architecture" not in saved:
            raise ValueError(f"'{weights}' holds no AutoRet network; give a file that save_network wrote of one.")
        settings = PatchSettings(**saved["architecture"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AutoRetNetwork(settings or PatchSettings()).eval()
    return network if str(weights) == "none" else load_weights(network, weights)


def _backbone(settings: PatchSettings) -> tuple[nn.Module, int]:
    if settings.backbone != "small":
        network = load_network(settings.backbone, seed=torch.initial_seed())
        return network.trunk, network.channels
    width = settings.width
    channels = (3, width, 2 * width, 4 * width)
    layers = [_convolution(a, b, stride=2) for a, b in zip(channels, channels[1:], strict=False)]
    return nn.Sequential(*layers), channels[-1]


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
