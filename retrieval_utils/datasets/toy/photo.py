"""From a view to a photo: the scene behind, the building with sides and lit windows, things in front, the sensor."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from retrieval_utils.datasets.toy.camera import Camera
from retrieval_utils.datasets.toy.look import Lots
from retrieval_utils.datasets.toy.scenes import Building, View
from retrieval_utils.datasets.toy.street import paint_background

FLOODLIGHTS = ((1.0, 0.78, 0.5), (0.7, 0.8, 1.0), (0.95, 0.9, 0.75))
LAMP = np.array((255, 206, 120), np.float32)
Box = tuple[int, int, int, int]


def take_photo(
    building: Building | None, view: View, lots: Lots, studio: bool = False
) -> tuple[Image.Image, Box | None]:
    """The photo (RGB), and the box (x1, y1, x2, y2) round what is visible of the building; None without a building.

    studio: the same lens, exposure and sensor for every photo, so that nothing but what it shows tells it from another.
    """
    scene = paint_background(view, building.width / 2 if building else 0.0, building.depth if building else 0.0, lots)
    box = None
    if building:
        cover, glow = _paint_building(scene, building, view, lots)
        bare = ImageChops.multiply(cover, ImageChops.invert(view.occluders.getchannel("A")))
        box = bare.point([255 * (v > 127) for v in range(256)]).getbbox()
        if glow:
            scene = ImageChops.add(scene, glow)
    things = np.asarray(view.occluders.convert("RGB"), np.float32) * view.light.tint
    things += (np.array(view.light.horizon) - things) * view.haze * 0.5
    scene.paste(_picture(things), (0, 0), view.occluders.getchannel("A"))
    return (scene if studio else _develop(scene, view, lots)), box


def _picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _paint_building(scene: Image.Image, building: Building, view: View, lots: Lots):
    """Paint the building into `scene`; returns its mask and the glow of its windows (None by day)."""
    camera, dark = view.camera, view.hour in ("dusk", "night")
    detail = camera.focal / camera.distance  # pixels a unit
    level = 0 if detail > 1.3 else 1 if detail > 0.62 else 2
    facade = building.facades[level]
    front, lit = _light_up(facade, building.panes[level], view, lots, sun := lots.between(-1, 1))
    front.putalpha(facade.getchannel("A"))
    side = _picture(np.asarray(front.convert("RGB"), np.float32) * (0.74 if sun * camera.yaw > 0 else 0.52))
    side.putalpha(ImageChops.multiply(building.bodies[level], facade.getchannel("A")))
    side = side.reduce(2) if level < 2 else side
    if view.net:
        net = view.net.resize(facade.size)
        cloth = _picture(np.asarray(net.convert("RGB"), np.float32) * view.light.tint)
        front.paste(cloth, (0, 0), ImageChops.multiply(net.getchannel("A"), facade.getchannel("A")))
    cover = Image.new("L", scene.size)
    ends = np.array([[x, 0, z] for x in (-building.width / 2, building.width / 2) for z in (0, building.depth)])
    feet = camera.project(ends)
    slices = int(np.clip(np.ceil(np.abs(feet[1::2] - feet[::2]).max() / 1.4), 0, 30))
    for i in range(slices, 0, -1):  # the body behind the front, from the back
        _stand(scene, cover, side, building, camera, building.depth * i / slices)
    _stand(scene, cover, front, building, camera, 0.0)
    if not dark:
        return cover, None
    glare = lit.transform(scene.size, Image.PERSPECTIVE, _coefficients(building, camera, 0.0, lit.size), Image.BILINEAR)
    glare = glare.filter(ImageFilter.GaussianBlur(4))
    return cover, Image.merge("RGB", [glare.point([int(v * k) for v in range(256)]) for k in (0.5, 0.36, 0.16)])


def _light_up(facade: Image.Image, panes: Image.Image, view: View, lots: Lots, sun: float):
    """The facade in this light and weather (RGB), and how brightly its windows shine (L)."""
    light, bare = view.light, np.asarray(facade.convert("RGB"), np.float32)
    across = np.linspace(-1, 1, facade.width, dtype=np.float32)[None, :, None]
    upward = np.linspace(1, 0, facade.height, dtype=np.float32)[:, None, None]
    colour = bare * np.array(light.tint, np.float32) * (1 + 0.12 * sun * across)
    if view.hour in ("dusk", "night"):  # floodlights at the foot
        lamps = np.array(lots.pick(*FLOODLIGHTS), np.float32) * (0.62 if view.hour == "night" else 0.25)
        colour += bare * lamps * (1 - 0.75 * upward)
    shine = np.where(lots.rng.random(256) < light.windows, 0.5 + 0.5 * lots.rng.random(256), 0).astype(np.float32)
    shine[0] = 0  # number 0 is no window
    if view.hour not in ("dusk", "night"):
        shine *= 0.25
    strength = shine[np.asarray(panes)][..., None]
    colour += (LAMP - colour) * strength
    colour += (np.array(light.horizon, np.float32) - colour) * view.haze
    painted = _picture(colour)
    if view.weather == "snow":  # caps on whatever has sky above it
        alpha, thick = facade.getchannel("A"), max(facade.height // 50, 1)
        lower = Image.new("L", facade.size)
        lower.paste(alpha, (0, thick))
        white = tuple(int(v) for v in np.clip(np.array((240, 244, 250)) * np.minimum(light.tint, 0.95), 0, 255))
        painted.paste(white, (0, 0), ImageChops.subtract(alpha, lower))
    return painted, Image.fromarray((strength[..., 0] * 255).astype(np.uint8))


def _coefficients(building: Building, camera: Camera, back: float, size: tuple[int, int]) -> tuple[float, ...]:
    """The eight numbers that take a pixel of the photo to one of the facade, standing `back` units behind the front."""
    sx, sy = building.width / size[0], building.height / size[1]
    lift = np.array([[sx, 0, -building.width / 2], [0, -sy, building.height], [0, 0, back], [0, 0, 1.0]])
    inverse = np.linalg.inv(camera.matrix() @ lift)
    return tuple((inverse / inverse[2, 2]).ravel()[:8].tolist())


def _stand(scene: Image.Image, cover: Image.Image, layer: Image.Image, building: Building, camera: Camera, back: float):
    """Stand an RGBA layer up in the scene and add it to the mask."""
    numbers = _coefficients(building, camera, back, layer.size)
    seen = layer.transform(scene.size, Image.PERSPECTIVE, numbers, Image.BILINEAR)
    mask = seen.getchannel("A")
    scene.paste(seen.convert("RGB"), (0, 0), mask)
    cover.paste(255, (0, 0), mask)


def _develop(scene: Image.Image, view: View, lots: Lots) -> Image.Image:
    """Rain or snow in the air, then lens and sensor: blur, vignette, exposure, white balance, contrast, noise."""
    w, h = view.frame
    if view.weather in ("rain", "snow"):
        air = Image.new("L", (w * 2, h * 2))
        pen, slant = ImageDraw.Draw(air), lots.about(0, 5)
        for x, y, near in lots.rng.random((lots.count(60, 190), 3)) * (w * 2, h * 2, 1):
            r = 0.7 + 2.4 * near**3
            if view.weather == "rain":
                pen.line([x, y, x + slant, y + 8 + 16 * near], fill=int(50 + 80 * near), width=1)
            else:
                pen.ellipse([x - r, y - r, x + r, y + r], fill=int(120 + 120 * near))
        scene.paste((150, 156, 176) if view.hour in ("dusk", "night") else (210, 216, 226), (0, 0), air.reduce(2))
    blur = lots.pick(0, 0, 0, 0, 0.4, 0.4, 0.7, 1.0)
    if blur:
        scene = scene.filter(ImageFilter.GaussianBlur(blur))
    photo = np.asarray(scene, np.float32)
    y, x = np.ogrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    falloff = (1 - lots.between(0, 0.16) * (x * x + y * y))[..., None].astype(np.float32)
    gains = (lots.about(1, 0.09) * (1 + lots.rng.normal(0, 0.045, 3))).astype(np.float32)
    photo = (photo * falloff * gains - 128) * lots.about(1, 0.08) + 128
    grey = photo.mean(2, keepdims=True)
    photo = grey + (photo - grey) * float(np.clip(lots.about(1, 0.13), 0.6, 1.4))
    sigma = lots.between(1, 5) + 4 * (view.hour == "night")
    return _picture(photo + lots.rng.standard_normal(photo.shape, np.float32) * sigma)
