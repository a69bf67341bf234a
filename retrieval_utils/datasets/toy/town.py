"""The old town and its harbour: timbered house, castle, lighthouse."""

from __future__ import annotations

import numpy as np

from retrieval_utils.datasets.toy.canvas import Canvas, box, ring, shade
from retrieval_utils.datasets.toy.look import Lots
from retrieval_utils.datasets.toy.ornaments import Spots
from retrieval_utils.datasets.toy.parts import GROUND, battlements, chimney, courses, dome, timber, window_row


def timbered_house(c: Canvas, lots: Lots) -> Spots:
    floors, half = lots.count(2, 4), lots.between(46, 84)
    height, ridge = 168 / (floors + 1.4), lots.between(60, 84)
    form, brace = (
        lots.pick("gable", "side", "twin"),
        lots.pick("cross", "slant", "diamond", "posts", "fan"),
    )
    flowers = lots.chance(0.4)
    jetty, bays = lots.pick(0, 3, 6), lots.count(3, 6)
    beam = shade(c.look.trim, 0.8)
    y, width = GROUND, half
    lean = lots.between(-0.6, 0.6)
    eaves = GROUND - height * floors
    top_half = half + jetty * (floors - 1)
    if form == "side":
        chimney(c, lean * half, eaves - 40, 22)
        c.gable([(-top_half - 8, eaves + 3), (-top_half + 14, eaves - ridge * 0.75),
                 (top_half - 14, eaves - ridge * 0.75), (top_half + 8, eaves + 3)])  # fmt: skip
    else:
        chimney(c, lean * half, eaves - ridge * 0.5, ridge * 0.42)
    for floor in range(floors):
        x0, x1 = -width, width
        c.block(x0, y - height, x1, y, c.material(shade(c.look.wall, 0.8), "stone") if floor == 0 else c.wall)
        if floor:
            timber(c, x0, x1, y - height, y, bays, brace, beam)
            c.dark(box(x0, y, x1, y + 5), 0.35)
        window_row(c, x0 + 3, x1 - 3, y - height * 0.74, bays, min(2 * width / bays * 0.5, 16), height * 0.46,
             skip=None if floor else lean * half * 0.7)  # fmt: skip
        if floor and flowers:
            for i in range(bays):
                x = x0 + 3 + (2 * width - 6) / bays * (i + 0.5)
                c.rect(x - 8, y - height * 0.24, x + 8, y - height * 0.17, (74, 104, 54), solid=False)
                for k in range(4):
                    c.polygon(ring(x - 6 + 4 * k, y - height * 0.25, 1.7), c.look.accent, solid=False)
        y -= height
        width += jetty if floor < floors - 1 else 0
    gables = {
        "gable": [(0.0, width)],
        "twin": [(-width / 2, width / 2), (width / 2, width / 2)],
        "side": [],
    }[form]
    for x, w in gables:
        c.gable([(x - w - 7, y + 3), (x, y - ridge), (x + w + 7, y + 3)])
        c.polygon([(x - w + 3, y + 1), (x, y - ridge + 11), (x + w - 3, y + 1)], c.wall)
        for t in (-0.5, 0, 0.5):
            c.line([(x + w * t, y), (x + w * t, y - ridge * (1 - abs(t)) + 14)], beam, 2)
        c.line([(x - w * 0.55, y - ridge * 0.36), (x + w * 0.55, y - ridge * 0.36)], beam, 2)
        if form == "twin":
            c.window(x - 5, y - ridge * 0.32, 10, ridge * 0.24)
        c.line([(x - w + 3, y + 1), (x + w - 3, y + 1)], beam, 2.5)
    if form == "side":
        dormers = lots.count(0, 3)
        for i in range(dormers):
            x = (i - (dormers - 1) / 2) * top_half * 0.6
            c.block(x - 11, y - 30, x + 11, y - 4)
            c.window(x - 6, y - 26, 12, 17)
            c.gable([(x - 15, y - 28), (x, y - 46), (x + 15, y - 28)])
    door_x = lean * half * 0.7
    c.door(door_x, GROUND - height * 0.78, 17, "flat" if c.look.window == "flat" else "segment")
    medal = (
        (0.0, y - ridge * 0.2, 10.0)
        if form == "gable"
        else (half * (0.5 if lean < 0 else -0.5), GROUND - height + 2, 9.0)
    )
    tops = [(x, y - ridge) for x, _ in gables] or [(-top_half + 14, eaves - ridge * 0.75)]
    return Spots(
        medallion=medal,
        banners=[(-half * 0.5, 150, 9, 34), (half * 0.35, 150, 9, 34), (-4, 160, 9, 30)],
        tops=tops,
        door=(door_x, GROUND - height * 0.78, 17),
        sides=(-half, half),
        ivy_top=eaves,
        depth=0.5,
    )


def castle(c: Canvas, lots: Lots) -> Spots:
    half, wall = lots.between(82, 104), lots.between(164, 188)
    keep = lots.pick(-1, 0, 1)
    roofs = [lots.chance(0.6) for _ in range(4)]
    tops = []
    if lots.chance(0.8):
        x, w, top = keep * half * 0.45, lots.between(22, 36), lots.between(70, 118)
        c.block(x - w, top, x + w, GROUND, c.material(shade(c.look.wall, 0.88), c.look.wall_pattern))
        window_row(c, x - w, x + w, top + 16, 2, 8, 16)
        window_row(c, x - w, x + w, top + 46, 2, 8, 16)
        c.cornice(x - w, x + w, top - 2, 4)
        if roofs[3]:
            c.gable([(x - w - 4, top), (x - w * 0.5, top - 32), (x + w * 0.5, top - 32), (x + w + 4, top)])
            tops.append((x, top - 32))
        else:
            battlements(c, x - w, x + w, top)
            tops.append((x, top - 7))
    c.block(-half, wall, half, GROUND)
    courses(c, -half, half, wall, GROUND)
    battlements(c, -half, half, wall)
    n = lots.count(3, 6)
    window_row(c, -half, half, wall + 16, n, 4, 16, skip=0, mullion="plain")
    places = (
        [(-1.0, 17), (1.0, 17)]
        + ([(-0.5, 12)] if lots.chance(0.35) else [])
        + ([(0.5, 12)] if lots.chance(0.35) else [])
    )
    for i, (t, w) in enumerate(places):
        x, top, w = t * half, lots.between(96, 156), w * lots.between(0.8, 1.25)
        c.block(x - w, top, x + w, GROUND, rounded=True)
        for k in range(lots.count(1, 3)):
            c.window(x - 3, top + 16 + 32 * k, 6, 14, mullion="plain")
        c.block(x - w - 3, top - 4, x + w + 3, top + 7, rounded=True)
        c.dark(box(x - w, top + 7, x + w, top + 11), 0.35)
        if roofs[i % 3]:
            rise = lots.between(30, 52)
            c.spire(x, w + 5, top - 3, top - rise)
            tops.append((x, top - rise))
        else:
            battlements(c, x - w - 3, x + w + 3, top - 4, 6)
            tops.append((x, top - 10))
    gate, door_x = lots.between(140, 166), lots.pick(-0.28, 0, 0, 0.28) * half
    c.block(door_x - 24, gate, door_x + 24, GROUND, c.material(shade(c.look.wall, 1.12), c.look.wall_pattern))
    battlements(c, door_x - 24, door_x + 24, gate)
    c.door(door_x, GROUND - 40, 25, "pointed" if c.look.window == "pointed" else "round")
    if lots.chance(0.6):  # the portcullis
        for k in range(-2, 3):
            c.line([(door_x + 5 * k, GROUND - 34), (door_x + 5 * k, GROUND - 14)], (34, 32, 34), 1.2)
        for y in (GROUND - 30, GROUND - 22):
            c.line([(door_x - 12, y), (door_x + 12, y)], (34, 32, 34), 1.2)
    return Spots(
        medallion=(door_x, gate + 18, 11),
        banners=[(-half * 0.62, wall + 8, 11, 44), (half * 0.52, wall + 8, 11, 44), (door_x - 22, gate + 34, 8, 34)],
        tops=tops,
        door=(door_x, GROUND - 40, 24),
        sides=(-half - 14, half + 14),
        ivy_top=wall,
        depth=0.6,
    )


def lighthouse(c: Canvas, lots: Lots) -> Spots:
    low, high = lots.between(24, 36), lots.between(13, 20)
    top, pattern = lots.between(62, 92), lots.pick("bands", "spiral", "halves", "checks", "plain", "ring")
    n, side = lots.count(3, 6), lots.pick(-1, 1)
    x = -side * lots.between(0, 34)
    cottage = lots.pick("gable", "flat", "none", "both")
    if cottage != "none":
        for s in (side,) if cottage != "both" else (-1, 1):
            x0, x1 = sorted((x + s * (low - 8), x + s * (low + lots.between(40, 66))))
            eaves = lots.between(196, 214)
            c.block(x0, eaves, x1, GROUND)
            window_row(c, x0 + 3, x1 - 3, eaves + 12, lots.count(2, 4), 9, 16)
            if cottage == "flat":
                c.cornice(x0, x1, eaves - 3, 5)
            else:
                chimney(c, x0 + (x1 - x0) * 0.7, eaves - 20, 18)
                c.gable([(x0 - 5, eaves + 2), (x0 + 8, eaves - 28), (x1 - 8, eaves - 28), (x1 + 5, eaves + 2)])

    def width(y: float) -> float:
        return high + (low - high) * ((y - top) / (GROUND - top)) ** 1.25

    levels = np.linspace(top, GROUND, 41)
    contour = [(x - width(y), y) for y in levels]
    shape = contour + [(2 * x - px, py) for px, py in contour[::-1]]
    c.polygon(shape, c.wall)
    paint, step = c.look.accent, (GROUND - top) / (2 * n)

    def patch(y0: float, y1: float, a: float, b: float, rise: float = 0) -> None:
        upper, lower = width(y0), width(y1)
        corners = [(a * upper, y0), (b * upper, y0 + rise), (b * lower, y1 + rise), (a * lower, y1)]
        c.polygon([(x + dx, y) for dx, y in corners], paint, solid=False)

    for i in range(2 * n):
        y0, y1 = top + step * i, top + step * (i + 1)
        if pattern == "bands" and i % 2:
            patch(y0, y1, -1, 1)
        elif pattern == "spiral" and i % 2 and i < 2 * n - 1:
            patch(y0, y1, -1, 1, step * 0.9)
        elif pattern == "halves" and i >= n:
            patch(y0, y1, -1, 1)
        elif pattern == "checks":
            patch(y0, y1, -1 if i % 2 else 0, 0 if i % 2 else 1)
        elif pattern == "ring" and i == n:
            patch(y0 - step * 0.5, y1 + step * 0.5, -1, 1)
    for k in range(10):  # the roundness of the tower
        a, b = -1 + 0.2 * k, -0.8 + 0.2 * k
        strip = [(x + a * width(y), y) for y in levels[::8]] + [(x + b * width(y), y) for y in levels[::8][::-1]]
        c.dark(strip, max(0.42 * ((b + 0.2) / 1.2), 0) + 0.16 * (k == 0))
    lot = lots.count(2, 5)
    for i in range(lot):
        c.window(x - 4 + lots.pick(0, 0, -6, 6), top + 20 + (GROUND - top - 70) * i / lot, 8, 14)
    c.block(x - high - 7, top - 4, x + high + 7, top + 2, shade(c.look.trim, 0.85))
    for px in np.arange(x - high - 6, x + high + 7, 4):
        c.line([(px, top - 12), (px, top - 4)], shade(c.look.trim, 0.7), 0.7)
    c.line([(x - high - 7, top - 12), (x + high + 7, top - 12)], shade(c.look.trim, 0.7), 1.2)
    room = high * 0.72
    c.rect(x - room, top - 28, x + room, top - 4, c.look.trim)
    c.window(x - room + 2, top - 26, 2 * room - 4, 20, "flat", "bars")
    if lots.chance(0.5):
        tip = dome(c, x, top - 27, room + 3, room * 1.1, "round")
    else:
        c.spire(x, room + 5, top - 27, top - 50)
        tip = top - 52
    c.door(x, GROUND - 27, 15)
    for _ in range(lots.count(0, 8)):
        rx, r = lots.between(-68, 72), lots.between(5, 13)
        tone = shade((128, 120, 112), lots.between(0.7, 1.2))
        c.polygon(ring(rx, GROUND + 2, r, r * 0.7, 180, 360), tone)
        c.dark(ring(rx + r * 0.2, GROUND + 2, r * 0.7, r * 0.4, 270, 360), 0.2)
    return Spots(
        medallion=(x, 186, 11),
        banners=[(x - 20, 150, 9, 40), (x + 11, 150, 9, 40), (x - 5, 160, 9, 30)],
        tops=[(x, tip + 4)],
        door=(x, GROUND - 27, 15),
        sides=(x - low - 10, x + low + 10),
        ivy_top=140,
        depth=0.25,
    )
