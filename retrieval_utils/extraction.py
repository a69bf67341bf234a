"""Images to descriptors: decoded in threads, batched by size, averaged over scales, returned in the order given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.nn import functional as F

from retrieval_utils.networks import DescriptorNetwork, resolve_device
from retrieval_utils.pooling import l2_normalize
from retrieval_utils.transforms import load_image, to_tensor

CHUNK = 512  # images decoded at a time: bounds memory, and is enough to fill a batch of every common size


@torch.inference_mode()
def extract_descriptors(
    network: DescriptorNetwork,
    images: Sequence[str | Path],
    boxes: Sequence[Sequence[float]] | None = None,
    scales: Sequence[float] = (1.0,),
    image_size: int = 1024,
    batch_size: int = 64,
    device: str = "auto",
    progress: bool = False,
) -> torch.Tensor:
    """Descriptors (N, D) float32 on the CPU, L2-normalised, in the order of `images`.

    Each image is cropped to its box, resized so that its longer side is `image_size` pixels, and described at every
    scale; the descriptors of the scales are averaged and normalised again (Radenovic et al. 2018, with exponent 1).
    The network is used in evaluation mode and left in the mode it was in. Raises ValueError naming a corrupt file.
    """
    if len(images) == 0:
        raise ValueError("There are no images to describe; give at least one path.")
    if boxes is not None and len(boxes) != len(images):
        raise ValueError(f"{len(images)} images but {len(boxes)} boxes; give one box an image, or None.")
    target, was_training = resolve_device(device), network.training
    network = network.to(target).eval()
    descriptors = torch.empty(len(images), network.dim)
    try:
        for indices, batch in _batches(images, boxes, image_size, batch_size, progress):
            batch = batch.to(target, memory_format=torch.channels_last)  # (B, 3, H, W)
            descriptors[indices] = _multi_scale(network, batch, scales).cpu()  # (B, D)
    finally:
        network.train(was_training)
    return descriptors


def _multi_scale(network: DescriptorNetwork, batch: torch.Tensor, scales: Sequence[float]) -> torch.Tensor:
    total = torch.zeros(len(batch), network.dim, device=batch.device)
    for scale in scales:
        resized = batch if scale == 1 else F.interpolate(batch, scale_factor=scale, mode="bilinear", antialias=True)
        total += network(resized)  # (B, D)
    return l2_normalize(total)


def _batches(
    images: Sequence, boxes: Sequence | None, image_size: int, batch_size: int, progress: bool
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Batches of equally sized images with their positions, so that mixed aspect ratios need no padding."""
    from tqdm import tqdm

    def load(index: int) -> torch.Tensor:
        return to_tensor(load_image(images[index], boxes[index] if boxes is not None else None, image_size))

    with ThreadPoolExecutor() as pool, tqdm(total=len(images), desc="descriptors", disable=not progress) as bar:
        for start in range(0, len(images), CHUNK):
            by_size = defaultdict(list)
            indices = range(start, min(start + CHUNK, len(images)))
            for index, tensor in zip(indices, pool.map(load, indices), strict=True):
                by_size[tensor.shape].append((index, tensor))
            for group in by_size.values():
                for first in range(0, len(group), batch_size):
                    batch = group[first : first + batch_size]
                    yield [index for index, _ in batch], torch.stack([tensor for _, tensor in batch])
                    bar.update(len(batch))
