"""The views each pretraining method asks for, from Lightly's transforms, scaled to images of some 50 pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightly.transforms.dino_transform import DINOViewTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from PIL import Image
from torch import Tensor

from retrieval_utils.training import TrainingImages
from retrieval_utils.transforms import training_view

if TYPE_CHECKING:
    from retrieval_utils.contrastive import PretrainingSettings

SMALL_CROPS = 4  # of half the side: all together as many pixels as one whole view
SOLARIZED = 0.2  # probability (Grill et al. 2020, table 6)


class TrainingCrops(TrainingImages):
    """Item (i, s): the crops of image i by size, [(2, 3, S, S)] or [(2, 3, S, S), (L, 3, s, s)], and its label.

    views: PIL image -> list of its crops, the two views first, then the small crops if there are any.
    """

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], views: Callable, stored_size: int):
        super().__init__(paths, labels, views, 1, stored_size)

    def draw(self, image: Image.Image) -> list[Tensor]:
        return [torch.stack(list(crops)) for _, crops in groupby(self.view(image), key=lambda crop: crop.shape)]


def two_views(settings: PretrainingSettings) -> MultiViewTransform:
    """Two views (3, S, S) of one distribution: SimCLR's, MoCo v2's and the classifier's."""
    view = training_view(settings.image_size, settings.min_scale, settings.jitter, settings.grayscale)
    return MultiViewTransform([view, view])


def one_solarized(settings: PretrainingSettings) -> MultiViewTransform:
    """Two views (3, S, S), the second solarised now and then: BYOL's and Barlow Twins'."""
    whole = (settings.min_scale, 1.0)
    return MultiViewTransform([_crop(settings, settings.image_size, whole, solarized) for solarized in (0, SOLARIZED)])


def multi_crop(settings: PretrainingSettings) -> MultiViewTransform:
    """Two views (3, S, S), and SMALL_CROPS crops (3, S/2, S/2) from a quarter of `min_scale` to `min_scale`: SwAV's."""
    whole, part = (settings.min_scale, 1.0), (settings.min_scale / 4, settings.min_scale)
    small = [_crop(settings, settings.image_size // 2, part)] * SMALL_CROPS
    return MultiViewTransform([_crop(settings, settings.image_size, whole)] * 2 + small)


def multi_crop_one_solarized(settings: PretrainingSettings) -> MultiViewTransform:
    """`multi_crop` with a second view as in `one_solarized`: DINO's and LeJEPA's."""
    return MultiViewTransform([*one_solarized(settings).transforms, *multi_crop(settings).transforms[2:]])


def _crop(settings: PretrainingSettings, size: int, scale: tuple[float, float], solarized: float = 0) -> Callable:
    # Colour as in SimCLR's views: what differs between methods is what the method adds.
    return DINOViewTransform(
        size,
        scale,
        cj_strength=settings.jitter,
        cj_sat=0.8,
        random_gray_scale=settings.grayscale,
        gaussian_blur=0.0,  # as in training_view
        solarization_prob=solarized,
    )
