"""The evaluator against a plain reading of the protocol, on the official ground truth of Revisited Oxford and Paris."""

from __future__ import annotations

import math

import numpy as np
import pytest

from retrieval_utils.datasets.revisited import read_revisited
from retrieval_utils.evaluation import evaluate

pytestmark = pytest.mark.real_data

PROTOCOL = {  # set-up: positive, ignored (Radenovic et al. 2018, section 3)
    "easy": (("easy",), ("hard", "junk")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("easy", "junk")),
}
DRAWN = {
    "random": lambda rng, shape: rng.standard_normal(shape).astype(np.float32),
    "random double": lambda rng, shape: rng.standard_normal(shape),
    "tied": lambda rng, shape: np.round(rng.standard_normal(shape), 1).astype(np.float32),
    "tied half": lambda rng, shape: np.round(rng.standard_normal(shape), 2).astype(np.float16),
    "constant": lambda rng, shape: np.full(shape, 0.25, np.float32),
}


@pytest.fixture(params=["roxford5k", "rparis6k"], scope="module")
def bench(request, photos):
    if not (photos / request.param / f"gnd_{request.param}.pkl").is_file():
        pytest.skip(f"no ground truth of {request.param} in {photos}")
    return read_revisited(photos / request.param, request.param, check_images=False)


def walk(order: list[int], labels: dict[str, set[int]], setup: str) -> tuple[float, list[float]]:
    """AP and P@1, 5, 10 of one query: down the ranking, past what is ignored, until the last positive."""
    positive, ignored = (set().union(*(labels[kind] for kind in kinds)) for kinds in PROTOCOL[setup])
    if not positive:
        return math.nan, [math.nan] * 3
    area, found, seen, hits = 0.0, 0, 0, []
    for image in order:
        if image in ignored:
            continue
        if image in positive:
            before = found / seen if seen else 1.0
            area += (before + (found + 1) / (seen + 1)) / 2
            found += 1
        hits.append(image in positive)
        seen += 1
        if found == len(positive):
            break
    return area / found, [sum(hits[:k]) / min(k, seen) for k in (1, 5, 10)]


@pytest.mark.parametrize("kind", DRAWN)
def test_every_ap_and_precision_is_that_of_the_plain_reading(bench, kind):
    shape = len(bench.queries), len(bench.images)
    scores = DRAWN[kind](np.random.default_rng(3), shape)  # (Q, N)
    if not kind.startswith("constant"):
        for row, labels in zip(scores, bench.ground_truth, strict=True):
            row[labels.easy] += 2
            row[labels.hard] += 1
    report = evaluate(np.array_split(scores, 7, axis=1) if kind == "random double" else scores, bench.ground_truth)
    walked = {setup: [] for setup in PROTOCOL}
    for row, truth in zip(scores.tolist(), bench.ground_truth, strict=True):
        order = sorted(range(len(row)), key=lambda image: -row[image])  # noqa: B023 - stable: ties by index
        labels = {name: set(getattr(truth, name).tolist()) for name in ("easy", "hard", "junk")}
        for setup in PROTOCOL:
            walked[setup].append(walk(order, labels, setup))
    for setup, queries in walked.items():
        ap, precisions = (np.array(values) for values in zip(*queries, strict=True))  # (Q,), (Q, 3)
        np.testing.assert_allclose(report[setup].ap, ap, atol=1e-6, rtol=0, equal_nan=True)
        assert report[setup].mean_ap == pytest.approx(np.nanmean(ap), abs=1e-6)
        means = np.nanmean(precisions, axis=0)
        np.testing.assert_allclose(list(report[setup].precision_at.values()), means, atol=1e-6, rtol=0)


def test_easy_of_oxford_is_a_mean_over_68_queries(bench):
    report = evaluate(np.zeros((len(bench.queries), len(bench.images))), bench.ground_truth)
    easy = 68 if bench.name == "roxford5k" else 70
    assert [report[setup].counted for setup in report] == [easy, 70, 70]
    assert np.isnan(report["easy"].ap).sum() == 70 - easy
