"""From an image file to a tensor: the one resize rule of the evaluation, and the augmentations of the training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import ExifTags, Image
from torchvision.transforms.v2 import functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as Lightly's views have them
RESIZE_RULE = "longer side to image_size, aspect ratio kept, never enlarged"
INTERPOLATION = Image.Resampling.BICUBIC
# What Pillow raises for a file that is no whole image; TypeError and ValueError come from broken headers, as of a TIFF.
UNREADABLE = (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError)
TURN = {  # EXIF orientation -> what makes the photo stand upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BoxError(ValueError):
    """A box that leaves its image: the image itself can be read."""


def resized_size(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    """(width, height) after the resize rule: the longer side becomes `image_size`, a smaller image stays as it is."""
    longer = max(size)
    if longer <= image_size:
        return size
    return tuple(max(1, round(side * image_size / longer)) for side in size)


def load_image(path: str | Path, box: Sequence[float] | None = None, image_size: int | None = None) -> Image.Image:
    """An RGB image, cropped to `box` (x1, y1, x2, y2 in pixels) if there is one, then resized by the resize rule.

    First of all it is turned as its EXIF orientation says, so that `box` is in pixels of the upright photo, as viewers
    show it. The photos of the benchmarks have no such note and stay as they are stored.
    Raises FileNotFoundError, or ValueError naming the file when it is no whole image or the box leaves it.
    """
    try:
        with Image.open(path) as image:
            if box is None and image_size is not None:
                image.draft("RGB", resized_size(image.size, 2 * image_size))  # JPEG decodes small sizes faster
            image = upright(image)
            if box is not None:
                check_box(box, image.size, path)
                # Rounded outwards from the float boxes of Oxford, so that no pixel of the object is lost.
                right, lower = min(math.ceil(box[2]), image.width), min(math.ceil(box[3]), image.height)
                image = image.crop((int(box[0]), int(box[1]), right, lower))
            image = image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no image '{path}'; check the path or get the data set again.") from None
    except BoxError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"The image '{path}' is too large to be read ({error}); make it smaller first.") from None
    except UNREADABLE as error:
        message = f"The image '{path}' cannot be read ({error}); replace the file or get the data set again."
        raise ValueError(message) from None
    if image_size is not None:
        image = image.resize(resized_size(image.size, image_size), INTERPOLATION)
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an opened image once it stands upright, without decoding it (a PNG without EXIF apart)."""
    turned = image.format != "TIFF" and _orientation(image) >= 5  # Pillow turns a TIFF itself, its size at once
    return image.size[::-1] if turned else image.size


def upright(image: Image.Image) -> Image.Image:
    """An opened image, decoded and turned as its EXIF orientation says; the same image where it says nothing."""
    image.load()  # of a TIFF the note is gone afterwards
    turn = TURN.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """EXIF's note of how to turn a photo, 2 to 8; 1 where there is none, or none that can be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF can raise almost anything, and the pixels are as good without it
        return 1
    return orientation if orientation in TURN else 1


def check_box(box: Sequence[float], size: tuple[int, int], path: str | Path) -> None:
    """Raises BoxError unless x1 < x2 and y1 < y2 and the box lies inside an image of `size` (width, height)."""
    x1, y1, x2, y2 = box
    # Oxford's own boxes end up to one pixel outside, from 1-based coordinates.
    inside = 0 <= x1 < x2 <= size[0] + 1 and 0 <= y1 < y2 <= size[1] + 1
    if not (inside and x1 < size[0] and y1 < size[1]):  # one that lies in that pixel alone has nothing of the image
        raise BoxError(
            f"The box {tuple(round(float(v), 1) for v in box)} does not lie inside '{Path(path).name}', "
            f"which is {size[0]} x {size[1]} pixels; give x1,y1,x2,y2 with x1 < x2 and y1 < y2."
        )


def to_tensor(image: Image.Image) -> torch.Tensor:
    """(3, H, W) float32, normalised with the mean and standard deviation of ImageNet."""
    return F.normalize(F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True), MEAN, STD)


def training_view(image_size: int, min_scale: float = 0.25, jitter: float = 0.5, grayscale: float = 0.1):
    """Lightly's SimCLR view: random resized crop, flip, colour jitter, grey. PIL image -> (3, image_size, image_size).

    min_scale: smallest crop, as a fraction of the area. jitter: strength of the colour jitter (1 is SimCLR's).
    grayscale: probability of dropping colour. Blur is left out: at 64 pixels there is little left to blur.
    """
    from lightly.transforms.simclr_transform import SimCLRViewTransform  # takes seconds, and only training needs it

    return SimCLRViewTransform(
        input_size=image_size, min_scale=min_scale, cj_strength=jitter, random_gray_scale=grayscale, gaussian_blur=0.0
    )
