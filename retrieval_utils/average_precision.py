"""Average precision of one ranking, from the ranks of its positives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def average_precision(positive_ranks: Sequence[int] | np.ndarray, method: str = "trapezoid") -> float:
    """AP in [0, 1] of one query from the 0-based ranks of all its positives (any order); nan when there is none.

    "trapezoid" is the AP of Oxford5k (Philbin et al. 2007) and Revisited Oxford (Radenovic et al. 2018): the area under
    the precision-recall line. "step" is information retrieval's: the mean of the precisions at the positives.
    Raises ValueError for another method and for ranks that are negative or occur twice.
    """
    check_method(method)
    ranks = _sorted_ranks(positive_ranks)  # (P,)
    if not ranks.size:
        return math.nan
    found = np.arange(ranks.size)  # (P,)
    after = (found + 1) / (ranks + 1)  # (P,)
    if method == "step":
        return float(after.mean())
    return float((_precision_before(found, ranks) + after).mean() / 2)


def precision_recall(positive_ranks: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision (2P,) and recall (2P,): the point just before and just after each of the P positives, in rank order.

    The area under the straight lines through these points is the trapezoidal average precision.
    """
    ranks = _sorted_ranks(positive_ranks)  # (P,)
    found = np.arange(ranks.size)  # (P,)
    precision = np.stack([_precision_before(found, ranks), (found + 1) / (ranks + 1)], axis=1)  # (P, 2)
    recall = np.stack([found, found + 1], axis=1) / max(ranks.size, 1)  # (P, 2)
    return precision.ravel(), recall.ravel()


def check_method(method: str) -> None:
    """Raises ValueError unless `method` is one of those of `average_precision`."""
    if method not in ("trapezoid", "step"):
        raise ValueError(f"The method must be 'trapezoid' or 'step', got {method!r}.")


def _sorted_ranks(ranks: Sequence[int] | np.ndarray) -> np.ndarray:
    ranks = np.sort(np.asarray(ranks))
    if ranks.ndim != 1 or (ranks.size and not np.issubdtype(ranks.dtype, np.integer)):
        raise ValueError(f"Ranks must be a list of integers, got {ranks!r}.")
    if (ranks < 0).any() or (np.diff(ranks) == 0).any():
        raise ValueError(f"Ranks count from 0 and no two images share one, got {ranks.tolist()}.")
    return ranks


def _precision_before(found: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Precision just above each positive; 1 by convention where nothing is above it."""
    return np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))  # (P,)
