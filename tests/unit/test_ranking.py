"""Rankings and their refinements against slow loops, closed forms and a pencil."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from retrieval_utils import ranking
from retrieval_utils.ranking import augment_database, cosine_scores, expand_queries, nearest, rank, rerank, top_k


def drawn(n, dim=8, seed=0):
    """Descriptors (n, dim) float64, L2-normalised, all in one half-space, so that cosines of both signs occur."""
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, dim, generator=generator, dtype=torch.float64) + 0.4, dim=1)


def slow_ranking(scores):
    return sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))


@given(st.lists(st.lists(st.integers(-2, 2), min_size=7, max_size=7), min_size=1, max_size=4), st.integers(1, 9))
def test_top_k_is_the_head_of_the_ranking_whatever_is_tied(rows, k):
    scores = torch.tensor(rows, dtype=torch.float32)
    values, indices = top_k(scores, k)
    assert indices.tolist() == [slow_ranking(row)[:k] for row in rows] == rank(scores)[:, :k].tolist()
    assert torch.equal(values, scores.gather(1, indices))


def test_nearest_in_blocks(monkeypatch):
    queries, database = drawn(10, seed=1), drawn(30)
    expected = top_k(cosine_scores(queries, database), 5)
    others = top_k(cosine_scores(database, database).fill_diagonal_(-9), 5)
    monkeypatch.setattr(ranking, "CELLS", 4 * 30)
    for (values, indices), (expected_values, expected_indices) in (
        (nearest(queries, database, 5), expected),
        (nearest(database, database, 5, without_self=True), others),
    ):
        assert torch.equal(indices, expected_indices)
        torch.testing.assert_close(values, expected_values)


def test_nearest_without_self_keeps_duplicates_of_it():
    database = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    assert nearest(database, database, 1, without_self=True)[1].tolist() == [[1], [0], [0]]


def slow_expansion(query, database, k, alpha, skip=None):
    scores = [float(query @ image) for image in database]
    order = [i for i in slow_ranking(scores) if i != skip][:k]
    total = query.clone()
    for i in order:
        total += max(scores[i], 0.0) ** alpha * database[i]
    return total / math.sqrt(sum(float(v) ** 2 for v in total))


@pytest.mark.parametrize("alpha", [0, 1, 3])
def test_expansion_and_augmentation_equal_the_slow_twin(alpha):
    queries, database = drawn(6, seed=1), drawn(40)
    expected = [slow_expansion(query, database, 7, alpha) for query in queries]
    torch.testing.assert_close(expand_queries(queries, database, 7, alpha), torch.stack(expected))
    expected = [slow_expansion(image, database, 7, alpha, skip=i) for i, image in enumerate(database)]
    torch.testing.assert_close(augment_database(database, 7, alpha), torch.stack(expected))


def test_average_expansion_by_pencil():
    # The query (1, 0) meets (0.8, 0.6) and (0.6, 0.8): the sum (2.4, 1.4) has the length sqrt(7.72).
    query, database = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, -1.0], [0.6, 0.8], [0.8, 0.6]])
    expected = torch.tensor([[2.4, 1.4]]) / math.sqrt(7.72)
    torch.testing.assert_close(expand_queries(query, database, k=2), expected)
    # Weighted by the cosine itself: (1, 0) + 0.8 (0.8, 0.6) + 0.6 (0.6, 0.8) = (2, 0.96).
    expected = normalize(torch.tensor([[2.0, 0.96]]), dim=1)
    torch.testing.assert_close(expand_queries(query, database, k=2, alpha=1), expected)
    # A large alpha leaves the query alone: only cosines of 1 keep their weight.
    torch.testing.assert_close(expand_queries(query, database, k=3, alpha=300), query)


def test_expansion_leaves_its_input_alone():
    queries, database = drawn(3, seed=1), drawn(9)
    before = queries.clone(), database.clone()
    expand_queries(queries, database), augment_database(database), rerank(queries, database, top=5)
    assert torch.equal(queries, before[0]) and torch.equal(database, before[1])


def slow_rerank(query, database, top, k, beta):
    """The new scores of the M best of one query, image by image; the others keep their cosine less 2."""
    scores = [float(query @ image) for image in database]
    candidates = slow_ranking(scores)[:top]
    refined = {}
    for i in candidates:
        near = {j: float(database[i] @ database[j]) for j in candidates if j != i}
        total, weight = database[i].clone(), 1.0
        for j in sorted(near, key=lambda j: -near[j])[:k]:
            total += beta * near[j] * database[j]
            weight += beta * near[j]
        refined[i] = total / weight
    first = {i: float(query @ refined[i]) for i in candidates}
    best = sorted(candidates, key=lambda i: -first[i])[: k + 1]
    expanded = [max(float(refined[i][d]) for i in best) for d in range(len(query))]
    out = [score - 2 for score in scores]
    for i in candidates:
        out[i] = (first[i] + sum(e * float(v) for e, v in zip(expanded, refined[i], strict=True))) / 2
    return torch.tensor(out, dtype=query.dtype)


@pytest.mark.parametrize(("top", "k"), [(12, 3), (12, 30), (400, 9), (1, 3), (12, 0)])
def test_rerank_equals_the_slow_twin(top, k):
    queries, database = drawn(5, seed=1), drawn(40)
    expected = torch.stack([slow_rerank(query, database, top, k, 0.15) for query in queries])
    torch.testing.assert_close(rerank(queries, database, top, k), expected)


def test_rerank_moves_only_the_best():
    queries, database = drawn(5, seed=1), drawn(40)
    before, after = rank(cosine_scores(queries, database)), rank(rerank(queries, database, top=12))
    assert torch.equal(before[:, 12:], after[:, 12:]) and not torch.equal(before, after)
    assert torch.equal(before[:, :12].sort(dim=1).values, after[:, :12].sort(dim=1).values)


def clusters(dim=16, instances=30, views=12, noise=1.0, seed=0):
    """Views of instances, one of each as the query: queries (I, D), database (I (V - 1), D), and its instances."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(instances, 1, dim, generator=generator)
    points = normalize(centres + noise * torch.randn(instances, views, dim, generator=generator), dim=2)
    return points[:, 0], points[:, 1:].flatten(0, 1), torch.arange(instances).repeat_interleave(views - 1)


def mean_precision(scores, instances, k=11):
    hits = instances[rank(scores)[:, :k]] == torch.arange(len(scores))[:, None]
    return float(hits.double().mean())


def test_all_of_them_find_more_views_among_clusters():
    queries, database, instances = clusters()
    plain = mean_precision(cosine_scores(queries, database), instances)
    expanded = mean_precision(cosine_scores(expand_queries(queries, database, 3, 3.0), database), instances)
    augmented = augment_database(database, 3, 3.0)
    assert 0.3 < plain < 0.9
    assert expanded > plain + 0.02
    assert mean_precision(cosine_scores(queries, augmented), instances) > plain + 0.02
    assert mean_precision(rerank(queries, database, top=60, k=5, beta=0.5), instances) > plain + 0.02


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, d: cosine_scores(q[:, :5], d), "5 dimensions and the database 8"),
        (lambda q, d: expand_queries(q[:, :5], d), "5 dimensions and the database 8"),
        (lambda q, d: rerank(q[:, :5], d), "5 dimensions and the database 8"),
        (lambda q, d: top_k(q, 0), "got k=0"),
        (lambda q, d: expand_queries(q, d, k=-1), "got k=-1"),
        (lambda q, d: expand_queries(q, d, alpha=-1), "alpha >= 0, got -1"),
        (lambda q, d: augment_database(d[:1]), "at least 2 images, got 1"),
        (lambda q, d: rerank(q, d, top=0), "got k=0"),
        (lambda q, d: rerank(q, d, k=-1), "got k=-1 and beta=0.15"),
        (lambda q, d: rerank(q, d, beta=-0.5), "beta=-0.5"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(drawn(3, seed=1), drawn(9))
