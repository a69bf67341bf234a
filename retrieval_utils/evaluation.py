"""Average precision of rankings under the protocols of Oxford/Paris and Revisited Oxford/Paris.

The database is never sorted. An image that is labelled for a query is either a positive or removed from the ranking,
in every set-up, so the rank of a positive is the number of unlabelled images above it plus the positives above it:
sorting the few labelled images and counting the others is enough. Equal scores are ordered by database index.

    evaluate(queries @ database.T, ground_truth)  # (Q, N)
    evaluate((queries @ part.T for part in database.split(50_000)), ground_truth)  # blocks (Q, n), one after another
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from retrieval_utils.average_precision import average_precision, check_method, precision_recall
from retrieval_utils.evaluation_report import KS, Comparison, Report, SetupResult, compare
from retrieval_utils.rank_counting import count_at_or_above, worst_first

__all__ = [
    "KS",
    "SETUPS",
    "Comparison",
    "GroundTruth",
    "Report",
    "Setup",
    "SetupResult",
    "average_precision",
    "compare",
    "evaluate",
    "evaluate_ranking",
    "positive_ranks",
    "precision_recall",
]

Scores = np.ndarray | torch.Tensor


class Setup(NamedTuple):
    """Which lists of a query are positives and which are removed from its ranking; every other image is a negative."""

    positive: tuple[str, ...]
    ignored: tuple[str, ...]


SETUPS = {
    "easy": Setup(("easy",), ("hard", "junk")),
    "medium": Setup(("easy", "hard"), ("junk",)),
    "hard": Setup(("hard",), ("easy", "junk")),
    "original": Setup(("easy", "hard"), ("junk",)),
}


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Labels of one query: database indices (0-based, int64, any order) that are easy, hard or junk for it."""

    easy: np.ndarray
    hard: np.ndarray = ()
    junk: np.ndarray = ()

    def __post_init__(self) -> None:
        for name in ("easy", "hard", "junk"):
            indices = np.array(getattr(self, name))
            if indices.ndim != 1 or (indices.size and not np.issubdtype(indices.dtype, np.integer)):
                raise ValueError(f"The list {name!r} of a query must hold integer database indices, got {indices!r}.")
            object.__setattr__(self, name, indices.astype(np.int64))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GroundTruth):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in ("easy", "hard", "junk"))


def positive_ranks(scores: Scores, ground_truth: GroundTruth, setup: str = "medium") -> np.ndarray:
    """0-based ranks (P,) int64, ascending, of one query's positives once the junk of the set-up is removed.

    scores: (N,) float16, float32 or float64, larger is better, equal scores ordered by database index.
    """
    _check_setups([setup])
    row = _as_array(scores, 1)[None]  # (1, N)
    return _ranks_from_scores(row, [ground_truth], [setup])[0][setup]


def evaluate(
    scores: Scores | Iterable[Scores],
    ground_truth: Sequence[GroundTruth],
    setups: Sequence[str] = ("easy", "medium", "hard"),
    method: str = "trapezoid",
) -> Report:
    """Score Q rankings of N database images, given as scores (Q, N), larger is better; ties go to the lower index.

    scores: float16, float32 or float64; an array, a tensor, a memory-mapped array, or an iterable of blocks (Q, n) of
    consecutive database images, in order. Blocks are asked for once, so a generator will do; those up to the last
    labelled image are held, the later ones counted and dropped. Where distractors come last, as in Revisited Oxford
    with a million of them, next to nothing is held.
    Raises ValueError for a wrong shape or dtype, a nan or infinite score, an unknown set-up, a label out of range or
    given twice for one query, and a set-up in which no query has a positive.
    """
    _check_setups(setups)
    check_method(method)
    return _report(_ranks_from_scores(scores, ground_truth, setups), setups, method)


def evaluate_ranking(
    ranking: Scores,
    ground_truth: Sequence[GroundTruth],
    setups: Sequence[str] = ("easy", "medium", "hard"),
    method: str = "trapezoid",
) -> Report:
    """Score Q complete rankings (Q, N) int: row q holds every database index 0..N-1 once, best first.

    Raises ValueError for a row that is not such a permutation, and as `evaluate` for the labels and set-ups.
    """
    _check_setups(setups)
    check_method(method)
    ranking = ranking.detach().cpu().numpy() if isinstance(ranking, torch.Tensor) else np.asarray(ranking)
    if ranking.ndim != 2 or not np.issubdtype(ranking.dtype, np.integer):
        raise ValueError(f"A ranking must be a (Q, N) array of integers, got {ranking.shape} of {ranking.dtype}.")
    _check_queries(len(ranking), len(ground_truth))
    ranks = []
    for query, (row, labels) in enumerate(zip(ranking, ground_truth, strict=True)):
        position = np.full(row.size, -1)  # (N,)
        if row.size and 0 <= row.min() and row.max() < row.size:
            position[row] = np.arange(row.size)
        if (position < 0).any():
            raise ValueError(f"The ranking of query {query} must hold every index 0..{row.size - 1} once: rank all.")
        indices, kinds = _labelled(labels, query)  # (L,), (L,)
        _check_range(indices, query, row.size)
        order = np.argsort(position[indices])  # (L,) best first
        ranks.append(_by_setup(kinds[order], position[indices][order] + 1, setups))
    return _report(ranks, setups, method)


def _ranks_from_scores(
    scores: Scores | Iterable[Scores], ground_truth: Sequence[GroundTruth], setups: Sequence[str]
) -> list[dict[str, np.ndarray]]:
    """For each query, by set-up, the ranks (P,) of its positives."""
    labelled = [_labelled(labels, query) for query, labels in enumerate(ground_truth)]
    last = max((int(indices.max(initial=-1)) for indices, _ in labelled), default=-1)
    blocks = _blocks(scores, len(ground_truth))
    held, size = [], 0
    while size <= last and (block := next(blocks, None)) is not None:
        held.append(block)
        size += block[1].shape[1]
    if size == 0 <= last:
        raise ValueError("There are no scores: give an array (Q, N), or at least one block of it.")
    for query, (indices, _) in enumerate(labelled):
        _check_range(indices, query, size)
    wanted = [_wanted(held, query, *known) for query, known in enumerate(labelled)]
    counts = [np.zeros(len(indices), np.int64) for _, indices, _ in wanted]  # (L,) each
    for first, block in chain(held, blocks):
        for query, (values, indices, _) in enumerate(wanted):
            row = np.asarray(block[query])  # (n,)
            _check_finite(row, query, first)
            counts[query] += count_at_or_above(row, first, values, indices)
    return [_by_setup(kinds[::-1], n[::-1], setups) for (_, _, kinds), n in zip(wanted, counts, strict=True)]


def _blocks(scores: Scores | Iterable[Scores], n_queries: int) -> Iterator[tuple[int, np.ndarray]]:
    """(index of its first image, scores (Q, n)) of each block; one array is one block."""
    whole = isinstance(scores, np.ndarray | torch.Tensor) or not isinstance(scores, Iterable)
    first = 0
    for block in [scores] if whole else scores:
        block = _as_array(block, 2)  # (Q, n)
        _check_queries(len(block), n_queries)
        yield first, block
        first += block.shape[1]


def _wanted(
    held: list[tuple[int, np.ndarray]], query: int, indices: np.ndarray, kinds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, database indices and kinds (L,) of the labelled images that no positive is above, worst first."""
    scores = np.zeros(len(indices), np.result_type(np.float16, *(block for _, block in held)))  # (L,)
    for first, block in held:
        inside = (indices >= first) & (indices < first + block.shape[1])  # (L,)
        scores[inside] = block[query, indices[inside] - first]
    positive = kinds != "junk"  # (L,)
    keep = np.flatnonzero(scores >= scores[positive].min()) if positive.any() else []
    order = worst_first(scores[keep], indices[keep])
    return scores[keep][order], indices[keep][order], kinds[keep][order]


def _by_setup(kinds: np.ndarray, at_or_above: np.ndarray, setups: Sequence[str]) -> dict[str, np.ndarray]:
    """Ranks by set-up from the labelled images, best first: their kinds (L,), and the images at or above each (L,)."""
    others = at_or_above - np.arange(1, len(kinds) + 1)  # (L,) unlabelled images above each
    ranks = {}
    for setup in setups:
        above = others[np.isin(kinds, SETUPS[setup].positive)]  # (P,)
        ranks[setup] = above + np.arange(above.size)  # (P,)
    return ranks


def _report(ranks: list[dict[str, np.ndarray]], setups: Sequence[str], method: str) -> Report:
    return Report({setup: _summarise(setup, [found[setup] for found in ranks], method) for setup in setups}, method)


def _summarise(setup: str, ranks: list[np.ndarray], method: str) -> SetupResult:
    counted = [r for r in ranks if r.size]
    if not counted:
        raise ValueError(f"No query has a positive in set-up {setup!r}: leave this set-up out.")
    precision_at, recall_at = {}, {}
    for k in KS:
        depths = [min(k, int(r[-1]) + 1) for r in counted]
        precision_at[k] = float(np.mean([(r < depth).sum() / depth for r, depth in zip(counted, depths, strict=True)]))
        recall_at[k] = float(np.mean([(r < k).mean() for r in counted]))
    ap = np.array([average_precision(r, method) for r in ranks])  # (Q,)
    return SetupResult(setup, ap, np.array([r.size for r in ranks]), precision_at, recall_at)


def _labelled(labels: GroundTruth, query: int) -> tuple[np.ndarray, np.ndarray]:
    """Database indices (L,) of the labelled images of a query, and whether each is easy, hard or junk (L,)."""
    lists = {"easy": labels.easy, "hard": labels.hard, "junk": labels.junk}
    indices = np.concatenate(list(lists.values()))  # (L,)
    unique, times = np.unique(indices, return_counts=True)
    if unique.size < indices.size:
        raise ValueError(f"Query {query} labels image {unique[times > 1][0]} more than once: keep one label.")
    return indices, np.repeat(list(lists), [len(values) for values in lists.values()])


def _as_array(scores: Scores, ndim: int) -> np.ndarray:
    dtype = str(scores.dtype) if isinstance(scores, torch.Tensor | np.ndarray) else type(scores).__name__
    if dtype.removeprefix("torch.") not in ("float16", "float32", "float64"):
        raise ValueError(
            f"Scores must be numpy or torch arrays of float16, float32 or float64, got {dtype}: convert them."
        )
    if scores.ndim != ndim:
        shape = "(Q, N), a row for each query" if ndim == 2 else "(N,), one for each database image"
        raise ValueError(f"Scores must have shape {shape}, got {tuple(scores.shape)}.")
    return scores.detach().cpu().numpy() if isinstance(scores, torch.Tensor) else scores


def _check_queries(rows: int, n_queries: int) -> None:
    if rows != n_queries:
        raise ValueError(f"{rows} rows need the ground truth of {rows} queries, got {n_queries}.")


def _check_range(indices: np.ndarray, query: int, size: int) -> None:
    outside = indices[(indices < 0) | (indices >= size)]
    if outside.size:
        raise ValueError(f"Query {query} labels image {outside[0]}, but the database has images 0..{size - 1}.")


def _check_finite(row: np.ndarray, query: int, first: int) -> None:
    finite = np.isfinite(row)
    if not finite.all():
        image = int(np.argmin(finite))
        raise ValueError(
            f"The score of query {query} and image {first + image} is {row[image]}: look for empty descriptors."
        )


def _check_setups(setups: Sequence[str]) -> None:
    unknown = [setup for setup in setups if setup not in SETUPS]
    if unknown or isinstance(setups, str) or not len(setups):
        raise ValueError(f"Set-ups must be a list of {', '.join(SETUPS)}, got {setups!r}.")
