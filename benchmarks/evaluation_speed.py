"""Scoring Revisited Oxford with 1,001,001 distractors: `evaluate` against what the code bases of the field do.

They sort every image for every query, then look up the positives and the junk of each query in its full ranking, once
a set-up, and walk through them in loops. Both read the same scores in the same run, five times in turn, each time in a
process of its own, and have to agree on every AP and mP@k; the medians are compared, as the time of a sort varies much
from turn to turn. The scores are drawn: as a good network would give them (mAP medium near the 0.45 published for a
fine-tuned ResNet-101 with these distractors), and all from one distribution, where positives lie anywhere and much has
to be counted. Needs 2 GB of memory, and roxford5k/gnd_roxford5k.pkl in the data root.

    .venv/bin/python benchmarks/evaluation_speed.py
"""

from __future__ import annotations

from statistics import median

import numpy as np
from common import measure, record

from retrieval_utils.datasets import GroundTruth, data_root
from retrieval_utils.datasets.revisited import read_revisited
from retrieval_utils.evaluation import KS, SETUPS, evaluate

DISTRACTORS = 1_001_001
TURNS = 5
REVISITED = ("easy", "medium", "hard")
LIFT = {"a good network": {"easy": 4.6, "hard": 3.2}, "random scores": {"easy": 0.0, "hard": 0.0}}  # in s.d.


def main() -> None:
    try:
        bench = read_revisited(data_root() / "roxford5k", "roxford5k", check_images=False)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    for case, lift in LIFT.items():
        scores = draw_scores(bench.ground_truth, len(bench.images) + DISTRACTORS, lift)  # (Q, N)
        turns = []
        for _ in range(TURNS):
            turns.append(measure(lambda s=scores: sort_and_loop(s, bench.ground_truth)))
            turns.append(measure(lambda s=scores: evaluate(s, bench.ground_truth, REVISITED)))
        theirs, their_memory = (median(turn[i] for turn in turns[::2]) for i in (0, 1))
        ours, our_memory = (median(turn[i] for turn in turns[1::2]) for i in (0, 1))
        (their_ap, their_precision), report = turns[0][2], turns[1][2]
        for setup in REVISITED:
            np.testing.assert_allclose(report[setup].ap, their_ap[setup], atol=1e-6, rtol=0)
            np.testing.assert_allclose(list(report[setup].precision_at.values()), their_precision[setup], atol=1e-6)
        means = ", ".join(f"{setup} {report[setup].mean_ap:.3f}" for setup in REVISITED)
        print(f"{case}: {scores.shape[0]} x {scores.shape[1]:,} scores of {scores.nbytes / 1e6:.0f} MB; mAP {means}")
        record(f"evaluate roxford5k+1M, {case}: time", ours, theirs, "s of CPU")
        record(f"evaluate roxford5k+1M, {case}: memory above the scores", our_memory, their_memory, "MB")


def draw_scores(ground_truth: tuple[GroundTruth, ...], size: int, lift: dict[str, float]) -> np.ndarray:
    """(Q, N) float32 cosines, normally distributed, those of the positives lifted by so many standard deviations."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((len(ground_truth), size), np.float32)  # (Q, N)
    for row, labels in zip(scores, ground_truth, strict=True):
        for kind, amount in lift.items():
            row[getattr(labels, kind)] += amount
    scores *= 0.06
    scores += 0.1
    return scores


def sort_and_loop(scores: np.ndarray, ground_truth: tuple[GroundTruth, ...]) -> tuple[dict, dict]:
    """AP by set-up (Q,), and mP@k by set-up in the order of KS, in the way of the field."""
    ranking = np.argsort(-scores, axis=1)  # (Q, N)
    ap, precision = {}, {}
    for setup in REVISITED:
        found = []
        for row, labels in zip(ranking, ground_truth, strict=True):
            lists = {kind: np.concatenate([getattr(labels, k) for k in SETUPS[setup]._asdict()[kind]])
                     for kind in ("positive", "ignored")}  # fmt: skip
            positives = np.flatnonzero(np.isin(row, lists["positive"]))  # (P,)
            junk = np.flatnonzero(np.isin(row, lists["ignored"]))  # (J,)
            found.append(one_query(positives, junk))
        ap[setup] = np.array([value for value, _ in found])
        precision[setup] = np.nanmean([values for _, values in found], axis=0)
    return ap, precision


def one_query(positives: np.ndarray, junk: np.ndarray) -> tuple[float, list[float]]:
    """AP and P@k from the 0-based places of the positives (P,) and of the junk (J,) in the full ranking, ascending."""
    if not len(positives):
        return np.nan, [np.nan] * len(KS)
    passed, ranks = 0, []
    for place in positives:
        while passed < len(junk) and junk[passed] < place:
            passed += 1
        ranks.append(place - passed)
    area = 0.0
    for number, rank in enumerate(ranks):
        before = 1.0 if rank == 0 else number / rank
        area += (before + (number + 1) / (rank + 1)) / 2 / len(ranks)
    depths = [min(k, ranks[-1] + 1) for k in KS]
    return area, [sum(rank < depth for rank in ranks) / depth for depth in depths]


if __name__ == "__main__":
    main()
