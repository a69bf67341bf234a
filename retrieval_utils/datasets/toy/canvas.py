"""The drawing box of the toy landmarks: a canvas with textures, doors and windows, and the look of one building.

A facade is drawn once, from the front, on 256 x 256 units: x from the middle, y downwards, the ground at y = 256.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from retrieval_utils.datasets.toy.look import Colour, Look, Lots

UNITS = 256
SCALE = 2  # pixels a unit while drawing; the scenes use reduced copies
Points = list[tuple[float, float]]


def shade(colour: Colour, factor: float) -> Colour:
    """Darker (factor < 1) or lighter (factor > 1) version of an RGB colour."""
    if factor <= 1:
        return tuple(int(v * factor) for v in colour)
    return tuple(int(255 - (255 - v) / factor) for v in colour)


# height and width of a stone in units, width of the joint, spread of the stones' brightness
MASONRY = {
    "brick": (4, 10, 0.8, 0.12),
    "stone": (8, 15, 0.8, 0.10),
    "blocks": (14, 26, 1.2, 0.05),
    "tiles": (5, 6, 1.0, 0.09),
    "slates": (7, 10, 0.8, 0.12),
}
BOARDS = {"planks": 7, "seams": 11}
PLAIN = 128  # the brightness in a pattern that leaves a colour as it is


@lru_cache(maxsize=16)
def _pattern(name: str) -> Image.Image:
    """Brightness of a texture, L; the same for every building, which shifts and colours it."""
    size = UNITS * SCALE
    y, x = np.mgrid[0:size, 0:size] / SCALE
    rng = np.random.default_rng(7)
    bumps = Image.fromarray(rng.standard_normal((12, 12), np.float32)).resize((size, size), Image.BICUBIC)
    grain = rng.normal(0, 0.02, (size, size)) + 0.035 * np.asarray(bumps)
    if name in MASONRY:
        height, width, joint, spread = MASONRY[name]
        row = np.floor(y / height).astype(int)
        along = x + (row % 2) * width / 2
        tone = rng.normal(0, spread, (size, size))[row, np.floor(along / width).astype(int)]
        lip = 0.12 * (1 - (y % height) / height) * (name in ("tiles", "slates"))
        factor = 1 + grain + tone - lip - 0.2 * ((y % height < joint) | (along % width < joint))
    elif name in BOARDS:
        across, step = (y if name == "planks" else x), BOARDS[name]
        tone = rng.normal(0, 0.06, size)[np.floor(across / step).astype(int)]
        factor = 1 + grain + tone - 0.22 * (across % step < 1) + 0.1 * ((across % step > 1) & (across % step < 2))
    else:
        factor = 1 + grain * 1.6
    return Image.fromarray(np.clip(factor * PLAIN, 0, 255).astype(np.uint8))


class Canvas:
    """One facade in the making: colour, outline (alpha) and window numbers, all (512, 512), coordinates in units."""

    def __init__(self, look: Look, lots: Lots) -> None:
        size = (UNITS * SCALE, UNITS * SCALE)
        self.look, self.lots = look, lots
        self.colour = Image.new("RGB", size, shade(look.wall, 0.5))
        self.alpha, self.glass = Image.new("L", size), Image.new("L", size)
        self._pen = ImageDraw.Draw(self.colour, "RGBA")
        self._masks = ImageDraw.Draw(self.alpha), ImageDraw.Draw(self.glass)
        self.panes = 0
        self.wall = self.material(look.wall, look.wall_pattern)
        self.roof = self.material(look.roof, look.roof_pattern)

    def solid_at(self, x: float, y: float) -> bool:
        return self.alpha.getpixel((int((x + UNITS / 2) * SCALE), int(y * SCALE))) > 0

    def material(self, colour: Colour, pattern: str) -> Image.Image:
        """The pattern in this colour, on the whole canvas, shifted so that no two buildings have the same stones."""
        shift = self.lots.count(0, UNITS * SCALE), self.lots.count(0, UNITS * SCALE)
        tile = ImageChops.offset(_pattern(pattern), *shift)
        return Image.merge("RGB", [tile.point([min(v * c // PLAIN, 255) for v in range(256)]) for c in colour])

    def polygon(self, points: Points, fill: Colour | Image.Image, solid: bool = True) -> None:
        """Fill with a colour or a material, hiding the windows beneath; `solid` adds to the outline."""
        scaled = _pixels(points)
        if isinstance(fill, Image.Image):
            xs, ys = zip(*scaled, strict=True)
            left, top = max(int(min(xs)), 0), max(int(min(ys)), 0)
            right, bottom = min(math.ceil(max(xs)) + 1, fill.width), min(math.ceil(max(ys)) + 1, fill.height)
            if right <= left or bottom <= top:
                return
            stencil = Image.new("L", (right - left, bottom - top))
            ImageDraw.Draw(stencil).polygon([(x - left, y - top) for x, y in scaled], fill=255)
            self.colour.paste(fill.crop((left, top, right, bottom)), (left, top), stencil)
        else:
            self._pen.polygon(scaled, fill=tuple(fill))
        self._masks[1].polygon(scaled, fill=0)
        if solid:
            self._masks[0].polygon(scaled, fill=255)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Colour | Image.Image, solid: bool = True) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, solid)

    def dark(self, points: Points, strength: float) -> None:
        self.tint(points, (16, 14, 34), strength)

    def light(self, points: Points, strength: float) -> None:
        self.tint(points, (255, 246, 224), strength)

    def tint(self, points: Points, colour: Colour, strength: float) -> None:
        """A veil of colour over what is there."""
        self._pen.polygon(_pixels(points), fill=(*colour, int(255 * strength)))

    def line(self, points: Points, fill: Colour, width: float = 1, solid: bool = True) -> None:
        scaled = _pixels(points)
        pixels = max(round(width * SCALE), 1)
        self._pen.line(scaled, fill=tuple(fill), width=pixels)
        self._masks[1].line(scaled, fill=0, width=pixels)
        if solid:
            self._masks[0].line(scaled, fill=255, width=pixels)

    def pane(self, points: Points) -> None:
        """Number a glazed area, so that it can be lit at night."""
        self.panes = self.panes % 254 + 1
        self._masks[1].polygon(_pixels(points), fill=self.panes)

    def block(self, x0: float, y0: float, x1: float, y1: float, fill=None, rounded: bool = False) -> None:
        """A wall with body: light from the upper left, dirt towards the ground; `rounded` shades it as a cylinder."""
        self.rect(x0, y0, x1, y1, self.wall if fill is None else fill)
        width, height = x1 - x0, y1 - y0
        if rounded:
            for i in range(12):
                t = (i + 0.5) / 12
                strip = box(x0 + width * i / 12, y0, x0 + width * (i + 1) / 12 - 0.5, y1)
                self.dark(strip, 0.5 * max(t - 0.35, 0) ** 1.3 + 0.3 * max(0.2 - t, 0))
        else:
            self.dark(box(x1 - min(2.5, width * 0.1), y0, x1, y1), 0.22)
            self.light(box(x0, y0, x0 + min(1.5, width * 0.06), y1), 0.25)
        for i in range(5):
            self.dark(box(x0, y1 - height * 0.05 * (i + 1), x1, y1), 0.05)

    def cornice(self, x0: float, x1: float, y: float, height: float = 4, fill: Colour | None = None) -> None:
        """A ledge that stands out and throws a shadow on the wall below."""
        self.dark(box(x0 + 2, y + height, x1, y + height * 1.9), 0.3)
        self.rect(x0 - 2, y, x1 + 2, y + height, self.look.trim if fill is None else fill)
        self.light(box(x0 - 2, y, x1 + 2, y + height * 0.35), 0.35)
        self.dark(box(x0 - 2, y + height * 0.75, x1 + 2, y + height), 0.3)

    def gable(self, points: Points, fill=None) -> None:
        """A roof polygon: brighter ridge, darker right half."""
        self.polygon(points, self.roof if fill is None else fill)
        xs, ys = zip(*points, strict=True)
        self.dark([(x, y) for x, y in _right_of(points, (min(xs) + max(xs)) / 2)], 0.26)
        self.dark(box(min(xs), max(ys) - 1.5, max(xs), max(ys)), 0.3)

    def window(
        self, x: float, y: float, w: float, h: float, kind: str | None = None, mullion: str | None = None
    ) -> None:
        """An opening with its top left corner at (x, y): recess, frame, glass with a sky reflex, sill."""
        kind, mullion = kind or self.look.window, mullion or self.look.mullion
        frame, edge = self.look.trim, max(0.9, min(w, h) * 0.11)
        self.polygon(opening(x - edge, y - edge, w + 2 * edge, h + edge, kind), frame, solid=False)
        shape = opening(x, y, w, h, kind)
        tone = self.lots.between(0.75, 1.25)
        self.polygon(shape, tuple(int(v * tone) for v in (52, 66, 88)), solid=False)
        self.pane(shape)
        self.light([(x + w * 0.12, y + h * 0.75), (x + w * 0.62, y + h * 0.3), (x + w * 0.8, y + h * 0.3),
                    (x + w * 0.3, y + h * 0.75)], 0.16)  # fmt: skip
        self.dark(box(x, y, x + w, y + h * 0.12), 0.35)
        for fx in {"cross": (0.5,), "bars": (0.33, 0.67), "grid": (0.33, 0.67), "plain": (), "half": (0.5,)}[mullion]:
            self.rect(x + w * fx - edge * 0.35, y + h * 0.06, x + w * fx + edge * 0.35, y + h, frame, solid=False)
        for fy in {"cross": (0.4,), "bars": (), "grid": (0.4, 0.7), "plain": (), "half": (0.3,)}[mullion]:
            self.rect(x, y + h * fy - edge * 0.35, x + w, y + h * fy + edge * 0.35, frame, solid=False)
        self.rect(x - edge * 1.6, y + h, x + w + edge * 1.6, y + h + edge * 1.3, shade(frame, 1.2), solid=False)
        self.dark(box(x - edge, y + h + edge * 1.3, x + w + edge * 2, y + h + edge * 2.4), 0.3)

    def door(self, x: float, y: float, w: float, kind: str = "round") -> None:
        """A door from its lintel at y down to the ground, centred on x."""
        for grow, colour in ((3.5, self.look.trim), (1.8, shade(self.look.trim, 0.7)), (0, self.look.door)):
            self.polygon(opening(x - w / 2 - grow, y - grow, w + 2 * grow, UNITS - y + grow, kind), colour, solid=False)
        self.dark(box(x - 0.5, y + 1, x + 0.5, UNITS), 0.5)
        for side in (-1, 1):
            for row in (0.42, 0.72):
                middle, top = x + side * w * 0.25, y + (UNITS - y) * row
                self.dark(box(middle - w * 0.14, top, middle + w * 0.14, top + (UNITS - y) * 0.2), 0.22)
        self.dark(box(x - w / 2, y, x + w / 2, y + 3), 0.35)

    def spire(self, x: float, half: float, base: float, top: float, fill=None) -> None:
        self.gable([(x - half, base), (x, top), (x + half, base)], fill)
        self.line([(x, top + 2), (x, top - 5)], shade(self.look.trim, 0.8), 1)


def _pixels(points: Points) -> Points:
    return [((x + UNITS / 2) * SCALE, y * SCALE) for x, y in points]


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def ring(x: float, y: float, rx: float, ry: float | None = None, start: float = 0, stop: float = 360) -> Points:
    """Points on an ellipse, angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, stop, 25))
    return [(x + rx * math.cos(a), y + (ry or rx) * math.sin(a)) for a in angles]


def opening(x: float, y: float, w: float, h: float, kind: str) -> Points:
    """Outline of a window or door by the form of its head: flat, round, pointed or segment."""
    head = min({"flat": 0.0, "round": w / 2, "pointed": w * 0.8, "segment": w * 0.18}[kind], h * 0.7)
    if kind == "pointed":
        rise = [(x + w / 2 * t, y + head * (1 - t) ** 1.7) for t in (0, 0.25, 0.5, 0.75, 1)]
        return [(x, y + h), *rise, *[(2 * x + w - px, py) for px, py in rise[::-1]], (x + w, y + h)]
    arch = ring(x + w / 2, y + head, w / 2, head, 180, 360) if head else [(x, y), (x + w, y)]
    return [(x, y + h), *arch, (x + w, y + h)]


def _right_of(points: Points, middle: float) -> Points:
    """The part of a convex polygon to the right of a vertical line."""
    kept: Points = []
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        if x0 >= middle:
            kept.append((x0, y0))
        if (x0 < middle) != (x1 < middle):
            kept.append((middle, y0 + (y1 - y0) * (middle - x0) / (x1 - x0)))
    return kept or points
