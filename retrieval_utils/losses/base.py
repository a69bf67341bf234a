"""What all losses share: scores (Q, N) and a mask of positives, checked; queries without a positive left out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# A normalised float16 or bfloat16 vector has a norm within 1 % of one; a vector nobody normalised has not.
NORM_TOLERANCE = 1e-2


class NotFiniteError(ValueError):
    """A descriptor with nan or infinite values; `row` is its place in the batch; of pairs, all first images first."""

    def __init__(self, row: int):
        super().__init__(f"Descriptor {row} holds nan or infinite values: look at the learning rate and its image.")
        self.row = row


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
            check_unit_norm(descriptors.detach())
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


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_unit_norm(descriptors: Tensor) -> None:
    """Raises ValueError for descriptors (B, D) with a nan, as NotFiniteError, or a norm other than one."""
    norms = descriptors.norm(dim=1)  # (B,)
    if not torch.isfinite(norms).all():
        raise NotFiniteError(int((~torch.isfinite(norms)).nonzero()[0]))
    off = (norms - 1).abs()  # (B,)
    if off.numel() and off.max() > NORM_TOLERANCE:
        row = int(off.argmax())
        raise ValueError(f"Descriptor {row} has norm {norms[row]:.4g}, not 1: L2-normalise the descriptors first.")
