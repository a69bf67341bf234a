"""Retrieval by category, scored as hashing and quantisation methods are: mAP@k over what is retrieved.

Another task and another measure than that of instances: a photo of any other apple is right here. The two never stand
in one column, so results of this module have a card of their own and no place in the ladder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retrieval_utils.datasets import TrainingSet, load_training_set
from retrieval_utils.datasets.base import data_root
from retrieval_utils.evaluation_report import _bootstrap
from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.networks import DescriptorNetwork
from retrieval_utils.protocol import state_sha256
from retrieval_utils.ranking import cosine_scores
from retrieval_utils.result_files import write_json

TASKS = ("toy-landmarks", "grocery-store", "cifar10")
TOY_QUERIES = 5  # every fifth photo of the toy landmarks' categories is a query


@dataclass(frozen=True)
class CategoryTask:
    """Queries and a database with labels; the database is what methods of that literature are trained on."""

    name: str
    queries: TrainingSet
    database: TrainingSet

    def __repr__(self) -> str:
        counts = f"{len(self.database.images):,} images, {len(self.queries.images):,} queries"
        return f"CategoryTask({self.name!r}: {counts}, {len(self.database.label_names)} labels)"


@dataclass(frozen=True)
class CategoryResult:
    """ap: AP@k of each query (Q,), in [0, 1]. card: what the number depends on, as plain values."""

    ap: np.ndarray
    card: dict[str, object]

    @property
    def mean_ap(self) -> float:
        return float(self.ap.mean())

    def interval(self, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
        """Percentile bootstrap interval (low, high) of the mean over queries, as that of instances."""
        return _bootstrap(self.ap, level, draws, seed)


def load_category_task(name: str, root: str | Path | None = None, size: str = "smoke") -> CategoryTask:
    """The task `name`, one of TASKS.

    toy-landmarks: styles; every fifth photo of the part "categories" is a query, the others are the database.
    grocery-store: all 81 classes; queries are the official test list, the database is the train list.
    cifar10: torchvision's folder layout, below the data root; 100 queries and 1,000 database images of each class.
    Raises ValueError for an unknown name, FileNotFoundError where the data are not on disk.
    """
    if name == "toy-landmarks":
        return _split(load_training_set(name, "categories", root, size=size))
    if name == "grocery-store":
        from retrieval_utils.datasets.grocery_store import load_grocery_classes

        return CategoryTask(name, *(load_grocery_classes(data_root(root), split) for split in ("test", "train")))
    if name == "cifar10":
        from retrieval_utils.datasets.cifar10 import load_cifar10

        parts = (("test", 100), ("train", 1000))
        return CategoryTask(name, *(load_cifar10(data_root(root), split, count) for split, count in parts))
    raise ValueError(f"There is no category task '{name}'; choose one of {', '.join(TASKS)}.")


def average_precision_at(relevant: Tensor, k: int) -> Tensor:
    """AP@k (Q,) float64 of rankings, relevant (Q, N) bool, best first.

    The mean of the precision at each relevant image among the first k; those that were not retrieved do not count
    against it, and a query without a relevant image there has 0 (as SPQ's code has it). Raises ValueError for k < 1.
    """
    if k < 1:
        raise ValueError(f"mAP@k needs a k of at least 1, got {k}.")
    top = relevant[:, :k].double()  # (Q, k)
    precision = top.cumsum(dim=1) / torch.arange(1, top.shape[1] + 1)  # (Q, k)
    return (precision * top).sum(dim=1) / top.sum(dim=1).clamp(min=1)  # (Q,)


def score_categories(
    task: CategoryTask, network: DescriptorNetwork, image_size: int, k: int = 1000, device: str = "auto"
) -> CategoryResult:
    """AP@k of every query, ranked by cosine; k is cut to the size of the database."""
    k = min(k, len(task.database.images))
    queries, database = (
        extract_descriptors(network, part.images, image_size=image_size, device=device)
        for part in (task.queries, task.database)
    )
    order = cosine_scores(queries, database).argsort(dim=1, descending=True, stable=True)  # (Q, N)
    labels = torch.from_numpy(task.database.labels)[order]  # (Q, N)
    ap = average_precision_at(labels == torch.from_numpy(task.queries.labels)[:, None], k)  # (Q,)
    card = {
        "task": f"{task.name}, by category",
        "queries": [task.queries.name, len(task.queries.images), task.queries.fingerprint],
        "database": [task.database.name, len(task.database.images), task.database.fingerprint],
        "measure": f"mAP@{k}, AP over the relevant images among the first {k}",
        "image_size": image_size,
        "network": f"{network.settings['name']} + {network.settings['pooling']}",
        "checkpoint": state_sha256(network),
    }
    return CategoryResult(ap.numpy(), card)


def record_category(folder: str | Path, step: str, result: CategoryResult) -> None:
    """Writes <folder>/category/<step>.json: apart from the steps of the ladder."""
    values = {"step": step, "mean_ap": result.mean_ap, "interval": result.interval(), "ap": result.ap.tolist()}
    write_json(Path(folder) / "category" / f"{step}.json", values | {"card": result.card})


def _split(pool: TrainingSet) -> CategoryTask:
    parts = []
    for part, chosen in (("queries", slice(0, None, TOY_QUERIES)), ("database", None)):
        places = np.arange(len(pool.images))
        places = places[chosen] if chosen else places[places % TOY_QUERIES > 0]
        paths = tuple(pool.images[place] for place in places)
        name, print_ = f"{pool.name}/{part}", f"{pool.fingerprint}/{part}"
        parts.append(TrainingSet(name, paths, pool.labels[places], pool.label_names, print_))
    return CategoryTask(pool.name, *parts)
