"""From feature maps to one vector an image, and from feature maps to where two images match."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mac(x: Tensor) -> Tensor:
    """Maximum activations of convolutions (Tolias et al., ICLR 2016): (B, C, H, W) -> (B, C)."""
    return _feature_maps(x).amax(dim=(2, 3))  # (B, C)


def spoc(x: Tensor) -> Tensor:
    """Mean-pooled convolutions (Babenko and Lempitsky, ICCV 2015), without centre prior: (B, C, H, W) -> (B, C)."""
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


POOLINGS = {"gem": GeM, "mac": MAC, "spoc": SPoC}


def make_pooling(name: str) -> nn.Module:
    """The pooling module called "gem", "mac" or "spoc". Raises ValueError for another name."""
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
