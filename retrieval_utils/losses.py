"""Losses on descriptors of a batch: two differentiable forms of average precision, and the pair and triplet losses.

Every loss works on scores (Q, N) with a mask of positives, so it takes any batch layout, a memory bank or a query set.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# A normalised float16 or bfloat16 vector has a norm within 1 % of one; a vector nobody normalised has not.
NORM_TOLERANCE = 1e-2


class RetrievalLoss(nn.Module):
    """Base: checks the input, leaves out queries without a positive, and averages the loss over the other queries."""

    def forward(self, descriptors: Tensor, labels: Tensor) -> Tensor:
        """Descriptors (B, D), L2-normalised, and integer labels (B,) in any order -> scalar.

        Every image is a query once, the others with its label are its positives; it is left out of its own ranking.
        Computed in float32 or wider. Raises ValueError for a wrong shape, a nan, a norm other than one, and a batch in
        which no label occurs twice.
        """
        if descriptors.ndim != 2 or not descriptors.is_floating_point():
            raise ValueError(f"Descriptors must be floats (B, D), got {tuple(descriptors.shape)} {descriptors.dtype}.")
        labels = torch.as_tensor(labels, device=descriptors.device)
        if labels.shape != descriptors.shape[:1] or labels.is_floating_point():
            wanted = f"{len(descriptors)} descriptors need labels of shape ({len(descriptors)},) and an integer type"
            raise ValueError(f"{wanted}, got {tuple(labels.shape)} {labels.dtype}.")
        with torch.autocast(descriptors.device.type, enabled=False):
            descriptors = _at_least_float32(descriptors)  # (B, D)
            _check_unit_norm(descriptors.detach())
            itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)  # (B, B)
            positives = labels[:, None] == labels[None, :]  # (B, B) with itself, which is ignored
            return self.from_scores(descriptors @ descriptors.T, positives, itself)

    def from_scores(self, scores: Tensor, positives: Tensor, ignore: Tensor | None = None) -> Tensor:
        """Scores (Q, N), cosines, larger is better; positives (Q, N) bool; ignore (Q, N) bool or None -> scalar.

        What is ignored takes no part, even if it is marked positive. Rows without a positive get no gradient. Raises
        ValueError for a wrong shape or type, a nan or infinite score, and when no row has a positive.
        """
        for name, mask in (("positives", positives), ("ignore", ignore)):
            if mask is not None and (mask.shape != scores.shape or mask.dtype != torch.bool):
                got = f"{tuple(mask.shape)} {mask.dtype}"
                raise ValueError(f"The mask {name!r} must be bool of shape {tuple(scores.shape)}, got {got}.")
        if scores.ndim != 2 or not scores.is_floating_point():
            raise ValueError(f"Scores must be floats (Q, N), got {tuple(scores.shape)} {scores.dtype}.")
        if not torch.isfinite(scores.detach()).all():
            raise ValueError("The scores hold nan or infinite values: look at the learning rate and for empty images.")
        negatives = ~positives if ignore is None else ~(positives | ignore)  # (Q, N)
        positives = positives if ignore is None else positives & ~ignore  # (Q, N)
        rows = positives.any(dim=1)  # (Q,)
        if not rows.any():
            raise ValueError(
                "No query of this batch has a positive: sample at least 2, better 4 images of every label in a batch."
            )
        with torch.autocast(scores.device.type, enabled=False):
            scores = _at_least_float32(scores)
            if not rows.all():
                scores, positives, negatives = scores[rows], positives[rows], negatives[rows]
            return self.row_losses(scores, positives, negatives).mean()

    def row_losses(self, scores: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Loss (R,) of each row of scores (R, N); both masks are bool, and every row has a positive."""
        raise NotImplementedError


class QuantizedAPLoss(RetrievalLoss):
    """1 - quantised AP (Revaud, Almazan, Rezende, de Souza, ICCV 2019): AP of a histogram of the scores.

    A score counts for the two nearest of `bins` bin centres, evenly spaced from `high` down to `low`, in proportion to
    its closeness; beyond the outer centres it counts for these and gets no gradient. Two images in the same bin are
    not told apart: with 20 bins on [-1, 1] the centres lie 0.105 apart, so look at the spread of your scores first.
    Cosines of unrelated images can be negative; with low=0 the lowest bin collects them all.
    """

    def __init__(self, bins: int = 20, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        if bins < 2 or not low < high:
            raise ValueError(f"Bins need at least 2 centres and low < high, got bins={bins}, low={low}, high={high}.")
        self.bins, self.low, self.high = bins, low, high

    def extra_repr(self) -> str:
        return f"bins={self.bins}, low={self.low}, high={self.high}"

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

        found = histogram(positives)  # (R, M)
        found_so_far = found.cumsum(dim=1)  # (R, M)
        seen_so_far = found_so_far + histogram(negatives).cumsum(dim=1)  # (R, M)
        precision = found_so_far / seen_so_far.clamp(min=torch.finfo(scores.dtype).tiny)  # (R, M)
        recall_gain = found / found.sum(dim=1, keepdim=True)  # (R, M)
        return 1 - (precision * recall_gain).sum(dim=1)  # (R,)


class SmoothAPLoss(RetrievalLoss):
    """1 - Smooth-AP (Brown, Xie, Kalogeiton, Zisserman, ECCV 2020): ranks counted with a sigmoid, not with a step.

    The query itself has no rank (the authors' code counts it among the positives). As the temperature goes to 0 the
    value goes to 1 - step AP. The gradient of a pair of scores s apart fades as exp(-|s| / temperature): at 0.01 a
    negative 0.1 above or below a positive already pulls some 5,000 times less than one beside it. So a batch that is
    well separated gets next to none, and so does one that is wrong by wide gaps: start warmer if the loss stands still.

    Only positives are ranked, against all N scores, a block of positives at a time, and the gradient is found in the
    same pass: memory is a few matrices of the size of the scores, whatever the batch layout. No second derivative.
    """

    def __init__(self, temperature: float = 0.01) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"The temperature must be positive, got {temperature}.")
        self.temperature = temperature

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"

    def row_losses(self, scores: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        return 1 - _SmoothAP.apply(scores, positives, negatives, self.temperature)


class _SmoothAP(torch.autograd.Function):
    """Smooth-AP (R,) of scores (R, N). A row's value depends on that row only, so one saved (R, N) gradient is all."""

    @staticmethod
    def forward(ctx, scores: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
        pairs = positives.nonzero()  # (P, 2) row and column of every positive
        weight = 1 / positives.sum(dim=1).to(scores.dtype)  # (R,)
        average = torch.zeros_like(scores[:, 0])  # (R,)
        gradient = torch.zeros_like(scores) if ctx.needs_input_grad[0] else None  # (R, N)
        for row, column in (block.unbind(dim=1) for block in pairs.split(_block_rows(scores.shape[1]))):
            own = scores[row, column, None]  # (P', 1)
            above = (scores[row] - own).div_(temperature).sigmoid_()  # (P', N) softly: is j above the positive?
            above_positive, above_negative = above * positives[row], above * negatives[row]  # (P', N)
            rank_positive = above_positive.sum(dim=1) + 0.5  # (P',) counts from 1; sigmoid(0) for itself is in the sum
            rank = rank_positive + above_negative.sum(dim=1)  # (P',)
            average.index_add_(0, row, weight[row] * rank_positive / rank)
            if gradient is not None:
                slope = weight[row] / (rank.square() * temperature)  # (P',)
                pull = above_positive.mul_(((rank - rank_positive) * slope)[:, None])  # (P', N)
                pull.sub_(above_negative.mul_((rank_positive * slope)[:, None]))
                pull.mul_(above.neg_().add_(1))  # sigmoid' = sigmoid (1 - sigmoid)
                # Every term depends on s_j - s_i, so s_i gets minus the sum; the term j = i cancels itself.
                gradient.index_add_(0, row, pull)
                gradient.index_put_((row, column), -pull.sum(dim=1), accumulate=True)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return average

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output[:, None], None, None, None


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


def _block_rows(n: int) -> int:
    """How many rows of n scores make a block of about 1 M scores: 4 MB in float32, near the caches of a CPU."""
    return max(1, 2**20 // max(n, 1))


def _squared_distances(scores: Tensor) -> Tensor:
    return 2 - 2 * scores.clamp(max=1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _check_unit_norm(descriptors: Tensor) -> None:
    norms = descriptors.norm(dim=1)  # (B,)
    if not torch.isfinite(norms).all():
        row = int((~torch.isfinite(norms)).nonzero()[0])
        raise ValueError(f"Descriptor {row} holds nan or infinite values: look at the learning rate and its image.")
    off = (norms - 1).abs()  # (B,)
    if off.numel() and off.max() > NORM_TOLERANCE:
        row = int(off.argmax())
        raise ValueError(f"Descriptor {row} has norm {norms[row]:.4g}, not 1: L2-normalise the descriptors first.")
