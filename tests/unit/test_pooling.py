"""Pooling against closed forms, its two limits, and finite differences."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrieval_utils.pooling import GeM, gem, l2_normalize, mac, make_pooling, similarity_maps, spoc


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


@pytest.mark.parametrize("pool", [mac, spoc, gem, lambda x: gem(x, p=1.7)])
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


@pytest.mark.parametrize(("name", "function"), [("gem", gem), ("mac", mac), ("spoc", spoc)])
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
        (lambda: make_pooling("rmac"), "rmac.*gem, mac, spoc"),
        (lambda: similarity_maps(torch.rand(3, 2, 2), torch.rand(4, 2, 2)), "same C"),
        (lambda: similarity_maps(torch.rand(1, 3, 2, 2), torch.rand(3, 2, 2)), "same C"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
