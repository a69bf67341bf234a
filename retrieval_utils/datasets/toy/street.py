"""The surroundings behind a toy landmark: sky, hills or a skyline, grey neighbours, the ground and the shadow on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from retrieval_utils.datasets.toy.camera import Sheet
from retrieval_utils.datasets.toy.look import Colour, Lots

if TYPE_CHECKING:
    from retrieval_utils.datasets.toy.scenes import View

# colour, size of the slabs in units, how much their tones and joints show
GROUNDS = {
    "paving": ((172, 166, 156), 26.0, 1.0),
    "street": ((96, 98, 104), 60.0, 0.3),
    "grass": ((94, 134, 66), 40.0, 0.3),
    "cobbles": ((126, 118, 112), 9.0, 1.0),
    "sand": ((206, 186, 142), 50.0, 0.3),
}
Air = Callable[..., Colour]


def paint_background(view: View, half_width: float, depth: float, lots: Lots) -> Image.Image:
    """Everything behind the building, frame-sized RGB. half_width, depth: its footprint, 0 where there is none."""
    sheet, light = Sheet(view.camera, view.frame, "RGB"), view.light
    murk = view.haze * 0.8 + 0.12

    def air(colour, distance: float = 0.0) -> Colour:
        """A colour in this light, bleached by distance and haze."""
        bleach = min(murk * (1 + distance), 0.9)
        mixed = np.array(colour) * light.tint * (1 - bleach) + np.array(light.horizon) * bleach
        return tuple(int(v) for v in np.clip(mixed, 0, 255))

    _sky(sheet, view, lots)
    _horizon(sheet, air, lots)
    _ground(sheet, view.weather, air, lots)
    if lots.chance(0.75) or not half_width:
        _neighbours(sheet, half_width, depth, view.hour in ("dusk", "night"), air, lots)
    if half_width:
        _shadow(sheet, half_width, depth, view.hour in ("day", "golden"), lots)
    return sheet.finish()


def _noise(lots: Lots, rows: int, columns: int, size: tuple[int, int]) -> np.ndarray:
    """(h, w) smooth noise of about unit variance, with rows x columns bumps."""
    grain = Image.fromarray(lots.rng.standard_normal((rows, columns), np.float32))
    return np.asarray(grain.resize(size, Image.BICUBIC))


def _sky(sheet: Sheet, view: View, lots: Lots) -> None:
    (w, h), light, horizon = sheet.size, view.light, max(sheet.horizon, 1.0)
    small = (w // 4, h // 4)
    top, low = np.array(light.sky) * (1 + 0.07 * lots.rng.standard_normal(3)), np.array(light.horizon)
    if view.weather != "clear":
        top = top * 0.4 + low * 0.6
    fall = np.clip(np.linspace(0, h / horizon, small[1]), 0, 1)[:, None, None] ** 0.8
    cloud = _noise(lots, 5, 7, small) + 0.6 * _noise(lots, 11, 15, small) + 0.3 * _noise(lots, 23, 31, small)
    cover = np.clip((cloud - lots.between(-0.6, 1.4)) * 0.8, 0, 0.85)[..., None]
    sky = top + (low - top) * fall
    sky = sky + (np.array(light.cloud) - sky) * cover
    sheet.image.paste(Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8)).resize((w, h), Image.BICUBIC))
    if view.hour == "night" and view.weather == "clear":
        for x, y, bright in lots.rng.random((40, 3)):
            sheet.pen.point([x * w, y * horizon], fill=(int(120 + 130 * bright),) * 3)
    if view.hour in ("night", "golden") and lots.chance(0.4):
        x, y, r = lots.between(0, w), lots.between(0, horizon * 0.6), 9
        sheet.pen.ellipse([x - r, y - r, x + r, y + r], fill=(246, 242, 214))


def _horizon(sheet: Sheet, air: Air, lots: Lots) -> None:
    """Hills, a far skyline or a row of trees where the sky ends."""
    (w, h), horizon, kind = sheet.size, sheet.horizon, lots.pick("hills", "skyline", "trees", "none")
    xs = np.linspace(0, w, 40)
    for layer in range(2):
        rise = h * lots.between(0.03, 0.14) * (1.5 - layer)
        if kind == "hills":
            line = sum(np.sin(xs / w * 6 * lots.between(0.8, 3) + lots.between(0, 7)) / (k + 1) for k in range(3))
            ridge = list(zip(xs, horizon - rise * (0.8 + 0.45 * line), strict=True))
            tone = ((96, 118, 112), (86, 108, 84))[layer]
            sheet.pen.polygon([(0, horizon + 4), *ridge, (w, horizon + 4)], fill=air(tone, 3 - layer))
        elif kind == "skyline":
            x = 0.0
            while x < w:
                step, top = lots.between(8, 26), horizon - rise * lots.between(0.5, 1.8)
                sheet.pen.rectangle([x, top, x + step, horizon + 4], fill=air((128, 130, 138), 3 - layer))
                x += step
        elif kind == "trees":
            for x in range(0, w, 9):
                r = lots.between(5, 11)
                sheet.pen.ellipse([x - r, horizon - r * 1.5, x + r, horizon + r], fill=air((66, 92, 60), 2 - layer))


def _ground(sheet: Sheet, weather: str, air: Air, lots: Lots) -> None:
    """The ground below the horizon, textured in its own plane."""
    kind = lots.pick(*["paving"] * 7, *["street"] * 7, *["grass"] * 5, *["cobbles"] * 3, *["sand"] * 3)
    colour, slab, marked = GROUNDS[kind]
    base = np.array(colour) * (1 + 0.08 * lots.about(0, 1))
    if weather == "snow":
        base = base * 0.25 + np.array((226, 230, 238)) * 0.75
    kerb, path = sheet.camera.distance - lots.between(30, 70), lots.between(14, 34) * lots.chance(0.6)
    first = max(math.floor(sheet.horizon), 0)
    if first >= sheet.size[1]:
        return
    x, z = sheet.ground(first)
    fade = np.clip(sheet.camera.distance / np.maximum(z, 1), 0, 1.5) / 1.5
    row = np.floor(z / slab)
    shifted = x / slab + 0.5 * (row % 2)
    tone = ((row * 12.9898 + np.floor(shifted) * 78.233) * 0.1031 % 1 - 0.5) * 0.16  # a hash: slabs differ, rows repeat
    joint = ((z / slab % 1 < 0.05) | (shifted % 1 < 0.05)) * -0.16
    factor = (1 + (tone + joint * (marked > 0.5)) * marked * fade + 0.05 * _noise(lots, 20, 9, x.shape[::-1]))[
        ..., None
    ]
    floor = base * factor
    if kind == "street":
        floor = np.where((z > kerb)[..., None], np.array((164, 160, 154)) * factor, floor)
        floor = np.where((np.abs(z - kerb) < 3)[..., None], (200, 198, 190), floor)
        dash = (np.abs(z - kerb * 0.62) < 2.5) & (x % 50 < 28)
        floor = np.where(dash[..., None], (222, 220, 210), floor)
    if kind in ("grass", "sand"):
        floor = np.where((np.abs(x) < path)[..., None], np.array((186, 168, 138)) * factor, floor)
    black, white = np.array(air((0, 0, 0))), np.array(air((255, 255, 255)))
    patch = Image.fromarray(np.clip(black + floor * (white - black) / 255, 0, 255).astype(np.uint8))
    sheet.image.paste(patch.resize((sheet.size[0], sheet.size[1] - first), Image.BILINEAR), (0, first))


def _neighbours(sheet: Sheet, half_width: float, depth: float, lit: bool, air: Air, lots: Lots) -> None:
    """Grey houses beside and behind; dull on purpose, and new in every view."""
    z = sheet.camera.distance + depth * 0.5 + lots.between(20, 120)
    for side in (-1, 1):
        x = side * (half_width * lots.between(0.75, 1.2) + (lots.between(6, 60) if half_width else 0.0))
        for _ in range(lots.count(1, 5)):
            width, height, tone = lots.between(44, 100), lots.between(46, 150), lots.between(120, 196)
            wall = air(np.array((tone, tone, tone)) + lots.rng.normal(0, 6, 3), 0.4)
            roof = air(np.array((tone, tone, tone)) * 0.66 + lots.rng.normal(0, 6, 3), 0.4)
            (x0, foot, s), (x1, _, _) = sheet.place(x, z), sheet.place(x + side * width, z)
            x0, x1, eaves = min(x0, x1), max(x0, x1), foot - height * s
            x += side * (width + lots.pick(0, 0, 8, 40))
            if lots.chance(0.6):
                peak = ((x0 + x1) / 2, eaves - width * 0.42 * s)
                sheet.pen.polygon([(x0 - 3 * s, eaves + s), peak, (x1 + 3 * s, eaves + s)], fill=roof)
            else:
                sheet.pen.rectangle([x0 - 2 * s, eaves - 5 * s, x1 + 2 * s, eaves], fill=roof)
            sheet.pen.rectangle([x0, eaves, x1, foot], fill=wall)
            for row in range(int(height // 26)):
                for column in range(int(width // 20)):
                    wx, wy = x0 + (8 + 20 * column) * s, eaves + (9 + 26 * row) * s
                    glow = lots.chance(0.35) and lit
                    pane = (228, 186, 112) if glow else air((74, 80, 90), 0.4)
                    sheet.pen.rectangle([wx, wy, wx + 8 * s, wy + 12 * s], fill=pane)


def _shadow(sheet: Sheet, half_width: float, depth: float, sun: bool, lots: Lots) -> None:
    """The building's shadow on the ground: a long one by sun, a dark foot always."""
    c, s = math.cos(sheet.camera.yaw), math.sin(sheet.camera.yaw)
    veil = Image.new("L", sheet.size)
    pen = ImageDraw.Draw(veil)

    def area(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
        turned = [(x * c + z * s, max(z * c - x * s + sheet.camera.distance, 25.0)) for x, z in corners]
        return [sheet.place(x, z)[:2] for x, z in turned]

    w, dx, dz = half_width, lots.between(-90, 90), lots.between(-40, 10)
    if sun:
        pen.polygon(area([(-w, 0), (w, 0), (w + dx, dz), (dx - w, dz)]), fill=84)
    pen.polygon(area([(-w - 3, depth + 3), (w + 3, depth + 3), (w + 3, -5), (-w - 3, -5)]), fill=110)
    sheet.image.paste((18, 18, 32), (0, 0), veil.filter(ImageFilter.GaussianBlur(2)))
