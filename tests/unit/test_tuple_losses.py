"""The losses of LRML and AutoRet against pencil, loops and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from retrieval_utils.losses import AutoEmbedderLoss, ContrastiveLoss, LRMLLoss
from retrieval_utils.losses.tuples import NEGATIVES


def drawn(batch=4, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tuples = normalize(torch.randn(batch, 2 + NEGATIVES, dim, generator=generator, dtype=torch.float64), dim=2)
    return tuples[:, 0], tuples[:, 1], tuples[:, 2:]


def test_five_negatives():
    assert NEGATIVES == 5


@pytest.mark.parametrize("margin", [0.7, 0.85, 1.5])
def test_without_delta_and_order_it_is_the_contrastive_loss(margin):
    queries, positives, negatives = drawn()
    others = torch.cat([positives[:, None], negatives], dim=1)  # (B, 6, D)
    scores = torch.einsum("bd,bkd->bk", queries, others)
    expected = ContrastiveLoss(margin).from_scores(scores, torch.arange(6).expand(4, 6) == 0)
    assert LRMLLoss(margin, delta=0, order=0)(queries, positives, negatives).item() == expected.item()


@pytest.mark.parametrize(("margin", "delta", "order"), [(0.7, 0.1, 0.0), (1.2, 0.05, 0.3), (0.9, 0.0, 1.0)])
def test_same_as_the_slow_loop(margin, delta, order):
    total = 0.0
    for query, positive, negatives in zip(*(t.numpy() for t in drawn()), strict=True):
        d = [np.linalg.norm(query - negative) for negative in negatives]
        total += np.linalg.norm(query - positive) ** 2 / 2
        total += sum(max(margin + k * delta - d[k], 0) ** 2 / 2 for k in range(5))
        total += order * sum(max(d[k] - d[m] + (m - k) * delta, 0) for m in range(5) for k in range(m))
    assert LRMLLoss(margin, delta, order)(*drawn()).item() == pytest.approx(total / 4)


def test_negatives_are_driven_to_different_distances():
    """On a circle the query stays, five negatives start beside it: each ends at its own margin, in order."""
    angles = torch.linspace(0.1, 0.2, 5, dtype=torch.float64).requires_grad_()
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    loss = LRMLLoss(margin=0.5, delta=0.2)
    optimiser = torch.optim.Adam([angles], lr=0.02)
    for _ in range(400):
        optimiser.zero_grad()
        loss(query, query, torch.stack([angles.cos(), angles.sin()], dim=1)[None]).backward()
        optimiser.step()
    distances = 2 * (angles / 2).sin()
    torch.testing.assert_close(
        distances, torch.tensor([0.5, 0.7, 0.9, 1.1, 1.3], dtype=torch.float64), atol=0.05, rtol=0
    )


@pytest.mark.parametrize("loss", [LRMLLoss(), LRMLLoss(1.1, 0.2, 1.0)])
def test_lrml_gradient(loss):
    raw = torch.randn(3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def value(x):
        x = normalize(x, dim=2)
        return loss(x[:, 0], x[:, 1], x[:, 2:])

    assert torch.autograd.gradcheck(value, raw, eps=1e-7, atol=1e-5)


def test_lrml_bad_input():
    queries, positives, negatives = drawn()
    with pytest.raises(ValueError, match=r"\(B, K, D\), got \(4, 6\), \(4, 6\), \(4, 6\)"):
        LRMLLoss()(queries, positives, positives)
    with pytest.raises(ValueError, match=r"got \(4, 6\), \(4, 6\), \(3, 5, 6\)"):
        LRMLLoss()(queries, positives, negatives[:3])
    with pytest.raises(ValueError, match="norm 2"):
        LRMLLoss()(queries, 2 * positives, negatives)
    with pytest.raises(ValueError, match=r"\(0, 2\], got 1.5 to 2.3"):
        LRMLLoss(margin=1.5, delta=0.2)
    with pytest.raises(ValueError, match="must not be negative"):
        LRMLLoss(order=-1)


def pairs(distances):
    second = torch.zeros(len(distances), 3, dtype=torch.float64)
    second[:, 0] = torch.tensor(distances, dtype=torch.float64)
    return torch.zeros_like(second), second.requires_grad_()


def test_autoembedder_by_pencil():
    # alpha 10: can-link 3 -> 9, can-link 12 -> capped 100; cannot-link 3 -> 49, cannot-link 12 -> 0.
    first, second = pairs([3, 12, 3, 12])
    link = torch.tensor([True, True, False, False])
    loss = AutoEmbedderLoss(alpha=10)
    assert loss(first, second, link).item() == pytest.approx((9 + 100 + 49 + 0) / 4)
    assert loss.stuck(first, second, link) == 0.5 and math.isnan(loss.stuck(first, second, ~link & False))


def test_a_can_link_pair_beyond_alpha_gets_no_gradient_unless_it_leaks():
    link = torch.tensor([True, True, False, False])
    for leak, moves in ((0.0, False), (0.1, True)):
        first, second = pairs([3, 12, 3, 12])
        AutoEmbedderLoss(alpha=10, leak=leak)(first, second, link).backward()
        assert bool(second.grad[1].any()) is moves
        assert second.grad[0, 0] > 0 > second.grad[2, 0] and not second.grad[3].any()


def test_autoembedder_gradient_and_equal_embeddings():
    raw = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    link = torch.arange(6) % 2 == 0
    assert torch.autograd.gradcheck(lambda x: AutoEmbedderLoss(2.5, 0.1)(x[0], x[1], link), raw)
    same = torch.ones(2, 4, requires_grad=True)
    AutoEmbedderLoss()(same, same.detach(), torch.tensor([True, False])).backward()
    assert torch.isfinite(same.grad).all()


def test_autoembedder_bad_input():
    first, second = pairs([1, 2])
    with pytest.raises(ValueError, match="alpha must be positive, got 0"):
        AutoEmbedderLoss(alpha=0)
    with pytest.raises(ValueError, match="slope"):
        AutoEmbedderLoss(leak=2)
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(1, 3\)"):
        AutoEmbedderLoss()(first, second[:1], torch.tensor([True, False]))
    with pytest.raises(ValueError, match=r"bool of shape \(2,\), got \(2,\) torch.int64"):
        AutoEmbedderLoss()(first, second, torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="nan"):
        AutoEmbedderLoss()(first, second * math.nan, torch.tensor([True, False]))
