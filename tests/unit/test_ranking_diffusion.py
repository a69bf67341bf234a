"""Diffusion against the dense inverse, and against graphs small enough for a pencil."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from retrieval_utils.diffusion import diffuse, neighbour_graph, solve
from retrieval_utils.ranking import cosine_scores, rank


def drawn(n, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, dim, generator=generator, dtype=torch.float64) + 0.4, dim=1)


def slow_graph(database, k, gamma):
    """S by its definition, pair by pair."""
    n = len(database)
    near = []
    for i in range(n):
        order = sorted((j for j in range(n) if j != i), key=lambda j: -float(database[i] @ database[j]))
        near.append(set(order[:k]))
    affinity = torch.zeros(n, n, dtype=database.dtype)
    for i in range(n):
        for j in near[i]:
            if i in near[j]:
                affinity[i, j] = max(float(database[i] @ database[j]), 0.0) ** gamma
    degree = affinity.sum(dim=1)
    for i in range(n):
        for j in range(n):
            if affinity[i, j] > 0:
                affinity[i, j] /= math.sqrt(degree[i] * degree[j])
    return affinity


@pytest.mark.parametrize("k", [1, 5, 100])
def test_the_graph_equals_the_slow_twin_and_is_symmetric(k):
    database = drawn(40)
    graph = neighbour_graph(database, k).to_dense()
    torch.testing.assert_close(graph, slow_graph(database, k, 3.0))
    torch.testing.assert_close(graph, graph.T)
    assert torch.linalg.eigvalsh(graph).abs().max() <= 1 + 1e-9  # so I - alpha S is positive definite


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.99])
def test_conjugate_gradients_solve_the_system(alpha):
    graph, seeds = neighbour_graph(drawn(40), 5), drawn(40, dim=3, seed=2).abs()
    expected = (1 - alpha) * torch.linalg.solve(torch.eye(40).double() - alpha * graph.to_dense(), seeds)
    torch.testing.assert_close(solve(graph, seeds, alpha, iterations=200), expected, rtol=1e-4, atol=1e-8)


def test_the_walk_equals_its_power_series():
    """f = (1 - alpha) sum_t (alpha S)^t y: where a walker is that stops with probability 1 - alpha at each step."""
    graph, seeds = neighbour_graph(drawn(40), 5), drawn(40, dim=3, seed=2).abs()
    total, term = torch.zeros_like(seeds), seeds.clone()
    for _ in range(200):
        total, term = total + term, 0.8 * (graph.to_dense() @ term)
    torch.testing.assert_close(solve(graph, seeds, 0.8, iterations=100), 0.2 * total, rtol=1e-4, atol=1e-8)


def test_seeds_of_zero_stay_zero():
    assert solve(neighbour_graph(drawn(40), 5), torch.zeros(40, 2).double()).abs().max() == 0


def test_two_images_by_pencil():
    # One edge: S = [[0, 1], [1, 0]]. From the seed (s, 0), f = (1 - a) s (1, a) / (1 - a^2) = s (1, a) / (1 + a).
    database = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    found = diffuse(torch.tensor([[1.0, 0.0]]), database, k=1, query_k=1, alpha=0.5)
    torch.testing.assert_close(found, torch.tensor([[1 / 1.5, 0.5 / 1.5]]))


def arc(degrees):
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_a_chain_is_followed_past_a_nearer_stranger():
    # Along one side a chain in steps of 10 degrees; on the other a pair, nearer to the query than the chain's far end.
    database = arc([5, 15, 25, 35, 45, 55, -32, -33])
    scores = diffuse(arc([0]), database, k=2, query_k=1)
    assert rank(cosine_scores(arc([0]), database))[0].tolist() == [0, 1, 2, 6, 7, 3, 4, 5]
    assert rank(scores)[0].tolist()[:6] != [0, 1, 2, 6, 7, 3] and set(rank(scores)[0].tolist()[:6]) == set(range(6))
    assert scores[0, 6] == pytest.approx(math.cos(math.radians(32)) - 2)  # not reached: the cosine less 2


def test_on_the_moons_diffusion_finds_what_cosine_cannot():
    """Two interleaved half-circles, lifted to the sphere: nearest along the arm is not nearest through the air."""
    angle = torch.linspace(0, math.pi, 60, dtype=torch.float64)
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
    points = torch.cat([upper, lower])
    database = normalize(torch.cat([points, torch.ones(120, 1)], dim=1), dim=1)
    own = torch.arange(120) < 60
    query = database[:1]
    plain, spread = cosine_scores(query, database), diffuse(query, database, 4, 3, gamma=40.0, iterations=200)
    assert own[rank(spread)[0, :60]].double().mean() == 1 > own[rank(plain)[0, :60]].double().mean() + 0.2


def test_float32_ranks_as_float64_does():
    queries, database = drawn(5, seed=1), drawn(60)
    exact = diffuse(queries, database, k=6, query_k=3, iterations=100)
    single = diffuse(queries.float(), database.float(), k=6, query_k=3, iterations=100)
    torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, d: diffuse(q[:, :5], d), "5 dimensions and the database 8"),
        (lambda q, d: diffuse(q, d, alpha=1.0), "got 1.0: 0.99 is usual"),
        (lambda q, d: diffuse(q, d, query_k=0), "got k=0"),
        (lambda q, d: diffuse(q, d, k=0), "got k=0"),
        (lambda q, d: neighbour_graph(d[:1]), "at least 2 images, got 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(drawn(3, seed=1), drawn(9))
