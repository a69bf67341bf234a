"""Quadruplet, lifted structure and margin sample mining: the losses that LRML is set against, beside triplets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retrieval_utils.losses.base import _at_least_float32, check_unit_norm
from retrieval_utils.losses.pairs import _squared_distances
from retrieval_utils.losses.tuples import check_tuples


class QuadrupletLoss(nn.Module):
    """Quadruplet loss (Chen, Chen, Zhang, Huang, CVPR 2017) on squared Euclidean distances of unit vectors.

    A query's loss is the mean over its negatives n of max(d(q, p)^2 - d(q, n)^2 + margin, 0), the triplet's, plus the
    mean over pairs of its negatives, which are of two instances, of max(d(q, p)^2 - d(n, m)^2 + margin / 2, 0): a
    positive pair is to be closer than any negative pair, even one without the query. The paper learns the metric and
    adapts both margins; here they are fixed, the second the smaller one as in the paper.
    """

    def __init__(self, margin: float = 0.5) -> None:
        super().__init__()
        if not margin > 0:
            raise ValueError(f"The margin must be positive, got {margin}.")
        self.margin = margin

    def extra_repr(self) -> str:
        return f"margin={self.margin}"

    def forward(self, queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Queries (B, D), positives (B, D), negatives (B, K, D), of K >= 2 instances, all L2-normalised -> scalar.

        Raises ValueError for shapes that do not fit, fewer than two negatives, a nan, and a norm other than one.
        """
        queries, others = check_tuples(queries, positives, negatives)  # (B, D), (B, 1 + K, D)
        if others.shape[1] < 3:
            raise ValueError("A quadruplet needs 2 negatives of two instances, got 1.")
        with torch.autocast(queries.device.type, enabled=False):
            squared = _squared_distances(torch.einsum("bd,bkd->bk", queries, others))  # (B, 1 + K)
            apart = _squared_distances(others[:, 1:] @ others[:, 1:].mT)  # (B, K, K) between negatives
            row, column = torch.triu_indices(*apart.shape[1:], offset=1, device=apart.device)  # (K * (K - 1) / 2,)
            near = squared[:, :1]  # (B, 1)
            triplets = (near - squared[:, 1:] + self.margin).clamp(min=0)  # (B, K)
            pairs = (near - apart[:, row, column] + self.margin / 2).clamp(min=0)  # (B, K * (K - 1) / 2)
            return (triplets.mean(dim=1) + pairs.mean(dim=1)).mean()


class LiftedStructureLoss(nn.Module):
    """Lifted structured feature embedding (Oh Song, Xiang, Jegelka, Savarese, CVPR 2016), equation 4.

    For each positive pair (i, j) of the batch J = d_ij + log(sum over negatives k of i of exp(margin - d_ik), and of j
    of exp(margin - d_jk)), Euclidean distances; the loss is the mean of max(J, 0)^2 / 2 over the positive pairs.
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        if not margin > 0:
            raise ValueError(f"The margin must be positive, got {margin}.")
        self.margin = margin

    def extra_repr(self) -> str:
        return f"margin={self.margin}"

    def forward(self, descriptors: Tensor, labels: Tensor) -> Tensor:
        """Descriptors (B, D), L2-normalised, and integer labels (B,) -> scalar.

        Raises ValueError for shapes that do not fit, a nan, a norm other than one, and a batch of one label or without
        a positive pair.
        """
        distances, same = _batch_distances(descriptors, labels)  # (B, B), (B, B)
        pushes = (self.margin - distances).masked_fill(same, -torch.inf).logsumexp(dim=1)  # (B,)
        first, second = same.triu(1).nonzero(as_tuple=True)  # (P,), (P,)
        lifted = distances[first, second] + torch.logaddexp(pushes[first], pushes[second])  # (P,)
        return lifted.clamp(min=0).square().mean() / 2


class MarginSampleMiningLoss(nn.Module):
    """Margin sample mining (Xiao, Luo, Zhang, arXiv 1710.00478, 2017): one pair of each kind decides for a batch.

    max(largest distance of a positive pair - smallest distance of any negative pair + margin, 0), Euclidean.
    """

    def __init__(self, margin: float = 0.3) -> None:
        super().__init__()
        if not margin > 0:
            raise ValueError(f"The margin must be positive, got {margin}.")
        self.margin = margin

    def extra_repr(self) -> str:
        return f"margin={self.margin}"

    def forward(self, descriptors: Tensor, labels: Tensor) -> Tensor:
        """Descriptors (B, D), L2-normalised, and integer labels (B,) -> scalar.

        Raises ValueError for shapes that do not fit, a nan, a norm other than one, and a batch of one label or without
        a positive pair.
        """
        distances, same = _batch_distances(descriptors, labels)  # (B, B), (B, B)
        return (distances[same.triu(1)].max() - distances[~same].min() + self.margin).clamp(min=0)


def _batch_distances(descriptors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distances (B, B) and whether a pair has one label (B, B), an image with itself too; checked."""
    if descriptors.ndim != 2 or labels.shape != descriptors.shape[:1] or labels.is_floating_point():
        got = f"{tuple(descriptors.shape)}, {tuple(labels.shape)} {labels.dtype}"
        raise ValueError(f"The loss takes descriptors (B, D) and integer labels (B,), got {got}.")
    with torch.autocast(descriptors.device.type, enabled=False):
        descriptors = _at_least_float32(descriptors)
        check_unit_norm(descriptors.detach())
        same = labels[:, None] == labels  # (B, B)
        if same.all() or not same.triu(1).any():
            raise ValueError("The batch needs two images of one label and one of another: sample tuples.")
        distances = _squared_distances(descriptors @ descriptors.T).clamp(min=1e-12).sqrt()  # (B, B) slope 0 at 0
        return distances, same
