"""The new town: glass tower, warehouse, cinema."""

from __future__ import annotations

import numpy as np

from retrieval_utils.datasets.toy.canvas import Canvas, box, ring, shade
from retrieval_utils.datasets.toy.look import Lots
from retrieval_utils.datasets.toy.ornaments import Spots
from retrieval_utils.datasets.toy.parts import GROUND, courses, window_row


def glass_tower(c: Canvas, lots: Lots) -> Spots:
    half, top = lots.between(30, 50), lots.between(30, 62)
    crown, grid = (
        lots.pick("flat", "slant", "steps", "needle", "round", "notch"),
        lots.pick("bands", "fins", "cells", "diagonal"),
    )
    podium, rows, columns = lots.between(16, 34), lots.count(11, 19), lots.count(4, 8)
    lean = lots.pick(-1, 1)
    tops, body = [(0.0, top)], [(-half, GROUND), (-half, top), (half, top), (half, GROUND)]
    if crown == "slant":
        body[1], body[2] = (-half, top + 22 * (lean > 0)), (half, top + 22 * (lean < 0))
        tops = [(lean * half * 0.9, top + 2)]
    elif crown == "round":
        body = [(-half, GROUND), *ring(0, top + 24, half, 28, 180, 360), (half, GROUND)]
        tops = [(0, top - 4)]
    elif crown == "steps":
        c.block(-half * 0.4, top - 18, half * 0.4, top + 20)
        c.block(-half * 0.7, top - 8, half * 0.7, top + 20)
        tops = [(0, top - 18)]
    elif crown == "needle":
        c.polygon(
            [(-8, top + 2), (-1, max(top - 50, 4)), (1, max(top - 50, 4)), (8, top + 2)],
            shade(c.look.trim, 0.8),
        )
        tops = [(-half + 4, top)]
    elif crown == "notch":
        edge = lean * half
        body = [(-half, GROUND), (-half, top), (half, top), (half, GROUND)]
        body[2 if lean > 0 else 1 : 3 if lean > 0 else 2] = (
            [(half * 0.3, top), (half * 0.3, top + 34), (edge, top + 34)] if lean > 0
            else [(edge, top + 34), (-half * 0.3, top + 34), (-half * 0.3, top)])  # fmt: skip
    wings = lots.pick(0, -1, 1)
    if wings:
        w0, w1 = sorted((wings * half, wings * (half + lots.between(22, 36))))
        wing_top = lots.between(110, 170)
        c.block(w0, wing_top, w1, GROUND)
        for y in np.arange(wing_top + 8, GROUND - podium, 11):
            window_row(c, w0 + 2, w1 - 2, y, 3, 6, 6, kind="flat", mullion="plain")
        c.cornice(w0, w1, wing_top - 2, 3)
    glass = tuple((np.array(c.look.wall) * 0.5 + np.array((86, 124, 158)) * 0.5).astype(int))
    c.polygon(body, c.material(glass, "plaster"))
    floor, bay = (GROUND - podium - top) / rows, 2 * half / columns
    for r in range(rows):
        for k in range(columns):
            x, y = -half + bay * k, top + floor * r
            if not c.solid_at(x + bay / 2, y + 1):
                continue
            tone = lots.about(1, 0.1)
            pane = box(x + 1, y + 1, x + bay - 0.6, y + floor - 1)
            c.polygon(pane, tuple(int(min(v * tone, 255)) for v in glass), solid=False)
            c.pane(pane)
    for shift, strength in ((-0.5, 0.2), (0.25, 0.12)):  # the sky mirrored in the glass
        x = half * shift
        foot, head = GROUND - podium, top + 36
        c.light([(x, foot), (x + half * 0.3, foot), (x + half * 0.65, head), (x + half * 0.35, head)], strength)
    frame = c.look.trim
    if grid in ("bands", "cells"):
        for r in range(1, rows + 1):
            y = top + floor * r
            if grid == "bands" or r % 2:
                c.rect(-half, y - 1.6, half, y + 0.8, frame, solid=False)
                c.dark(box(-half, y + 0.8, half, y + 2), 0.25)
    if grid in ("fins", "cells"):
        for k in range(columns + 1):
            x = -half + bay * k
            c.rect(x - 1.2, top + 2, x + 0.8, GROUND - podium, frame, solid=False)
            c.dark(box(x + 0.8, top + 2, x + 2, GROUND - podium), 0.25)
    if grid == "diagonal":
        fall = GROUND - podium - top
        for k in range(-rows, columns + rows, 2):
            for sign in (-1, 1):
                start = -half + bay * k
                t0, t1 = sorted(((-half - start) / (sign * fall), (half - start) / (sign * fall)))
                t0, t1 = max(t0, 0), min(t1, 1)
                if t1 > t0:
                    ends = [(start + sign * fall * t, top + fall * t) for t in (t0, t1)]
                    c.line(ends, c.look.trim, 1.5, solid=False)
    c.dark(box(half - 5, top + 36, half, GROUND), 0.2)
    if c.look.stripes:
        c.rect(-half, top + floor * (rows // 2), half, top + floor * (rows // 2 + 1), c.look.accent, solid=False)
    wide = half + lots.between(8, 24)
    c.block(-wide, GROUND - podium, wide, GROUND)
    window_row(c, -wide + 3, wide - 3, GROUND - podium + 7, lots.count(4, 7), 12, podium - 9)
    c.cornice(-wide, wide, GROUND - podium - 2, 4)
    door_x = lots.pick(-0.5, 0, 0.5) * half
    c.door(door_x, GROUND - podium * 0.8, 20, "flat")
    return Spots(
        medallion=(0, top + 50, 13),
        banners=[(-half * 0.8, 140, 11, 60), (half * 0.5, 140, 11, 60), (-6, 130, 11, 50)],
        tops=tops,
        door=(door_x, GROUND - podium * 0.8, 20),
        sides=(-wide, wide),
        ivy_top=190,
        depth=0.7,
    )


def warehouse(c: Canvas, lots: Lots) -> Spots:
    bays, floors, half = lots.count(4, 9), lots.count(2, 5), lots.between(84, 116)
    top, roof = lots.between(104, 140), lots.pick("flat", "stepped", "saw", "barrel", "pitched")
    hoist = lots.count(0, bays - 1)
    extra = lots.pick("tank", "stack", "none")
    where = lots.pick(-0.6, 0.6) * half
    tops = [(-half + 4, top), (half - 4, top)]
    if extra == "stack":
        c.block(where - 7, 26, where + 7, top + 10, c.material(shade(c.look.wall, 0.85), "brick"), rounded=True)
        c.cornice(where - 8, where + 8, 26, 5)
        c.rect(where - 7, 42, where + 7, 50, c.look.accent)
    if extra == "tank":
        for x in (where - 12, where, where + 12):
            c.line([(x, top - 30), (x, top)], (70, 62, 58), 2)
        c.block(where - 17, top - 58, where + 17, top - 28, c.material(shade(c.look.roof, 0.9), "seams"), rounded=True)
        c.spire(where, 19, top - 57, top - 72)
    if roof == "saw":
        teeth = max(bays // 2, 3)
        for i in range(teeth):
            x, w = -half + 2 * half * i / teeth, 2 * half / teeth
            c.gable([(x, top + 2), (x, top - 24), (x + w, top + 2)])
    elif roof == "barrel":
        c.gable(ring(0, top + 2, half + 3, 34, 180, 360))
        tops = [(0, top - 32)]
    elif roof == "pitched":
        c.gable(
            [
                (-half - 5, top + 2),
                (-half * 0.75, top - 28),
                (half * 0.75, top - 28),
                (half + 5, top + 2),
            ]
        )
        tops = [(-half * 0.75, top - 28), (half * 0.75, top - 28)]
    c.block(-half, top, half, GROUND)
    if roof == "stepped":
        for i, w in enumerate((0.72, 0.5, 0.28)):
            c.block(-half * w, top - 12 * (i + 1), half * w, top - 12 * i + 1)
            c.cornice(-half * w, half * w, top - 12 * (i + 1) - 1, 3)
        tops.append((0, top - 36))
    courses(c, -half, half, top, GROUND)
    step, sign = 2 * half / bays, lots.chance(0.6)
    band = top + (22 if sign else 8)
    height = (GROUND - 34 - band) / floors
    for i in range(bays):
        x = -half + step * (i + 0.5)
        for f in range(floors):
            y = band + height * f
            if i == hoist:
                c.rect(x - step * 0.26, y + 2, x + step * 0.26, y + height * 0.86, c.look.door, solid=False)
                c.dark(box(x - 0.5, y + 2, x + 0.5, y + height * 0.86), 0.5)
                c.dark(box(x - step * 0.26, y + 2, x + step * 0.26, y + 5), 0.4)
            else:
                c.window(x - step * 0.3, y + height * 0.14, step * 0.6, height * 0.66)
        if i:
            c.light(box(x - step / 2 - 2, top + 4, x - step / 2 + 1, GROUND), 0.14)
            c.dark(box(x - step / 2 + 1, top + 4, x - step / 2 + 3, GROUND), 0.22)
    if sign:  # letters as bars and rings: readable as a sign in any language
        c.rect(-half * 0.85, top + 6, half * 0.85, top + 19, c.look.second, solid=False)
        for i in range(int(half * 1.5 / 9)):
            x, y = -half * 0.78 + 9 * i, top + 8
            if lots.chance(0.3):
                c.polygon(ring(x + 3, y + 4.5, 3.4, 4.5), (246, 240, 226), solid=False)
                c.polygon(ring(x + 3, y + 4.5, 1.6, 2.6), c.look.second, solid=False)
            elif lots.chance(0.8):
                c.rect(x, y, x + 2, y + 9, (246, 240, 226), solid=False)
                bar = y + lots.pick(0, 3.5, 7)
                c.rect(x, bar, x + 6, bar + 2, (246, 240, 226), solid=False)
    c.cornice(-half, half, top - 2, 4)
    x = -half + step * (hoist + 0.5)
    c.line([(x, band - 4), (x, band + 2)], (50, 46, 44), 2)
    c.door(x, GROUND - 28, min(step * 0.8, 24), "segment")
    for i in range(bays):
        if i != hoist:
            c.window(-half + step * (i + 0.5) - step * 0.27, GROUND - 27, step * 0.54, 20)
    medal = (0.0, top - 18, 12) if roof in ("stepped", "barrel") else (0.0, top + 12, 11)
    return Spots(
        medallion=medal,
        banners=[(-half * 0.5, band + 6, 11, 56), (half * 0.45, band + 6, 11, 56), (-6, band + 6, 11, 50)],
        tops=tops,
        door=(x, GROUND - 28, 22),
        sides=(-half, half),
        ivy_top=top + 10,
        depth=0.5,
    )


def cinema(c: Canvas, lots: Lots) -> Spots:
    half, top = lots.between(66, 96), lots.between(112, 138)
    steps, rise, piers = lots.count(1, 4), lots.between(9, 16), lots.count(3, 7)
    fin, curved = lots.pick(-1, 0, 1), lots.chance(0.4)
    core = half * lots.between(0.35, 0.6)
    c.block(-half, top, half, GROUND)
    if curved:
        for side in (-1, 1):
            c.dark(box(min(side * half, side * (half - 8)), top, max(side * half, side * (half - 8)), GROUND), 0.18)
    peak = top
    for i in range(steps):
        w = core * (1 - i / (steps + 1.5))
        peak = top - rise * (i + 1)
        c.block(-w, peak, w, GROUND)
        c.cornice(-w, w, peak - 1, 3, c.look.accent if i % 2 else c.look.trim)
    wide = lots.pick("bars", "ports", "windows")
    for side in (-1, 1):
        x0, x1 = sorted((side * (core + 4), side * (half - 4)))
        if wide == "bars":
            for y in np.arange(top + 14, GROUND - 66, 9):
                c.rect(x0, y, x1, y + 3.5, c.look.second, solid=False)
                c.dark(box(x0, y + 3.5, x1, y + 5), 0.3)
        elif wide == "ports":
            for y in (top + 24, top + 48):
                x = (x0 + x1) / 2
                c.window(x - 7, y - 7, 14, 14, "round", "plain")
        else:
            window_row(c, x0, x1, top + 14, 2, 9, 40)
    for k in range(piers):
        x = core * 0.8 * (2 * (k + 0.5) / piers - 1)
        if k % 2 or piers < 5:
            c.window(x - core * 0.5 / piers, top + 8, core / piers, 52, "flat", "bars")
        else:
            c.rect(x - 2.2, peak + 8, x + 2.2, GROUND - 58, c.look.trim)
            c.dark(box(x + 1, peak + 8, x + 3.4, GROUND - 58), 0.3)
    c.cornice(-half, half, top - 2, 4)
    courses(c, -half, -core, top, GROUND - 60)
    marquee, out = GROUND - 56, lots.between(0.6, 0.95) * half
    c.dark(box(-out, marquee + 18, out, marquee + 30), 0.4)
    if lots.chance(0.5):
        c.polygon(
            [
                (-out, marquee),
                (out, marquee),
                (out, marquee + 16),
                (0, marquee + 22),
                (-out, marquee + 16),
            ],
            c.look.accent,
        )
    else:
        c.rect(-out, marquee, out, marquee + 18, c.look.accent)
    c.window(-out + 4, marquee + 4, 2 * out - 8, 9, "flat", "plain")
    c.rect(-out + 4, marquee + 4, out - 4, marquee + 13, (250, 244, 222), solid=False)
    for x in np.arange(-out + 8, out - 10, 6):
        if lots.chance(0.75):
            c.rect(x, marquee + 6, x + lots.pick(2, 4), marquee + 11, (40, 36, 40), solid=False)
    c.pane(box(-out + 4, marquee + 4, out - 4, marquee + 13))
    for x in np.arange(-out + 2, out, 7):
        c.polygon(ring(x, marquee + 1.6, 1.2), (255, 236, 150))
    fin_x = fin * (half - 8) if fin else 0.0
    fin_top = peak - 34 if not fin else top - lots.between(30, 62)
    c.block(fin_x - 8, fin_top, fin_x + 8, marquee - 6, c.look.second)
    c.gable(ring(fin_x, fin_top + 1, 8, 9, 180, 360), c.look.second)
    for i, y in enumerate(np.arange(fin_top + 8, marquee - 18, 13)):
        c.window(fin_x - 4.5, float(y), 9, 9, "flat" if i % 2 else "round", "plain")
        c.polygon(
            ring(fin_x, float(y) + 4.5, 3.2) if i % 2 else box(fin_x - 2, y + 1, fin_x + 2, y + 8),
            (252, 242, 206),
            solid=False,
        )
    doors = lots.count(1, 3)
    for k in range(doors):
        c.door((k - (doors - 1) / 2) * 24, GROUND - 26, 18, "flat")
    for side in (-1, 1):
        x = side * half * 0.8
        c.rect(x - 10, GROUND - 28, x + 10, GROUND - 6, c.look.trim, solid=False)
        c.rect(x - 8, GROUND - 26, x + 8, GROUND - 8, c.look.accent if side < 0 else c.look.second, solid=False)
        c.polygon(ring(x, GROUND - 18, 4.5), (244, 236, 214), solid=False)
    return Spots(
        medallion=(0 if fin else -half * 0.7, top + 30, 13),
        banners=[(-half * 0.9, top + 12, 10, 44), (half * 0.78, top + 12, 10, 44), (-5, top + 6, 10, 44)],
        tops=[(-half + 4, top), (half - 4, top), (fin_x, fin_top - 8)],
        door=(0, GROUND - 26, 18),
        sides=(-half, half),
        ivy_top=top + 20,
        depth=0.55,
    )
