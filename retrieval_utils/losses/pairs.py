"""Pairs and triplets of a batch: what the ranking losses are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from retrieval_utils.losses.base import RetrievalLoss


class ContrastiveLoss(RetrievalLoss):
    """Contrastive loss on Euclidean distances d of unit vectors (Hadsell et al. 2006; Radenovic et al., TPAMI 2018).

    A query's loss is the sum over its positives of d^2 / 2 and over its negatives of max(margin - d, 0)^2 / 2.
    """

    def __init__(self, margin: float = 0.7) -> None:
        super().__init__()
        if not 0 < margin <= 2:
            raise ValueError(f"Distances of unit vectors lie in [0, 2] and the margin must too, got {margin}.")
        self.margin = margin

    def extra_repr(self) -> str:
        return f"margin={self.margin}"

    def row_losses(self, scores: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        squared = _squared_distances(scores)  # (R, N)
        # The root has no finite slope at 0: equal descriptors of different labels get none.
        distance = squared.clamp(min=1e-12).sqrt()  # (R, N)
        repelled = (self.margin - distance).clamp(min=0).square()  # (R, N)
        return (squared * positives + repelled * negatives).sum(dim=1) / 2  # (R,)


class TripletLoss(RetrievalLoss):
    """Triplet loss on squared Euclidean distances of unit vectors (Schroff et al., CVPR 2015), over all triplets.

    A query's loss is the mean of max(d(q, p)^2 - d(q, n)^2 + margin, 0) over its positives p and negatives n; a query
    without a negative has loss 0. Memory grows with the number of positive pairs times N.
    """

    def __init__(self, margin: float = 0.1) -> None:
        super().__init__()
        if not margin > 0:
            raise ValueError(f"The margin must be positive, got {margin}.")
        self.margin = margin

    def extra_repr(self) -> str:
        return f"margin={self.margin}"

    def row_losses(self, scores: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        squared = _squared_distances(scores)  # (R, N)
        row, column = positives.nonzero(as_tuple=True)  # (P,), (P,)
        excess = (squared[row, column, None] - squared[row] + self.margin).clamp(min=0) * negatives[row]  # (P, N)
        totals = torch.zeros_like(squared[:, 0]).index_add(0, row, excess.sum(dim=1))  # (R,)
        return totals / (positives.sum(dim=1) * negatives.sum(dim=1)).clamp(min=1)  # (R,)


class NTXentLoss(RetrievalLoss):
    """Normalised temperature-scaled cross-entropy with labels (Khosla et al., NeurIPS 2020: supervised contrastive).

    A query's loss is the mean over its positives p of -log(exp(s_p / tau) / sum over all others of exp(s / tau)). With
    one positive a query it is SimCLR's NT-Xent; with several, a perfect batch keeps a loss of the log of their number.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"The temperature must be positive, got {temperature}.")
        self.temperature = temperature

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"

    def row_losses(self, scores: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        logits = scores / self.temperature  # (R, N)
        everyone = logits.masked_fill(~(positives | negatives), -torch.inf).logsumexp(dim=1)  # (R,)
        return everyone - (logits * positives).sum(dim=1) / positives.sum(dim=1)  # (R,)


def _squared_distances(scores: Tensor) -> Tensor:
    return 2 - 2 * scores.clamp(max=1)
