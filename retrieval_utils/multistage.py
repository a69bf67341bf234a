"""Multi-stage back-propagation: the loss sees the whole batch, the graph in memory only a chunk of its images.

Revaud, Almazan, Rezende, de Souza (ICCV 2019), section 3.3; also known as gradient caching.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

RANDOM_LAYERS = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
RANDOM_NAMES = ("DropPath", "StochasticDepth")  # timm's, torchvision's


def multistage_backward(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    criterion: Callable[[Tensor, Tensor], Tensor],
    chunk: int,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Tensor:
    """Adds to `.grad` what one pass with `criterion(network(images), labels).backward()` would; returns the loss.

    images (B, 3, H, W), labels (B,), chunk: images at a time. First all descriptors without a graph, then the loss and
    its gradient with regard to each descriptor, then the images once more, a chunk at a time, with that gradient.
    Costs a second forward pass; memory follows `chunk`, and the (B, B) scores. backward: Lightning's manual_backward.
    Raises ValueError for chunk < 1, and for a network with layers that would not do the same twice, or would see the
    chunk instead of the batch: batch normalisation and dropout in training mode.
    """
    if chunk < 1:
        raise ValueError(f"A chunk has at least 1 image, got {chunk}.")
    check_repeatable(network)
    parts = images.split(chunk)
    with torch.no_grad():
        descriptors = torch.cat([network(part) for part in parts])  # (B, D)
    descriptors.requires_grad_()
    with torch.enable_grad():
        loss = criterion(descriptors, labels)
    (gradient,) = torch.autograd.grad(loss, descriptors)  # (B, D)
    for part, wanted in zip(parts, gradient.split(chunk), strict=True):
        backward((network(part) * wanted).sum())  # its gradient is `wanted` carried on through the network
    return loss.detach()


def check_repeatable(network: nn.Module) -> None:
    """Raises ValueError if the network has batch normalisation, dropout or the like in training mode."""
    for name, layer in network.named_modules():
        noisy = isinstance(layer, RANDOM_LAYERS) or type(layer).__name__ in RANDOM_NAMES
        if noisy and layer.training and getattr(layer, "p", 1) != 0:
            raise ValueError(
                f"The layer '{name}' ({type(layer).__name__}) is in training mode, so chunks of a batch would not give "
                "what the batch gives: call freeze_normalization(network) first, and do without dropout."
            )


def freeze_normalization(network: nn.Module) -> None:
    """Puts all batch normalisation of `network` in evaluation mode: statistics stay, scale and shift learn."""
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
