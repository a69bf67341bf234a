"""Diffusion: scores spread over the graph of nearest neighbours, so that an image is found through others."""

from __future__ import annotations

import torch
from torch import Tensor

from retrieval_utils.ranking import cosine_scores, nearest, top_k


def neighbour_graph(database: Tensor, k: int = 50, gamma: float = 3.0) -> Tensor:
    """Normalised affinities (N, N), sparse, of L2-normalised descriptors (N, D): S = G^-1/2 A G^-1/2.

    A_ij = max(x_i . x_j, 0)^gamma where i and j are among the k nearest of each other, else 0; A_ii = 0; G is the
    diagonal of A's row sums. An image that is nobody's mutual neighbour has an empty row (Iscen et al., CVPR 2017,
    section 3, with whole images for regions). Raises ValueError for fewer than 2 images or k < 1.
    """
    n = len(database)
    if n < 2:
        raise ValueError(f"A graph of neighbours needs at least 2 images, got {n}.")
    cosines, columns = nearest(database, database, k, without_self=True)  # (N, k) (N, k)
    rows = torch.arange(n, device=database.device).repeat_interleave(columns.shape[1])  # (N k,)
    here, there = rows * n + columns.flatten(), columns.flatten() * n + rows  # edge and its reverse as one number
    mutual = torch.isin(here, there)  # (N k,)
    values = cosines.flatten().clamp(min=0)[mutual] ** gamma  # (E,)
    edges = torch.stack([rows, columns.flatten()])[:, mutual]  # (2, E)
    degree = torch.zeros(n, dtype=values.dtype, device=values.device).index_add_(0, edges[0], values)  # (N,)
    scale = degree.clamp(min=torch.finfo(values.dtype).tiny).rsqrt()
    values = values * scale[edges[0]] * scale[edges[1]]
    return torch.sparse_coo_tensor(edges, values, (n, n), check_invariants=True).coalesce()


def solve(graph: Tensor, seeds: Tensor, alpha: float = 0.99, iterations: int = 20) -> Tensor:
    """f (N, Q) with (I - alpha S) f = (1 - alpha) y: where the random walks end that start at the seeds y (N, Q).

    S is the graph of `neighbour_graph`. By conjugate gradients, every query at once; each iteration reaches one edge
    further, and 20 are those of Iscen et al. (2017). A column stops once its residual is 1e-6 of its seed.
    """
    target = (1 - alpha) * seeds  # (N, Q)
    solution, residual = torch.zeros_like(target), target.clone()
    direction, square = residual.clone(), residual.square().sum(dim=0)  # (N, Q) (Q,)
    enough = 1e-12 * square
    for _ in range(iterations):
        going = (square > enough).to(target.dtype)  # (Q,)
        if not going.any():
            break
        spread = direction - alpha * torch.sparse.mm(graph, direction)  # (N, Q)
        step = going * square / (direction * spread).sum(dim=0).clamp(min=torch.finfo(target.dtype).tiny)  # (Q,)
        solution += step * direction
        residual -= step * spread
        before, square = square, residual.square().sum(dim=0)
        direction = residual + square / before.clamp(min=torch.finfo(target.dtype).tiny) * direction
    return solution


def diffuse(
    queries: Tensor,
    database: Tensor,
    k: int = 50,
    query_k: int = 10,
    gamma: float = 3.0,
    alpha: float = 0.99,
    iterations: int = 20,
) -> Tensor:
    """Scores (Q, N) of a random walk that starts at each query's `query_k` nearest images and restarts with 1 - alpha.

    queries (Q, D) and database (N, D), L2-normalised. The ranking of Donoser and Bischof (CVPR 2013), with queries from
    outside the graph and the linear system of Iscen et al. (CVPR 2017): seeds max(q . x_i, 0)^gamma on the nearest
    images, then `solve`. Images that the walk does not reach keep their cosine less 2, below all it reaches.
    Raises ValueError when the dimensions differ, k or query_k < 1, or alpha is outside [0, 1).
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"Diffusion needs alpha in [0, 1), got {alpha}: 0.99 is usual.")
    cosines = cosine_scores(queries, database)  # (Q, N)
    values, indices = top_k(cosines, query_k)  # (Q, query_k) (Q, query_k)
    seeds = torch.zeros_like(cosines).scatter_(1, indices, values.clamp(min=0) ** gamma)  # (Q, N)
    found = solve(neighbour_graph(database, k, gamma), seeds.T.contiguous(), alpha, iterations).T  # (Q, N)
    return torch.where(found > 0, found, cosines - 2)
