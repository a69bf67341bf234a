"""The losses against closed forms, slow loops, exact average precision, and finite differences."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from retrieval_utils.evaluation import average_precision
from retrieval_utils.losses import (
    ContrastiveLoss,
    FastAPLoss,
    NTXentLoss,
    QuantizedAPLoss,
    RecallLoss,
    SmoothAPLoss,
    SupAPLoss,
    TripletLoss,
    smooth,
)


class TieAwareAPLoss(QuantizedAPLoss):
    def __init__(self):
        super().__init__(tie_aware=True)


AVERAGE_PRECISIONS = [QuantizedAPLoss, TieAwareAPLoss, FastAPLoss, SmoothAPLoss]
SEPARABLE = [*AVERAGE_PRECISIONS, SupAPLoss, ContrastiveLoss, TripletLoss]  # 0 on a separated batch
ALL = [*SEPARABLE, RecallLoss, NTXentLoss]
LAYOUTS = [(4, 4), (3, 4), (16, 4), (6, 10), (1, 8)]


def unit_descriptors(n, dim=8, seed=0, dtype=torch.float64):
    return normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


def random_problem(rows, columns, seed=0):
    """Scores in [-1, 1] (rows, columns) with positives in every row and some ignored columns."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    kind = torch.rand(rows, columns, generator=generator)
    positives, ignore = kind < 0.3, kind > 0.85
    positives[:, 0], ignore[:, 0] = True, False
    return scores, positives, ignore


def exact_step_ap(scores, positives, ignore):
    values = []
    for row, positive, ignored in zip(scores, positives, ignore, strict=True):
        order = torch.argsort(row, descending=True)
        order = order[~ignored[order]]
        values.append(average_precision(positive[order].nonzero().flatten().numpy(), method="step"))
    return float(np.mean(values))


# Slow twins: one query, one score at a time.


def slow_quantized(row, positive, negative, bins=20, low=-1.0, high=1.0):
    width = (high - low) / (bins - 1)
    all_counts, positive_counts = [0.0] * bins, [0.0] * bins
    for score, is_positive, is_negative in zip(row, positive, negative, strict=True):
        for m in range(bins):
            centre = high - m * width
            weight = max(1 - abs(min(max(score, low), high) - centre) / width, 0)
            all_counts[m] += weight * (is_positive or is_negative)
            positive_counts[m] += weight * is_positive
    ap = 0.0
    for m in range(bins):
        if positive_counts[m]:
            ap += sum(positive_counts[: m + 1]) / sum(all_counts[: m + 1]) * positive_counts[m] / sum(positive_counts)
    return 1 - ap


def slow_smooth(row, positive, negative, temperature=0.01):
    def above(j, i):
        return 1 / (1 + math.exp(min((row[i] - row[j]) / temperature, 700)))

    ap = []
    for i in np.flatnonzero(positive):
        among_positives = 1 + sum(above(j, i) for j in np.flatnonzero(positive) if j != i)
        ap.append(among_positives / (among_positives + sum(above(j, i) for j in np.flatnonzero(negative))))
    return 1 - sum(ap) / len(ap)


def slow_contrastive(row, positive, negative, margin=0.7):
    distances = [math.sqrt(max(2 - 2 * score, 0)) for score in row]
    attracted = sum(d**2 / 2 for d, wanted in zip(distances, positive, strict=True) if wanted)
    return attracted + sum(max(margin - d, 0) ** 2 / 2 for d, wanted in zip(distances, negative, strict=True) if wanted)


def slow_triplet(row, positive, negative, margin=0.1):
    terms = [
        max((2 - 2 * row[p]) - (2 - 2 * row[n]) + margin, 0)
        for p in np.flatnonzero(positive)
        for n in np.flatnonzero(negative)
    ]
    return sum(terms) / len(terms) if terms else 0.0


def slow_tie_aware(row, positive, negative, bins=20):
    """Counts so far, before and after each bin, as in equation 8 of He et al."""
    width, ap = 2 / (bins - 1), 0.0
    found_before = seen_before = 0.0
    for m in range(bins):
        weights = [max(1 - abs(score - (1 - m * width)) / width, 0) for score in row]
        found = sum(w for w, wanted in zip(weights, positive, strict=True) if wanted)
        seen = found + sum(w for w, wanted in zip(weights, negative, strict=True) if wanted)
        ap += found * (2 * found_before + found + 1) / (2 * seen_before + seen + 1)
        found_before, seen_before = found_before + found, seen_before + seen
    return 1 - ap / sum(positive)


def slow_fastap(row, positive, negative, intervals=10):
    """Sum over distance bins of h+ H+ / H, on squared distances, as the paper writes it."""
    width, ap, found_so_far, seen_so_far = 4 / intervals, 0.0, 0.0, 0.0
    for centre in np.arange(intervals + 1) * width:
        pulses = [max(1 - abs(2 - 2 * score - centre) / width, 0) for score in row]
        found = sum(pulse for pulse, wanted in zip(pulses, positive, strict=True) if wanted)
        found_so_far += found
        seen_so_far += found + sum(pulse for pulse, wanted in zip(pulses, negative, strict=True) if wanted)
        ap += found * found_so_far / seen_so_far if seen_so_far else 0.0
    return 1 - ap / sum(positive)


def slow_supap(row, positive, negative, temperature=0.01, delta=0.05, slope=100.0):
    def above(gap):
        if gap > delta:
            return slope * (gap - delta) + 1.44
        return 1 / (1 + math.exp(min(-gap / temperature, 700))) + 0.5 * (gap > 0)

    ap = []
    for i in np.flatnonzero(positive):
        among_positives = 1 + sum(row[j] > row[i] for j in np.flatnonzero(positive))
        ap.append(among_positives / (among_positives + sum(above(row[j] - row[i]) for j in np.flatnonzero(negative))))
    low = [max(0.9 - row[i], 0) for i in np.flatnonzero(positive)]
    high = [max(row[j] - 0.6, 0) for j in np.flatnonzero(negative)] or [0]
    return (1 - np.mean(ap)) / 2 + (np.mean(low) + np.mean(high)) / 2


def slow_recall(row, positive, negative, ks=(1, 2, 4, 8, 16)):
    others, recall = np.flatnonzero(np.logical_or(positive, negative)), 0.0
    for k in ks:
        for i in np.flatnonzero(positive):
            rank = 1 + sum(1 / (1 + math.exp(min((row[i] - row[j]) / 0.01, 700))) for j in others if j != i)
            recall += 1 / (1 + math.exp(rank - k)) / min(k, sum(positive)) / len(ks)
    return 1 - recall


def slow_ntxent(row, positive, negative, temperature=0.1):
    everyone = sum(math.exp(s / temperature) for s, p, n in zip(row, positive, negative, strict=True) if p or n)
    return np.mean([-math.log(math.exp(row[i] / temperature) / everyone) for i in np.flatnonzero(positive)])


SLOW = {
    TieAwareAPLoss: slow_tie_aware,
    FastAPLoss: slow_fastap,
    SupAPLoss: slow_supap,
    RecallLoss: slow_recall,
    NTXentLoss: slow_ntxent,
    QuantizedAPLoss: slow_quantized,
    SmoothAPLoss: slow_smooth,
    ContrastiveLoss: slow_contrastive,
    TripletLoss: slow_triplet,
}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("shape", [(5, 12), (1, 3), (7, 30)])
def test_same_as_the_slow_loop(kind, shape):
    scores, positives, ignore = random_problem(*shape)
    slow = [
        SLOW[kind](row.tolist(), positive.numpy(), (~positive & ~ignored).numpy())
        for row, positive, ignored in zip(scores, positives, ignore, strict=True)
    ]
    assert kind().from_scores(scores, positives, ignore).item() == pytest.approx(np.mean(slow), abs=1e-10)


@pytest.mark.parametrize("kind", ALL)
def test_batch_is_scores_without_the_diagonal(kind):
    descriptors, labels = unit_descriptors(12), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 3, 4, 1, 3])
    itself = torch.eye(12, dtype=torch.bool)
    positives = (labels[:, None] == labels) & ~itself
    expected = kind().from_scores(descriptors @ descriptors.T, positives, itself)
    assert kind()(descriptors, labels).item() == pytest.approx(expected.item(), abs=1e-12)
    rows = positives.any(1)  # label 4 occurs once
    negatives = ~positives & ~itself
    slow = [
        SLOW[kind](row.tolist(), positive.numpy(), negative.numpy())
        for row, positive, negative in zip(
            (descriptors @ descriptors.T)[rows], positives[rows], negatives[rows], strict=True
        )
    ]
    assert expected.item() == pytest.approx(np.mean(slow), abs=1e-10)


# Closed forms.


@pytest.mark.parametrize("kind", SEPARABLE)
@pytest.mark.parametrize(("classes", "each"), LAYOUTS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_separated_batch_has_no_loss(kind, classes, each, shuffle):
    labels = torch.arange(classes).repeat_interleave(each)
    if shuffle:
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    descriptors = torch.eye(max(classes, 2))[labels]
    assert 0 <= kind()(descriptors, labels * 7 - 3).item() + 1e-6 < 0.02


@pytest.mark.parametrize("kind", ALL)
def test_mixed_up_batch_has_a_loss(kind):
    # Images of different classes coincide, images of the same class are orthogonal.
    descriptors = torch.eye(4).repeat(4, 1)
    assert kind()(descriptors, torch.arange(4).repeat_interleave(4)).item() > 0.1


@pytest.mark.parametrize("kind", [QuantizedAPLoss, FastAPLoss, SmoothAPLoss])
def test_one_positive_below_n_negatives(kind):
    # Rank of the positive: n + 1, so AP = 1 / (n + 1). The scores lie on bin centres, where quantised AP is exact.
    for n in (1, 4, 9):
        scores = torch.cat([torch.full((1, 1), -1.0), torch.full((1, n), 1.0)], dim=1)
        positives = torch.arange(n + 1)[None] == 0
        assert kind().from_scores(scores, positives).item() == pytest.approx(1 - 1 / (n + 1), abs=1e-6)


def test_quantized_ap_does_not_look_inside_a_bin():
    # Two scores on one centre are tied: precision 1/2 at full recall, whatever their true order was.
    loss = QuantizedAPLoss(bins=3)
    assert loss.from_scores(torch.tensor([[0.0, 0.0]]), torch.tensor([[True, False]])).item() == pytest.approx(0.5)
    # Halfway between centres 0 and 1 a positive counts half in each: (1 * 1/2) + (1/2 * 1) where the negative sits at 0
    # gives precisions 1 and 1/2, hence AP 3/4.
    assert loss.from_scores(torch.tensor([[0.5, 0.0]]), torch.tensor([[True, False]])).item() == pytest.approx(0.25)


def test_scores_outside_the_bins_count_for_the_outer_ones():
    positives = torch.tensor([[True, False, True]])
    inside, outside = torch.tensor([[1.0, 0.2, 0.0]]), torch.tensor([[1.7, 0.2, -0.8]])
    loss = QuantizedAPLoss(low=0.0)
    assert loss.from_scores(outside, positives).item() == pytest.approx(loss.from_scores(inside, positives).item())


def test_contrastive_by_pencil():
    # d^2 = 2 - 2 * 0.5 = 1 for the positive; d = sqrt(0.2) for the near negative; the far one is beyond the margin.
    scores = torch.tensor([[0.5, 0.9, 0.0]], dtype=torch.float64)
    value = ContrastiveLoss(margin=0.7).from_scores(scores, torch.tensor([[True, False, False]]))
    assert value.item() == pytest.approx((1 + (0.7 - math.sqrt(0.2)) ** 2) / 2)


def test_triplet_by_pencil():
    # Squared distances: positive 0.4, negatives 0.2 and 0.6; violations 0.4 - 0.2 + 0.1 = 0.3 and 0.
    scores = torch.tensor([[0.8, 0.9, 0.7]], dtype=torch.float64)
    value = TripletLoss(margin=0.1).from_scores(scores, torch.tensor([[True, False, False]]))
    assert value.item() == pytest.approx(0.15)


# Against exact average precision.


@pytest.mark.parametrize("seed", range(5))
def test_cold_smooth_ap_is_exact(seed):
    # Scores at least 0.01 apart in every row, so that a temperature of 1e-4 sees no ties.
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.permuted(np.tile(np.linspace(-1, 1, 80), (20, 1)), axis=1))
    _, positives, ignore = random_problem(20, 80, seed)
    value = SmoothAPLoss(temperature=1e-4).from_scores(scores, positives, ignore).item()
    assert value == pytest.approx(1 - exact_step_ap(scores, positives, ignore), abs=2e-3)


def test_many_bins_are_exact():
    rng = np.random.default_rng(3)
    scores = torch.from_numpy(rng.permuted(np.tile(np.linspace(-1, 1, 40), (20, 1)), axis=1))
    _, positives, ignore = random_problem(20, 40)
    value = QuantizedAPLoss(bins=20 * 39 + 1).from_scores(scores, positives, ignore).item()
    assert value == pytest.approx(1 - exact_step_ap(scores, positives, ignore), abs=1e-9)


@given(st.integers(0, 1000), st.sampled_from(ALL))
def test_order_of_the_batch_does_not_matter(seed, kind):
    generator = torch.Generator().manual_seed(seed)
    descriptors, labels = unit_descriptors(10, seed=seed), torch.randint(0, 4, (10,), generator=generator)
    shuffle = torch.randperm(10, generator=generator)
    value = kind()(descriptors, labels)
    assert kind()(descriptors[shuffle], labels[shuffle]).item() == pytest.approx(value.item(), abs=1e-9)
    if kind in AVERAGE_PRECISIONS:
        assert 0 <= value.item() <= 1


@pytest.mark.parametrize("seed", range(5))
def test_supap_is_never_above_ap(seed):
    scores, positives, ignore = random_problem(20, 80, seed)
    loss = SupAPLoss(calibration=0).from_scores(scores, positives, ignore).item()
    assert loss >= 1 - exact_step_ap(scores, positives, ignore)


def test_supap_pulls_across_a_wide_gap_and_calibrates_by_pencil():
    scores = torch.tensor([[0.5, 0.9]], dtype=torch.float64, requires_grad=True)  # wrong by 0.4, see Smooth-AP below
    mask = torch.tensor([[True, False]])
    SupAPLoss(calibration=0).from_scores(scores, mask).backward()
    assert scores.grad[0, 0] < -0.01
    assert SupAPLoss(calibration=1).from_scores(scores, mask).item() == pytest.approx(0.4 + 0.3)


def test_cold_recall_is_exact():
    # Ranks 1 and 3: of the two positives one is among the first 2, both are among the first 4.
    scores, positives = torch.tensor([[0.9, 0.5, 0.1, 0.0]]), torch.tensor([[True, False, True, False]])
    for k, recall in {2: 0.5, 4: 1.0}.items():
        loss = RecallLoss(ks=(k,), temperature=0.01, rank_temperature=1e-3)
        assert loss.from_scores(scores, positives).item() == pytest.approx(1 - recall, abs=1e-6)


def test_ntxent_with_one_positive_is_cross_entropy():
    descriptors, labels = unit_descriptors(12), torch.arange(6).repeat(2)
    logits = (descriptors @ descriptors.T / 0.1).fill_diagonal_(-math.inf)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(12).roll(6))
    assert NTXentLoss(0.1)(descriptors, labels).item() == pytest.approx(expected.item())


def test_crowded_bins_are_warned_of():
    scores, positives = torch.linspace(0.9, 0.95, 20).view(2, 10), torch.arange(20).view(2, 10) % 2 == 0
    with pytest.warns(UserWarning, match="two of the 20 bins, which are 0.11 apart"):
        QuantizedAPLoss().from_scores(scores, positives)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        QuantizedAPLoss(low=0.9, high=0.95).from_scores(scores, positives)


@pytest.mark.parametrize("bin_place", [0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(("kind", "width"), [(QuantizedAPLoss, 2 / 19), (FastAPLoss, 2 / 10)])
def test_a_crowd_is_one_wherever_it_stands_between_the_bins(kind, width, bin_place):
    noise = torch.randn(8, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positives = torch.arange(400).expand(8, 400) < 20  # 5 %
    middle = 1 - (5 + bin_place) * width
    with pytest.warns(UserWarning, match="^(99|100)% of the scores lie in two of the"):
        kind().from_scores(middle + 0.02 * noise, positives)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind().from_scores(middle + 0.6 * width * noise, positives)
        kind().from_scores(middle + 0.02 * noise + 0.4 * positives, positives)  # these it can tell apart


# Gradients.


@pytest.mark.parametrize(
    "loss",
    [
        QuantizedAPLoss(),
        QuantizedAPLoss(bins=7, low=-0.5),
        QuantizedAPLoss(tie_aware=True),
        FastAPLoss(),
        SmoothAPLoss(0.1),
        SupAPLoss(0.1),
        SupAPLoss(0.1, calibration=0),
        RecallLoss(rank_temperature=0.1),
        ContrastiveLoss(),
        TripletLoss(),
        NTXentLoss(),
    ],
)
def test_gradient_equals_finite_differences(loss):
    scores, positives, ignore = random_problem(4, 9)
    positives[1] = False
    assert torch.autograd.gradcheck(
        lambda s: loss.from_scores(s, positives, ignore), scores.requires_grad_(), eps=1e-7, atol=1e-5
    )
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3])
    raw = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(normalize(x, dim=1), labels), raw, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_rows_without_positives_are_left_out(kind):
    scores, positives, ignore = random_problem(6, 12)
    positives[2] = False
    ignore[4] |= positives[4]  # its only positives are ignored
    scores.requires_grad_()
    value = kind().from_scores(scores, positives, ignore)
    value.backward()
    others = [0, 1, 3, 5]
    expected = kind().from_scores(scores[others], positives[others], ignore[others])
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    assert not scores.grad[[2, 4]].any()
    assert scores.grad[others].any()
    assert not scores.grad[ignore].any()


@pytest.mark.parametrize("kind", ALL)
def test_ignored_scores_do_not_matter(kind):
    scores, positives, ignore = random_problem(6, 12)
    moved = torch.where(ignore, 0.77, scores)
    expected = kind().from_scores(scores, positives, ignore).item()
    assert kind().from_scores(moved, positives, ignore).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ALL)
def test_equal_descriptors_give_a_finite_gradient(kind):
    descriptors = unit_descriptors(1).repeat(6, 1).requires_grad_()
    kind()(descriptors, torch.tensor([0, 0, 0, 1, 1, 1])).backward()
    assert torch.isfinite(descriptors.grad).all()


@pytest.mark.parametrize("kind", SEPARABLE)
def test_a_few_steps_lower_the_loss(kind):
    raw = torch.randn(16, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.arange(4).repeat(4)
    loss = kind() if kind is not SmoothAPLoss else kind(temperature=0.1)
    optimiser = torch.optim.Adam([raw], lr=0.1)
    history = []
    for _ in range(25):
        optimiser.zero_grad()
        value = loss(normalize(raw, dim=1), labels)
        value.backward()
        optimiser.step()
        history.append(value.item())
    assert history[-1] < 0.3 * history[0]


def test_a_cold_smooth_ap_has_next_to_no_gradient_where_gaps_are_wide():
    scores = torch.tensor([[0.5, 0.9]], dtype=torch.float64, requires_grad=True)  # wrong by 0.4
    SmoothAPLoss(temperature=0.01).from_scores(scores, torch.tensor([[True, False]])).backward()
    assert scores.grad.abs().max() < 1e-12
    scores.grad = None
    SmoothAPLoss(temperature=0.2).from_scores(scores, torch.tensor([[True, False]])).backward()
    assert scores.grad[0, 0] < -0.1


# Memory.


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("kind", [*AVERAGE_PRECISIONS, SupAPLoss, RecallLoss])
def test_no_tensor_is_larger_than_the_scores(kind, monkeypatch):
    monkeypatch.setattr(smooth, "_block_rows", lambda n: 32)
    n, kept = 128, {}
    descriptors = unit_descriptors(n, dtype=torch.float32).requires_grad_()

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with LargestTensor() as seen, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kind()(descriptors, torch.arange(4).repeat(32)).backward()  # 31 positives each
    assert n * n <= seen.largest <= 2 * n * n  # the list of all positive pairs has two columns
    if kind in AVERAGE_PRECISIONS:  # the others keep a graph for one block of positives at a time, and free it
        assert sum(kept.values()) < 7 * 4 * n * n  # what backward waits for: a few matrices like the scores, in float32


@pytest.mark.parametrize("loss", [SmoothAPLoss(0.1), SupAPLoss(0.1), RecallLoss(rank_temperature=0.1)])
def test_blocks_do_not_change_the_result(monkeypatch, loss):
    results = []
    for rows in (1, 7, 1000):
        monkeypatch.setattr(smooth, "_block_rows", lambda n, rows=rows: rows)
        scores, positives, ignore = random_problem(9, 20)
        scores.requires_grad_()
        value = loss.from_scores(scores, positives, ignore)
        value.backward()
        results.append((value.item(), scores.grad))
    for value, gradient in results[1:]:
        assert value == pytest.approx(results[0][0], abs=1e-12)
        torch.testing.assert_close(gradient, results[0][1])


# Precision and bad input.


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_descriptors_are_scored_in_float32(kind, dtype):
    descriptors, labels = unit_descriptors(12, dim=64).to(dtype).requires_grad_(), torch.arange(3).repeat(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = kind()(descriptors, labels)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(kind()(descriptors.double(), labels).item(), abs=1e-5)
    value.backward()
    assert descriptors.grad.dtype == dtype


@pytest.mark.parametrize("kind", ALL)
def test_bad_batches_are_named(kind):
    loss, good, labels = kind(), unit_descriptors(6), torch.tensor([0, 0, 1, 1, 2, 2])
    long = good.clone()
    long[3] *= 2.5
    broken = good.clone()
    broken[4, 0] = math.nan
    with pytest.raises(ValueError, match="Descriptor 3 has norm 2.5"):
        loss(long, labels)
    with pytest.raises(ValueError, match="Descriptor 4 holds nan"):
        loss(broken, labels)
    with pytest.raises(ValueError, match=r"6 descriptors.*\(5,\)"):
        loss(good, labels[:5])
    with pytest.raises(ValueError, match="integer"):
        loss(good, labels.float())
    with pytest.raises(ValueError, match=r"\(B, D\)"):
        loss(good[0], labels)
    with pytest.raises(ValueError, match="sample at least 2"):
        loss(good, torch.arange(6))


@pytest.mark.parametrize("kind", ALL)
def test_bad_scores_are_named(kind):
    scores, positives, ignore = random_problem(3, 5)
    with pytest.raises(ValueError, match="'positives'"):
        kind().from_scores(scores, positives[:2])
    with pytest.raises(ValueError, match="'ignore'"):
        kind().from_scores(scores, positives, ignore.long())
    with pytest.raises(ValueError, match="nan"):
        kind().from_scores(torch.where(ignore, math.nan, scores), positives, ignore)
    with pytest.raises(ValueError, match=r"\(Q, N\)"):
        kind().from_scores(scores[0], positives[0])
    with pytest.raises(ValueError, match="sample at least 2"):
        kind().from_scores(scores, torch.zeros_like(positives))


@pytest.mark.parametrize(
    "make",
    [
        lambda: QuantizedAPLoss(bins=1),
        lambda: QuantizedAPLoss(low=1.0, high=1.0),
        lambda: SmoothAPLoss(temperature=0),
        lambda: SupAPLoss(calibration=2),
        lambda: RecallLoss(ks=()),
        lambda: NTXentLoss(temperature=-1),
        lambda: ContrastiveLoss(margin=3),
        lambda: TripletLoss(margin=-0.1),
    ],
)
def test_bad_settings(make):
    with pytest.raises(ValueError, match="got"):
        make()
