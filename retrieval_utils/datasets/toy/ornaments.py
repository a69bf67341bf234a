"""What hangs on a building whatever its style: clock or star, banners, flags, awning, ivy, statues, potted trees."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from retrieval_utils.datasets.toy.canvas import UNITS, Canvas, Points, box, ring, shade


@dataclass
class Spots:
    """Where a style has room for ornaments: each entry is a place, in units."""

    medallion: tuple[float, float, float] | None = None  # x, y, radius
    banners: list[tuple[float, float, float, float]] = field(default_factory=list)  # x, y, width, height
    tops: Points = field(default_factory=list)
    door: tuple[float, float, float] = (0, 232, 16)  # x of the middle, y of the lintel, width
    sides: tuple[float, float] = (-98, 98)  # left and right end of the front at the ground
    ivy_top: float = 120
    depth: float = 0.35  # how far the building reaches back, in facade widths


def decorate(c: Canvas, spots: Spots) -> None:
    """Hang the building's own ornaments at the places its style offers."""
    look = c.look
    if look.ivy:
        side = spots.sides[0] if look.ivy < 0 else spots.sides[1]
        rise = (UNITS - spots.ivy_top) * abs(look.ivy)
        for _ in range(70):
            up, inwards = c.lots.between(0, 1), abs(c.lots.about(0, 9))
            green = shade((58, 112, 52), c.lots.between(0.6, 1.35))
            spot = ring(side - math.copysign(inwards * (1.2 - up), look.ivy), UNITS - up * rise, c.lots.between(1.5, 4))
            c.polygon(spot, green, solid=False)
    for i, (x, y, w, h) in enumerate(spots.banners[: look.banners]):
        first, other = (look.accent, look.second) if i % 2 == 0 else (look.second, look.accent)
        c.dark(box(x + 1.5, y + 1.5, x + w + 1.5, y + h + 1.5), 0.3)
        c.polygon([(x, y), (x + w, y), (x + w, y + h), (x + w / 2, y + h - w * 0.4), (x, y + h)], first, solid=False)
        c.polygon(ring(x + w / 2, y + h * 0.35, w * 0.3), other, solid=False)
        c.rect(x, y + h * 0.6, x + w, y + h * 0.68, other, solid=False)
    if spots.medallion and look.medallion != "none":
        medallion(c, *spots.medallion)
    if look.awning:
        x, y, w = spots.door
        half, top = w / 2 + 7, y - 3
        c.dark(box(x - half, top + 9, x + half, top + 15), 0.3)
        for i in range(6):
            left, right = x - half + half * i / 3, x - half + half * (i + 1) / 3
            c.polygon([(left, top), (right, top), (right + (i - 2) * 0.6, top + 10), (left + (i - 3) * 0.6, top + 10)],
                      look.accent if i % 2 else (244, 240, 230), solid=False)  # fmt: skip
    if look.flags:
        for x, y in spots.tops[:4]:
            c.line([(x, y), (x, y - 16)], (70, 66, 66), 1)
            c.polygon([(x, y - 16), (x + 12, y - 14), (x + 12, y - 7), (x, y - 9)], look.accent)
            c.polygon([(x, y - 12.5), (x + 12, y - 10.5), (x + 12, y - 7), (x, y - 9)], look.second)
    for side, where in ((-1, spots.sides[0] + 8), (1, spots.sides[1] - 8)):
        if look.statue in (side, 2):
            stone = shade(look.trim, 0.85)
            c.rect(where - 7, 240, where + 7, 256, shade(stone, 0.9))
            c.cornice(where - 6, where + 6, 238, 3, stone)
            c.polygon([(where - 4, 239), (where - 3, 222), (where + 3, 222), (where + 5, 239)], (96, 132, 118))
            c.polygon(ring(where, 219, 3.2), (106, 142, 128))
            c.line([(where + 2, 226), (where + 8, 215)], (96, 132, 118), 1.6)
        if look.trees in (side, 2):
            where -= side * (16 if look.statue in (side, 2) else 0)
            c.polygon([(where - 5, 256), (where - 4, 248), (where + 4, 248), (where + 5, 256)], (150, 86, 60))
            c.polygon(
                [(where - 6, 249), (where - 5, 236), (where, 216), (where + 5, 236), (where + 6, 249)], (52, 100, 58)
            )
            c.light([(where - 5, 246), (where - 4, 236), (where - 1, 220), (where - 2, 246)], 0.16)


def medallion(c: Canvas, x: float, y: float, r: float) -> None:
    """The one big mark on the front: clock, rose window, star, shield or sun."""
    look = c.look
    c.dark(ring(x + 1.2, y + 1.8, r + 2), 0.35)
    c.polygon(ring(x, y, r + 2), look.trim, solid=False)
    spokes = [math.radians(a) for a in range(0, 360, 30)]
    if look.medallion == "clock":
        c.polygon(ring(x, y, r), (244, 240, 226), solid=False)
        for a in spokes:
            dx, dy = r * math.cos(a), r * math.sin(a)
            c.line([(x + 0.78 * dx, y + 0.78 * dy), (x + dx, y + dy)], (40, 40, 44), 0.8)
        c.line([(x, y), (x + r * 0.5, y - r * 0.2)], (30, 30, 34), 1.4)
        c.line([(x, y), (x - r * 0.15, y - r * 0.75)], (30, 30, 34), 1)
    elif look.medallion == "rose":
        c.polygon(ring(x, y, r), (44, 50, 84), solid=False)
        for i, a in enumerate(spokes):
            petal = ring(x + r * 0.66 * math.cos(a), y + r * 0.66 * math.sin(a), r * 0.19)
            c.polygon(petal, look.accent if i % 2 else look.second, solid=False)
        c.polygon(ring(x, y, r * 0.3), look.accent, solid=False)
        c.pane(ring(x, y, r))
    elif look.medallion in ("star", "sun"):
        tips, inner = (5, 0.42) if look.medallion == "star" else (12, 0.62)
        c.polygon(ring(x, y, r), look.second, solid=False)
        turns = [
            (math.pi * i / tips - math.pi / 2, r * (0.92 if i % 2 == 0 else 0.92 * inner)) for i in range(2 * tips)
        ]
        c.polygon([(x + d * math.cos(a), y + d * math.sin(a)) for a, d in turns], look.accent, solid=False)
    else:
        c.polygon(ring(x, y, r), (236, 230, 214), solid=False)
        form = [(x - r * 0.6, y - r * 0.65), (x + r * 0.6, y - r * 0.65), (x + r * 0.55, y + r * 0.2), (x, y + r * 0.8),
                (x - r * 0.55, y + r * 0.2)]  # fmt: skip
        c.polygon(form, look.accent, solid=False)
        c.polygon([(x, y - r * 0.65), (x + r * 0.6, y - r * 0.65), (x + r * 0.55, y + r * 0.2), (x, y + r * 0.8)],
                  look.second, solid=False)  # fmt: skip
