"""The camera of a toy photo, and the level sheet on which the surroundings are painted.

Lengths are the facade's units (about ten a metre). The building stands on the ground plane y = 0, turned by `yaw` about
its middle; the camera looks along z from the height `eye`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

MARGIN = 0.16  # painted beyond the frame on each side, so that a rolled camera still sees something
Frame = tuple[int, int]  # width and height of the photo in pixels


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: focal length and principal point in pixels, angles in radians, lengths in units."""

    focal: float
    centre: tuple[float, float]
    distance: float
    eye: float
    yaw: float
    pitch: float
    roll: float

    def matrix(self) -> np.ndarray:
        """(3, 4) projection of homogeneous points in the building's own frame (x right, y up, z back)."""
        cy, sy, cp, sp = math.cos(self.yaw), math.sin(self.yaw), math.cos(self.pitch), math.sin(self.pitch)
        cr, sr, f = math.cos(self.roll), math.sin(self.roll), self.focal
        place = np.array([[cy, 0, sy, 0], [0, 1, 0, -self.eye], [-sy, 0, cy, self.distance]])
        tilt = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        lens = np.array([[f * cr, f * sr, self.centre[0]], [f * sr, -f * cr, self.centre[1]], [0, 0, 1]])
        return lens @ tilt @ place

    def project(self, points: np.ndarray) -> np.ndarray:
        """(n, 3) points in the building's own frame -> (n, 2) pixels."""
        image = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ self.matrix().T
        return image[:, :2] / image[:, 2:]


class Sheet:
    """A layer painted level at twice the frame's resolution, then turned by the camera's roll and cut to the frame."""

    def __init__(self, camera: Camera, frame: Frame, mode: str, fill: int | tuple[int, ...] = 0) -> None:
        self.camera, self.frame = camera, frame
        pad = int(frame[0] * MARGIN), int(frame[1] * MARGIN)
        self.origin = (self._level(frame[0] / 2, frame[1] / 2) - np.array(frame) / 2 - pad).tolist()
        self.size = (2 * (frame[0] + 2 * pad[0]), 2 * (frame[1] + 2 * pad[1]))
        self.image = Image.new(mode, self.size, fill)
        self.pen = ImageDraw.Draw(self.image)

    @property
    def horizon(self) -> float:
        return self._on_sheet(0, self.camera.centre[1] + self.camera.focal * math.tan(self.camera.pitch))[1]

    def place(self, x: float, z: float, y: float = 0.0) -> tuple[float, float, float]:
        """A point x to the right, y up and z in front of the camera -> sheet pixel, and sheet pixels a unit there."""
        c = self.camera
        depth = (y - c.eye) * math.sin(c.pitch) + z * math.cos(c.pitch)
        up = (y - c.eye) * math.cos(c.pitch) - z * math.sin(c.pitch)
        u, v = self._on_sheet(c.centre[0] + c.focal * x / depth, c.centre[1] - c.focal * up / depth)
        return u, v, 2 * c.focal / depth

    def ground(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Ground coordinates x, z seen by every second pixel of the sheet from row `first` down, two (h, w) arrays."""
        c, (w, h) = self.camera, self.size
        v = (np.arange(first, h, 2) / 2 + self.origin[1] - c.centre[1])[:, None] / c.focal
        u = (np.arange(0, w, 2) / 2 + self.origin[0] - c.centre[0])[None, :] / c.focal
        down = np.minimum(math.sin(c.pitch) - v * math.cos(c.pitch), -1e-3)
        reach = np.minimum(-c.eye / down, 1e4)
        return reach * u, reach * (math.cos(c.pitch) + v * math.sin(c.pitch)) + 0 * u

    def finish(self) -> Image.Image:
        corner, right, below = (np.array(self._on_sheet(*self._level(u, v))) for u, v in ((0, 0), (1, 0), (0, 1)))
        to_half = np.stack([right - corner, below - corner, corner], axis=1) / 2
        half = self.image.reduce(2)  # the detail twice as fine was for smooth edges
        return half.transform(self.frame, Image.AFFINE, tuple(to_half.ravel().tolist()), Image.BILINEAR)

    def _on_sheet(self, u: float, v: float) -> tuple[float, float]:
        return 2 * (u - self.origin[0]), 2 * (v - self.origin[1])

    def _level(self, u: float, v: float) -> np.ndarray:
        """Where a pixel of the photo was before the camera was rolled about its principal point."""
        (cx, cy), c, s = self.camera.centre, math.cos(self.camera.roll), math.sin(self.camera.roll)
        return np.array([cx + c * (u - cx) - s * (v - cy), cy + s * (u - cx) + c * (v - cy)])
