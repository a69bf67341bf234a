"""Average precision of rankings under the protocols of Oxford/Paris and Revisited Oxford/Paris.

The database is never sorted. An image that is labelled for a query is either a positive or removed from the ranking,
in every set-up, so the rank of a positive is the number of unlabelled images above it plus the positives above it:
sorting the few labelled images and counting the others is enough. Equal scores are ordered by database index.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

KS = (1, 5, 10)


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


def average_precision(positive_ranks: Sequence[int] | np.ndarray, method: str = "trapezoid") -> float:
    """AP in [0, 1] of one query from the 0-based ranks of all its positives (any order); nan when there is none.

    "trapezoid" is the AP of Oxford5k (Philbin et al. 2007) and Revisited Oxford (Radenovic et al. 2018): the area under
    the precision-recall line. "step" is information retrieval's: the mean of the precisions at the positives.
    Raises ValueError for another method and for ranks that are negative or occur twice.
    """
    _check_method(method)
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


def positive_ranks(scores: np.ndarray | torch.Tensor, ground_truth: GroundTruth, setup: str = "medium") -> np.ndarray:
    """0-based ranks (P,) int64, ascending, of one query's positives once the junk of the set-up is removed.

    `scores`: (N,) float32 or float64, larger is better, equal scores ordered by database index.
    """
    _check_setups([setup])
    row = _as_scores(scores, 1)  # (N,)
    _check_finite(row, 0)
    return _positive_ranks(-row, ground_truth, [setup], 0)[setup]


def evaluate(
    scores: np.ndarray | torch.Tensor,
    ground_truth: Sequence[GroundTruth],
    setups: Sequence[str] = ("easy", "medium", "hard"),
    method: str = "trapezoid",
) -> Report:
    """Score Q rankings of N database images, given as scores (Q, N) float32 or float64, larger is better.

    Ties go to the lower database index. Raises ValueError for a wrong shape or dtype, a nan or infinite score, an
    unknown set-up, a label out of range or given twice for one query, and a set-up in which no query has a positive.
    """
    scores = _as_scores(scores, 2)  # (Q, N)

    def costs() -> Iterator[np.ndarray]:
        for query, row in enumerate(scores):
            _check_finite(row, query)
            yield -row  # (N,)

    return _evaluate(costs(), len(scores), ground_truth, setups, method)


def evaluate_ranking(
    ranking: np.ndarray | torch.Tensor,
    ground_truth: Sequence[GroundTruth],
    setups: Sequence[str] = ("easy", "medium", "hard"),
    method: str = "trapezoid",
) -> Report:
    """Score Q complete rankings (Q, N) int: row q holds every database index 0..N-1 once, best first.

    Raises ValueError for a row that is not such a permutation, and as `evaluate` for the labels and set-ups.
    """
    ranking = ranking.detach().cpu().numpy() if isinstance(ranking, torch.Tensor) else np.asarray(ranking)
    if ranking.ndim != 2 or not np.issubdtype(ranking.dtype, np.integer):
        raise ValueError(f"A ranking must be a (Q, N) array of integers, got {ranking.shape} of {ranking.dtype}.")
    columns = np.arange(ranking.shape[1])  # (N,)

    def costs() -> Iterator[np.ndarray]:
        for query, row in enumerate(ranking):
            position = np.full(row.size, -1)  # (N,)
            if row.size and 0 <= row.min() and row.max() < row.size:
                position[row] = columns
            if (position < 0).any():
                raise ValueError(
                    f"The ranking of query {query} must hold every index 0..{row.size - 1} once: rank all images."
                )
            yield position  # (N,)

    return _evaluate(costs(), len(ranking), ground_truth, setups, method)


@dataclass(frozen=True)
class SetupResult:
    """One set-up: AP of each query and the means over the queries that have a positive in this set-up."""

    setup: str
    ap: np.ndarray = field(repr=False)  # (Q,) float64 in [0, 1], nan where the query has no positive
    positives: np.ndarray = field(repr=False)  # (Q,) int64, positives of each query
    precision_at: dict[int, float]  # k -> mean precision of the first min(k, rank of the last positive) images
    recall_at: dict[int, float]  # k -> mean share of a query's positives among the first k images

    @property
    def mean_ap(self) -> float:
        """Mean AP in [0, 1] over the counted queries."""
        return float(np.nanmean(self.ap))

    @property
    def counted(self) -> int:
        """Number of queries with at least one positive."""
        return int((self.positives > 0).sum())

    def interval(self, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
        """Percentile bootstrap interval (low, high) of the mean AP over queries (Efron 1979)."""
        return _bootstrap(self.ap[self.positives > 0], level, draws, seed)


@dataclass(frozen=True)
class Report:
    """Results by set-up: `report["medium"].mean_ap`. Prints as a small table."""

    results: dict[str, SetupResult]
    method: str = "trapezoid"

    def __getitem__(self, setup: str) -> SetupResult:
        if setup not in self.results:
            raise ValueError(f"The report has no set-up {setup!r}; it has {', '.join(self.results)}.")
        return self.results[setup]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def _table(self) -> tuple[list[str], list[list[str]]]:
        rows = []
        for name, result in self.results.items():
            low, high = result.interval()
            precisions = [f"{result.precision_at[k]:.3f}" for k in KS]
            counted = f"{result.counted} of {result.ap.size}"
            rows.append([name, f"{result.mean_ap:.3f}", f"{low:.3f} to {high:.3f}", *precisions, counted])
        return ["set-up", "mAP", "95 % interval", *(f"mP@{k}" for k in KS), "queries"], rows

    def __str__(self) -> str:
        head, rows = self._table()
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (head, *rows)]
        return "\n".join("  ".join(line).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head, rows = self._table()
        lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
        lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
        return f"<table><caption>{self.method} average precision</caption>{''.join(lines)}</table>"


@dataclass(frozen=True)
class Comparison:
    """Report a against report b on the same queries: mean of AP(a) - AP(b), its interval, and who wins how often."""

    mean_difference: float
    low: float
    high: float
    wins: int  # queries on which a has the higher AP
    losses: int
    ties: int


def compare(
    report_a: Report, report_b: Report, setup: str, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Comparison:
    """Paired comparison of two reports; the interval is a bootstrap over the per-query differences.

    Raises ValueError when the reports do not share queries, numbers of positives or definition of AP.
    """
    a, b = report_a[setup], report_b[setup]
    if report_a.method != report_b.method:
        raise ValueError(f"A {report_a.method} AP cannot be compared with a {report_b.method} AP.")
    if not np.array_equal(a.positives, b.positives):
        raise ValueError(
            f"The reports do not score the same queries in set-up {setup!r}: {a.ap.size} queries with "
            f"{a.positives.sum()} positives against {b.ap.size} with {b.positives.sum()}."
        )
    difference = (a.ap - b.ap)[a.positives > 0]  # (Q',)
    low, high = _bootstrap(difference, level, draws, seed)
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return Comparison(float(difference.mean()), low, high, wins, losses, difference.size - wins - losses)


def _evaluate(
    costs: Iterable[np.ndarray], n_queries: int, ground_truth: Sequence[GroundTruth], setups: Sequence[str], method: str
) -> Report:
    _check_setups(setups)
    _check_method(method)
    if len(ground_truth) != n_queries:
        raise ValueError(f"{n_queries} rows need the ground truth of {n_queries} queries, got {len(ground_truth)}.")
    ranks: dict[str, list[np.ndarray]] = {setup: [] for setup in setups}
    for query, (cost, labels) in enumerate(zip(costs, ground_truth, strict=True)):
        for setup, found in _positive_ranks(cost, labels, setups, query).items():
            ranks[setup].append(found)
    return Report({setup: _summarise(setup, found, method) for setup, found in ranks.items()}, method)


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


def _positive_ranks(cost: np.ndarray, labels: GroundTruth, setups: Sequence[str], query: int) -> dict[str, np.ndarray]:
    """Ranks of the positives by set-up for one row of costs (N,), lower is better."""
    labelled, kinds = _labelled(labels, cost.size, query)  # (L,), (L,)
    wanted = np.isin(kinds, ["easy", "hard"])  # (L,)
    if not wanted.any():
        return {setup: np.empty(0, np.int64) for setup in setups}
    worst = cost[labelled[wanted]].max()
    keep = cost[labelled] <= worst
    labelled, kinds = labelled[keep], kinds[keep]
    order = np.lexsort((labelled, cost[labelled]))
    labelled, kinds = labelled[order], kinds[order]
    others = _others_above(cost, labelled)  # (L,)
    ranks = {}
    for setup in setups:
        above = others[np.isin(kinds, SETUPS[setup].positive)]  # (P,)
        ranks[setup] = above + np.arange(above.size)  # (P,)
    return ranks


def _others_above(cost: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """How many unlabelled images stand above each labelled one; `labelled` (L,) in the order (cost, index)."""
    values = cost[labelled]  # (L,)
    near = np.flatnonzero(cost <= values[-1])  # (K,) the rest is below all of them
    # place[j]: number of labelled images above image near[j].
    place = np.searchsorted(values, cost[near])  # (K,)
    tied = values[place] == cost[near]  # (K,)
    group = np.searchsorted(values, values)  # (L,) the same number for equal costs
    place[tied] = np.searchsorted(group * cost.size + labelled, place[tied] * cost.size + near[tied])
    at_or_above = np.cumsum(np.bincount(place, minlength=labelled.size))[: labelled.size]  # (L,)
    # Labelled image k has been counted with its k labelled predecessors: take these k + 1 away.
    return at_or_above - np.arange(1, labelled.size + 1)


def _labelled(labels: GroundTruth, size: int, query: int) -> tuple[np.ndarray, np.ndarray]:
    lists = {"easy": labels.easy, "hard": labels.hard, "junk": labels.junk}
    indices = np.concatenate(list(lists.values()))  # (L,)
    outside = indices[(indices < 0) | (indices >= size)]
    if outside.size:
        raise ValueError(f"Query {query} labels image {outside[0]}, but the database has images 0..{size - 1}.")
    unique, times = np.unique(indices, return_counts=True)
    if unique.size < indices.size:
        raise ValueError(f"Query {query} labels image {unique[times > 1][0]} more than once: keep one label.")
    return indices, np.repeat(list(lists), [len(values) for values in lists.values()])


def _as_scores(scores: np.ndarray | torch.Tensor, ndim: int) -> np.ndarray:
    dtype = str(scores.dtype) if isinstance(scores, torch.Tensor | np.ndarray) else type(scores).__name__
    if dtype.removeprefix("torch.") not in ("float32", "float64"):
        raise ValueError(f"Scores must be a numpy or torch array of float32 or float64, got {dtype}: convert them.")
    if scores.ndim != ndim:
        shape = "(Q, N), a row for each query" if ndim == 2 else "(N,), one for each database image"
        raise ValueError(f"Scores must have shape {shape}, got {tuple(scores.shape)}.")
    return scores.detach().cpu().numpy() if isinstance(scores, torch.Tensor) else scores


def _check_finite(row: np.ndarray, query: int) -> None:
    finite = np.isfinite(row)
    if not finite.all():
        image = int(np.argmin(finite))
        raise ValueError(f"The score of query {query} and image {image} is {row[image]}: look for empty descriptors.")


def _check_setups(setups: Sequence[str]) -> None:
    unknown = [setup for setup in setups if setup not in SETUPS]
    if unknown or isinstance(setups, str) or not len(setups):
        raise ValueError(f"Set-ups must be a list of {', '.join(SETUPS)}, got {setups!r}.")


def _check_method(method: str) -> None:
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


def _bootstrap(values: np.ndarray, level: float, draws: int, seed: int) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"The level must lie between 0 and 1, got {level}.")
    picks = np.random.default_rng(seed).integers(values.size, size=(draws, values.size))  # (draws, Q')
    low, high = np.quantile(values[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
