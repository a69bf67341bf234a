"""Average precision of a histogram of the scores, which is differentiable because a score is shared by two bins."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from retrieval_utils.losses.base import RetrievalLoss

CROWDED = 0.97  # share of the scores within the width of a bin above which the loss can tell little apart


class QuantizedAPLoss(RetrievalLoss):
    """1 - quantised AP (Revaud, Almazan, Rezende, de Souza, ICCV 2019): AP of a histogram of the scores.

    A score counts for the two nearest of `bins` bin centres, evenly spaced from `high` down to `low`, in proportion to
    its closeness; beyond the outer centres it counts for these and gets no gradient. Two images in the same bin are
    not told apart: with 20 bins on [-1, 1] the centres lie 0.105 apart, and a warning says so when nearly all scores
    lie within that width. Cosines of unrelated images can be negative; with low=0 the lowest bin collects
    them all.
    tie_aware: take the images of a bin as tied, and average over their orders (He, Cakir, Bargal, Sclaroff, CVPR 2018).
    """

    def __init__(self, bins: int = 20, low: float = -1.0, high: float = 1.0, tie_aware: bool = False) -> None:
        super().__init__()
        if bins < 2 or not low < high:
            raise ValueError(f"Bins need at least 2 centres and low < high, got bins={bins}, low={low}, high={high}.")
        self.bins, self.low, self.high, self.tie_aware = bins, low, high, tie_aware

    def extra_repr(self) -> str:
        return f"bins={self.bins}, low={self.low}, high={self.high}, tie_aware={self.tie_aware}"

    def row_losses(self, scores: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        rows, m = scores.shape[0], self.bins
        place = ((self.high - scores) * ((m - 1) / (self.high - self.low))).clamp(0, m - 1)  # (R, N) 0 is the top bin
        upper = place.detach().floor().clamp(max=m - 2)  # (R, N)
        share = place - upper  # (R, N) what goes to the bin below
        first = torch.arange(0, rows * m, m, device=scores.device)[:, None]  # (R, 1)
        upper = (upper.long() + first).flatten()  # (R * N,) bin number over all rows
        lower = upper + 1  # (R * N,)

        def histogram(mask: Tensor) -> Tensor:
            # A triangular kernel reaches two bins only: no (R, N, M) tensor is needed.
            counts = scores.new_zeros(rows * m)  # (R * M,)
            counts = counts.scatter_add(0, upper, ((1 - share) * mask).flatten())
            return counts.scatter_add(0, lower, (share * mask).flatten()).view(rows, m)  # (R, M)

        found, wrong = histogram(positives), histogram(negatives)  # (R, M), (R, M)
        if m > 3:  # fewer are coarse whatever the scores are
            self._warn_if_crowded(place.detach(), positives | negatives, (found + wrong).detach().sum(dim=0))
        found_so_far = found.cumsum(dim=1)  # (R, M)
        seen_so_far = found_so_far + wrong.cumsum(dim=1)  # (R, M)
        if self.tie_aware:
            seen = found + wrong  # (R, M)
            precision = (2 * found_so_far - found + 1) / (2 * seen_so_far - seen + 1)  # (R, M) mid-way through the bin
        else:
            precision = found_so_far / seen_so_far.clamp(min=torch.finfo(scores.dtype).tiny)  # (R, M)
        recall_gain = found / found.sum(dim=1, keepdim=True)  # (R, M)
        return 1 - (precision * recall_gain).sum(dim=1)  # (R,)

    def _warn_if_crowded(self, place: Tensor, counted: Tensor, histogram: Tensor) -> None:
        """place (R, N) in bins, counted (R, N) bool, histogram (M,) of what is counted. Python shows the warning once.

        Around the mean, not from bin to bin: a cluster is as narrow on a bin centre as between two.
        """
        if histogram.unfold(0, 3, 1).sum(1).max() <= CROWDED * histogram.sum():  # then no need to look at all scores
            return
        mean = torch.arange(self.bins).to(histogram) @ histogram / histogram.sum()  # sharing keeps the mean
        share = float((((place - mean).abs() < 0.5) & counted).sum() / counted.sum())
        if share > CROWDED:
            width = (self.high - self.low) / (self.bins - 1)
            warnings.warn(
                f"{share:.0%} of the scores lie in two of the {self.bins} bins, which are {width:.2g} apart, so this "
                "loss can hardly tell them apart: whiten the descriptors, or take more bins or a narrower range.",
                stacklevel=5,
            )


class FastAPLoss(QuantizedAPLoss):
    """1 - FastAP (Cakir, He, Xia, Kulis, Sclaroff, CVPR 2019): AP of a histogram of squared distances on [0, 4].

    For unit vectors d^2 = 2 - 2 s, so even bins of squared distances are even bins of scores, and the paper's
    sum over bins of h+ H+ / H, divided by the number of positives, is quantised AP with one bin centre more than its
    `bins` intervals. The difference between the two papers is the number of bins and how batches are drawn.
    """

    def __init__(self, bins: int = 10) -> None:
        super().__init__(bins + 1)
