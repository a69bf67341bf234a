"""Extraction at three scales against the loop of the field: batch 1, fp32, one image after the other, same run.

The loop decodes in worker processes, one a core, as the reference code does; network, images and resize rule are the
same, and so are the descriptors (checked). Photos of five aspect ratios are drawn. Prints the ratio of every case and
appends it to results/bench.csv. Other work on the machine changes the ratio: run it alone.

    .venv/bin/python benchmarks/extraction_speed.py [--rounds 3] [CASE ...]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import record
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.networks import load_network
from retrieval_utils.pooling import l2_normalize
from retrieval_utils.transforms import load_image, to_tensor

SCALES = (1.0, 2**-0.5, 0.5)
SIDES = ((1024, 768), (768, 1024), (1024, 683), (683, 1024), (1024, 576))
CASES = {  # network, pixels of the longer side, images
    "benchmark": ("resnet50", 1024, 16),  # as Oxford and Paris are scored
    "medium": ("resnet50", 362, 60),
    "laptop": ("resnet18-thin", 96, 200),  # as the notebooks extract
}


class Photos(Dataset):
    """Item i: image i as the evaluation reads it, (3, H, W)."""

    def __init__(self, paths: list[Path], image_size: int):
        self.paths, self.image_size = paths, image_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return to_tensor(load_image(self.paths[index], image_size=self.image_size))


@torch.inference_mode()
def one_after_the_other(network, paths: list[Path], image_size: int) -> torch.Tensor:
    """What the reference code does: (N, D)."""
    device = next(network.parameters()).device
    rows = []
    for image in DataLoader(Photos(paths, image_size), batch_size=1, num_workers=os.cpu_count()):
        image, total = image.to(device), 0  # (1, 3, H, W)
        for scale in SCALES:
            resized = image if scale == 1 else F.interpolate(image, scale_factor=scale, mode="bilinear", antialias=True)
            total = total + network(resized)  # (1, D)
        rows.append(l2_normalize(total)[0].cpu())
    return torch.stack(rows)


def draw_photos(folder: Path, count: int) -> list[Path]:
    """JPEGs of five sizes, mixed, as detailed as photos are."""
    random, paths = np.random.default_rng(0), []
    for number in range(count):
        width, height = SIDES[random.integers(len(SIDES))]
        coarse = Image.fromarray(random.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + random.normal(
            0, 6, (height, width, 1)
        )
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def compare(name: str, image_size: int, paths: list[Path], rounds: int) -> tuple[float, float, float]:
    """Seconds an image, ours and theirs, and the smallest cosine between the two; the best of `rounds` turns each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = load_network(name).to(device)
    described, best = {}, {"ours": float("inf"), "theirs": float("inf")}
    for _ in range(rounds):
        for who in best:
            began = time.perf_counter()
            if who == "ours":
                described[who] = extract_descriptors(network, paths, scales=SCALES, image_size=image_size)
            else:
                described[who] = one_after_the_other(network, paths, image_size)
            best[who] = min(best[who], (time.perf_counter() - began) / len(paths))
    cosine = (described["ours"] * described["theirs"]).sum(1).min().item()
    return best["ours"], best["theirs"], cosine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    unknown = [case for case in options.cases if case not in CASES]
    if unknown:
        parser.error(f"there is no case '{unknown[0]}'; there are {', '.join(CASES)}")
    with tempfile.TemporaryDirectory() as folder:
        photos = draw_photos(Path(folder), max(count for _, _, count in CASES.values()))
        for case in options.cases or CASES:
            name, size, count = CASES[case]
            ours, theirs, cosine = compare(name, size, photos[:count], options.rounds)
            title = f"extraction: {name}, {size} px, 3 scales, {count} images"
            print(f"{title}: smallest cosine {cosine:.6f}", flush=True)
            if cosine < (0.999 if torch.cuda.is_available() else 0.9999):
                raise SystemExit(f"The descriptors differ: the smallest cosine is {cosine:.6f}.")
            record(title, ours, theirs, "s/image")


if __name__ == "__main__":
    main()
