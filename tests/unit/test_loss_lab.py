"""The loss lab: exact AP against the evaluator, what a loss is found to cost and to push, and its figures."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import torch

from retrieval_utils import loss_lab, losses
from retrieval_utils.average_precision import average_precision


@pytest.fixture(scope="module")
def batch():
    return loss_lab.drawn_descriptors(8, 4, 1.2, torch.Generator().manual_seed(0), dim=16)


def test_drawn_descriptors_are_unit_vectors_of_their_labels(batch):
    descriptors, labels = batch
    assert descriptors.shape == (32, 16) and labels.bincount().tolist() == [4] * 8
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(32))


def test_exact_ap_is_the_evaluators_and_nan_without_a_positive(batch):
    descriptors, labels = batch
    labels = torch.cat([labels[:-1], torch.tensor([99])])
    found = loss_lab.exact_ap(descriptors, labels)
    for query in range(32):
        order = (descriptors @ descriptors[query]).argsort(descending=True).tolist()
        order.remove(query)
        ranks = [rank for rank, other in enumerate(order) if labels[other] == labels[query]]
        wanted = average_precision(ranks, "step")
        assert float(found[query]) == pytest.approx(wanted, abs=1e-6, nan_ok=True)
    assert found.isnan().nonzero().flatten().tolist() == [31]


def test_what_is_kept_for_backward_is_counted_once_it_is_kept():
    x = torch.randn(1000, 250, requires_grad=True)  # 1 MB in float32
    with loss_lab.KeptForBackward() as kept:
        y = x.exp()
        assert kept.mb == pytest.approx(1.0)
        z = y.exp()
        assert kept.mb == pytest.approx(2.0)
        del y, z
        x.exp()
    assert kept.mb == pytest.approx(2.0)  # the most, not the last


def test_the_zoo_has_every_loss_of_the_package_and_each_can_be_examined(batch):
    made = set()
    for criterion in loss_lab.zoo().values():
        cells = [cell.cell_contents for cell in getattr(criterion, "__closure__", None) or ()]
        made |= {type(thing).__name__ for thing in (criterion, *cells)}
    assert set(losses.__all__) - {"RetrievalLoss"} <= made
    found = {name: loss_lab.examine(criterion, *batch) for name, criterion in loss_lab.zoo().items()}
    table = loss_lab.zoo_table(found)
    assert list(table.index) == list(loss_lab.zoo()) and "gradient" not in table
    assert (table["gradient norm"] > 0).all() and (table["MB kept"] > 0).all() and (table["ms"] > 0).all()
    assert len(loss_lab.zoo_figure(found, loss_lab.exact_ap(*batch)).axes) == 16  # 14 losses in rows of 4


def test_a_step_down_the_gradient_of_smooth_ap_raises_exact_ap_and_none_changes_nothing(batch):
    before = float(loss_lab.exact_ap(*batch).mean())
    found = loss_lab.examine(losses.SmoothAPLoss(0.05), *batch)
    assert found["AP after"] > before + 0.01
    assert torch.allclose((found["gradient"] * batch[0]).sum(1), torch.zeros(32), atol=1e-6)  # along the sphere
    flat = loss_lab.examine(lambda x, labels: 0 * x.sum(), *batch)
    assert flat["gradient norm"] == 0 and flat["AP after"] == pytest.approx(before)


def test_tuples_and_pairs_are_what_they_say(batch):
    descriptors, labels = batch
    queries, positives, negatives = loss_lab.tuples(descriptors, labels)
    assert queries.shape == positives.shape == (32, 16) and negatives.shape == (32, 5, 16)
    scores = descriptors @ descriptors.T
    for i in range(32):
        own, others = scores[i, (labels == labels[i])], scores[i, labels != labels[i]]
        assert float(queries[i] @ positives[i]) == pytest.approx(float(own.min()), abs=1e-5)
        torch.testing.assert_close(negatives[i] @ queries[i], others.sort(descending=True).values[:5])
    first, second, linked = loss_lab.pairs(descriptors, labels)
    assert len(first) == len(second) == 32 * 31 // 2 and int(linked.sum()) == 8 * 6


def test_small_batches_overestimate_and_the_whole_database_is_exact():
    generator = torch.Generator().manual_seed(0)
    database, labels = loss_lab.drawn_descriptors(64, 4, 1.2, generator)
    truth = float(loss_lab.exact_ap(database, labels).mean())
    small = loss_lab.batch_estimates(database, labels, 4, 10, generator)
    whole = loss_lab.batch_estimates(database, labels, 64, 2, generator)
    assert small.shape == (10,) and float(small.mean()) > truth + 0.1
    torch.testing.assert_close(whole, torch.full((2,), truth))


def test_figures_show_what_they_are_given():
    estimates = {16: torch.tensor([0.9, 0.8]), 64: torch.tensor([0.6, 0.6])}
    left, right = loss_lab.estimate_figure(estimates, 0.5).axes
    np.testing.assert_allclose(right.lines[0].get_ydata(), [0.35, 0.1], atol=1e-6)
    assert left.lines[-1].get_ydata()[0] == 0.5
    axes = loss_lab.setting_figure({"bins": ([5, 10], [0.4, 0.6], [0.5, 0.7])}, 0.5).axes
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), [-0.1, 0.1])
    np.testing.assert_allclose(axes[1].lines[0].get_ydata(), [0, 0.2])


@pytest.mark.parametrize("chunks", [2, 4])
def test_the_diagram_has_three_passes_over_the_chunks(chunks):
    axes = loss_lab.multistage_figure(chunks).axes
    assert [ax.get_title()[0] for ax in axes] == ["1", "2", "3"]
    assert sum(text.get_text().startswith("images") for text in axes[0].texts) == chunks
