"""Losses on tuples and pairs, of LRML and of AutoRet: reconstructions, as the text of neither paper could be had."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retrieval_utils.losses.base import NotFiniteError, _at_least_float32, check_unit_norm
from retrieval_utils.losses.pairs import _squared_distances

NEGATIVES = 5  # of a query, in LRML as in SfM-120k


class LRMLLoss(nn.Module):
    """Learning to rank and multiple loss (Fan, Zhao, Zhao, Liu, Hu, ISPRS IJGI 8(9):393, 2019), a reconstruction.

    Known: one positive a query, five negatives ranked by similarity, which are pushed to different distances by their
    rank instead of all to one. With unit descriptors, Euclidean distances d and the hardest negative first (k = 1):

        d(q, p)^2 / 2 + sum_k max(margin_k - d_k, 0)^2 / 2 + order * sum_{k < l} max(d_k - d_l + (l - k) delta, 0)
        margin_k = margin + (k - 1) delta

    Ours are the formula, the margin (Radenovic's 0.7), delta, and the ordering term; delta=0 and order=0 is the
    contrastive loss of Radenovic et al. (TPAMI 2018). The order is that of mining and stays as it is in the batch.
    """

    def __init__(self, margin: float = 0.7, delta: float = 0.05, order: float = 0.1) -> None:
        super().__init__()
        if not (margin > 0 and delta >= 0 and margin + (NEGATIVES - 1) * delta <= 2):
            raise ValueError(
                f"The margins of {NEGATIVES} negatives must lie in (0, 2], got {margin:g} to "
                f"{margin + (NEGATIVES - 1) * delta:g}: lower margin or delta."
            )
        if order < 0:
            raise ValueError(f"The weight of the ordering term must not be negative, got {order}.")
        self.margin, self.delta, self.order = margin, delta, order

    def extra_repr(self) -> str:
        return f"margin={self.margin}, delta={self.delta}, order={self.order}"

    def forward(self, queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Queries (B, D), positives (B, D), negatives (B, K, D), hardest first, all L2-normalised -> scalar, a mean.

        Raises ValueError for shapes that do not fit, a nan, and a norm other than one.
        """
        queries, others = check_tuples(queries, positives, negatives)  # (B, D), (B, 1 + K, D)
        with torch.autocast(queries.device.type, enabled=False):
            squared = _squared_distances(torch.einsum("bd,bkd->bk", queries, others))  # (B, 1 + K)
            distances = squared[:, 1:].clamp(min=1e-12).sqrt()  # (B, K)
            rank = torch.arange(distances.shape[1]).to(distances)  # (K,) from 0
            repelled = (self.margin + rank * self.delta - distances).clamp(min=0).square()  # (B, K)
            loss = torch.cat([squared[:, :1], repelled], dim=1).sum(dim=1) / 2  # (B,) added up as in ContrastiveLoss
            if self.order:
                wanted = (rank[None, :] - rank[:, None]) * self.delta  # (K, K) how much farther the column should be
                wrong = (distances[:, :, None] - distances[:, None, :] + wanted).clamp(min=0)  # (B, K, K)
                loss = loss + self.order * wrong.triu(1).sum(dim=(1, 2))
            return loss.mean()


def check_tuples(queries: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Queries (B, D) and the others of each tuple (B, 1 + K, D), the positive first, in float32 or wider.

    Raises ValueError unless they are (B, D), (B, D) and (B, K, D), finite, and of norm one.
    """
    shapes = tuple(tuple(t.shape) for t in (queries, positives, negatives))
    if queries.ndim != 2 or positives.shape != queries.shape or shapes[2][::2] != shapes[0] or negatives.ndim != 3:
        raise ValueError(f"Tuples are (B, D), (B, D) and (B, K, D), got {', '.join(map(str, shapes))}.")
    others = _at_least_float32(torch.cat([positives[:, None], negatives], dim=1))  # (B, 1 + K, D)
    queries = _at_least_float32(queries)
    # Numbered as in a batch of tuples, one after the other, so that a message names the image it is about.
    check_unit_norm(torch.cat([queries[:, None], others], dim=1).flatten(0, 1).detach())
    return queries, others


class AutoEmbedderLoss(nn.Module):
    """Regression of a capped distance (Ohi et al., AutoEmbedder, KBS 204, 2020), which AutoRet (2022) is trained with.

    The Euclidean distance, capped at alpha, is to be 0 for a can-link pair and alpha for a cannot-link pair, by mean
    squared error; alpha is 100 in the authors' code, on embeddings that are not normalised. A cannot-link pair beyond
    alpha is done. **A can-link pair beyond alpha gets no gradient either**, though it is as wrong as can be: watch
    `stuck`, and start with an alpha above the distances of an untrained network, or let a little through with `leak`,
    the slope of the cap beyond alpha for can-link pairs (0 as in the paper).
    """

    def __init__(self, alpha: float = 100.0, leak: float = 0.0) -> None:
        super().__init__()
        if not alpha > 0:
            raise ValueError(f"The largest distance alpha must be positive, got {alpha}.")
        if not 0 <= leak <= 1:
            raise ValueError(f"The slope beyond alpha lies in [0, 1], got {leak}.")
        self.alpha, self.leak = alpha, leak

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, leak={self.leak}"

    def forward(self, first: Tensor, second: Tensor, can_link: Tensor) -> Tensor:
        """Embeddings (B, D) of both images of each pair, and can_link (B,) bool -> scalar.

        Raises ValueError for shapes or types that do not fit, and a nan, whose row counts the first images first.
        """
        distance = self._distance(first, second)  # (B,)
        if can_link.shape != distance.shape or can_link.dtype != torch.bool:
            got = f"{tuple(can_link.shape)} {can_link.dtype}"
            raise ValueError(f"can_link must be bool of shape ({len(distance)},), got {got}.")
        beyond = (distance - self.alpha).clamp(min=0)  # (B,)
        capped = distance - beyond  # (B,) with a slope of exactly 0 beyond alpha
        error = torch.where(can_link, capped + self.leak * beyond, self.alpha - capped)  # (B,)
        return error.square().mean()

    def stuck(self, first: Tensor, second: Tensor, can_link: Tensor) -> float:
        """The share of the can-link pairs that lie beyond alpha; nan without such pairs."""
        return float((self._distance(first, second)[can_link] > self.alpha).float().mean())

    def _distance(self, first: Tensor, second: Tensor) -> Tensor:
        if first.ndim != 2 or first.shape != second.shape:
            raise ValueError(f"Pairs are (B, D) and (B, D), got {tuple(first.shape)} and {tuple(second.shape)}.")
        finite = torch.cat([first, second]).detach().isfinite().all(dim=1)  # (2B,)
        if not finite.all():
            raise NotFiniteError(int((~finite).nonzero()[0]))
        difference = _at_least_float32(first) - _at_least_float32(second)  # (B, D)
        return difference.square().sum(dim=1).clamp(min=1e-24).sqrt()  # (B,) equal ones get no slope
