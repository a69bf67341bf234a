"""From feature maps to one vector an image, and from feature maps to where two images match."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def mac(x: Tensor) -> Tensor:
    """Maximum activations of convolutions (Tolias et al., ICLR 2016): f_c = max_ij x_cij, (B, C, H, W) -> (B, C)."""
    return _feature_maps(x).amax(dim=(2, 3))  # (B, C)


def spoc(x: Tensor) -> Tensor:
    """Mean-pooled convolutions (Babenko and Lempitsky, ICCV 2015): f_c = 1/(HW) sum_ij x_cij, (B, C, H, W) -> (B, C).

    Without the paper's centre prior, and its sum over the places divided by their number.
    """
    return _feature_maps(x).mean(dim=(2, 3))  # (B, C)


def gem(x: Tensor, p: float | Tensor = 3.0, eps: float = 1e-6) -> Tensor:
    """Generalised mean (Radenovic et al., TPAMI 2018): mean(x^p)^(1/p), (B, C, H, W) -> (B, C).

    p = 1 is SPoC, p -> infinity is MAC. Values below eps are lifted to eps, so maps should come out of a ReLU.
    Computed in float32 or wider. Raises ValueError for another shape or p <= 0.
    """
    x = _feature_maps(x)
    if not isinstance(p, Tensor) and not p > 0:
        raise ValueError(f"GeM needs p > 0, got {p}: 1 is mean pooling, 3 is usual.")
    x = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x).clamp(min=eps)  # (B, C, H, W)
    # Powers of values in (0, 1] cannot overflow; the scale cancels, so no gradient needs to pass through it.
    scale = x.detach().amax(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    means = (x / scale).pow(p).mean(dim=(2, 3))  # (B, C)
    return means.pow(1 / p) * scale[:, :, 0, 0]  # (B, C)


def rmac_regions(height: int, width: int, levels: int = 3, overlap: float = 0.4) -> list[tuple[int, int, int]]:
    """The squares (top, left, side) of R-MAC on a map of height x width cells, level by level, in reading order.

    Level l = 1 .. levels holds squares of side floor(2 min(H, W) / (l + 1)), l of them along the shorter side and
    l + m - 1 along the longer one, spread evenly from edge to edge. m is such that neighbours on level 1 share as near
    to `overlap` of their area as they can; it is 1 for a square map (Tolias et al., ICLR 2016, section 3.2).
    """
    short, long = sorted((height, width))
    extra = 0  # m - 1
    if long > short:
        most = 1 + math.ceil((long - short) / (short * (1 - overlap)))
        shared = [1 - (long - short) / (steps * short) for steps in range(1, most + 1)]
        extra = 1 + min(range(most), key=lambda i: abs(shared[i] - overlap))
    regions = []
    for level in range(1, levels + 1):
        side = max(2 * short // (level + 1), 1)
        tops = _spread(height - side, level + (extra if height > width else 0))
        lefts = _spread(width - side, level + (extra if width > height else 0))
        regions += [(top, left, side) for top in tops for left in lefts]
    return regions


def _spread(last: int, count: int) -> list[int]:
    """`count` whole positions from 0 to `last`, evenly apart, rounded down."""
    return [i * last // (count - 1) for i in range(count)] if count > 1 else [0]


def rmac(
    x: Tensor, levels: int = 3, overlap: float = 0.4, whitening: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Regional maximum activations (Tolias et al., ICLR 2016): (B, C, H, W) -> (B, C), or (B, D) with whitening.

    Sum over the squares R of `rmac_regions` of w(mac(x_R) / |mac(x_R)|), every term of length 1. w is the identity, or
    `whitening`, which takes region vectors (n, C) to (n, D), L2-normalised, as `PCAWhitening` does.
    Raises ValueError for another shape, levels < 1, or an overlap outside [0, 1).
    """
    x = _feature_maps(x)
    if levels < 1 or not 0 <= overlap < 1:
        raise ValueError(f"R-MAC needs levels >= 1 and an overlap in [0, 1), got {levels} and {overlap}.")
    total = 0
    for top, left, side in rmac_regions(x.shape[2], x.shape[3], levels, overlap):
        region = l2_normalize(mac(x[:, :, top : top + side, left : left + side]))  # (B, C)
        total = total + (region if whitening is None else whitening(region))  # (B, D)
    return total


def crow(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Cross-dimensional weighting (Kalantidis et al., ECCV workshops 2016): (B, C, H, W) -> (B, C).

    F_c = I_c sum_ij S_ij x_cij, with the paper's exponents a = b = 2. Places count by the strength of all channels
    there, S = (T / |T|)^(1/2) with T_ij = sum_c x_cij; channels count more the rarer they fire,
    I_c = log((C eps + sum_k Q_k) / (eps + Q_c)) with Q_c the share of places where x_c > 0. No gradient passes I.
    Maps should come out of a ReLU. Computed in float32 or wider.
    """
    x = _feature_maps(x)
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # (B, C, H, W)
    strength = x.sum(dim=1)  # (B, H, W)
    norm = strength.flatten(1).norm(dim=1)[:, None, None]  # (B, 1, 1)
    places = (strength / norm.clamp(min=1e-12)).clamp(min=1e-12).sqrt()  # (B, H, W) a root has no slope at 0
    active = (x > 0).to(x.dtype).mean(dim=(2, 3))  # (B, C)
    channels = torch.log((x.shape[1] * eps + active.sum(dim=1, keepdim=True)) / (eps + active))  # (B, C)
    return channels * (x * places[:, None]).sum(dim=(2, 3))  # (B, C)


class MAC(nn.Module):
    """Module form of `mac`."""

    def forward(self, x: Tensor) -> Tensor:
        return mac(x)


class SPoC(nn.Module):
    """Module form of `spoc`."""

    def forward(self, x: Tensor) -> Tensor:
        return spoc(x)


class GeM(nn.Module):
    """Module form of `gem` with one learnable exponent for all channels."""

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        if not p > 0:
            raise ValueError(f"GeM needs p > 0, got {p}: 1 is mean pooling, 3 is usual.")
        self.p = nn.Parameter(torch.tensor([float(p)]))  # (1,)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return gem(x, self.p, self.eps)

    def extra_repr(self) -> str:
        return f"p={self.p.item():.3g}, eps={self.eps:g}"


class RMAC(nn.Module):
    """Module form of `rmac`."""

    def __init__(
        self, levels: int = 3, overlap: float = 0.4, whitening: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.levels, self.overlap, self.whitening = levels, overlap, whitening

    def forward(self, x: Tensor) -> Tensor:
        return rmac(x, self.levels, self.overlap, self.whitening)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, overlap={self.overlap:g}" + (f", {self.whitening}" if self.whitening else "")


class CroW(nn.Module):
    """Module form of `crow`."""

    def forward(self, x: Tensor) -> Tensor:
        return crow(x)


POOLINGS = {"gem": GeM, "mac": MAC, "spoc": SPoC, "rmac": RMAC, "crow": CroW}


def make_pooling(name: str) -> nn.Module:
    """The pooling module of that name: one of POOLINGS, with its usual settings. Raises ValueError for another name."""
    if name not in POOLINGS:
        raise ValueError(f"There is no pooling {name!r}; choose one of {', '.join(POOLINGS)}.")
    return POOLINGS[name]()


def l2_normalize(x: Tensor, eps: float = 1e-12) -> Tensor:
    """Vectors along the last dimension (..., D), scaled to length 1; a zero vector stays zero."""
    return nn.functional.normalize(x, dim=-1, eps=eps)


def similarity_maps(features_a: Tensor, features_b: Tensor) -> tuple[Tensor, Tensor]:
    """For every location of two images its best cosine match in the other one, in [-1, 1].

    features_a (C, h_a, w_a), features_b (C, h_b, w_b) -> (h_a, w_a), (h_b, w_b). Raises ValueError for other shapes.
    """
    if features_a.ndim != 3 or features_b.ndim != 3 or len(features_a) != len(features_b):
        shapes = f"{tuple(features_a.shape)} and {tuple(features_b.shape)}"
        raise ValueError(f"Two images need features (C, h, w) with the same C, got {shapes}.")
    a = l2_normalize(features_a.flatten(1).T)  # (h_a * w_a, C)
    b = l2_normalize(features_b.flatten(1).T)  # (h_b * w_b, C)
    cosines = a @ b.T  # (h_a * w_a, h_b * w_b)
    return cosines.amax(dim=1).view(features_a.shape[1:]), cosines.amax(dim=0).view(features_b.shape[1:])


def _feature_maps(x: Tensor) -> Tensor:
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"Pooling needs feature maps (B, C, H, W) with H, W > 0, got {tuple(x.shape)}.")
    return x
