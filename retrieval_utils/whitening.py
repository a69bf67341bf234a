"""Whitening of descriptors, learned on images that are not searched: by their variance, or from matching pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 8192  # descriptors turned into float64 at a time


@dataclass(frozen=True, eq=False)
class PCAWhitening:
    """Centre, rotate to the principal axes, divide by variance^power, L2-normalise (Jegou and Chum, ECCV 2012).

    f -> y / |y| with y = diag(v)^-power U^T (f - mu): mu is the mean of the descriptors it is fitted on, v the `dim`
    largest eigenvalues of their covariance, U its eigenvectors.
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


@dataclass(frozen=True, eq=False)
class LearnedWhitening:
    """Discriminative whitening from matching pairs: what differs between two views of one thing is scaled down.

    With the mean mu, C_S = 1/P sum (f_i - f_j)(f_i - f_j)^T over the P matching pairs, and C the covariance of all
    descriptors, it maps f to U^T C_S^-power (f - mu), U being the widest axes of C_S^-power C C_S^-power; then it
    L2-normalises. Power 0.5 is the Lw of Mikolajczyk and Matas (ICCV 2007) as used by Radenovic et al. (TPAMI 2019);
    0 only rotates and cuts, as PCA does. For C they take the pairs that do not match: with few matching pairs among
    all pairs that is twice C, and gives the same axes. Same interface as `PCAWhitening`, save that `fit` takes pairs.
    """

    mean: Tensor  # (D,) float32
    projection: Tensor  # (dim, D) float32, a row an axis, widest first
    variances: Tensor  # (D,) float32, along all axes after the within-pair differences were scaled down, widest first
    power: float
    samples: int  # descriptors it was fitted on
    pairs: int  # matching pairs among them

    @classmethod
    def fit(
        cls, descriptors: Tensor, pairs: Tensor, dim: int | None = None, power: float = 0.5, eps: float = 1e-6
    ) -> LearnedWhitening:
        """Learn from descriptors (N, D), float, and pairs (P, 2), int64 rows of them that show the same thing.

        `dim` axes are kept, all D if None. Sums are taken in float64; variances of C_S below eps times the largest are
        lifted to it. Raises ValueError for a wrong shape, nan, a row that is not there, fewer pairs than dimensions
        (C_S would have empty axes), pairs without any difference, and dim or power out of range.
        """
        _check(descriptors)
        n, d = descriptors.shape
        dim = d if dim is None else dim
        if not 1 <= dim <= d:
            raise ValueError(f"Whitening of {d}-dimensional descriptors keeps 1 to {d} dimensions, got dim={dim}.")
        if not 0 <= power <= 1:
            raise ValueError(f"The power of whitening lies in [0, 1], got {power}: 0.5 is full whitening.")
        _check_pairs(pairs, n, d)
        differences = torch.zeros(d, d, dtype=torch.float64, device=descriptors.device)  # C_S
        for chunk in pairs.to(descriptors.device).split(CHUNK):
            difference = descriptors[chunk[:, 0]].double() - descriptors[chunk[:, 1]].double()  # (p, D)
            differences.addmm_(difference.T, difference, alpha=1 / len(pairs))
        values, axes = torch.linalg.eigh(differences)  # (D,) ascending, (D, D) a column an axis
        if values[-1] <= 1e-12:
            raise ValueError("The descriptors of every pair are equal, so there is nothing to learn: check the pairs.")
        shrink = axes * values.clamp(min=eps * values[-1]).pow(-power) @ axes.T  # (D, D) C_S^-power
        mean = descriptors.mean(dim=0, dtype=torch.float64)  # (D,)
        covariance = torch.zeros_like(differences)
        for chunk in descriptors.split(CHUNK):
            shrunk = (chunk.double() - mean) @ shrink  # (n, D)
            covariance.addmm_(shrunk.T, shrunk, alpha=1 / (n - 1))
        values, axes = torch.linalg.eigh(covariance)
        values, axes = values.flip(0).clamp(min=0), axes.flip(1)
        projection = axes[:, :dim].T @ shrink  # (dim, D)
        return cls(mean.float(), projection.float().contiguous(), values.float(), float(power), n, len(pairs))

    apply = PCAWhitening.apply  # the same affine map and L2 norm
    __call__ = apply

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors, fit for safetensors or torch.save; `from_state_dict` reads them back."""
        return {
            "mean": self.mean,
            "projection": self.projection,
            "variances": self.variances,
            "power": torch.tensor(self.power, dtype=torch.float64),
            "samples": torch.tensor(self.samples),
            "pairs": torch.tensor(self.pairs),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> LearnedWhitening:
        """The whitening that `state_dict` described. Raises ValueError when an entry is missing."""
        missing = {"mean", "projection", "variances", "power", "samples", "pairs"} - set(state)
        if missing:
            raise ValueError(f"A learned whitening needs the entries {', '.join(sorted(missing))}, which are missing.")
        tensors = [state[name] for name in ("mean", "projection", "variances")]
        return cls(*tensors, float(state["power"]), int(state["samples"]), int(state["pairs"]))

    def describe(self) -> dict[str, str | int | float]:
        """What a protocol card needs: method, sizes, power, and the numbers of samples and of matching pairs."""
        dim, input_dim = self.projection.shape
        return {
            "method": "learned",
            "dim": dim,
            "input_dim": input_dim,
            "power": self.power,
            "samples": self.samples,
            "pairs": self.pairs,
        }

    def __str__(self) -> str:
        return f"learned (Lw) to {len(self.projection)} dimensions, power {self.power:g}"


def matching_pairs(labels: Tensor) -> Tensor:
    """All pairs (P, 2) int64 of rows i < j with the same label; labels (N,) int. For `LearnedWhitening.fit`."""
    rows = [(labels == label).nonzero().flatten() for label in labels.unique()]  # a class each
    return torch.cat([torch.combinations(row) for row in rows])


def _check_pairs(pairs: Tensor, n: int, d: int) -> None:
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype != torch.int64:
        raise ValueError(f"Matching pairs must be int64 (P, 2), got {tuple(pairs.shape)} {pairs.dtype}.")
    if len(pairs) < d:
        raise ValueError(
            f"Learned whitening of {d}-dimensional descriptors needs at least {d} matching pairs, got {len(pairs)}: "
            "give more pairs, or cut the descriptors with PCAWhitening first."
        )
    wrong = pairs[(pairs < 0) | (pairs >= n)]  # (?,)
    if len(wrong):
        raise ValueError(f"There are {n} descriptors, rows 0 to {n - 1}, but a pair names row {int(wrong[0])}.")


def _check(descriptors: Tensor) -> None:
    if descriptors.ndim != 2 or not descriptors.is_floating_point():
        raise ValueError(f"Descriptors must be floats (N, D), got {tuple(descriptors.shape)} {descriptors.dtype}.")
    if not torch.isfinite(descriptors).all():
        row = int((~torch.isfinite(descriptors).all(dim=1)).nonzero()[0])
        raise ValueError(f"Descriptor {row} holds nan or infinite values: look at its image.")
