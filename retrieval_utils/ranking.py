"""Descriptors to rankings: exact cosine search, and what better use of the neighbours makes of it."""

from __future__ import annotations

import torch
from torch import Tensor

CELLS = 1 << 25  # scores held at a time where nobody needs them all: 128 MB


def cosine_scores(queries: torch.Tensor, database: torch.Tensor) -> torch.Tensor:
    """Scores (Q, N) in [-1, 1] of L2-normalised descriptors, queries (Q, D) against database (N, D); larger is better.

    Raises ValueError when the dimensions differ.
    """
    if queries.shape[1] != database.shape[1]:
        raise ValueError(
            f"Queries have {queries.shape[1]} dimensions and the database {database.shape[1]}; "
            "describe both with the same network and whitening."
        )
    return queries @ database.T  # (Q, N)


def rank(scores: torch.Tensor) -> torch.Tensor:
    """Database indices (Q, N) int64, best first; equal scores keep the order of the database."""
    return torch.sort(scores, dim=1, descending=True, stable=True).indices


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k columns of a ranking: scores (Q, k) and indices (Q, k) int64, best first, without sorting all N.

    Equal scores keep the order of the database, also at the k-th place. k above N gives N.
    Raises ValueError for k < 1.
    """
    if k < 1:
        raise ValueError(f"A ranking needs k >= 1, got k={k}.")
    k = min(k, scores.shape[1])
    values, indices = scores.topk(k, dim=1)  # (Q, k) (Q, k)
    last = values[:, -1:]  # (Q, 1)
    tied = (scores == last).sum(dim=1) > (values == last).sum(dim=1)  # (Q,) some of the k-th score stayed outside
    if tied.any():
        indices[tied] = rank(scores[tied])[:, :k]
    indices = indices.sort(dim=1).values
    values, order = scores.gather(1, indices).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)


def nearest(queries: Tensor, database: Tensor, k: int, without_self: bool = False) -> tuple[Tensor, Tensor]:
    """Cosines (Q, k) and indices (Q, k) of the k nearest of database (N, D) to each of queries (Q, D), best first.

    Exact, in blocks of queries, so that no (Q, N) matrix is held. without_self: query i is database row i, and leaves
    itself out. Raises ValueError when the dimensions differ, or k < 1.
    """
    k, block = min(k, len(database) - without_self), max(1, CELLS // max(1, len(database)))
    found = []
    for start in range(0, len(queries), block):
        scores = cosine_scores(queries[start : start + block], database)  # (B, N)
        if without_self:
            own = torch.arange(len(scores), device=scores.device)
            scores[own, own + start] = -torch.inf
        found.append(top_k(scores, k))
    return torch.cat([values for values, _ in found]), torch.cat([indices for _, indices in found])


def expand_queries(queries: Tensor, database: Tensor, k: int = 10, alpha: float = 0.0) -> Tensor:
    """Queries (Q, D) moved towards their k nearest images, L2-normalised: q + sum_i max(q . d_i, 0)^alpha d_i.

    alpha 0 is average query expansion, every neighbour counting as much as the query (Chum et al., ICCV 2007, without
    their spatial verification); alpha 3 is usual for alpha query expansion, which trusts near neighbours more
    (Radenovic et al., TPAMI 2019). Raises ValueError when the dimensions differ, k < 1 or alpha < 0.
    """
    return _expand(queries, database, *nearest(queries, database, k), alpha)


def augment_database(database: Tensor, k: int = 10, alpha: float = 0.0) -> Tensor:
    """Every image (N, D) moved towards its k nearest others, L2-normalised, with the weights of `expand_queries`.

    Done once, when the database is built: query expansion from the other side (Turcot and Lowe, ICCV workshops 2009;
    Arandjelovic and Zisserman, CVPR 2012). Raises ValueError for fewer than 2 images, k < 1 or alpha < 0.
    """
    if len(database) < 2:
        raise ValueError(f"Database augmentation needs at least 2 images, got {len(database)}.")
    return _expand(database, database, *nearest(database, database, k, without_self=True), alpha)


def _expand(queries: Tensor, database: Tensor, scores: Tensor, indices: Tensor, alpha: float) -> Tensor:
    if alpha < 0:
        raise ValueError(f"Query expansion needs alpha >= 0, got {alpha}: 0 counts all neighbours alike, 3 is usual.")
    expanded = queries.clone()
    for column in range(indices.shape[1]):  # one neighbour at a time: no (Q, k, D)
        expanded += scores[:, column, None].clamp(min=0) ** alpha * database[indices[:, column]]  # (Q, D)
    return torch.nn.functional.normalize(expanded, dim=1)


def rerank(queries: Tensor, database: Tensor, top: int = 400, k: int = 9, beta: float = 0.15) -> Tensor:
    """Scores (Q, N) after the `top` best of each query are compared again with refined descriptors.

    The re-ranking of SuperGlobal (Shao et al., ICCV 2023), read from its paper and public code, on the M = `top` images
    x_i of a query q: each moves towards its k nearest among the M,
    y_i = (x_i + beta sum_j s_ij x_j) / (1 + beta sum_j s_ij) with s_ij = x_i . x_j; the query is expanded to the
    elementwise maximum p of the k + 1 of them with the largest q . y_i; the new score is (q . y_i + p . y_i) / 2.
    What is not among the M keeps its cosine less 2 (for `rank`: its old place below them).
    Raises ValueError when the dimensions differ, top < 1, k < 0 or beta < 0.
    """
    if k < 0 or beta < 0:
        raise ValueError(f"Re-ranking needs k >= 0 and beta >= 0, got k={k} and beta={beta}.")
    scores = cosine_scores(queries, database)  # (Q, N)
    _, candidates = top_k(scores, top)  # (Q, M)
    scores = scores - 2
    for query, rows, row_scores in zip(queries, candidates, scores, strict=True):
        refined = _refine(database[rows], k, beta)  # (M, D)
        first = refined @ query  # (M,)
        expanded = refined[top_k(first[None], k + 1)[1][0]].amax(dim=0)  # (D,)
        row_scores[rows] = (first + refined @ expanded) / 2
    return scores


def _refine(images: Tensor, k: int, beta: float) -> Tensor:
    """`images` (M, D), each moved towards its k nearest others, in the length its weights leave it."""
    if k == 0 or len(images) == 1:
        return images
    values, columns = nearest(images, images, k, without_self=True)  # (M, k) (M, k)
    weights = torch.eye(len(images), dtype=images.dtype, device=images.device)  # (M, M) an image counts 1
    weights.scatter_(1, columns, beta * values)
    return weights @ images / weights.sum(dim=1, keepdim=True)  # (M, D)
