"""Extraction on a CUDA card: equal to the plain loop there, in full and in half precision, whatever the workers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.networks import load_network
from retrieval_utils.pooling import l2_normalize
from retrieval_utils.transforms import load_image, to_tensor

pytestmark = pytest.mark.gpu
SCALES = (1.0, 2**-0.5, 0.5)


@pytest.fixture(scope="module")
def paths():
    from retrieval_utils.datasets import load_benchmark

    return load_benchmark("toy-landmarks", size="tiny").images[:24]


@pytest.fixture(scope="module")
def network():
    return load_network("resnet50")


@torch.inference_mode()
def plain_loop(network, paths, image_size):
    """Batch 1, fp32, one after the other, on the CPU."""
    rows = []
    for path in paths:
        image, total = to_tensor(load_image(path, image_size=image_size))[None], 0  # (1, 3, H, W)
        for scale in SCALES:
            resized = image if scale == 1 else F.interpolate(image, scale_factor=scale, mode="bilinear", antialias=True)
            total = total + network(resized)  # (1, D)
        rows.append(l2_normalize(total)[0])
    return torch.stack(rows)


@pytest.mark.parametrize(("autocast", "least"), [(False, 0.9999), (None, 0.999), (True, 0.999)])
def test_descriptors_equal_the_plain_loop_on_the_cpu(network, paths, autocast, least):
    fast = extract_descriptors(network, paths, scales=SCALES, image_size=128, device="cuda", autocast=autocast)
    assert (fast * plain_loop(network, paths, 128)).sum(1).min() >= least
    assert fast.device.type == "cpu" and fast.dtype == torch.float32
    assert next(network.parameters()).device.type == "cpu"  # the caller's stays where it was


def test_the_number_of_workers_changes_nothing(network, paths):
    few, many = (
        extract_descriptors(network, paths, image_size=96, device="cuda", autocast=False, workers=workers, batch_size=5)
        for workers in (1, 8)
    )
    assert (few * many).sum(1).min() > 0.99999


def test_what_overflows_half_precision_is_described_in_full(paths):
    network = load_network("resnet18")
    network.trunk.bn1.weight.data *= 1e6
    half = extract_descriptors(network, paths[:4], image_size=96, device="cuda", autocast=True)
    whole = extract_descriptors(network, paths[:4], image_size=96, device="cuda", autocast=False)
    assert half.isfinite().all() and (half * whole).sum(1).min() > 0.999
