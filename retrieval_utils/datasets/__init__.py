"""Data sets by name: `load_benchmark` to be scored on, `load_training_set` to learn from."""

from __future__ import annotations

from pathlib import Path

from retrieval_utils.datasets.base import PROJECT_DATA, Benchmark, TrainingSet, data_root
from retrieval_utils.evaluation import GroundTruth

__all__ = ["Benchmark", "GroundTruth", "TrainingSet", "data_root", "load_benchmark", "load_training_set"]

BENCHMARKS = ("toy-landmarks", "grocery-store", "grocery-store-validation")


def load_benchmark(name: str, root: str | Path | None = None, download: bool = False, size: str = "smoke") -> Benchmark:
    """The benchmark `name`, read from the data root (see `data_root`); toy landmarks are drawn on first use.

    root: folder that holds the data sets. download: fetch what is missing. size: of the toy landmarks only.
    Raises ValueError for an unknown name, FileNotFoundError for missing data.
    """
    if name == "toy-landmarks":
        return _toy(size, root, "load_toy_benchmark")
    if name.startswith("grocery-store"):
        from retrieval_utils.datasets import grocery_store

        return grocery_store.load_grocery_benchmark(data_root(root), name, download)
    raise ValueError(f"There is no benchmark '{name}'; choose one of {', '.join(BENCHMARKS)}.")


def load_training_set(
    name: str, part: str = "instances", root: str | Path | None = None, download: bool = False, size: str = "smoke"
) -> TrainingSet:
    """The part of data set `name` to train on, disjoint from its benchmark's instances.

    part: "categories", the pretraining pool (its labels serve the classifier alone), or "instances", for fine-tuning.
    Raises ValueError for an unknown name or part, FileNotFoundError for missing data.
    """
    if part not in ("categories", "instances"):
        raise ValueError(f"There is no part '{part}'; choose 'categories' or 'instances'.")
    if name == "toy-landmarks":
        return _toy(size, root, "load_toy_training_set", part)
    if name == "grocery-store":
        from retrieval_utils.datasets import grocery_store

        return grocery_store.load_grocery_training_set(data_root(root), part, download)
    raise ValueError(f"There is no training set '{name}'; choose one of toy-landmarks, grocery-store.")


def _toy(size: str, root: str | Path | None, loader: str, *args):
    from retrieval_utils.datasets import toy_landmarks

    # Drawn, not downloaded: $RETRIEVAL_DATA may be a read-only share, so only a root named on purpose is drawn into.
    folder = toy_landmarks.generate_toy_landmarks(data_root(root) if root else PROJECT_DATA, size=size)
    return getattr(toy_landmarks, loader)(folder, *args)
