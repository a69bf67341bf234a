"""One view of a toy landmark: camera, light, weather, things in the way, and the label that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from retrieval_utils.datasets.toy.camera import Camera, Frame
from retrieval_utils.datasets.toy.canvas import SCALE, UNITS
from retrieval_utils.datasets.toy.foreground import paint_occluders, scaffold
from retrieval_utils.datasets.toy.look import Colour, Lots
from retrieval_utils.datasets.toy.styles import draw_facade

FRAMES: tuple[Frame, ...] = ((160, 120), (160, 120), (120, 160), (144, 144))


@dataclass(frozen=True)
class Light:
    """An hour of the day."""

    sky: Colour
    horizon: Colour
    cloud: Colour
    tint: tuple[float, float, float]  # what the light does to a colour
    windows: float  # share of windows that are lit
    clarity: float  # how well things can be read in it, in [0, 1]


LIGHTS = {
    "day": Light((92, 146, 214), (204, 224, 240), (250, 250, 252), (1.04, 1.02, 0.98), 0.0, 1.0),
    "overcast": Light((158, 168, 182), (210, 214, 218), (188, 192, 200), (0.88, 0.9, 0.93), 0.05, 0.95),
    "golden": Light((112, 142, 196), (250, 214, 160), (255, 226, 196), (1.12, 0.94, 0.74), 0.05, 0.95),
    "dusk": Light((58, 62, 112), (232, 148, 116), (214, 122, 120), (0.64, 0.55, 0.62), 0.5, 0.75),
    "night": Light((12, 16, 40), (44, 50, 84), (52, 56, 82), (0.30, 0.33, 0.48), 0.6, 0.5),
}


@dataclass(frozen=True)
class Building:
    """A landmark, drawn once: its front at three sizes (2, 1 and 1/2 pixels a unit), cut to its outline."""

    facades: tuple[Image.Image, ...]  # RGBA
    panes: tuple[Image.Image, ...]  # L, window numbers
    bodies: tuple[Image.Image, ...]  # L, the part that has sides
    width: float
    height: float
    depth: float

    @classmethod
    def build(cls, style: str, rng: np.random.Generator) -> Building:
        facade, panes, body, depth = draw_facade(style, rng)
        left, top, right, _ = facade.getchannel("A").getbbox()
        frame = (left // 4 * 4, top // 4 * 4, -(-right // 4) * 4, UNITS * SCALE)
        facade, panes, body = (layer.crop(frame) for layer in (facade, panes, body))
        facades = [facade.convert("RGBa")]  # premultiplied, so that nothing bleeds in from outside the outline
        for _ in range(2):
            facades.append(facades[-1].reduce(2))
        width, height = facade.width / SCALE, facade.height / SCALE
        return cls(
            facades=tuple(f.convert("RGBA") for f in facades),
            panes=tuple(panes.resize(f.size, Image.NEAREST) for f in facades),
            bodies=tuple(body.resize(f.size, Image.BOX) for f in facades),
            width=width,
            height=height,
            depth=depth * min(width, 130),
        )


@dataclass(frozen=True)
class View:
    """What was in front of the camera, and the numbers from which the label follows."""

    frame: Frame
    camera: Camera
    hour: str
    weather: str
    haze: float
    net: Image.Image | None  # scaffolding, RGBA in the facade's units
    occluders: Image.Image  # RGBA, frame-sized
    visible: float  # share of the front that is inside the frame and not covered, in [0, 1]
    size: float  # square root of the share of the photo that the visible front fills, in [0, 1]

    @property
    def light(self) -> Light:
        return LIGHTS[self.hour]

    @property
    def label(self) -> str:
        """easy, hard or junk, from what is visible.

        junk: less than a quarter of the front is visible, or it fills less than 2.5 % of the photo.
        easy: at least 70 % visible, filling 9 % of the photo or more, turned by 35 degrees or less, in clear light.
        hard: everything between.
        """
        if self.visible < 0.25 or self.size < 0.16:
            return "junk"
        clear = self.light.clarity * (1 - self.haze) >= 0.6 and abs(self.camera.yaw) <= math.radians(35)
        return "easy" if clear and self.visible >= 0.7 and self.size >= 0.3 else "hard"


def plan_view(building: Building, lots: Lots) -> View:
    """Choose camera, light, weather and things in the way by lot, and measure what they leave visible."""
    kind = lots.pick(*["plain"] * 10, *["demanding"] * 5, *["poor"] * 3)
    hour = lots.pick(*["day"] * 8, *["overcast"] * 4, *["golden"] * 2, "dusk", "night")
    weather = lots.pick(*["clear"] * 9, *["haze"] * 2, *["rain"] * 2, *["snow"] * 2)
    haze = {"clear": 0.0, "haze": lots.between(0.2, 0.5)}.get(weather, lots.between(0.05, 0.3))
    if kind == "plain":
        yaw, zoom, roll, spread = lots.about(0, 15), lots.between(0.84, 1.12), lots.about(0, 1.5), 0.05
    elif kind == "demanding":
        yaw, zoom, roll, spread = (
            lots.pick(-1, 1) * lots.between(18, 48),
            lots.between(0.5, 1.4),
            lots.about(0, 4),
            0.16,
        )
    elif lots.chance(0.7):  # too close
        yaw, zoom, roll, spread = lots.about(0, 30), lots.between(1.5, 2.6), lots.about(0, 5), 0.7
    else:  # too far
        yaw, zoom, roll, spread = lots.about(0, 30), lots.between(0.12, 0.4), lots.about(0, 5), 0.2
    frame = lots.pick(*FRAMES)
    angles = [math.radians(float(np.clip(a, -most, most))) for a, most in ((yaw, 66), (roll, 10))]
    camera = _aim(building, frame, lots, *angles, zoom, spread)
    occluders = paint_occluders(
        camera, frame, building.width, {"plain": 1.0, "demanding": 1.6, "poor": 2.6}[kind], lots
    )
    net = scaffold(building.facades[1].size, lots) if lots.chance(0.03 if kind == "plain" else 0.13) else None
    visible, size = _measure(building, camera, frame, occluders, net)
    return View(frame, camera, hour, weather, haze, net, occluders, visible, size)


def _corners(building: Building) -> np.ndarray:
    w, h = building.width / 2, building.height
    return np.array([[-w, 0, 0], [w, 0, 0], [w, h, 0], [-w, h, 0]])  # (4, 3)


def _aim(building: Building, frame: Frame, lots: Lots, yaw: float, roll: float, zoom: float, spread: float) -> Camera:
    """A camera in which the front spans `zoom` of the frame, off the middle by about `spread` of the room there is."""
    distance, eye = max(building.width, building.height) * lots.between(1.3, 2.8), lots.between(15, 46)
    pitch = math.atan2(building.height * 0.45 - eye, distance) * lots.between(0.0, 1.0)
    seen = Camera(1.0, (0, 0), distance, eye, yaw, pitch, roll).project(_corners(building))
    extent = seen.max(0) - seen.min(0)
    focal = zoom * float((np.array(frame) / extent).min())
    room = np.abs(extent * focal - frame) / 2 + 0.1 * np.array(frame)
    shift = np.clip([lots.about(0, spread), lots.about(0, spread)], -1, 1) * room
    centre = np.array(frame) / 2 - (seen.max(0) + seen.min(0)) / 2 * focal + shift
    return Camera(focal, (float(centre[0]), float(centre[1])), distance, eye, yaw, pitch, roll)


def _measure(building: Building, camera: Camera, frame: Frame, occluders: Image.Image, net: Image.Image | None):
    """Visible share of the front and visible size, on a grid of 64 rows over the facade."""
    rows, columns = 64, max(round(64 * building.width / building.height), 8)
    solid = _shares(building.facades[2].getchannel("A"), columns, rows)
    x = (np.arange(columns) + 0.5) / columns * building.width - building.width / 2
    y = building.height * (1 - (np.arange(rows) + 0.5) / rows)
    grid = np.stack([np.tile(x, rows), np.repeat(y, columns), np.zeros(rows * columns)], axis=1)
    pixel = np.floor(camera.project(grid)).astype(int)
    inside = (pixel >= 0).all(1) & (pixel < np.array(frame)).all(1)
    free = np.zeros(len(grid), np.float32)
    free[inside] = 1 - np.asarray(occluders.getchannel("A"), np.float32)[pixel[inside, 1], pixel[inside, 0]] / 255
    free *= solid.ravel()
    if net is not None:
        free *= 1 - _shares(net.getchannel("A"), columns, rows).ravel()
    x, y = camera.project(_corners(building)).T
    area = abs(float(np.roll(x, 1) @ y - np.roll(y, 1) @ x)) / 2
    share = area * float(free.mean()) / (frame[0] * frame[1])
    return float(free.sum() / solid.sum()), min(share, 1.0) ** 0.5


def _shares(mask: Image.Image, columns: int, rows: int) -> np.ndarray:
    return np.asarray(mask.resize((columns, rows), Image.BOX), np.float32) / 255
