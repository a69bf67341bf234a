from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.networks import load_network
from retrieval_utils.transforms import MEAN, STD, load_image, resized_size, to_tensor, training_view, upright_size


@pytest.mark.parametrize(
    ("size", "image_size", "expected"),
    [((1024, 768), 512, (512, 384)), ((300, 400), 100, (75, 100)), ((50, 40), 64, (50, 40)), ((1000, 1), 10, (10, 1))],
)
def test_the_longer_side_is_resized_and_never_enlarged(size, image_size, expected):
    assert resized_size(size, image_size) == expected


def test_box_is_cropped_before_resizing_and_rounded_outwards(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:20, 30:50] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    crop = load_image(tmp_path / "a.png", box=(30.4, 10.2, 49.6, 19.5))
    assert crop.size == (20, 10)
    assert np.asarray(crop).min() == 255
    assert load_image(tmp_path / "a.png", box=(0, 0, 60.9, 40.5)).size == (60, 40)  # Oxford's boxes reach one pixel out


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """Colours near the four corners, rounded to black, white and the primary ones."""
    places = [(3, 3), (image.width - 4, 3), (3, image.height - 4), (image.width - 4, image.height - 4)]
    return [tuple(255 * (value > 127) for value in image.getpixel(place)) for place in places]


def four_colours() -> Image.Image:
    image = Image.new("RGB", (640, 320), "red")
    for colour, place in (("lime", (320, 0)), ("blue", (0, 160)), ("white", (320, 160))):
        image.paste(colour, (*place, place[0] + 320, place[1] + 160))
    return image


def noted(orientation: int | None) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    return exif.tobytes()


STORED = {  # orientation -> how a camera that notes it had stored the upright photo
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_photo_stands_upright_before_it_is_cropped_and_resized(tmp_path, orientation, suffix):
    upright, turn = four_colours(), STORED[orientation]
    stored, path = upright if turn is None else upright.transpose(turn), tmp_path / f"a.{suffix}"
    stored.save(path, exif=noted(orientation))
    for box, image_size, size in (
        (None, None, (640, 320)),
        (None, 64, (64, 32)),
        ((200, 100, 640, 300), None, (440, 200)),  # the box of the upright photo
        ((200, 100, 640, 300), 44, (44, 20)),
    ):
        image = load_image(path, box, image_size)
        assert image.size == size and corners(image) == corners(upright), (box, image_size)
        with Image.open(path) as opened:
            assert upright_size(opened) == (640, 320)


def test_a_jpeg_without_a_note_is_read_byte_for_byte_as_before(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    stored = Image.fromarray(pixels).resize((600, 400), Image.Resampling.BICUBIC)
    stored.save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        plain = image.convert("RGB")
    assert load_image(tmp_path / "a.jpg").tobytes() == plain.tobytes()
    box = (10, 20, 300, 200)
    assert load_image(tmp_path / "a.jpg", box).tobytes() == plain.crop(box).tobytes()
    with Image.open(tmp_path / "a.jpg") as image:
        image.draft("RGB", (200, 133))
        drafted = image.convert("RGB")
    assert drafted.size == (300, 200)  # decoded at half the size: draft stays as fast as it was
    expected = drafted.resize((100, 67), Image.Resampling.BICUBIC)
    assert load_image(tmp_path / "a.jpg", image_size=100).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II",
        b"Exif\0\0nothing that is known",
        noted(6)[:-9],
        noted(0),
        noted(9),
        noted(None),
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\xff\xff\xff\xff\xff",
    ],
    ids=range(8),
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, on the notes
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_note_that_cannot_be_read_turns_nothing(tmp_path, exif, suffix):
    four_colours().save(tmp_path / f"a.{suffix}", exif=exif)
    assert corners(load_image(tmp_path / f"a.{suffix}", image_size=64)) == corners(four_colours())
    with Image.open(tmp_path / f"a.{suffix}") as opened:
        assert upright_size(opened) == (640, 320)


@pytest.mark.parametrize(
    "box",
    [(-1, 0, 10, 10), (5, 5, 5, 10), (0, 0, 62, 10), (0, 20, 10, 10), (60, 0, 61, 10), (0, 40, 10, 41)],
)
def test_a_box_outside_its_image_is_named(tmp_path, box):
    Image.new("RGB", (60, 40)).save(tmp_path / "query.png")
    with pytest.raises(ValueError, match=r"box .* does not lie inside 'query.png', which is 60 x 40"):
        load_image(tmp_path / "query.png", box=box)


def test_a_truncated_or_corrupt_image_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    for name in ("half.jpg", "text.jpg", "half.png"):
        with pytest.raises(ValueError, match=f"{name}' cannot be read"):
            load_image(tmp_path / name, image_size=32)
    with pytest.raises(FileNotFoundError, match="no image .*none.jpg"):
        load_image(tmp_path / "none.jpg")


def described(path):
    return extract_descriptors(load_network("resnet18-thin"), [path], image_size=32, device="cpu")


@pytest.mark.parametrize("read", [load_image, described])
@pytest.mark.parametrize(
    ("offset", "value", "error"), [(2, 1, ValueError), (62, 2, TypeError), (62, 5, TypeError), (86, 5, ValueError)]
)
def test_a_broken_header_is_named_whatever_pillow_makes_of_it(tmp_path, read, offset, value, error):
    """One byte of the header of a TIFF is changed; `offset` is counted from its first entry."""
    path = tmp_path / "broken.tif"
    Image.new("RGB", (20, 16)).save(path)
    data = bytearray(path.read_bytes())
    data[int.from_bytes(data[4:8], "little") + 2 + offset] = value
    path.write_bytes(data)
    with pytest.raises(error), Image.open(path) as image:
        image.load()
    with pytest.raises(ValueError, match="^The image '.*broken.tif' cannot be read .*; replace the file or get"):
        read(path)


@pytest.mark.parametrize("read", [load_image, described])
def test_an_image_that_is_too_large_is_named(tmp_path, monkeypatch, read):
    Image.new("RGB", (60, 40)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 40 // 3)
    with pytest.raises(ValueError, match="^The image '.*huge.png' is too large to be read .*; make it smaller first.$"):
        read(tmp_path / "huge.png")


def test_tensor_is_normalised_with_the_mean_and_deviation_of_imagenet():
    tensor = to_tensor(Image.new("RGB", (5, 4), (255, 0, 51)))  # (3, 4, 5)
    assert tensor.shape == (3, 4, 5)
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(tensor[:, 0, 0], expected)


def test_training_views_have_the_size_asked_and_differ():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    view = training_view(32)
    first, second = view(image), view(image)
    assert first.shape == second.shape == (3, 32, 32)
    assert not torch.equal(first, second)
