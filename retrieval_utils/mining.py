"""Hard-negative mining: tuples of a query, a positive and five negatives, ranked by the network that is being trained.

Radenovic, Tolias, Chum, "Fine-tuning CNN image retrieval with no human annotation", TPAMI 2018, section 4, whose rule
for negatives is that of their code: walk down the ranking, at most one image of an instance, none of the query's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from retrieval_utils.losses.tuples import NEGATIVES

TUPLE = 2 + NEGATIVES  # images of a tuple: query, positive, negatives

Pairs = tuple[np.ndarray, np.ndarray]  # (P,) queries and (P,) positives, indices of images


def hard_negatives(
    queries: torch.Tensor, query_labels: np.ndarray, pool: torch.Tensor, pool_labels: np.ndarray, count: int = NEGATIVES
) -> np.ndarray:
    """For each query the `count` most similar images of the pool, at most one an instance, none of the query's.

    queries (Q, D) and pool (P, D): L2-normalised descriptors; labels (Q,) and (P,): their instances. Gives (Q, count)
    int64 positions in the pool, the hardest first; of equal similarities the first in the pool. Raises ValueError for
    descriptors that are not finite, and a pool with fewer than `count` instances beside a query's.
    """
    scores = (queries @ pool.T).cpu().numpy()  # (Q, P)
    if not np.isfinite(scores).all():
        raise ValueError("Descriptors to mine from hold nan or infinite values: lower the learning rate.")
    chosen = np.empty((len(scores), count), dtype=np.int64)
    for i, (row, own) in enumerate(zip(scores, query_labels, strict=True)):
        ranking = np.argsort(-row, kind="stable")  # (P,)
        ranking = ranking[pool_labels[ranking] != own]
        best = np.sort(np.unique(pool_labels[ranking], return_index=True)[1])  # where each instance comes first
        if len(best) < count:
            raise ValueError(
                f"The pool shows {len(best)} instances other than that of query {i}, and {count} negatives are of "
                f"{count}: take a larger pool."
            )
        chosen[i] = ranking[best[:count]]
    return chosen


def draw_pairs(labels: np.ndarray, count: int, random: np.random.Generator, listed: Pairs | None = None) -> Pairs:
    """`count` pairs of a query and a positive, (count,) int64 each.

    listed: pairs to draw from, as SfM-120k comes with them (photos that share points of one 3D model). Without a list a
    query is any image, its positive another one of its instance at random. None comes twice before all came once.
    """
    candidates = len(labels if listed is None else listed[0])
    rounds = -(-count // candidates)
    drawn = np.concatenate([random.permutation(candidates) for _ in range(rounds)])[:count]  # (count,)
    if listed is not None:
        return listed[0][drawn], listed[1][drawn]
    positives = np.empty_like(drawn)
    for i, query in enumerate(drawn):
        others = np.flatnonzero(labels == labels[query])
        positives[i] = random.choice(others[others != query])
    return drawn, positives


class TupleBatches(Sampler[list[int]]):
    """`batches` lists an epoch of `tuples` x 7 image indices: query, positive, and five negatives, the hardest first.

    Every `mine_every` batches, and at the start of an epoch, a new pool of `pool` images is drawn (all of them, if
    there are no more), `describe` gives descriptors (M, D) of M image indices as the network sees them now, and the
    negatives of the next `mine_every` batches are mined. Pairs and pools follow from seed and epoch alone.
    described: how many images `describe` has been given so far. Raises ValueError, one sentence, for an instance with
    one image (where positives are not listed), fewer than six instances, and a pool smaller than a tuple.
    """

    def __init__(
        self,
        labels: np.ndarray,
        describe: Callable[[np.ndarray], torch.Tensor],
        tuples: int,
        batches: int,
        mine_every: int,
        pool: int,
        seed: int = 0,
        listed: Pairs | None = None,
    ):
        self.labels = np.asarray(labels)
        self.describe, self.tuples, self.batches, self.mine_every = describe, tuples, batches, mine_every
        self.pool, self.seed, self.listed = min(pool, len(self.labels)), seed, listed
        self.epoch, self.described = 0, 0
        if min(tuples, batches, mine_every) < 1:
            raise ValueError(
                f"Tuples a batch, batches an epoch and batches between minings are at least 1, "
                f"got {tuples}, {batches} and {mine_every}."
            )
        names, counts = np.unique(self.labels, return_counts=True)
        if len(names) <= NEGATIVES:
            raise ValueError(
                f"{NEGATIVES} negatives are of {NEGATIVES} instances other than the query's, so {NEGATIVES + 1} are "
                f"needed and there are {len(names)}: take a set with more instances."
            )
        if listed is None and counts.min() < 2:
            raise ValueError(
                f"The instance with label {names[counts.argmin()]} has one image, so that image as a query has no "
                "positive: add a photo of it, or leave it out."
            )
        if self.pool < TUPLE:
            raise ValueError(
                f"A pool of {self.pool} images is smaller than a tuple of {TUPLE} (query, positive, {NEGATIVES} "
                "negatives): take a larger pool."
            )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        queries, positives = draw_pairs(self.labels, self.tuples * self.batches, random, self.listed)
        for first in range(0, self.batches, self.mine_every):
            block = slice(first * self.tuples, (first + self.mine_every) * self.tuples)
            pool = np.sort(random.choice(len(self.labels), self.pool, replace=False))  # (P,)
            negatives = self.mine(queries[block], pool)  # (T, 5)
            tuples = np.column_stack([queries[block], positives[block], negatives])  # (T, 7)
            for batch in range(0, len(tuples), self.tuples):
                yield tuples[batch : batch + self.tuples].ravel().tolist()

    def mine(self, queries: np.ndarray, pool: np.ndarray) -> np.ndarray:
        """(T,) queries and (P,) pool, indices of images -> (T, 5) indices of their negatives."""
        needed, place = np.unique(np.concatenate([queries, pool]), return_inverse=True)
        self.described += len(needed)
        descriptors = self.describe(needed)[torch.from_numpy(place)]  # (T + P, D)
        mine, theirs = descriptors.split([len(queries), len(pool)])
        return pool[hard_negatives(mine, self.labels[queries], theirs, self.labels[pool])]
