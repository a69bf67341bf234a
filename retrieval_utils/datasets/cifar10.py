"""CIFAR-10 (Krizhevsky 2009) in the folder layout of torchvision, `cifar-10-batches-py`; never downloaded here."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image

from retrieval_utils.datasets.base import TrainingSet
from retrieval_utils.datasets.revisited import load_pickle_safely

FOLDER = "cifar-10-batches-py"
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}


def load_cifar10(root: Path, split: str, per_class: int) -> TrainingSet:
    """The first `per_class` images of each class of `split` ("train" or "test"), in the order of the files.

    The batches are read without executing anything in them. Images are drawn once as PNG files into
    <root>/cifar-10-png, as everything else here works on files. Raises FileNotFoundError where the batches are not,
    ValueError for one that is not CIFAR-10's.
    """
    if split not in BATCHES:
        raise ValueError(f"CIFAR-10 has no split '{split}'; choose train or test.")
    folder = root / FOLDER
    missing = [name for name in (*BATCHES[split], "batches.meta") if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"CIFAR-10 is not in '{root}' ('{FOLDER}/{missing[0]}' is missing); get it with torchvision, "
            "CIFAR10(root, download=True), or leave it out."
        )
    names = tuple(load_pickle_safely(folder / "batches.meta")["label_names"])
    batches = [_batch(folder / name, len(names)) for name in BATCHES[split]]
    pixels, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))  # (N, 32, 32, 3), (N,)
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in range(len(names))]))
    paths, digest = [], hashlib.sha256()
    for place in chosen:
        path = root / "cifar-10-png" / split / f"{place:05d}.png"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            Image.fromarray(pixels[place]).save(part, format="png")
            os.replace(part, path)
        paths.append(path)
        digest.update(pixels[place].tobytes() + bytes([labels[place]]))
    return TrainingSet(f"cifar10/{split}", tuple(paths), labels[chosen], names, digest.hexdigest())


def _batch(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 32, 32, 3) uint8 and labels (n,) int64 of one file."""
    content = load_pickle_safely(path)
    content = content if isinstance(content, dict) else {}
    data, labels = np.asarray(content.get("data")), np.asarray(content.get("labels"))
    if data.dtype != np.uint8 or data.shape != (labels.size, 3072) or not np.isin(labels, range(classes)).all():
        raise ValueError(f"'{path}' is no batch of CIFAR-10; get it again with torchvision.")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy(), labels.astype(np.int64)
