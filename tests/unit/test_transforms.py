from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from retrieval_utils.transforms import MEAN, STD, load_image, resized_size, to_tensor, training_view


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


@pytest.mark.parametrize("box", [(-1, 0, 10, 10), (5, 5, 5, 10), (0, 0, 62, 10), (0, 20, 10, 10)])
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
    for name in ("half.jpg", "text.jpg"):
        with pytest.raises(ValueError, match=f"{name}' cannot be read"):
            load_image(tmp_path / name, image_size=32)
    with pytest.raises(FileNotFoundError, match="no image .*none.jpg"):
        load_image(tmp_path / "none.jpg")


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
