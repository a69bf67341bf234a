"""PCA whitening of descriptors, learned on images that are not searched."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 8192  # descriptors turned into float64 at a time


@dataclass(frozen=True, eq=False)
class PCAWhitening:
    """Centre, rotate to the principal axes, divide by variance^power, L2-normalise (Jegou and Chum, ECCV 2012).

    power 0.5 makes every axis count the same; 0.25 keeps half of that step (the value of Revaud et al.'s published
    models); 0 only rotates and cuts.
    """

    mean: Tensor  # (D,) float32
    projection: Tensor  # (dim, D) float32, a row an axis, widest first, already divided by variance^power
    variances: Tensor  # (D,) float32, of all principal axes, widest first
    power: float
    samples: int  # descriptors it was fitted on

    @classmethod
    def fit(cls, descriptors: Tensor, dim: int | None = None, power: float = 0.5, eps: float = 1e-6) -> PCAWhitening:
        """Learn from descriptors (N, D), float; `dim` axes are kept, all D if None. Sums are taken in float64.

        Variances below eps times the largest are lifted to it, so that an axis on which nothing varies adds no noise.
        Raises ValueError for a wrong shape, nan, equal descriptors, dim outside 1..D, and N <= dim.
        """
        _check(descriptors)
        n, d = descriptors.shape
        dim = d if dim is None else dim
        if not 1 <= dim <= d:
            raise ValueError(f"Whitening of {d}-dimensional descriptors keeps 1 to {d} dimensions, got dim={dim}.")
        if n <= dim:
            raise ValueError(
                f"Whitening to {dim} dimensions needs more than {dim} descriptors, got {n}: fit on more or lower dim."
            )
        if not 0 <= power <= 1:
            raise ValueError(f"The power of whitening lies in [0, 1], got {power}: 0.5 is full whitening.")
        mean = descriptors.mean(dim=0, dtype=torch.float64)  # (D,)
        covariance = torch.zeros(d, d, dtype=torch.float64, device=descriptors.device)
        for chunk in descriptors.split(CHUNK):
            centred = chunk.double() - mean  # (n, D)
            covariance.addmm_(centred.T, centred, alpha=1 / (n - 1))
        values, axes = torch.linalg.eigh(covariance)  # (D,) ascending, (D, D) a column an axis
        values, axes = values.flip(0).clamp(min=0), axes.flip(1)
        if values[0] <= 1e-12 * mean.square().sum():
            raise ValueError(f"The {n} descriptors are all equal, so there is no axis to whiten: look at the network.")
        scale = values.clamp(min=eps * values[0])[:dim].pow(-power)  # (dim,)
        projection = (axes[:, :dim] * scale).T.contiguous()  # (dim, D)
        return cls(mean.float(), projection.float(), values.float(), float(power), n)

    def apply(self, descriptors: Tensor) -> Tensor:
        """Descriptors (N, D) -> (N, dim) float32, L2-normalised. Raises ValueError for another D, or nan."""
        _check(descriptors)
        if descriptors.shape[1] != len(self.mean):
            raise ValueError(
                f"The whitening was fitted on {len(self.mean)} dimensions, the descriptors have {descriptors.shape[1]}."
            )
        mean, projection = self.mean.to(descriptors.device), self.projection.to(descriptors.device)
        return torch.nn.functional.normalize((descriptors.float() - mean) @ projection.T, dim=1)  # (N, dim)

    __call__ = apply

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors, fit for safetensors or torch.save; `from_state_dict` reads them back."""
        return {
            "mean": self.mean,
            "projection": self.projection,
            "variances": self.variances,
            "power": torch.tensor(self.power, dtype=torch.float64),
            "samples": torch.tensor(self.samples),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> PCAWhitening:
        """The whitening that `state_dict` described. Raises ValueError when an entry is missing."""
        missing = {"mean", "projection", "variances", "power", "samples"} - set(state)
        if missing:
            raise ValueError(f"A whitening needs the entries {', '.join(sorted(missing))}, which are missing.")
        tensors = [state[name] for name in ("mean", "projection", "variances")]
        return cls(*tensors, float(state["power"]), int(state["samples"]))

    def describe(self) -> dict[str, str | int | float]:
        """What a protocol card needs: method, sizes, power, number of samples, and the share of variance kept."""
        dim, input_dim = self.projection.shape
        kept = float(self.variances[:dim].sum() / self.variances.sum())
        return {
            "method": "pca",
            "dim": dim,
            "input_dim": input_dim,
            "power": self.power,
            "samples": self.samples,
            "variance_kept": round(kept, 4),
        }

    def __str__(self) -> str:
        return f"PCA to {len(self.projection)} dimensions, power {self.power:g}"


def _check(descriptors: Tensor) -> None:
    if descriptors.ndim != 2 or not descriptors.is_floating_point():
        raise ValueError(f"Descriptors must be floats (N, D), got {tuple(descriptors.shape)} {descriptors.dtype}.")
    if not torch.isfinite(descriptors).all():
        row = int((~torch.isfinite(descriptors).all(dim=1)).nonzero()[0])
        raise ValueError(f"Descriptor {row} holds nan or infinite values: look at its image.")
