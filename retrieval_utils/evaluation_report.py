"""What an evaluation found: results by set-up with intervals over queries, and two reports compared query by query."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape

import numpy as np

from retrieval_utils.protocol import ProtocolCard

KS = (1, 5, 10)
NO_CARD = "no protocol card: what these numbers depend on is not recorded, so they compare with no others"


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
    """Results by set-up: `report["medium"].mean_ap`. Prints as a table with its card, or that it has none."""

    results: dict[str, SetupResult]
    method: str = "trapezoid"
    card: ProtocolCard | None = None

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
        table = "\n".join("  ".join(line).rstrip() for line in lines)
        return f"{table}\n{self.card or NO_CARD}"

    def _repr_html_(self) -> str:
        head, rows = self._table()
        lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
        lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
        card = f"<pre>{escape(str(self.card or NO_CARD))}</pre>"
        return f"<table><caption>{self.method} average precision</caption>{''.join(lines)}</table>{card}"


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

    Raises ValueError when the reports do not share queries, numbers of positives or definition of AP. What else makes
    two numbers incomparable is on their cards: see `ProtocolCard.differences`.
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


def _bootstrap(values: np.ndarray, level: float, draws: int, seed: int) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"The level must lie between 0 and 1, got {level}.")
    picks = np.random.default_rng(seed).integers(values.size, size=(draws, values.size))  # (draws, Q')
    low, high = np.quantile(values[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
