"""Places of worship: gothic church, classical temple, domed basilica, pagoda."""

from __future__ import annotations

import numpy as np

from retrieval_utils.datasets.toy.canvas import Canvas, box, opening, ring, shade
from retrieval_utils.datasets.toy.look import Lots
from retrieval_utils.datasets.toy.ornaments import Spots
from retrieval_utils.datasets.toy.parts import GROUND, battlements, courses, dome, window_row


def gothic_church(c: Canvas, lots: Lots) -> Spots:
    towers = lots.pick("middle", "twin", "left", "right")
    half, eaves, ridge = lots.between(46, 62), lots.between(112, 146), lots.between(46, 84)
    tower, top, spire = lots.between(20, 30), lots.between(66, 100), lots.between(40, 64)
    if towers == "middle":  # it must rise above the gable
        ridge = lots.between(76, 100)
        top = ridge - lots.between(8, 24)
    spire = min(spire, top - 6)
    lancets, buttresses, wings = lots.count(1, 4), lots.chance(0.5), lots.chance(0.7)
    end = half + lots.between(20, 34) if wings else half
    for side in (-1, 1) if wings else ():
        outer, inner = side * end, side * half
        c.block(min(outer, inner), 182, max(outer, inner), GROUND)
        c.gable([(outer + side * 3, 184), (inner, 158), (inner, 184)])
        c.window((outer + inner) / 2 - 6, 198, 12, 36)
        c.spire(outer, 4, 184, 162, shade(c.look.trim, 0.9))
    c.block(-half, eaves, half, GROUND)
    c.gable([(-half - 5, eaves + 2), (0, ridge), (half + 5, eaves + 2)])
    c.polygon([(-half + 3, eaves + 3), (0, ridge + 9), (half - 3, eaves + 3)], c.wall)
    courses(c, -half, half, eaves, 250)
    window_row(c, -half * 0.86, half * 0.86, 166, lancets, 12, 36)
    for x in np.linspace(-half, half, lancets + 1) if buttresses else ():
        c.block(x - 3, 150, x + 3, GROUND, shade(c.look.wall, 0.92))
        c.spire(x, 4, 151, 138, c.look.trim)
    tops = []
    places = {"middle": [0.0], "twin": [-half, half], "left": [-half], "right": [half]}[towers]
    pointed = lots.chance(0.75)
    for x in places:
        c.block(x - tower, top, x + tower, GROUND)
        for edge in (x - tower, x + tower - 5):  # corner piers
            c.light(box(edge, top, edge + 5, GROUND), 0.12)
            c.dark(box(edge + 5, top, edge + 6.5, GROUND), 0.2)
        c.cornice(x - tower, x + tower, (top + eaves) / 2 + 22, 3)
        window_row(c, x - tower + 4, x + tower - 4, top + 14, 1 + (tower > 24), 11, 32)
        if towers != "middle":
            c.window(x - 6, 186, 12, 36)
        c.cornice(x - tower, x + tower, top - 2, 4)
        if pointed:
            for pinnacle in (x - tower + 2, x + tower - 2):
                c.spire(pinnacle, 4, top - 1, top - 22, shade(c.look.trim, 0.9))
            c.spire(x, tower - 2, top - 1, top - spire)
        else:
            battlements(c, x - tower, x + tower, top - 1)
        tops.append((x, top - spire if pointed else top - 8))
    door = 0.0 if towers != "middle" or lots.chance(0.8) else -half + 14
    c.door(door, 214, 24, "pointed")
    for side in (-1, 1) if wings and lots.chance(0.4) else ():
        c.door(side * (half + end) / 2, 236, 12, "pointed")
    return Spots(
        medallion=(0, 144, 15),
        banners=[(-half * 0.62, 172, 11, 38), (half * 0.42, 172, 11, 38), (-5, 168, 11, 34)],
        tops=tops,
        door=(door, 214, 24),
        sides=(min(-end, min(places) - tower), max(end, max(places) + tower)),
        ivy_top=160,
        depth=0.5,
    )


def classical_temple(c: Canvas, lots: Lots) -> Spots:
    n, half = lots.count(4, 9), lots.between(84, 108)
    steps, top = lots.count(3, 6), lots.between(128, 148)
    rise, fluted, crown = lots.between(26, 48), lots.chance(0.5), lots.pick("pediment", "attic", "dome")
    floor = GROUND - 5 * steps
    tops = [(-half, top - 8), (0.0, top - 8 - rise), (half, top - 8)]
    if crown == "dome":
        c.block(-half * 0.45, top - 34, half * 0.45, top)
        c.gable(ring(0, top - 34, half * 0.45, rise, 180, 360))
        for a in (-0.25, 0, 0.25):
            c.line(
                [(half * a * 1.6, top - 34), (half * a, top - 33 - rise * 0.85)],
                shade(c.look.roof, 0.75),
                0.8,
            )
        tops[1] = (0, top - 34 - rise)
    c.block(-half, top, half, floor, c.material(shade(c.look.wall, 0.72), c.look.wall_pattern))
    courses(c, -half, half, top + 20, floor)
    step = 2 * half / n
    bays = [-half + step * (i + 0.5) for i in range(1, n - 1)]
    door_x = lots.pick(*bays) if lots.chance(0.5) else 0.0
    c.door(door_x, floor - 52, min(step * 0.8, 20), "flat" if c.look.window == "flat" else "round")
    for x in bays:
        if abs(x - door_x) > step * 0.7 and step > 17:
            c.window(x - 4, top + 34, 8, 26)
    for i in range(n + 1):
        x, r = -half + 5 + (2 * half - 10) * i / n, min(step * 0.22, 7)
        column = c.material(shade(c.look.wall, 1.25), "plaster")
        c.dark(box(x + r, top + 12, x + r * 2.1, floor), 0.25)
        c.block(x - r, top + 14, x + r, floor, column, rounded=True)
        if fluted:
            for t in (-0.5, 0, 0.5):
                c.dark(box(x + r * t - 0.4, top + 18, x + r * t + 0.4, floor - 4), 0.25)
        c.rect(x - r - 2, floor - 5, x + r + 2, floor, shade(c.look.trim, 0.95))
        c.rect(x - r - 2.5, top + 10, x + r + 2.5, top + 16, c.look.trim)
        c.dark(box(x - r - 2.5, top + 15, x + r + 2.5, top + 16.5), 0.3)
    c.block(-half - 4, top - 6, half + 4, top + 11)
    if lots.chance(0.6):  # a painted frieze
        gap = lots.pick(6, 9, 14)
        for x in np.arange(-half, half - gap / 2, gap):
            c.rect(x, top - 1, x + gap * 0.45, top + 6, c.look.accent if c.look.stripes else shade(c.look.trim, 0.8))
    c.cornice(-half - 4, half + 4, top - 9, 4)
    medal = (0.0, top - 9 - rise * 0.38, rise * 0.25)
    if crown == "pediment":
        c.gable([(-half - 8, top - 8), (0, top - 10 - rise), (half + 8, top - 8)], c.look.trim)
        c.polygon([(-half + 12, top - 11), (0, top - 4 - rise), (half - 12, top - 11)], c.wall, solid=False)
        c.dark(
            [(-half + 12, top - 11), (0, top - 4 - rise), (0, top + 1 - rise), (-half + 26, top - 11)],
            0.25,
        )
    elif crown == "attic":
        c.block(-half, top - 9 - rise * 0.7, half, top - 8)
        c.cornice(-half, half, top - 10 - rise * 0.7, 3)
        tops[1] = (0, top - 10 - rise * 0.7)
        for i in range(n + 1):
            x = -half + 5 + (2 * half - 10) * i / n
            c.polygon([(x - 3, top - 10 - rise * 0.7), (x - 2, top - 22 - rise * 0.7), (x + 2, top - 22 - rise * 0.7),
                       (x + 3, top - 10 - rise * 0.7)], shade(c.look.trim, 0.85))  # fmt: skip
    else:
        medal = (0.0, top - 20, 11)
    for i in range(steps):
        y = GROUND - 5 * (i + 1)
        c.rect(
            -half - 18 + 2.5 * i,
            y,
            half + 18 - 2.5 * i,
            y + 5,
            c.material(shade(c.look.wall, 1.1), "plaster"),
        )
        c.dark(box(-half - 18 + 2.5 * i, y + 3.6, half + 18 - 2.5 * i, y + 5), 0.28)
    return Spots(
        medallion=medal,
        banners=[(-half * 0.75, top + 22, 11, 46), (half * 0.7, top + 22, 11, 46), (-6, top + 20, 11, 40)],
        tops=tops,
        door=(door_x, floor - 52, 18),
        sides=(-half - 14, half + 14),
        ivy_top=top + 20,
        depth=0.6,
    )


def domed_basilica(c: Canvas, lots: Lots) -> Spots:
    form, sides = lots.pick("round", "pointed", "onion"), lots.pick(0, 2, 4)
    minarets, half = lots.pick(0, 1, 2, 3), lots.between(64, 84)
    top, radius, drum = lots.between(152, 172), lots.between(28, 42), lots.between(12, 24)
    tall = lots.between(48, 84)
    towers = {0: [], 1: [-1], 2: [-1, 1], 3: [1]}[minarets]
    for side in towers:
        x = side * (half + 13)
        c.block(x - 6, tall, x + 6, GROUND, rounded=True)
        for y in (tall + 24, tall + 62):
            c.cornice(x - 7, x + 7, y, 4)
        c.window(x - 2.5, tall + 8, 5, 12)
        dome(c, x, tall + 1, 7, 13, form) if form != "round" else c.spire(x, 8, tall + 1, tall - 24)
    for i in range(sides):
        x = (-1) ** i * (half * (0.78 if i < 2 else 0.44))
        c.block(x - 11, top - 12 - 6 * (i >= 2), x + 11, top + 4)
        dome(c, x, top - 12 - 6 * (i >= 2), 12, 15, form)
    c.block(-radius * 1.05, top - drum - 10, radius * 1.05, top + 4, rounded=True)
    window_row(c, -radius, radius, top - drum - 3, lots.count(4, 7), 5, drum - 2)
    c.cornice(-radius * 1.05, radius * 1.05, top - drum - 12, 4)
    tip = dome(c, 0, top - drum - 11, radius, radius * lots.between(0.9, 1.25), form)
    c.block(-half, top, half, GROUND)
    courses(c, -half, half, top, GROUND)
    c.cornice(-half, half, top - 2, 5)
    portal, arches = lots.between(20, 30), lots.count(2, 4)
    for side in (-1, 1):
        x0, x1 = sorted((side * portal, side * (half - 3)))
        window_row(c, x0, x1, top + 16, arches, (x1 - x0) / arches * 0.55, 22)
        if lots.chance(0.8):
            window_row(c, x0, x1, GROUND - 36, arches, (x1 - x0) / arches * 0.6, 32)
    rise = lots.between(6, 26)
    c.block(-portal, top - rise, portal, GROUND, c.material(shade(c.look.wall, 1.2), c.look.wall_pattern))
    c.cornice(-portal, portal, top - rise - 2, 4)
    if lots.chance(0.5):
        c.gable(
            [(-portal - 3, top - rise - 1), (0, top - rise - 20), (portal + 3, top - rise - 1)],
            c.look.trim,
        )
    arch = "round" if form == "round" else "pointed"
    niche = opening(-portal * 0.68, top + 30, portal * 1.36, GROUND - top - 30, arch)
    c.polygon(niche, shade(c.look.wall, 0.45), solid=False)
    c.door(0, GROUND - 30, portal * 0.72, arch)
    return Spots(
        medallion=(0, top + 14, 10),
        banners=[(-half * 0.72, top + 14, 9, 40), (half * 0.62, top + 14, 9, 40), (-5, top + 28, 10, 24)],
        tops=[(0, tip)],
        door=(0, GROUND - 30, 18),
        sides=(-half, half),
        ivy_top=top,
        depth=0.6,
    )


def pagoda(c: Canvas, lots: Lots) -> Spots:
    tiers, half = lots.count(3, 7), lots.between(44, 66)
    taper, curl = lots.between(0.45, 0.8), lots.between(4, 13)
    base, total = lots.between(8, 22), lots.between(166, 200)
    columns, rail, eave = lots.count(3, 6), lots.chance(0.5), lots.between(14, 24)
    c.block(-half - 24, GROUND - base, half + 24, GROUND, c.material(shade(c.look.wall, 0.85), "stone"))
    c.cornice(-half - 24, half + 24, GROUND - base - 2, 3)
    for i in range(4):
        c.rect(
            -18 - 2 * i,
            GROUND - base + base * i / 4,
            18 + 2 * i,
            GROUND - base + base * (i + 1) / 4,
            shade(c.look.trim, 1 - 0.07 * i),
        )
    heights = np.array([1.0 if i == 0 else 0.86**i for i in range(tiers)])
    heights *= (total - base) / heights.sum()
    y, corners = GROUND - base - 1, []
    for i, h in enumerate(heights):
        w = half * (1 - (1 - taper) * i / max(tiers - 1, 1))
        wall_top, roof_top = y - h * 0.62, y - h
        c.block(-w, wall_top, w, y)
        n = max(columns - i // 2, 2)
        window_row(c, -w, w, wall_top + h * 0.16, n, 2 * w / n * 0.55, h * 0.34, skip=0.0 if i == 0 else None)
        for k in range(n + 1):
            x = -w + 2 * w * k / n
            c.rect(x - 1.6, wall_top, x + 1.6, y, c.look.accent if c.look.stripes else c.look.trim)
            c.dark(box(x + 0.6, wall_top, x + 1.6, y), 0.3)
        if rail and i:
            c.rect(-w - 4, y - 6, w + 4, y - 4.5, c.look.second)
            for x in np.arange(-w - 3, w + 4, 5):
                c.rect(x, y - 6, x + 1, y, c.look.second)
        c.dark(box(-w, wall_top, w, wall_top + h * 0.13), 0.42)
        out, inner = w + eave * (1 - 0.06 * i), w * (0.86 if i < tiers - 1 else 0.12)
        left = [(-inner, roof_top), (-(inner + out) * 0.5, roof_top + (wall_top - roof_top) * 0.68),
                (-out, wall_top - curl * 0.35), (-out - 4, wall_top - curl), (-out + 3, wall_top + 3)]  # fmt: skip
        c.polygon(left + [(-px, py) for px, py in left[::-1]], c.roof)
        c.dark([(0, roof_top), (inner, roof_top), ((inner + out) * 0.5, roof_top + (wall_top - roof_top) * 0.68),
                (out, wall_top), (0, wall_top)], 0.2)  # fmt: skip
        c.rect(-out + 3, wall_top + 1, out - 3, wall_top + 4, c.look.trim)
        corners += [(-out - 3, wall_top - curl), (out + 3, wall_top - curl)]
        y = roof_top + (h * 0.05 if i < tiers - 1 else 0)
    for k in range(lots.count(2, 4)):
        c.polygon(ring(0, y - 3 - 6 * k, 4.5 - 0.7 * k, 2.2), c.look.accent)
    c.line([(0, y), (0, y - 30)], c.look.trim, 1.6)
    c.door(0, GROUND - base - heights[0] * 0.42, 14, "flat")
    if lots.chance(0.4):  # lanterns under the eaves
        for x, top in corners[:4]:
            c.line([(x, top), (x, top + 8)], (60, 50, 48), 0.6)
            c.polygon(ring(x, top + 11, 3, 4), c.look.accent)
    first, second = GROUND - base - heights[0] * 0.56, GROUND - base - heights[0] - heights[1] * 0.35
    return Spots(
        medallion=(0, second, 9),
        banners=[(-half * 0.8, first, 8, 26), (half * 0.62, first, 8, 26), (-4, second - 10, 8, 22)],
        tops=[corners[0], corners[1], (0, y - 28)],
        door=(0, GROUND - base - heights[0] * 0.42, 16),
        sides=(-half - 18, half + 18),
        ivy_top=150,
        depth=0.75,
    )
