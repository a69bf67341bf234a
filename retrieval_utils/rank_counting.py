"""Counts the images above each labelled one, block by block, without sorting the database.

An image between two labelled ones need not be placed among its like, only counted. So the range of the labelled scores
is cut into many narrow slots; a slot without a labelled image says at once how many of them lie below. Only the few
images that share a slot with a labelled one are compared with it exactly.
"""

from __future__ import annotations

import numpy as np

SLOTS = 1 << 15
CHUNK = 1 << 16  # images counted at a time: what is computed for them fits into the cache


def worst_first(scores: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The order (L,) int64 that puts the lowest score first, and of equal scores the highest database index."""
    return np.lexsort((-indices, scores))


@np.errstate(over="ignore", divide="ignore", invalid="ignore")
def count_at_or_above(row: np.ndarray, first: int, scores: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """How many images of `row` stand at or above each of L labelled images, as (L,) int64.

    row: (n,) finite scores of the database images first .. first + n - 1, float16, float32 or float64; equal scores are
    ordered by index. scores, indices: (L,) of the labelled images, in the order of `worst_first`, wherever they lie; a
    labelled image within the row counts as one of those at or above itself. The counts of several rows add up.
    """
    counts = np.zeros(len(scores) + 1, np.int64)  # [p]: images at or above the p worst labelled ones and no other
    if len(scores) and row.size:
        dtype = np.result_type(scores, row, np.float32)  # one rounding for all, or slots would disagree
        table = _Table(scores.astype(dtype), indices, min(SLOTS, row.size))
        for start in range(0, row.size, CHUNK):
            counts += table.count(row[start : start + CHUNK], first + start)
    return counts[::-1].cumsum()[::-1][1:]


class _Table:
    """Says for each slot of scores how many labelled images lie in the slots below it, and whether some lie in it."""

    def __init__(self, scores: np.ndarray, indices: np.ndarray, slots: int):
        self.scores, self.indices, self.slots = scores, indices, slots
        self.scale = scores.dtype.type(slots) / (scores[-1] - scores[0])
        self.cuts = bool(0 < self.scale < np.inf)  # not where all scores are equal, or their range has no float
        if self.cuts:
            slot = self._slot(scores)  # (L,)
            labelled = np.bincount(slot, minlength=slots + 3)  # (S,)
            twice_below = 2 * (labelled.cumsum() - labelled) + (labelled > 0)  # (S,) odd: some lie in it
            self.twice_below = twice_below.astype(np.min_scalar_type(2 * len(scores) + 1))

    def _slot(self, scores: np.ndarray) -> np.ndarray:
        """0 below the range, slots + 2 above it; never falls where the score rises, rounding included."""
        place = scores - self.scores[0]
        place *= self.scale
        place += 1
        return np.clip(place, 0, self.slots + 2, out=place).astype(np.int32)

    def count(self, chunk: np.ndarray, first: int) -> np.ndarray:
        """(L + 1,) int64: [p] images of the chunk stand at or above the p worst labelled ones and no other; of those
        above none, [0], some are left out."""
        chunk = chunk.astype(self.scores.dtype, copy=False)  # (n,)
        kept = chunk >= self.scores[0]  # (n,)
        some = 2 * np.count_nonzero(kept) < chunk.size  # else to drop the others costs more than it saves
        if some:
            kept = np.flatnonzero(kept)  # (m,)
            chunk = chunk.take(kept)
        if self.cuts:
            twice = self.twice_below.take(self._slot(chunk), mode="clip")  # (m,) nothing is out of range to be clipped
            far = np.bincount(twice, minlength=2 * len(self.scores) + 2)[::2]  # (L + 1,)
            near = np.flatnonzero((twice & 1) == 1)  # (K,)
        else:
            far, near = 0, np.arange(chunk.size)
        return far + self._count_exactly(chunk[near], first + (kept[near] if some else near))

    def _count_exactly(self, scores: np.ndarray, index: np.ndarray) -> np.ndarray:
        """The same for images given by score (K,) and database index (K,), by binary search."""
        size = len(self.scores)
        place = np.searchsorted(self.scores, scores)  # (K,) labelled images with a lower score
        tied = np.flatnonzero(self.scores[np.minimum(place, size - 1)] == scores)
        if tied.size:
            group = np.searchsorted(self.scores, self.scores)  # (L,) the same number for equal scores
            span = 1 + max(self.indices.max(), index[tied].max())
            keys = group * span - self.indices  # (L,) rises, as the higher index comes first
            place[tied] = np.searchsorted(keys, place[tied] * span - index[tied], side="right")
        return np.bincount(place, minlength=size + 1)
