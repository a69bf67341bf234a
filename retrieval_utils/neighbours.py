"""What is made of neighbours when descriptors are scored: steps of `ranking` by name, and as a card says them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from retrieval_utils.ranking import augment_database, cosine_scores, expand_queries, rerank

COUNT = 10  # neighbours of an expansion
EXPANSIONS = {"average": 0.0, "alpha": 3.0}  # exponent of a neighbour's cosine, which is its weight
RERANKING = "SuperGlobal, top 400, 9 neighbours, beta 0.15"
BLOCK = 50_000  # database images scored at a time


@dataclass(frozen=True)
class Neighbours:
    """Query expansion, database augmentation and re-ranking with settings that nobody tuned; by default none of them.

    query_expansion, database_augmentation: a name in EXPANSIONS, or "none". count: neighbours that they take; None is
    COUNT. rerank: whether `ranking.rerank` compares the best again. Augmentation comes first, then expansion.
    Raises ValueError for an unknown name, a count below 1, and a count of nothing.
    """

    query_expansion: str = "none"
    database_augmentation: str = "none"
    count: int | None = None
    rerank: bool = False

    def __post_init__(self) -> None:
        kinds = {"query expansion": self.query_expansion, "database augmentation": self.database_augmentation}
        for what, kind in kinds.items():
            if kind not in ("none", *EXPANSIONS):
                raise ValueError(f"There is no {what} '{kind}'; choose one of none, {', '.join(EXPANSIONS)}.")
        if self.count is not None and self.count < 1:
            raise ValueError(f"An expansion takes 1 neighbour or more, such as {COUNT}; {self.count} is not.")
        if self.count is not None and set(kinds.values()) == {"none"}:
            raise ValueError("Neighbours are counted for an expansion: name a --query-expansion too, such as alpha.")

    def __bool__(self) -> bool:
        return self != NONE

    def scores(self, queries: Tensor, database: Tensor) -> Iterator[Tensor]:
        """Scores (Q, n), block by block, of L2-normalised queries (Q, D) against a database (N, D) held as a whole."""
        count = self.count or COUNT
        if self.database_augmentation != "none":
            database = augment_database(database, count, EXPANSIONS[self.database_augmentation])  # (N, D)
        if self.query_expansion != "none":
            queries = expand_queries(queries, database, count, EXPANSIONS[self.query_expansion])  # (Q, D)
        if self.rerank:
            yield rerank(queries, database)  # (Q, N)
        else:
            yield from (cosine_scores(queries, block) for block in database.split(BLOCK))  # (Q, n) each

    def on_card(self) -> dict[str, str]:
        """The fields of a `ProtocolCard` that name them."""
        return {
            "query_expansion": self._words(self.query_expansion),
            "database_augmentation": self._words(self.database_augmentation),
            "reranking": RERANKING if self.rerank else "none",
        }

    def _words(self, kind: str) -> str:
        used = kind in EXPANSIONS
        return f"{kind}, exponent {EXPANSIONS[kind]:g}, {self.count or COUNT} neighbours" if used else kind


NONE = Neighbours()
