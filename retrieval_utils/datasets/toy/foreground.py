"""Things between the camera and a toy landmark: trees, cars, people, lamps, scaffolding. They hide parts of it."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from retrieval_utils.datasets.toy.camera import Camera, Frame, Sheet
from retrieval_utils.datasets.toy.canvas import ring, shade
from retrieval_utils.datasets.toy.look import Colour, Lots

LEAVES = ((70, 112, 48), (104, 128, 52), (176, 112, 44), (54, 92, 56))


def paint_occluders(camera: Camera, frame: Frame, width: float, crowd: float, lots: Lots) -> Image.Image:
    """Things in front of a building of this width, frame-sized RGBA. crowd: 1 for an open view, above 1.5 hidden."""
    sheet = Sheet(camera, frame, "RGBA", (60, 70, 50, 0))
    things = []
    for _ in range(int(lots.rng.poisson(1.5 * crowd))):
        kind = lots.pick(*(draw for draw, weight in DRAWERS.items() for _ in range(weight)))
        near = lots.between(0.42, 0.95) if crowd < 1.5 else lots.between(0.24, 0.92)
        aside = crowd < 1.5 and kind not in (_car, _people)
        x = lots.pick(-1, 1) * lots.between(0.55, 1.3) if aside else lots.between(-1, 1)
        things.append((near, x * (width / 2 + 20) * (0.5 + 0.5 * near), kind))
    for near, x, draw in sorted(things, key=lambda thing: -thing[0]):
        draw(sheet, *sheet.place(x, near * camera.distance), lots)
    return sheet.finish()


def _paint(lots: Lots, low: float, high: float, spread: float) -> Colour:
    return tuple(int(v) for v in np.clip(lots.between(low, high) + lots.rng.normal(0, spread, 3), 14, 245))


def _foliage(sheet: Sheet, x: float, y: float, spread: float, green: Colour, lots: Lots) -> None:
    """A crown of overlapping tufts, lighter towards the top; close to the camera with leaves on it."""
    for i in range(26):
        cx, cy, r = x + lots.about(0, 0.45) * spread, y + lots.about(0, 0.4) * spread, spread * lots.between(0.25, 0.5)
        tone = (*shade(green, 0.72 + 0.018 * i + lots.between(0, 0.1)), 255)
        sheet.pen.ellipse([cx - r, cy - r, cx + r, cy + r], fill=tone)
    for _ in range(min(int(spread), 160) if spread > 24 else 0):
        cx, cy, r = x + lots.about(0, 0.5) * spread, y + lots.about(0, 0.45) * spread, lots.between(0.03, 0.09) * spread
        tone = (*shade(green, lots.between(0.6, 1.35)), 255)
        sheet.pen.ellipse([cx - r, cy - r * 0.7, cx + r, cy + r * 0.7], fill=tone)


def _tree(sheet: Sheet, u: float, v: float, s: float, lots: Lots) -> None:
    height = lots.between(60, 120) * s
    fork = v - height * 0.6
    trunk = [(u - 4 * s, v), (u - 2 * s, fork), (u + 2 * s, fork), (u + 4 * s, v)]
    sheet.pen.polygon(trunk, fill=(84, 64, 48, 255))
    _foliage(sheet, u, v - height * 0.74, lots.between(18, 32) * s, lots.pick(*LEAVES), lots)


def _conifer(sheet: Sheet, u: float, v: float, s: float, lots: Lots) -> None:
    height, spread = lots.between(70, 130) * s, lots.between(14, 24) * s
    sheet.pen.rectangle([u - 2 * s, v - height * 0.2, u + 2 * s, v], fill=(76, 58, 46, 255))
    for i in range(5):
        y, w = v - height * (0.1 + 0.17 * i), spread * (1 - 0.17 * i)
        tip = (u, y - height * 0.34)
        sheet.pen.polygon([(u - w, y), tip, (u + w, y)], fill=(*shade((44, 88, 58), 0.8 + 0.09 * i), 255))
        sheet.pen.polygon([(u, y), tip, (u + w, y)], fill=(*shade((44, 88, 58), 0.62 + 0.08 * i), 255))


def _car(sheet: Sheet, u: float, v: float, s: float, lots: Lots) -> None:
    paint, way = _paint(lots, 40, 220, 34), lots.pick(-1, 1)

    def shape(points: str, fill: Colour) -> None:
        """A polygon given as "x,y x,y ..." on a car 44 long that drives to the right."""
        pairs = [tuple(map(float, pair.split(","))) for pair in points.split()]
        sheet.pen.polygon([(u + way * (x - 22) * s, v - y * s) for x, y in pairs], fill=(*fill, 255))

    sheet.pen.ellipse([u - 23 * s, v - 2 * s, u + 23 * s, v + 1.5 * s], fill=(24, 24, 28, 255))
    shape("0,3 1,9 8,10.5 14,16.5 29,16.5 36,10 43,8.5 44,3", paint)
    shape("10.5,10.5 15,15.3 21,15.3 21,10.5", (58, 70, 84))
    shape("22.5,10.5 22.5,15.3 28.5,15.3 33.5,10.5", (58, 70, 84))
    shape("0,3 0.4,5 44,5 44,3", shade(paint, 0.6))
    for x in (u - 13 * way * s, u + 12 * way * s):
        for r, tone in ((3.8 * s, (28, 28, 30, 255)), (1.7 * s, (170, 172, 176, 255))):
            sheet.pen.ellipse([x - r, v - 3.6 * s - r, x + r, v - 3.6 * s + r], fill=tone)


def _bus(sheet: Sheet, u: float, v: float, s: float, lots: Lots) -> None:
    paint = _paint(lots, 60, 210, 30)
    left, right, top = u - 54 * s, u + 54 * s, v - 33 * s
    sheet.pen.rectangle([left, top, right, v - 3 * s], fill=(*paint, 255))
    sheet.pen.rectangle([left, top, right, top + 2 * s], fill=(*shade(paint, 1.4), 255))
    sheet.pen.rectangle([left, v - 9 * s, right, v - 3 * s], fill=(*shade(paint, 0.7), 255))
    for i in range(7):
        x = left + (3 + 15 * i) * s
        sheet.pen.rectangle([x, top + 5 * s, x + 12 * s, top + 16 * s], fill=(62, 74, 90, 255))
    for x in (left + 20 * s, right - 20 * s):
        sheet.pen.ellipse([x - 5 * s, v - 9 * s, x + 5 * s, v + s], fill=(26, 26, 28, 255))


def _people(sheet: Sheet, u: float, v: float, s: float, lots: Lots) -> None:
    for _ in range(lots.count(1, 5)):
        x, tall, coat = u + lots.about(0, 22) * s, lots.between(14, 19) * s, _paint(lots, 40, 190, 36)
        for k in (-1, 1):
            step = [x + k * 0.5 * s, v - tall * 0.5, x + k * lots.between(0.6, 2.4) * s, v]
            sheet.pen.line(step, fill=(40, 42, 54, 255), width=max(round(1.8 * s), 1))
        hem, neck, r = v - tall * 0.4, v - tall * 0.82, 1.7 * s
        body = [(x - 2.6 * s, hem), (x - 2.2 * s, neck), (x + 2.2 * s, neck), (x + 2.6 * s, hem)]
        sheet.pen.polygon(body, fill=(*coat, 255))
        skin = shade((222, 176, 140), lots.between(0.45, 1.0))
        sheet.pen.ellipse([x - r, neck - 2 * r, x + r, neck], fill=(*skin, 255))


def _lamp(sheet: Sheet, u: float, v: float, s: float, lots: Lots) -> None:
    top, arm, wide = v - lots.between(58, 84) * s, lots.pick(-9, 9) * s, max(round(2 * s), 1)
    sheet.pen.line([u, v, u, top], fill=(52, 56, 58, 255), width=wide)
    sheet.pen.line([u, top, u + arm, top - 3 * s], fill=(52, 56, 58, 255), width=wide)
    sheet.pen.ellipse([u + arm - 3 * s, top - 4 * s, u + arm + 3 * s, top + s], fill=(250, 236, 190, 255))


def _hedge(sheet: Sheet, u: float, v: float, s: float, lots: Lots) -> None:
    half, tall = lots.between(30, 80) * s, lots.between(9, 22) * s
    for _ in range(50):
        x, y, r = u + lots.between(-1, 1) * half, v - lots.between(0.15, 1) * tall, lots.between(3, 6) * s
        sheet.pen.ellipse([x - r, y - r, x + r, y + r], fill=(*shade((62, 98, 48), lots.between(0.7, 1.2)), 255))


def _branch(sheet: Sheet, u: float, v: float, s: float, lots: Lots) -> None:
    """Foliage that hangs into the photo from above, close to the camera."""
    (w, h), way = sheet.size, lots.pick(-1, 1)
    for _ in range(90):
        x = (0 if way > 0 else w) + way * abs(lots.about(0, 0.22)) * w
        y, r = abs(lots.about(0, 0.16)) * h, lots.between(3, 9)
        leaf = (*shade((56, 92, 40), lots.between(0.6, 1.2)), 255)
        sheet.pen.ellipse([x - r * 1.4, y - r * 0.7, x + r * 1.4, y + r * 0.7], fill=leaf)


def _billboard(sheet: Sheet, u: float, v: float, s: float, lots: Lots) -> None:
    wide, low, high, paint = lots.between(16, 34) * s, 12 * s, lots.between(44, 66) * s, _paint(lots, 90, 220, 40)
    for x in (u - 0.7 * wide, u + 0.7 * wide):
        sheet.pen.rectangle([x - s, v - low, x + s, v], fill=(66, 66, 70, 255))
    for edge, tone in ((0, (236, 236, 232)), (2 * s, paint)):
        sheet.pen.rectangle([u - wide + edge, v - high + edge, u + wide - edge, v - low - edge], fill=(*tone, 255))
    sheet.pen.polygon(ring(u, v - (high + low) / 2, wide * 0.4), fill=(*shade(paint, 1.7), 255))


DRAWERS = {_tree: 19, _conifer: 10, _car: 20, _bus: 5, _people: 20, _lamp: 12, _hedge: 5, _branch: 5, _billboard: 4}


def scaffold(size: tuple[int, int], lots: Lots) -> Image.Image:
    """Scaffolding with nets over a part of the front: RGBA of the facade's size, one pixel a unit."""
    w, h = size
    cover = Image.new("RGBA", size, (96, 100, 96, 0))
    pen, net = ImageDraw.Draw(cover), lots.pick((96, 128, 108), (150, 150, 146), (84, 104, 140))
    left, top = int(lots.between(-0.1, 0.6) * w), int(lots.between(0.1, 0.5) * h)
    right = left + int(lots.between(0.3, 0.7) * w)
    for y in range(top, h, 24):
        for x in range(left, right, 20):
            if lots.chance(0.72):
                pen.rectangle([x, y, x + 20, y + 24], fill=(*shade(net, lots.between(0.85, 1.1)), 238))
    for x in range(left, right + 1, 20):
        pen.line([x, top - 6, x, h], fill=(92, 88, 84, 255), width=2)
    for y in range(top, h, 24):
        pen.line([left, y, right, y], fill=(126, 104, 76, 255), width=3)
    return cover
