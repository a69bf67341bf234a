"""Images to descriptors: batched by size over the whole list, averaged over scales, returned in the order given."""

from __future__ import annotations

import copy
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from threading import Lock

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.transforms.v2 import functional as T

from retrieval_utils.cache import DescriptorCache
from retrieval_utils.networks import DescriptorNetwork, resolve_device
from retrieval_utils.pooling import l2_normalize
from retrieval_utils.transforms import MEAN, STD, UNREADABLE, check_box, load_image, resized_size, upright_size

# Pixels of a batch. On a CPU a batch of large images is no faster than one, and every thread holds its own; a card is
# filled by more (16 million are 21 images of 1024 x 768; a guess, no card has been measured yet).
PIXELS = {"cpu": 1 << 19, "cuda": 1 << 24}
HALF = {"cpu": torch.bfloat16, "cuda": torch.float16, "mps": torch.float16}


def extract_descriptors(
    network: DescriptorNetwork,
    images: Sequence[str | Path],
    boxes: Sequence[Sequence[float] | None] | None = None,
    scales: Sequence[float] = (1.0,),
    image_size: int = 1024,
    batch_size: int = 64,
    device: str = "auto",
    progress: bool = False,
    *,
    workers: int | None = None,
    autocast: bool | None = None,
    cache: str | Path | None = None,
) -> torch.Tensor:
    """Descriptors (N, D) float32 on the CPU, L2-normalised, in the order of `images`.

    Each image is turned upright as its EXIF says, cropped to its box (in pixels of the upright photo), resized so that
    its longer side is `image_size` pixels, and described at every scale; the descriptors of the scales are averaged and
    normalised again (Radenovic et al. 2018, with exponent 1).
    The network is used in evaluation mode and stays as it is.

    batch_size: at most so many images at once, fewer if they are large. workers: threads that decode, and on a CPU
    describe; None is torch's number of threads there, and at most 16 beside a card. The result does not depend on it.
    autocast: half precision; None is on a card only. cache: a folder where every descriptor is kept once it is made;
    the next call reads those of the same network, settings and image content from there, and makes the others.
    Raises FileNotFoundError, or ValueError naming a corrupt file.
    """
    if len(images) == 0:
        raise ValueError("There are no images to describe; give at least one path.")
    if boxes is not None and len(boxes) != len(images):
        raise ValueError(f"{len(images)} images but {len(boxes)} boxes; give one box an image, or None.")
    if len(scales) == 0 or min(scales) <= 0:
        raise ValueError(f"The scales {tuple(scales)} cannot be used; give at least one, all above 0, such as (1.0,).")
    target = resolve_device(device)
    half = _half(target, autocast)
    # A copy, because folding, channels_last and another device would stay with the network of the caller.
    describer = _fold_batch_norm(copy.deepcopy(network).eval()).to(target, memory_format=torch.channels_last)
    settings = {"scales": [float(scale) for scale in scales], "image_size": image_size, "half": str(half)}
    store = DescriptorCache(cache, network, settings) if cache is not None else None
    job = _Job(describer, images, boxes, scales, image_size, target, half, store)
    descriptors = torch.empty(len(images), network.dim)
    for indices, rows in _in_threads(job, min(batch_size, len(images)), workers, progress):
        descriptors[indices] = rows  # (B, D)
    return descriptors


def precision(device: str = "auto", autocast: bool | None = None) -> str:
    """What `extract_descriptors` computes in with these settings, for a protocol card: "float32", "float16"..."""
    half = _half(resolve_device(device), autocast)
    return "float32" if half is None else str(half).removeprefix("torch.")


def _half(device: torch.device, autocast: bool | None) -> torch.dtype | None:
    return HALF[device.type] if (device.type == "cuda" if autocast is None else autocast) else None


def _fold_batch_norm(network: DescriptorNetwork) -> DescriptorNetwork:
    """Scale and shift of every batch norm of a ResNet, put into the convolution before it: a fifth less time on a CPU.

    Networks of timm stay as they are.
    """
    trunk = network.trunk
    blocks = [module for module in trunk.modules() if isinstance(module, BasicBlock | Bottleneck)]
    for block in [trunk, *blocks] if blocks else []:
        pairs = [(block, f"conv{number}", f"bn{number}") for number in (1, 2, 3)]
        if getattr(block, "downsample", None) is not None:
            pairs.append((block.downsample, "0", "1"))
        for parent, conv, norm in pairs:
            if isinstance(getattr(parent, norm, None), nn.BatchNorm2d):
                setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm)))
                setattr(parent, norm, nn.Identity())
    return network


@dataclass(frozen=True)
class _Job:
    """What every thread needs to turn positions in the list into descriptors."""

    network: DescriptorNetwork
    images: Sequence[str | Path]
    boxes: Sequence[Sequence[float] | None] | None
    scales: Sequence[float]
    image_size: int
    device: torch.device
    half: torch.dtype | None
    store: DescriptorCache | None
    card: Lock = field(default_factory=Lock)  # one batch at a time on a card, while the other threads decode

    def box(self, index: int) -> Sequence[float] | None:
        return self.boxes[index] if self.boxes is not None else None

    def look(self, index: int) -> tuple[str | None, torch.Tensor | None, tuple[int, int]]:
        """Key and descriptor in the cache, if there is one, and else the size (W, H) that the image will have."""
        image, box = self.images[index], self.box(index)
        key = self.store.key(image, box) if self.store else None
        known = self.store.get(key) if self.store else None
        return key, known, (0, 0) if known is not None else _size(image, box, self.image_size)

    def describe(self, indices: list[int], keys: list[str | None]) -> tuple[list[int], torch.Tensor]:
        """Descriptors (B, D) of the images at these positions, all of one size, kept in the cache if there is one."""
        pixels = [T.pil_to_tensor(load_image(self.images[i], self.box(i), self.image_size)) for i in indices]
        rows = torch.empty(len(indices), self.network.dim)
        by_shape = defaultdict(list)  # one shape, unless a file changed since its header was read
        for place, image in enumerate(pixels):
            by_shape[image.shape].append(place)
        for places in by_shape.values():
            rows[places] = self._forward(torch.stack([pixels[place] for place in places]))  # (B, D)
        if not rows.isfinite().all():
            worst = indices[int((~rows.isfinite()).any(1).nonzero()[0])]
            raise ValueError(f"The network gives no finite descriptor for '{self.images[worst]}'; check its weights.")
        if self.store:
            for key, row in zip(keys, rows, strict=True):
                self.store.put(key, row)
        return indices, rows

    @torch.inference_mode()
    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 -> (B, D) float32."""
        if self.device.type == "cpu":
            return self._multi_scale(pixels, self.half)
        with self.card:
            rows = self._multi_scale(pixels, self.half)
            # Half precision ends at 65,504; what goes beyond it is described in full precision.
            return rows if rows.isfinite().all() else self._multi_scale(pixels, None)

    def _multi_scale(self, pixels: torch.Tensor, half: torch.dtype | None) -> torch.Tensor:
        batch = T.normalize(T.to_dtype(pixels.to(self.device), torch.float32, scale=True), MEAN, STD)  # (B, 3, H, W)
        batch = batch.contiguous(memory_format=torch.channels_last)
        total = torch.zeros(len(batch), self.network.dim, device=self.device)
        for scale in self.scales:
            resized = batch if scale == 1 else F.interpolate(batch, scale_factor=scale, mode="bilinear", antialias=True)
            with torch.autocast(self.device.type, half, enabled=half is not None):
                total += self.network(resized).float()  # (B, D)
        return l2_normalize(total).cpu()


def _in_threads(
    job: _Job, batch_size: int, workers: int | None, progress: bool
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Positions and descriptors (B, D), as they are done; when one image fails, what the others gave is kept."""
    from tqdm import tqdm

    on_cpu = job.device.type == "cpu"
    workers = workers or (torch.get_num_threads() if on_cpu else min(16, os.cpu_count() or 1))
    with (
        _one_torch_thread_each() if on_cpu else nullcontext() as limit,
        ThreadPoolExecutor(workers, initializer=limit) as pool,
        tqdm(total=len(job.images), desc="descriptors", disable=not progress) as bar,
    ):
        try:
            keys, sizes = {}, {}
            for index, (key, known, size) in enumerate(pool.map(job.look, range(len(job.images)))):
                if known is None:
                    keys[index], sizes[index] = key, size
                else:
                    bar.update()
                    yield [index], known[None]
            batches = _batches(sizes, batch_size, PIXELS["cpu" if on_cpu else "cuda"])
            for done in as_completed([pool.submit(job.describe, batch, [keys[i] for i in batch]) for batch in batches]):
                bar.update(len(done.result()[0]))
                yield done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _batches(sizes: dict[int, tuple[int, int]], batch_size: int, pixels: int) -> list[list[int]]:
    """Positions of equally sized images, largest first, so that what does not fit into memory shows at once."""
    order = sorted(sizes, key=lambda index: (-sizes[index][0] * sizes[index][1], sizes[index], index))
    batches = []
    for (width, height), group in groupby(order, key=sizes.__getitem__):
        equal, count = list(group), max(1, min(batch_size, pixels // (width * height)))
        batches += [equal[first : first + count] for first in range(0, len(equal), count)]
    return batches


def _size(path: str | Path, box: Sequence[float] | None, image_size: int) -> tuple[int, int]:
    """(W, H) that `load_image` will give, from the header alone."""
    try:
        with Image.open(path) as image:
            if box is None:
                image.draft("RGB", resized_size(image.size, 2 * image_size))
                return resized_size(upright_size(image), image_size)
            width, height = upright_size(image)
            check_box(box, (width, height), path)
            right, lower = min(math.ceil(box[2]), width), min(math.ceil(box[3]), height)
    except UNREADABLE:
        load_image(path, box, image_size)  # raises the sentence that names the file
        raise
    return resized_size((right - int(box[0]), lower - int(box[1])), image_size)


@contextmanager
def _one_torch_thread_each():
    """On a CPU, T threads with a batch each are faster than T threads inside every layer of one batch."""
    before = torch.get_num_threads()
    try:
        yield lambda: torch.set_num_threads(1)
    finally:
        torch.set_num_threads(before)
