"""Grocery Store (Klasson, Zhang, Kjellström, WACV 2019): 5,421 smartphone photos of 81 products, split for retrieval.

The 50 kinds of fruit and vegetables are the general domain: their official training photos are the pretraining pool.
The 31 packaged products are the instances: even class numbers are for fine-tuning, odd ones only for the test, so that
siblings of one brand fall on both sides and no test product is ever trained on.

    part or benchmark          images
    categories                 fruit and vegetables, official train list; label = kind
    instances                  even packages, official train list; label = product
    grocery-store              queries: odd packages, test list; database: odd packages, train and val lists,
                               and as distractors fruit and vegetables of the val and test lists
    grocery-store-validation   the same with even packages: queries val list, database test list, distractors val list;
                               for choosing settings, since no test product is in it
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from retrieval_utils.datasets.base import Benchmark, TrainingSet
from retrieval_utils.evaluation import GroundTruth

FOLDER = "GroceryStoreDataset"
URL = "https://github.com/marcusklasson/GroceryStoreDataset/archive/refs/heads/master.zip"

Row = tuple[str, int]  # path below dataset/, class number


def load_grocery_benchmark(root: Path, name: str = "grocery-store", download: bool = False) -> Benchmark:
    """`grocery-store`, or `grocery-store-validation`; one set-up, "original": all photos of the product are positive.

    Raises FileNotFoundError naming the folder when the photos are not there, ValueError for an unknown name.
    """
    if name not in ("grocery-store", "grocery-store-validation"):
        raise ValueError(f"There is no benchmark '{name}'; choose grocery-store or grocery-store-validation.")
    folder, lists = _read(root, download)
    packages = {split: [row for row in rows if "/Packages/" in row[0]] for split, rows in lists.items()}
    produce = {split: [row for row in rows if "/Packages/" not in row[0]] for split, rows in lists.items()}
    if name == "grocery-store":
        queries = [row for row in packages["test"] if row[1] % 2]
        positives = [row for row in packages["train"] + packages["val"] if row[1] % 2]
        distractors = produce["val"] + produce["test"]
    else:
        queries = [row for row in packages["val"] if not row[1] % 2]
        positives = [row for row in packages["test"] if not row[1] % 2]
        distractors = produce["val"]
    database = positives + distractors
    labels = np.array([label for _, label in database])
    nothing = np.empty(0, np.int64)
    truth = tuple(GroundTruth(np.flatnonzero(labels == label), nothing, nothing) for _, label in queries)
    return Benchmark(
        name=name,
        images=tuple(folder / path for path, _ in database),
        queries=tuple(folder / path for path, _ in queries),
        boxes=None,
        ground_truth=truth,
        setups=("original",),
        fingerprint=_fingerprint(folder, queries + database),
    )


def load_grocery_training_set(root: Path, part: str, download: bool = False) -> TrainingSet:
    """`categories` (1,776 photos of 50 kinds of produce) or `instances` (even packaged products)."""
    folder, lists = _read(root, download)
    is_part = {
        "categories": lambda row: "/Packages/" not in row[0],
        "instances": lambda row: "/Packages/" in row[0] and row[1] % 2 == 0,
    }[part]
    rows = [row for row in lists["train"] if is_part(row)]
    return _labelled(folder, rows, rows, part)


def load_grocery_classes(root: Path, split: str, download: bool = False) -> TrainingSet:
    """All photos of the official list `split` ("train", "val" or "test") with all of its classes as labels, 81 of them.

    For retrieval by category: its train list holds products that the benchmark of instances tests.
    """
    folder, lists = _read(root, download)
    return _labelled(folder, lists[split], [row for rows in lists.values() for row in rows], f"classes, {split} list")


def _labelled(folder: Path, rows: list[Row], named: list[Row], part: str) -> TrainingSet:
    """The photos `rows`, their labels counted through the class numbers that occur in `named`."""
    numbers = np.unique([label for _, label in named])
    labels = np.searchsorted(numbers, [label for _, label in rows])
    name_of = {label: Path(path).parent.name for path, label in named}
    return TrainingSet(
        name=f"grocery-store/{part}",
        images=tuple(folder / path for path, _ in rows),
        labels=labels.astype(np.int64),
        label_names=tuple(name_of[number] for number in numbers),
        fingerprint=_fingerprint(folder, rows),
    )


def _read(root: Path, download: bool) -> tuple[Path, dict[str, list[Row]]]:
    folder = root / FOLDER / "dataset"
    if not folder.is_dir() and download:
        from retrieval_utils.datasets.download import get_dataset

        get_dataset("grocery-store", root)
    lists = {}
    for split in ("train", "val", "test"):
        listing = folder / f"{split}.txt"
        if not listing.is_file():
            raise FileNotFoundError(
                f"Grocery Store is not in '{root}' ('{FOLDER}/dataset/{split}.txt' is missing); run "
                "`python -m retrieval_utils data get grocery-store`, or point RETRIEVAL_DATA at the folder it is in."
            )
        lines = [line.split(",") for line in listing.read_text().splitlines() if line.strip()]
        lists[split] = [(line[0].strip(), int(line[1])) for line in lines]
        for path, _ in lists[split]:
            if not (folder / path).is_file():
                message = f"The photo '{path}' named in {split}.txt is not in '{folder}'; get the data again."
                raise FileNotFoundError(message)
    return folder, lists


def _fingerprint(folder: Path, rows: list[Row]) -> str:
    """Over names, classes and file sizes: reading 130 MB at every start would cost more than the photos' training."""
    digest = hashlib.sha256()
    for path, label in rows:
        digest.update(f"{path},{label},{(folder / path).stat().st_size}\n".encode())
    return digest.hexdigest()
