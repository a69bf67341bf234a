"""Descriptors to rankings: exact cosine search."""

from __future__ import annotations

import torch


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
