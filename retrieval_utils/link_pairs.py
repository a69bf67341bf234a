"""AutoRet's pairs: half can-link, half cannot-link, from images alone or with a part of their labels mixed in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CAN_LINK = 0.5  # the share of can-link pairs; known of the paper


@dataclass(frozen=True)
class Pairs:
    """first, second: image indices (N,); where they are equal, the second is to be an augmentation. can_link: (N,)."""

    first: np.ndarray
    second: np.ndarray
    can_link: np.ndarray


class LinkPairs:
    """Pairs of one epoch after the other, drawn by seed and epoch alone; every image is the first of one pair.

    can-link: an image and its own augmentation, or another image known to have its label. cannot-link: an image and
    another one drawn at random, unless both are known to have the same label. known: (N,) bool, whose label is known,
    a fraction of the images drawn at random. can_link: the share of can-link pairs.
    Can-link and cannot-link take turns, so that every batch of even size has as many of both.
    """

    def __init__(self, labels: np.ndarray, fraction: float = 0.0, can_link: float = CAN_LINK, seed: int = 0):
        self.labels, self.can_link, self.seed = np.asarray(labels), can_link, seed
        if not 0 <= fraction <= 1:
            raise ValueError(f"The fraction of labels lies in [0, 1], got {fraction:g}; 0 is self-supervision.")
        if not 0 <= can_link <= 1:
            raise ValueError(f"The share of can-link pairs lies in [0, 1], got {can_link:g}; the paper has 0.5.")
        if len(self.labels) < 2:
            raise ValueError(f"Pairs need at least 2 images, got {len(self.labels)}.")
        count = len(self.labels)
        self.known = np.zeros(count, bool)
        self.known[np.random.default_rng([seed, 0]).permutation(count)[: round(fraction * count)]] = True
        if can_link < 1 and self.known.all() and (self.labels == self.labels[0]).all():
            raise ValueError("All images are known to have one label, so no two cannot be linked; take more labels.")

    def draw(self, epoch: int) -> Pairs:
        """The pairs of this epoch, N of them."""
        random = np.random.default_rng([self.seed, 1, epoch])
        count = len(self.labels)
        first = random.permutation(count)  # (N,)
        turns = np.floor(np.arange(1, count + 1) * self.can_link) - np.floor(np.arange(count) * self.can_link)
        can_link = turns > 0  # (N,)
        second = first.copy()
        mates = {label: np.flatnonzero(self.known & (self.labels == label)) for label in np.unique(self.labels)}
        for place in np.flatnonzero(can_link & self.known[first]):
            same = mates[self.labels[first[place]]]
            if same.size > 1:
                second[place] = random.choice(same[same != first[place]])
        open_places = np.flatnonzero(~can_link)
        while open_places.size:
            second[open_places] = random.integers(0, count, open_places.size)
            open_places = open_places[self._may_not_be(first[open_places], second[open_places])]
        return Pairs(first, second, can_link)

    def false_cannot_link(self, pairs: Pairs) -> float:
        """The share of the cannot-link pairs whose images have the same label in truth; nan without such pairs."""
        apart = ~pairs.can_link
        same = self.labels[pairs.first[apart]] == self.labels[pairs.second[apart]]
        return float(same.mean()) if same.size else float("nan")

    def _may_not_be(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Which of these cannot-link pairs (n,) are one image, or known to have one label."""
        known = self.known[first] & self.known[second]
        return (first == second) | (known & (self.labels[first] == self.labels[second]))
