"""Both AP losses, forward and backward, against the forms that everybody writes first: time and memory.

Smooth-AP compares every score with every other, an (N, N, N) tensor; ours ranks the positives only, block by block.
Quantised AP spreads every score over all M bins, a (B, B, M) tensor; ours adds it to the two bins it reaches. Each runs
once, in a process of its own on one thread, and both have to agree on the value. The plain quantised AP at 4,096 takes
6 GB of memory.

    .venv/bin/python benchmarks/loss_speed.py
"""

from __future__ import annotations

import torch
from common import measure, record
from torch import Tensor
from torch.nn.functional import normalize

from retrieval_utils.losses import QuantizedAPLoss, SmoothAPLoss

DIM, IMAGES, TEMPERATURE, BINS = 512, 4, 0.01, 20  # of a descriptor; of an instance; Smooth-AP's; quantised AP's


def main() -> None:
    torch.set_num_threads(1)
    for name, n, ours, plain in (
        ("Smooth-AP", 512, SmoothAPLoss(TEMPERATURE), plain_smooth_ap),
        ("quantised AP", 4096, QuantizedAPLoss(BINS), plain_quantized_ap),
        ("Smooth-AP", 4096, SmoothAPLoss(TEMPERATURE), None),
    ):
        seconds, memory, value = measure(lambda n=n, loss=ours: step(n, loss))
        if plain is None:
            record(f"{name} forward and backward, N = {n:,}: time", seconds, None, "s of CPU")
            record(f"{name} forward and backward, N = {n:,}: memory", memory, None, "MB")
            continue
        their_seconds, their_memory, their_value = measure(lambda n=n, loss=plain: step(n, loss))
        if abs(value - their_value) > 1e-3:
            raise SystemExit(f"{name}: the values {value} and {their_value} do not agree.")
        record(f"{name} forward and backward, N = {n:,}: time", seconds, their_seconds, "s of CPU")
        record(f"{name} forward and backward, N = {n:,}: memory", memory, their_memory, "MB")


def step(n: int, loss) -> float:
    """One forward and backward pass on drawn descriptors, a few instances of four images; the value of the loss."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n // IMAGES).repeat_interleave(IMAGES)  # (N,)
    centres = torch.randn(n // IMAGES, DIM, generator=generator)
    raw = (centres[labels] + 2 * torch.randn(n, DIM, generator=generator)).requires_grad_()  # (N, D)
    value = loss(normalize(raw, dim=1), labels)
    value.backward()
    return value.item()


def plain_smooth_ap(descriptors: Tensor, labels: Tensor) -> Tensor:
    scores = descriptors @ descriptors.T  # (N, N)
    itself = torch.eye(len(labels), dtype=torch.bool)  # (N, N)
    positives = (labels[:, None] == labels) & ~itself  # (N, N)
    above = torch.sigmoid((scores[:, None, :] - scores[:, :, None]) / TEMPERATURE)  # (N, N, N): [q, i, j], j above i
    above = above * ~itself[None] * ~itself[:, None]  # neither an image above itself nor the query above anything
    rank_positive = 1 + (above * positives[:, None]).sum(dim=2)  # (N, N)
    rank = 1 + above.sum(dim=2)  # (N, N)
    return 1 - ((rank_positive / rank) * positives).sum(dim=1).div(positives.sum(dim=1)).mean()


def plain_quantized_ap(descriptors: Tensor, labels: Tensor) -> Tensor:
    scores = descriptors @ descriptors.T  # (B, B)
    itself = torch.eye(len(labels), dtype=torch.bool)
    positives = (labels[:, None] == labels) & ~itself  # (B, B)
    centres = torch.linspace(1, -1, BINS)  # (M,)
    share = (1 - (scores[:, :, None] - centres).abs() * (BINS - 1) / 2).clamp(min=0)  # (B, B, M)
    found = (share * positives[:, :, None]).sum(dim=1)  # (B, M)
    seen = (share * ~itself[:, :, None]).sum(dim=1)  # (B, M)
    precision = found.cumsum(dim=1) / seen.cumsum(dim=1).clamp(min=1e-16)  # (B, M)
    return 1 - (precision * found / found.sum(dim=1, keepdim=True)).sum(dim=1).mean()


if __name__ == "__main__":
    main()
