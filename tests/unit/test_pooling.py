"""Pooling against closed forms, its two limits, and finite differences."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrieval_utils.pooling import (
    RMAC,
    GeM,
    crow,
    gem,
    l2_normalize,
    mac,
    make_pooling,
    rmac,
    rmac_regions,
    similarity_maps,
    spoc,
)


def maps(seed=0, shape=(2, 3, 4, 5), dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.01


def test_by_pencil():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 8.0]]]])
    assert mac(x).tolist() == [[4, 8]]
    assert spoc(x).tolist() == [[2.5, 2]]
    torch.testing.assert_close(gem(x), torch.tensor([[(100 / 4) ** (1 / 3), (512 / 4) ** (1 / 3)]]))
    torch.testing.assert_close(gem(x, p=2), torch.tensor([[(30 / 4) ** 0.5, 4.0]]))


def test_gem_lies_between_its_limits():
    x = maps()
    torch.testing.assert_close(gem(x, p=1), spoc(x))
    torch.testing.assert_close(gem(x, p=5000), mac(x), rtol=1e-3, atol=0)
    pooled = [gem(x, p=p) for p in (1, 2, 3, 5, 10, 100)]
    for small, large in zip(pooled, pooled[1:], strict=False):
        assert (small < large).all()


def test_gem_survives_large_values_and_powers():
    x = maps(dtype=torch.float32) * 1e4
    torch.testing.assert_close(gem(x, p=50), gem(x.double(), p=50).float())
    half = gem((x / 100).half(), p=3)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, gem(x / 100, p=3), rtol=2e-3, atol=0)


def test_gem_lifts_what_is_not_positive():
    x = torch.tensor([[[[-5.0, 2.0]]], [[[-1.0, 0.0]]]])
    torch.testing.assert_close(gem(x, p=1), torch.tensor([[1.0], [1e-6]]), rtol=1e-5, atol=0)
    assert torch.isfinite(gem(x, p=30)).all()


@given(st.floats(0.01, 100), st.integers(0, 100))
def test_gem_scales_with_its_input(factor, seed):
    x = maps(seed)
    torch.testing.assert_close(gem(factor * x, eps=1e-9), factor * gem(x, eps=1e-9))


def test_rmac_regions_by_pencil():
    # A square map: l x l squares of side 2 * 12 / (l + 1) on level l.
    assert rmac_regions(12, 12, levels=2) == [(0, 0, 12), (0, 0, 8), (0, 4, 8), (4, 0, 8), (4, 4, 8)]
    # 12 x 18: two squares of side 12 share 1/2 (three would share 3/4), so m = 2, and level 2 has 2 x 3 of side 8.
    assert rmac_regions(12, 18, levels=1) == [(0, 0, 12), (0, 6, 12)]
    assert rmac_regions(12, 18, levels=2)[2:] == [(top, left, 8) for top in (0, 4) for left in (0, 5, 10)]
    assert [(left, top, side) for top, left, side in rmac_regions(12, 18, 1)] == rmac_regions(18, 12, 1)
    # 10 x 37: steps of 27 / 4 share 0.325, steps of 27 / 5 share 0.46, which is nearer to 0.4.
    assert len(rmac_regions(10, 37, levels=1)) == 6
    assert [len(rmac_regions(20, 20, levels)) for levels in (1, 2, 3)] == [1, 5, 14]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4))
def test_rmac_regions_stay_inside_and_reach_every_edge(height, width, levels):
    regions = rmac_regions(height, width, levels)
    assert all(0 <= top <= height - side and 0 <= left <= width - side for top, left, side in regions)
    first = [region for region in regions if region[2] == min(height, width)]
    assert max(top + side for top, _, side in first) == height
    assert max(left + side for _, left, side in first) == width


def slow_rmac(x, levels):
    """One image (C, H, W), region by region and channel by channel."""
    total = torch.zeros(len(x), dtype=x.dtype)
    for top, left, side in rmac_regions(x.shape[1], x.shape[2], levels):
        region = [max(float(v) for row in channel[top : top + side] for v in row[left : left + side]) for channel in x]
        length = math.sqrt(sum(v * v for v in region))
        total += torch.tensor([v / length for v in region], dtype=x.dtype)
    return total


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("size", [(4, 5), (9, 6), (1, 7)])
def test_rmac_equals_the_slow_twin(levels, size):
    x = maps(shape=(2, 3, *size))
    torch.testing.assert_close(rmac(x, levels), torch.stack([slow_rmac(image, levels) for image in x]))


def test_rmac_of_one_region_is_mac_normalised():
    x = maps(shape=(2, 3, 6, 6))
    torch.testing.assert_close(rmac(x, levels=1), l2_normalize(mac(x)))


def test_rmac_whitens_every_region():
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    x, seen = maps(shape=(2, 3, 6, 6)), []

    def whiten(regions):
        seen.append(regions)
        return regions @ rotation[:, :2]

    torch.testing.assert_close(RMAC(whitening=whiten)(x), rmac(x) @ rotation[:, :2])
    assert len(seen) == 14 and all(torch.allclose(r.norm(dim=1), torch.ones(2, dtype=torch.float64)) for r in seen)


def slow_crow(x, eps=1e-6):
    """One image (C, H, W) by the equations of the paper, place by place."""
    channels, height, width = x.shape
    places = [(i, j) for i in range(height) for j in range(width)]
    strength = {(i, j): sum(float(x[c, i, j]) for c in range(channels)) for i, j in places}
    norm = math.sqrt(sum(s * s for s in strength.values()))
    active = [sum(float(x[c, i, j]) > 0 for i, j in places) / len(places) for c in range(channels)]
    out = []
    for c in range(channels):
        rarity = math.log((channels * eps + sum(active)) / (eps + active[c]))
        out.append(rarity * sum(math.sqrt(strength[p] / norm) * float(x[c, p[0], p[1]]) for p in places))
    return torch.tensor(out, dtype=x.dtype)


def test_crow_equals_the_slow_twin():
    x = (maps(shape=(3, 5, 4, 6)) - 0.6).clamp(min=0)  # a map out of a ReLU: most places are 0
    x[0, 1] = 0  # a dead channel
    x[2, :, 1:3] = 0  # places without any activation
    torch.testing.assert_close(crow(x), torch.stack([slow_crow(image) for image in x]))


def test_crow_by_pencil():
    # Two channels on two places: x = (3, 0) and (0, 4). S = (3, 4) / 5, each fires at half of the places.
    x = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]]])
    expected = math.log(2) * torch.tensor([[3 * math.sqrt(3 / 5), 4 * math.sqrt(4 / 5)]])
    torch.testing.assert_close(crow(x), expected, rtol=1e-5, atol=0)


def test_crow_survives_empty_maps_and_half_precision():
    x = torch.zeros(1, 3, 4, 4, requires_grad=True)
    crow(x).sum().backward()
    assert torch.isfinite(x.grad).all() and crow(x).tolist() == [[0, 0, 0]]
    assert crow(maps().half()).dtype == torch.float32


@pytest.mark.parametrize("pool", [mac, spoc, gem, rmac, crow, lambda x: gem(x, p=1.7)])
def test_gradient_equals_finite_differences(pool):
    assert torch.autograd.gradcheck(pool, maps().requires_grad_())


def test_gradient_of_the_exponent():
    x, p = maps(), torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: gem(x, p), p)
    module = GeM(p=2.5)
    module(x.float()).sum().backward()
    assert module.p.grad.item() > 0  # the generalised mean grows with p
    assert [name for name, _ in module.named_parameters()] == ["p"]
    assert "p=2.5" in repr(module)


@pytest.mark.parametrize(
    ("name", "function"), [("gem", gem), ("mac", mac), ("spoc", spoc), ("rmac", rmac), ("crow", crow)]
)
def test_make_pooling(name, function):
    torch.testing.assert_close(make_pooling(name)(maps()), function(maps()))


def test_l2_normalize():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(l2_normalize(x), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    torch.testing.assert_close(l2_normalize(maps()).norm(dim=-1), torch.ones(2, 3, 4, dtype=torch.float64))


def test_similarity_maps_by_pencil():
    # a holds the directions e1, e2; b holds e1 (longer), minus e2, and the diagonal between them.
    a = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    b = torch.tensor([[[5.0], [0.0], [1.0]], [[0.0], [-1.0], [1.0]]])
    map_a, map_b = similarity_maps(a, b)
    torch.testing.assert_close(map_a, torch.tensor([[1.0, math.sqrt(0.5)]]))
    torch.testing.assert_close(map_b, torch.tensor([[1.0], [0.0], [math.sqrt(0.5)]]))


def test_similarity_maps_of_an_image_with_its_mirror_image():
    a = maps(shape=(6, 4, 5))
    map_a, map_b = similarity_maps(a, a.flip(2))
    torch.testing.assert_close(map_a, torch.ones(4, 5, dtype=torch.float64))
    torch.testing.assert_close(map_b, torch.ones(4, 5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mac(torch.rand(3, 4, 4)), r"\(3, 4, 4\)"),
        (lambda: spoc(torch.rand(1, 3, 0, 4)), r"H, W > 0"),
        (lambda: gem(torch.rand(1, 3, 4, 4), p=0), "p > 0"),
        (lambda: GeM(p=-1), "p > 0"),
        (lambda: make_pooling("netvlad"), "netvlad.*gem, mac, spoc, rmac, crow"),
        (lambda: rmac(torch.rand(1, 3, 4)), r"\(1, 3, 4\)"),
        (lambda: rmac(torch.rand(1, 3, 4, 4), levels=0), "levels >= 1.*got 0"),
        (lambda: rmac(torch.rand(1, 3, 4, 4), overlap=1.0), "overlap in.*1.0"),
        (lambda: crow(torch.rand(3, 4, 4)), r"\(3, 4, 4\)"),
        (lambda: similarity_maps(torch.rand(3, 2, 2), torch.rand(4, 2, 2)), "same C"),
        (lambda: similarity_maps(torch.rand(1, 3, 2, 2), torch.rand(3, 2, 2)), "same C"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
