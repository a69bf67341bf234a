"""Parts that several styles share: rows of windows, bands, battlements, chimneys, timber frames, domes."""

from __future__ import annotations

import math

import numpy as np

from retrieval_utils.datasets.toy.canvas import UNITS, Canvas, box, ring, shade

GROUND = float(UNITS)


def window_row(
    c: Canvas, x0: float, x1: float, y: float, n: int, w: float, h: float, skip: float | None = None, **how
) -> None:
    """n windows spread evenly over x0..x1; the one nearest to `skip` is left out."""
    step = (x1 - x0) / n
    for i in range(n):
        middle = x0 + step * (i + 0.5)
        if skip is None or abs(middle - skip) > step * 0.55:
            c.window(middle - w / 2, y, w, h, **how)


def courses(c: Canvas, x0: float, x1: float, y0: float, y1: float) -> None:
    """Bands of the trim colour across a wall, for buildings that have them."""
    if c.look.stripes:
        for y in np.arange(y0 + 6, y1 - 4, 13):
            c.tint(box(x0, float(y), x1, float(y) + 4), c.look.trim, 0.6)


def battlements(c: Canvas, x0: float, x1: float, y: float, tooth: float = 7, fill=None) -> None:
    n = max(int((x1 - x0) / tooth) // 2 * 2 + 1, 3)
    step = (x1 - x0) / n
    for i in range(0, n, 2):
        c.rect(x0 + step * i, y - tooth, x0 + step * (i + 1), y + 1, c.wall if fill is None else fill)
        c.light(box(x0 + step * i, y - tooth, x0 + step * (i + 1), y - tooth + 1.2), 0.4)
        c.dark(box(x0 + step * (i + 1) - 1.2, y - tooth, x0 + step * (i + 1), y), 0.25)


def chimney(c: Canvas, x: float, y: float, height: float, width: float = 9) -> None:
    c.block(x - width / 2, y - height, x + width / 2, y + 6)
    c.cornice(x - width / 2, x + width / 2, y - height, 3)


def timber(c: Canvas, x0: float, x1: float, y0: float, y1: float, bays: int, brace: str, beam: tuple) -> None:
    step = (x1 - x0) / bays
    for y in (y0 + 1, y1 - 1.5):
        c.line([(x0, y), (x1, y)], beam, 3)
    for i in range(bays + 1):
        x = x0 + step * i
        c.line([(x, y0), (x, y1)], beam, 2.2)
    for i in range(bays):
        a, b, middle = x0 + step * i, x0 + step * (i + 1), x0 + step * (i + 0.5)
        half = (y0 + y1) / 2
        form = {"cross": [[(a, y0), (b, y1)], [(b, y0), (a, y1)]], "slant": [[(a, y1), (b, y0)]],
                "diamond": [[(a, half), (middle, y0), (b, half), (middle, y1), (a, half)]],
                "posts": [[(a + step / 4, y0), (a + step / 4, y1)], [(b - step / 4, y0), (b - step / 4, y1)]],
                "fan": [[(a, y0), (middle, y1)], [(b, y0), (middle, y1)]]}[brace]  # fmt: skip
        for line in form:
            c.line(line, beam, 1.5)


def dome(c: Canvas, x: float, y: float, r: float, height: float, form: str) -> float:
    """A dome on the line y; returns the y of its tip."""
    if form == "onion":
        curve = [(-0.8, 0), (-1.12, 0.25), (-1.0, 0.5), (-0.5, 0.75), (-0.12, 0.92), (0, 1.08)]
    elif form == "pointed":
        curve = [(-1, 0), (-1, 0.25), (-0.82, 0.6), (-0.45, 0.86), (0, 1.06)]
    else:
        curve = [(-math.cos(a), math.sin(a)) for a in np.linspace(0, math.pi / 2, 9)]
    left = [(x + r * dx, y - height * dy) for dx, dy in curve]
    points = left + [(2 * x - px, py) for px, py in left[-2::-1]]
    c.polygon(points, c.roof)
    for k in range(1, 6):
        t = k / 6
        c.dark([(x + (px - x) * (1 if px > x else 0), py) for px, py in points if px >= x]
               + [(x + (px - x) * t, py) for px, py in points[::-1] if px >= x], 0.09)  # fmt: skip
    c.light(
        [(x + (px - x) * s, y + (py - y) * 0.95) for s, part in ((0.75, left), (0.5, left[::-1])) for px, py in part],
        0.22,
    )
    if c.look.mullion in ("bars", "grid"):
        for t in (-0.6, -0.2, 0.2, 0.6):
            c.line(
                [(x + (px - x) * abs(t) * (1 if t < 0 else -1), py) for px, py in left], shade(c.look.roof, 0.7), 0.7
            )
    tip = y - height * 1.03
    c.line([(x, tip + 2), (x, tip - 9)], c.look.trim, 1.3)
    c.polygon(ring(x, tip - 4, 2), c.look.trim)
    return tip - 9
