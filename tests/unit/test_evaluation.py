"""The evaluator against pencil-sized rankings, a loop that follows the protocol, and its own invariants."""

import math
import os
import tracemalloc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retrieval_utils import rank_counting
from retrieval_utils.evaluation import (
    KS,
    SETUPS,
    GroundTruth,
    average_precision,
    compare,
    evaluate,
    evaluate_ranking,
    positive_ranks,
    precision_recall,
)
from retrieval_utils.protocol import ProtocolCard

ALL = tuple(SETUPS)
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def slow_query(scores, labels, setup):
    """One query as the protocol tells it: sort everything, drop the junk, walk down the list."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    lists = {name: set(getattr(labels, name).tolist()) for name in ("easy", "hard", "junk")}
    positives = set().union(*(lists[name] for name in SETUPS[setup].positive))
    ignored = set().union(*(lists[name] for name in SETUPS[setup].ignored))
    cleaned = [i for i in order if i not in ignored]
    ranks = [rank for rank, i in enumerate(cleaned) if i in positives]
    if not ranks:
        return None
    trapezoid = step = 0.0
    for found, rank in enumerate(ranks):
        before = 1.0 if rank == 0 else found / rank
        after = (found + 1) / (rank + 1)
        trapezoid += (before + after) / 2 / len(ranks)
        step += after / len(ranks)
    precision, recall = {}, {}
    for k in KS:
        depth = min(k, ranks[-1] + 1)
        precision[k] = sum(i in positives for i in cleaned[:depth]) / depth
        recall[k] = sum(i in positives for i in cleaned[:k]) / len(ranks)
    return {"ranks": ranks, "trapezoid": trapezoid, "step": step, "precision": precision, "recall": recall}


def assert_same_as_slow(report, scores, ground_truth, method):
    for setup in report:
        result = report[setup]
        slow = [slow_query(row, labels, setup) for row, labels in zip(scores, ground_truth, strict=True)]
        np.testing.assert_allclose(result.ap, [math.nan if s is None else s[method] for s in slow], atol=1e-9, rtol=0)
        slow = [s for s in slow if s is not None]
        assert result.counted == len(slow)
        assert result.mean_ap == pytest.approx(np.mean([s[method] for s in slow]), abs=1e-9)
        for k in KS:
            assert result.precision_at[k] == pytest.approx(np.mean([s["precision"][k] for s in slow]), abs=1e-9)
            assert result.recall_at[k] == pytest.approx(np.mean([s["recall"][k] for s in slow]), abs=1e-9)


def random_labels(rng, n_images, most=9):
    """Every query gets at least one easy and one hard image; junk may be empty."""
    sizes = [rng.integers(1, most), rng.integers(1, most), rng.integers(0, most)]
    picks = rng.permutation(n_images)[: sum(sizes)]
    return GroundTruth(*np.split(picks, np.cumsum(sizes)[:2]))


# By pencil.


@pytest.mark.parametrize(
    ("ranks", "trapezoid", "step"),
    [
        ([0], 1, 1),
        ([1], 0.25, 0.5),  # (0/1 + 1/2) / 2
        ([0, 3, 4, 5], 0.650, 0.69167),  # (1 + 1, 1/3 + 2/4, 2/4 + 3/5, 3/5 + 4/6) / 2
        ([5, 0, 4, 3], 0.650, 0.69167),
        ([0, 1, 2], 1, 1),
        ([3, 4], (0 + 1 / 4 + 1 / 4 + 2 / 5) / 4, (1 / 4 + 2 / 5) / 2),
    ],
)
def test_average_precision_by_pencil(ranks, trapezoid, step):
    assert average_precision(ranks) == pytest.approx(trapezoid, abs=1e-5)
    assert average_precision(ranks, "step") == pytest.approx(step, abs=1e-5)


def test_average_precision_without_a_positive_is_nan():
    assert math.isnan(average_precision([]))


def test_setups_by_pencil():
    # By score: 4 junk, 2 hard, 5 negative, 0 easy, 1 negative, 3 hard.
    scores = np.array([[0.5, 0.4, 0.8, 0.1, 0.9, 0.6]])
    labels = GroundTruth(easy=[0], hard=[2, 3], junk=[4])
    assert positive_ranks(scores[0], labels, "easy").tolist() == [1]
    assert positive_ranks(scores[0], labels, "hard").tolist() == [0, 3]
    assert positive_ranks(scores[0], labels, "medium").tolist() == [0, 2, 4]
    assert positive_ranks(scores[0], labels, "original").tolist() == [0, 2, 4]
    report = evaluate(scores, [labels])
    assert report["easy"].ap.tolist() == [0.25]
    assert report["hard"].ap.tolist() == [pytest.approx((1 + 1 + 1 / 3 + 2 / 4) / 4)]
    assert report["medium"].precision_at == {1: 1, 5: 3 / 5, 10: 3 / 5}
    assert report["easy"].precision_at == {1: 0, 5: 1 / 2, 10: 1 / 2}
    assert report["hard"].recall_at == {1: 1 / 2, 5: 1, 10: 1}


def test_precision_is_capped_at_the_last_positive():
    report = evaluate(np.arange(20.0)[None, ::-1], [GroundTruth(easy=[0, 1])], ["easy"])
    assert report["easy"].precision_at == {1: 1, 5: 1, 10: 1}


def test_ties_go_to_the_lower_index():
    labels = GroundTruth(easy=[2], hard=[4], junk=[3])
    assert positive_ranks(np.zeros(6), labels, "medium").tolist() == [2, 3]
    scores = np.array([1.0, 0, 1, 1, 1, 2])
    assert positive_ranks(scores, labels, "medium").tolist() == [2, 3]
    assert positive_ranks(scores, labels, "hard").tolist() == [2]
    assert positive_ranks(np.array([0.0, -0.0, 0.0, 0, 0, 0]), labels, "easy").tolist() == [2]


def test_query_without_a_positive_is_left_out():
    scores = np.array([[3.0, 2, 1], [3, 2, 1]])
    report = evaluate(scores, [GroundTruth(easy=[1], hard=[0]), GroundTruth(easy=[], hard=[0])], ["easy", "hard"])
    np.testing.assert_array_equal(report["easy"].ap, [1, math.nan])
    assert report["easy"].mean_ap == 1
    assert report["easy"].counted == 1
    assert report["hard"].counted == 2
    assert "1 of 2" in str(report)


# Against the loop.


@pytest.mark.parametrize("method", ["trapezoid", "step"])
@pytest.mark.parametrize("kind", ["random", "float32", "tied", "constant", "torch"])
def test_same_as_the_slow_protocol(kind, method):
    rng = np.random.default_rng(7)
    scores = rng.standard_normal((12, 60))
    if kind == "float32":
        scores = scores.astype(np.float32)
    if kind == "tied":
        scores = np.round(scores, 0)
    if kind == "constant":
        scores = np.zeros_like(scores)
    ground_truth = [random_labels(rng, 60) for _ in scores]
    given = torch.from_numpy(scores).requires_grad_() if kind == "torch" else scores
    assert_same_as_slow(evaluate(given, ground_truth, ALL, method), scores, ground_truth, method)
    ranking = np.argsort(-scores, axis=1, kind="stable")
    assert_same_as_slow(evaluate_ranking(ranking, ground_truth, ALL, method), scores, ground_truth, method)


def as_memory_mapped(scores, folder):
    np.save(folder / "scores.npy", scores)
    return np.load(folder / "scores.npy", mmap_mode="r")


GIVEN = {
    "half": lambda scores, _: scores.astype(np.float16),
    "memory-mapped": as_memory_mapped,
    "not contiguous": lambda scores, _: np.ascontiguousarray(scores.T).T,
    "torch half": lambda scores, _: torch.from_numpy(scores).half(),
    "one block": lambda scores, _: [scores],
    "blocks": lambda scores, _: np.array_split(scores, [1, 1, 20, 45], axis=1),
    "a generator": lambda scores, _: (torch.from_numpy(scores[:, i : i + 7]) for i in range(0, 60, 7)),
    "two precisions": lambda scores, _: [scores[:, :30].astype(np.float32), scores[:, 30:]],
    "two precisions, wide first": lambda scores, _: [scores[:, :30], scores[:, 30:].astype(np.float16)],
}


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("values", ["random", "tied"])
def test_scores_of_any_kind_are_the_same_scores(kind, values, tmp_path):
    rng = np.random.default_rng(8)
    scores = rng.integers(-300, 300, (12, 60)) / (1024 if values == "random" else 128)  # exact in half precision
    scores = np.round(scores, 1).astype(np.float16).astype(np.float64) if values == "tied" else scores
    ground_truth = [random_labels(rng, 60) for _ in scores]
    report = evaluate(GIVEN[kind](scores, tmp_path), ground_truth, ALL)
    assert_same_as_slow(report, scores, ground_truth, "trapezoid")


EXTREMES = [0.0, -0.0, 1.0, 1 + 2**-52, -1e308, 1e308, 5e-324, 1e-300, -1.0]


@st.composite
def block_problems(draw):
    """Scores of 1 to 40 images with labels, in blocks of any sizes, with many ties or no even spacing at all."""
    n = draw(st.integers(1, 40))
    values = st.one_of(st.integers(-2, 2).map(float), st.sampled_from(EXTREMES), st.floats(-1, 1))
    scores = draw(hnp.arrays(np.float64, n, elements=values))
    kinds = draw(st.lists(st.sampled_from(["easy", "hard", "junk", "none", "none"]), min_size=n, max_size=n))
    kinds[draw(st.integers(0, n - 1))] = "easy"
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=4)))
    lists = {name: [i for i, kind in enumerate(kinds) if kind == name] for name in ("easy", "hard", "junk")}
    return scores, GroundTruth(**lists), cuts


@given(block_problems(), st.sampled_from([1, 3, 1 << 16]), st.sampled_from([1, 2, 7, 1 << 15]))
def test_counting_is_exact_for_any_scores_blocks_chunks_and_slots(problem, chunk, slots):
    scores, labels, cuts = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_counting, "CHUNK", chunk)
        patch.setattr(rank_counting, "SLOTS", slots)
        report = evaluate(np.split(scores[None], cuts, axis=1), [labels], ["medium"])
    assert_same_as_slow(report, scores[None], [labels], "trapezoid")


def test_only_blocks_up_to_the_last_labelled_image_are_held():
    alive = []

    def blocks():
        for number in range(9):
            block = np.random.default_rng(number).standard_normal((2, 10))
            alive.append(weakref.ref(block))
            yield block
            del block
            held.append(sum(reference() is not None for reference in alive))

    held = []
    evaluate(blocks(), [GroundTruth([3], [14]), GroundTruth([0], [2])])
    assert held[0] == 1 and max(held[2:]) <= 4  # two with labels, the current one, and the one before at most


@pytest.mark.parametrize("kind", ["random", "constant", "blocks"])
def test_no_rank_matrix_is_made(kind):
    n, rng = 400_000, np.random.default_rng(0)
    labels = [GroundTruth(range(30), range(30, 60), range(60, 80))] * 5
    drawn = np.zeros((5, n), np.float32) if kind == "constant" else rng.standard_normal((5, n), np.float32)
    rows = ([row[i : i + 20_000] for row in drawn] for i in range(0, n, 20_000))
    tracemalloc.start()  # numpy reports its arrays to it
    try:
        evaluate((np.stack(block) for block in rows) if kind == "blocks" else drawn, labels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < drawn.nbytes / 2  # ranks in int64 would be twice the scores


@st.composite
def small_problems(draw):
    n = draw(st.integers(2, 12))
    scores = draw(hnp.arrays(np.float64, n, elements=st.integers(-3, 3).map(float)))
    kinds = draw(st.lists(st.sampled_from(["easy", "hard", "junk", "none"]), min_size=n, max_size=n))
    kinds[0] = "easy"
    lists = {name: [i for i, kind in enumerate(kinds) if kind == name] for name in ("easy", "hard", "junk")}
    return scores, GroundTruth(**lists)


@given(small_problems(), st.sampled_from(["easy", "medium", "hard"]))
def test_ranks_equal_the_slow_ones_for_any_labels_and_ties(problem, setup):
    scores, labels = problem
    slow = slow_query(scores, labels, setup)
    assert positive_ranks(scores, labels, setup).tolist() == ([] if slow is None else slow["ranks"])


@given(small_problems())
def test_only_the_order_of_the_scores_counts(problem):
    scores, labels = problem
    plain = evaluate(scores[None], [labels], ["medium"])["medium"]
    stretched = evaluate(np.exp(scores / 2)[None] - 5, [labels], ["medium"])["medium"]
    assert plain.ap == stretched.ap
    assert 0 <= plain.mean_ap <= 1


@given(small_problems(), st.floats(-4, 4))
def test_the_score_of_junk_does_not_matter(problem, score):
    scores, labels = problem
    moved = scores.copy()
    moved[labels.junk] = score
    expected = evaluate(scores[None], [labels], ["medium"])["medium"]
    assert evaluate(moved[None], [labels], ["medium"])["medium"].ap == expected.ap


@given(small_problems())
def test_a_better_positive_never_lowers_the_average_precision(problem):
    scores, labels = problem
    lifted = scores.copy()
    lifted[labels.easy[0]] += 2
    for method in ("trapezoid", "step"):
        before = evaluate(scores[None], [labels], ["medium"], method)["medium"].mean_ap
        assert evaluate(lifted[None], [labels], ["medium"], method)["medium"].mean_ap >= before - 1e-12


@given(st.sets(st.integers(0, 40), min_size=1))
def test_trapezoid_is_the_area_under_the_precision_recall_line(ranks):
    precision, recall = precision_recall(list(ranks))
    area = np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2)
    assert area == pytest.approx(average_precision(list(ranks)), abs=1e-12)
    assert (recall[0], recall[-1]) == (0, 1)
    assert average_precision(list(ranks)) <= average_precision(list(ranks), "step") + 1e-12


# Intervals and comparisons.


def report_of(scores, seed=0):
    rng = np.random.default_rng(seed)
    return evaluate(scores, [random_labels(rng, scores.shape[1]) for _ in scores])


def test_interval_holds_the_mean_and_repeats_itself():
    result = report_of(np.random.default_rng(1).standard_normal((40, 50)))["medium"]
    low, high = result.interval()
    assert low < result.mean_ap < high
    assert result.interval() == (low, high) != result.interval(seed=1)
    narrow = result.interval(level=0.5)
    assert low < narrow[0] < narrow[1] < high
    # The percentile interval of a mean is close to the normal one.
    error = result.ap.std() / math.sqrt(40)
    assert low == pytest.approx(result.mean_ap - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(result.mean_ap + 1.96 * error, abs=0.3 * error)


def test_interval_of_equal_queries_is_a_point():
    report = evaluate(np.tile([3.0, 2, 1], (5, 1)), [GroundTruth(easy=[1])] * 5, ["easy"])
    assert report["easy"].interval() == (0.25, 0.25)


def test_compare_counts_and_pairs():
    labels = [GroundTruth(easy=[1])] * 3 + [GroundTruth(easy=[], hard=[0])]
    a = evaluate(np.array([[0.0, 1], [0, 1], [1, 0], [0, 0]]), labels, ["easy"])
    b = evaluate(np.array([[1.0, 0], [0, 1], [0, 1], [0, 0]]), labels, ["easy"])
    result = compare(a, b, "easy")
    assert (result.wins, result.losses, result.ties) == (1, 1, 1)
    assert result.mean_difference == 0
    assert -0.75 <= result.low < 0 < result.high <= 0.75
    same = compare(a, a, "easy")
    assert (same.mean_difference, same.low, same.high, same.ties) == (0, 0, 0, 3)


def test_compare_is_paired():
    # b is a lifted by the same amount at each query: the queries differ widely, the differences hardly.
    rng = np.random.default_rng(5)
    labels = [GroundTruth(easy=[0])] * 30
    worse, better = np.zeros((30, 60)), np.zeros((30, 60))
    for query, above in enumerate(rng.integers(5, 50, 30)):
        worse[query, 1 : above + 1] = 1
        better[query, 1 : above - 3] = 1
    a, b = evaluate(better, labels, ["easy"]), evaluate(worse, labels, ["easy"])
    result = compare(a, b, "easy")
    assert result.wins == 30
    assert 0 < result.low < result.mean_difference < result.high
    low, high = a["easy"].interval()
    assert result.high - result.low < high - low


@pytest.mark.parametrize("kind", ["queries", "labels", "method"])
def test_reports_that_cannot_be_compared(kind):
    scores = np.random.default_rng(1).standard_normal((6, 40))
    ground_truth = [random_labels(np.random.default_rng(seed), 40) for seed in range(6)]
    a = evaluate(scores, ground_truth)
    other = {
        "queries": lambda: evaluate(scores[:5], ground_truth[:5]),
        "labels": lambda: evaluate(scores, ground_truth[:5] + [GroundTruth(easy=range(20), hard=[20])]),
        "method": lambda: evaluate(scores, ground_truth, method="step"),
    }[kind]()
    with pytest.raises(ValueError, match="cannot be compared" if kind == "method" else "same queries"):
        compare(a, other, "medium")


def test_report_prints_a_table():
    report = report_of(np.random.default_rng(1).standard_normal((6, 40)))
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines] == ["set-up", "easy", "medium", "hard", "no"]
    assert lines[-1].startswith("no protocol card: ") and "<pre>no protocol card: " in report._repr_html_()
    assert f"{report['medium'].mean_ap:.3f}" in lines[2]
    html = report._repr_html_()
    assert html.count("<tr>") == 4
    assert f"<td>{report['hard'].precision_at[10]:.3f}</td>" in html
    assert list(report) == ["easy", "medium", "hard"]
    assert "hard" in report and "original" not in report
    with pytest.raises(ValueError, match="original.*easy, medium, hard"):
        report["original"]


def test_a_card_is_printed_under_the_table():
    report = report_of(np.random.default_rng(1).standard_normal((6, 40)))
    words = dict.fromkeys(("benchmark_hash", "query_crop", "resize", "interpolation", "precision_cap", "junk"), "x")
    words |= {
        "whitening": "none",
        "whitening_fitted_on": "nothing",
        "average_precision": "trapezoid",
        "checkpoint": "c",
    }
    numbers = {"images": 40, "queries": 6, "image_size": 64, "scales": (1,), "mean": (0.5,), "std": (0.5,)}
    card = ProtocolCard(benchmark="<b>", network="net", **words, **numbers)
    carded = replace(report, card=card)
    table = str(report).rpartition("\n")[0]
    assert str(carded) == f"{table}\n{card}"
    html = carded._repr_html_()
    assert html.startswith(report._repr_html_().partition("<pre>")[0])
    assert f"protocol {card.hash}" in html and "&lt;b&gt;" in html and "no protocol card" not in html


# Bad input.


def bad(scores=None, labels=None, **kwargs):
    scores = np.zeros((2, 4)) if scores is None else scores
    labels = [GroundTruth([0]), GroundTruth([1])] if labels is None else labels
    return evaluate(scores, labels, **({"setups": ["easy"]} | kwargs))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": np.array([[0.0, 1, 2, 3], [0, np.nan, 2, 3]])}, "query 1 and image 1 is nan"),
        ({"scores": torch.tensor([[0.0, 1, 2, torch.inf], [0, 1, 2, 3]])}, "query 0 and image 3 is inf"),
        ({"scores": np.zeros(4)}, r"\(Q, N\)"),
        ({"scores": np.zeros((2, 4, 1))}, r"\(2, 4, 1\)"),
        ({"scores": np.zeros((2, 4), np.int64)}, "int64"),
        ({"scores": torch.zeros(2, 4, dtype=torch.bfloat16)}, "bfloat16"),
        ({"scores": [[0.0, 1]]}, "list"),
        ({"scores": np.zeros((3, 4))}, "3 rows.*2 queries|3 rows.*got 2"),
        ({"scores": 0.5}, "got float"),
        ({"scores": "scores.npy"}, "numpy or torch arrays.*got str"),
        ({"scores": []}, "no scores"),
        ({"scores": [np.zeros((2, 0))]}, "no scores"),
        ({"scores": [np.zeros((2, 4)), np.zeros(2)]}, r"\(Q, N\), a row for each query, got \(2,\)"),
        ({"scores": [np.zeros((2, 4)), np.zeros((3, 4))]}, "3 rows need the ground truth of 3 queries, got 2"),
        ({"scores": [np.zeros((2, 4)), np.zeros((2, 4), int)]}, "got int64"),
        ({"scores": [np.zeros((2, 4)), np.full((2, 3), np.nan)]}, "query 0 and image 4 is nan"),
        ({"scores": [np.zeros((2, 1)), np.array([[0.0], [-np.inf]])]}, "query 1 and image 1 is -inf"),
        ({"scores": np.zeros((2, 1)), "labels": [GroundTruth([0]), GroundTruth([1])]}, r"labels image 1.*0\.\.0"),
        ({"labels": [GroundTruth([0]), GroundTruth([1], junk=[1])]}, "Query 1 labels image 1 more than once"),
        ({"labels": [GroundTruth([0, 2, 2]), GroundTruth([1])]}, "Query 0 labels image 2 more than once"),
        ({"labels": [GroundTruth([0]), GroundTruth([4])]}, r"Query 1 labels image 4.*0\.\.3"),
        ({"labels": [GroundTruth([0]), GroundTruth([-1])]}, "Query 1 labels image -1"),
        ({"setups": ["easy", "tough"]}, "tough"),
        ({"setups": "easy"}, "list"),
        ({"setups": []}, "list"),
        ({"setups": ["hard"]}, "No query has a positive in set-up 'hard'"),
        ({"method": "rectangle"}, "rectangle"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        bad(**arguments)


@pytest.mark.parametrize("ranking", [[[0, 1, 1]], [[0, 1, 3]], [[-1, 0, 1]], [[0.0, 1, 2]], [0, 1, 2]])
def test_bad_rankings(ranking):
    with pytest.raises(ValueError, match="ranking"):
        evaluate_ranking(np.array(ranking), [GroundTruth([0])], ["easy"])


@pytest.mark.parametrize("values", [[0.5], [[1]], ["a"]])
def test_ground_truth_holds_integers(values):
    with pytest.raises(ValueError, match="integer"):
        GroundTruth(easy=values, hard=[], junk=[])


@pytest.mark.parametrize("ranks", [[-1, 2], [1, 1], [0.5]])
def test_bad_ranks(ranks):
    with pytest.raises(ValueError, match="[Rr]anks"):
        average_precision(ranks)


def test_bad_level():
    with pytest.raises(ValueError, match="95"):
        report_of(np.random.default_rng(1).standard_normal((6, 40)))["easy"].interval(level=95)


def test_ground_truth_is_int64_and_compares_by_value():
    labels = GroundTruth(easy=[3, 1], hard=np.array([2], np.int32), junk=[])
    assert {labels.easy.dtype, labels.hard.dtype, labels.junk.dtype} == {np.dtype(np.int64)}
    assert labels == GroundTruth([3, 1], [2], [])
    assert labels != GroundTruth([3, 1], [], [2])


# On the labels of Revisited Oxford.


@pytest.mark.real_data
def test_revisited_oxford_ground_truth():
    path = Path(os.environ.get("RETRIEVAL_DATA", "data")) / "roxford5k" / "gnd_roxford5k.pkl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    from retrieval_utils.datasets.revisited import load_pickle_safely

    loaded = load_pickle_safely(path)
    ground_truth = [GroundTruth(query["easy"], query["hard"], query["junk"]) for query in loaded["gnd"]]
    n_images = len(loaded["imlist"])
    assert (n_images, len(ground_truth)) == (4993, 70)
    scores = np.random.default_rng(0).standard_normal((70, n_images)).astype(np.float32)
    for query, labels in enumerate(ground_truth):
        scores[query, labels.easy] += 2.5
        scores[query, labels.hard] += 1.0
    scores = np.round(scores, 1)  # many ties
    report = evaluate(scores, ground_truth)
    assert_same_as_slow(report, scores, ground_truth, "trapezoid")
    # Two queries have no easy image, so Easy is a mean over 68.
    assert [report[setup].counted for setup in ("easy", "medium", "hard")] == [68, 70, 70]
    assert [report[setup].positives.sum() for setup in ("easy", "medium", "hard")] == [3029, 5526, 2497]
