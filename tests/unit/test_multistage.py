"""Multi-stage back-propagation against one pass over the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from retrieval_utils.losses import QuantizedAPLoss, SmoothAPLoss
from retrieval_utils.multistage import check_repeatable, freeze_normalization, multistage_backward
from retrieval_utils.networks import load_network


@pytest.fixture(scope="module")
def network():
    network = load_network("resnet18-thin").train()
    freeze_normalization(network)
    return network


@pytest.fixture(scope="module")
def batch():
    images = torch.randn(14, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return images, torch.arange(14) % 4


def gradients(network: nn.Module) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    return found


@pytest.mark.parametrize("criterion", [SmoothAPLoss(0.1), QuantizedAPLoss()])
@pytest.mark.parametrize("chunk", [1, 5, 14, 100])
@pytest.mark.filterwarnings("ignore:.*of the scores lie in two")
def test_gradients_are_those_of_one_pass(network, batch, criterion, chunk):
    images, labels = batch
    expected = criterion(network(images), labels)
    expected.backward()
    wanted = gradients(network)
    loss = multistage_backward(network, images, labels, criterion, chunk)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6) and not loss.requires_grad
    for mine, one_pass in zip(gradients(network), wanted, strict=True):
        torch.testing.assert_close(mine, one_pass, atol=1e-5 * float(one_pass.abs().max()), rtol=0)


def most_kept(network, images, labels, chunk: int) -> int:
    """Bytes that wait for backward at the same time, at most, without the weights."""
    alive, most = [0], [0]

    class Kept:
        def __init__(self, tensor):
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            alive[0] += self.size
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        multistage_backward(network, images, labels, SmoothAPLoss(0.1), chunk)
    network.zero_grad()
    return most[0] - sum(p.numel() * p.element_size() for p in network.parameters())


def test_memory_follows_the_chunk(network, batch):
    assert most_kept(network, *batch, 2) < most_kept(network, *batch, 14) / 4


def test_memory_does_not_follow_the_batch(network, batch):
    """The graph of the loss, of (B, B) scores, is gone before the images come again, and is smaller than theirs."""
    images, labels = batch
    assert most_kept(network, images.repeat(4, 1, 1, 1), labels.repeat(4), 2) == most_kept(network, *batch, 2) > 0


def test_layers_that_differ_from_pass_to_pass_are_refused(batch):
    fresh = load_network("resnet18-thin").train()
    with pytest.raises(ValueError, match=r"'trunk\..*BatchNorm2d.*freeze_normalization"):
        multistage_backward(fresh, *batch, SmoothAPLoss(), 4)
    check_repeatable(fresh.eval())
    with pytest.raises(ValueError, match="Dropout"):
        check_repeatable(nn.Sequential(nn.Flatten(), nn.Dropout(0.1)))
    check_repeatable(nn.Sequential(nn.Flatten(), nn.Dropout(0.0)))


def test_an_empty_chunk_is_refused(network, batch):
    with pytest.raises(ValueError, match="at least 1 image, got 0"):
        multistage_backward(network, *batch, SmoothAPLoss(), 0)


def test_frozen_normalization_still_learns_scale_and_shift():
    fresh = load_network("resnet18-thin").train()
    freeze_normalization(fresh)
    layers = [layer for layer in fresh.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert layers and not any(layer.training for layer in layers)
    assert all(layer.weight.requires_grad and layer.bias.requires_grad for layer in layers)
