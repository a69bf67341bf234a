"""Losses that count ranks with a sigmoid instead of a step: Smooth-AP, its upper bound SupAP, and recall at k."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from retrieval_utils.losses.base import RetrievalLoss


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


class SupAPLoss(RetrievalLoss):
    """1 - SupAP, a smooth upper bound of 1 - AP, plus a calibration term: ROADMAP (Ramzi et al., NeurIPS 2021).

    With D = s_j - s_i, a positive j counts in the rank of positive i by the exact step of D, without gradient; a
    negative by H(D) = sigmoid(D / tau) for D <= 0, 0.5 + sigmoid(D / tau) for 0 < D <= delta, and
    slope (D - delta) + 1.44 beyond, which never falls below the step, so 1 - SupAP >= 1 - AP, and whose gradient does
    not fade with the gap. Calibration pulls positives above 0.9 and pushes negatives below 0.6, in mean over each kind:
    the same level then means the same in every batch. `calibration` is its weight in [0, 1], SupAP has the rest.
    """

    def __init__(
        self, temperature: float = 0.01, delta: float = 0.05, slope: float = 100.0, calibration: float = 0.5
    ) -> None:
        super().__init__()
        if not (temperature > 0 and delta >= 0 and slope > 0 and 0 <= calibration <= 1):
            got = f"temperature={temperature}, delta={delta}, slope={slope}, calibration={calibration}"
            raise ValueError(f"SupAP needs temperature > 0, delta >= 0, slope > 0, calibration in [0, 1], got {got}.")
        self.temperature, self.delta, self.slope, self.calibration = temperature, delta, slope, calibration

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, delta={self.delta}, slope={self.slope}, calibration={self.calibration}"

    def row_losses(self, scores: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        def precision(own: Tensor, others: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
            gap = others - own  # (P, N) of the positive's rivals: above it if > 0
            rank_positive = ((gap.detach() > 0) & positive).sum(dim=1) + 1  # (P,) exact
            soft = (gap / self.temperature).sigmoid() + 0.5 * (gap > 0)
            above = torch.where(gap > self.delta, self.slope * (gap - self.delta) + 1.44, soft)
            return rank_positive / (rank_positive + (above * negative).sum(dim=1))  # (P,)

        losses = 1 - _mean_over_positives(precision, scores, positives, negatives)  # (R,)
        if not self.calibration:
            return losses
        low = ((0.9 - scores).clamp(min=0) * positives).sum(dim=1) / positives.sum(dim=1)  # (R,)
        high = ((scores - 0.6).clamp(min=0) * negatives).sum(dim=1) / negatives.sum(dim=1).clamp(min=1)  # (R,)
        return (1 - self.calibration) * losses + self.calibration * (low + high)


class RecallLoss(RetrievalLoss):
    """1 - recall@k made smooth twice, averaged over `ks` (Patel, Tolias, Matas, CVPR 2022).

    A positive's rank r counts its rivals with a sigmoid of temperature `rank_temperature`, and it is found among the
    first k by sigmoid((k - r) / temperature): a rank of exactly k counts half. Divided by min(k, positives), so that
    no query is blamed for having more positives than k.
    """

    def __init__(
        self, ks: Sequence[int] = (1, 2, 4, 8, 16), temperature: float = 1.0, rank_temperature: float = 0.01
    ) -> None:
        super().__init__()
        if not ks or min(ks) < 1 or not (temperature > 0 and rank_temperature > 0):
            got = f"ks={tuple(ks)}, temperature={temperature}, rank_temperature={rank_temperature}"
            raise ValueError(f"Recall needs ks of at least 1 and positive temperatures, got {got}.")
        self.ks, self.temperature, self.rank_temperature = tuple(ks), temperature, rank_temperature

    def extra_repr(self) -> str:
        return f"ks={self.ks}, temperature={self.temperature}, rank_temperature={self.rank_temperature}"

    def row_losses(self, scores: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        def found(own: Tensor, others: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
            above = ((others - own) / self.rank_temperature).sigmoid() * (positive | negative)  # (P, N)
            rank = above.sum(dim=1) + 0.5  # (P,) from 1; the positive itself is in the sum, with sigmoid(0)
            total = positive.sum(dim=1)  # (P,)
            terms = [((k - rank) / self.temperature).sigmoid() * total / total.clamp(max=k) for k in self.ks]
            return sum(terms) / len(self.ks)  # (P,)

        return 1 - _mean_over_positives(found, scores, positives, negatives)


def _mean_over_positives(
    value: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], scores: Tensor, positives: Tensor, negatives: Tensor
) -> Tensor:
    """Mean (R,) over each row's positives of value(own (P, 1), scores (P, N), positives (P, N), negatives (P, N))."""
    return _BlockedMean.apply(scores, value, positives, negatives)


class _BlockedMean(torch.autograd.Function):
    """A block of positives at a time, its gradient found at once, so that no (P, N) graph is kept for backward."""

    @staticmethod
    def forward(ctx, scores: Tensor, value: Callable, positives: Tensor, negatives: Tensor) -> Tensor:
        weight = 1 / positives.sum(dim=1).to(scores.dtype)  # (R,)
        mean = torch.zeros_like(scores[:, 0])  # (R,)
        gradient = torch.zeros_like(scores) if ctx.needs_input_grad[0] else None  # (R, N)
        for block in positives.nonzero().split(_block_rows(scores.shape[1])):
            row, column = block.unbind(dim=1)  # (P,), (P,)
            with torch.set_grad_enabled(gradient is not None):
                others = scores.detach()[row].requires_grad_(gradient is not None)  # (P, N)
                own = others.gather(1, column[:, None])  # (P, 1)
                values = weight[row] * value(own, others, positives[row], negatives[row])  # (P,)
                if gradient is not None:
                    gradient.index_add_(0, row, torch.autograd.grad(values.sum(), others)[0])
            mean.index_add_(0, row, values.detach())
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output[:, None], None, None, None


def _block_rows(n: int) -> int:
    """How many rows of n scores make a block of about 1 M scores: 4 MB in float32, near the caches of a CPU."""
    return max(1, 2**20 // max(n, 1))
