"""What is drawn by lot for a building before its style is known: colours, textures, openings, ornaments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Colour = tuple[int, int, int]

WALLS = [
    (226, 205, 168),
    (203, 168, 120),
    (214, 150, 84),
    (186, 92, 66),
    (150, 62, 52),
    (222, 176, 168),
    (168, 168, 172),
    (104, 122, 148),
    (142, 166, 140),
    (158, 198, 190),
    (238, 232, 220),
    (176, 160, 190),
    (118, 88, 70),
    (84, 132, 132),
]
ROOFS = [(84, 90, 104), (176, 84, 58), (96, 158, 138), (112, 78, 58), (48, 66, 104), (142, 44, 44), (46, 46, 52),
         (196, 164, 96), (66, 100, 72), (128, 108, 128)]  # fmt: skip
TRIMS = [(246, 242, 232), (236, 218, 174), (70, 48, 38), (40, 74, 58), (36, 52, 92), (204, 164, 62), (116, 36, 46),
         (128, 128, 130), (34, 34, 38), (60, 146, 150)]  # fmt: skip
ACCENTS = [(206, 44, 44), (28, 92, 170), (34, 132, 78), (236, 186, 40), (118, 56, 140), (240, 120, 40), (20, 150, 160),
           (222, 92, 140)]  # fmt: skip


class Lots:
    """A random stream in the words of the drawing."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def count(self, least: int, most: int) -> int:
        """A whole number from least to most, both included."""
        return int(self.rng.integers(least, most + 1))

    def about(self, mean: float, spread: float) -> float:
        return float(self.rng.normal(mean, spread))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, *options: T) -> T:
        return options[int(self.rng.integers(len(options)))]


def _jitter(colour: Colour, lots: Lots, spread: float) -> Colour:
    moved = np.array(colour) + lots.about(0, spread) + lots.rng.normal(0, spread * 0.6, 3)
    return tuple(int(v) for v in np.clip(moved, 8, 248))


@dataclass(frozen=True)
class Look:
    """What tells a building from its neighbours of the same style."""

    wall: Colour
    roof: Colour
    trim: Colour
    door: Colour
    accent: Colour
    second: Colour
    wall_pattern: str
    roof_pattern: str
    window: str
    mullion: str
    medallion: str
    banners: int
    flags: bool
    ivy: float  # sign: side; size: how high it climbs, in [0, 1]; 0: none
    statue: int  # -1 left, 1 right, 2 both, 0 none
    trees: int  # likewise
    awning: bool
    stripes: bool

    @classmethod
    def by_lot(cls, lots: Lots) -> Look:
        accent, second = lots.rng.permutation(len(ACCENTS))[:2]
        return cls(
            wall=_jitter(lots.pick(*WALLS), lots, 10),
            roof=_jitter(lots.pick(*ROOFS), lots, 8),
            trim=_jitter(lots.pick(*TRIMS), lots, 6),
            door=_jitter(lots.pick(*TRIMS, *ACCENTS), lots, 6),
            accent=ACCENTS[accent],
            second=ACCENTS[second],
            wall_pattern=lots.pick("brick", "stone", "plaster", "blocks", "planks"),
            roof_pattern=lots.pick("tiles", "seams", "slates"),
            window=lots.pick("flat", "round", "pointed", "segment"),
            mullion=lots.pick("cross", "bars", "grid", "plain", "half"),
            medallion=lots.pick("none", "clock", "rose", "star", "shield", "sun"),
            banners=lots.count(1, 3) if lots.chance(0.45) else 0,
            flags=lots.chance(0.35),
            ivy=lots.pick(-1, 1) * lots.between(0.3, 1) if lots.chance(0.25) else 0.0,
            statue=lots.pick(-1, 1, 2) if lots.chance(0.3) else 0,
            trees=lots.pick(-1, 1, 2) if lots.chance(0.3) else 0,
            awning=lots.chance(0.25),
            stripes=lots.chance(0.3),
        )
