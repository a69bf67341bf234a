"""Data sets by name: `load_benchmark` to be scored on, `load_training_set` to learn from."""

from __future__ import annotations

from pathlib import Path

from retrieval_utils.datasets.base import PROJECT_DATA, Benchmark, TrainingSet, data_root
from retrieval_utils.evaluation import GroundTruth

__all__ = ["Benchmark", "GroundTruth", "TrainingSet", "data_root", "load_benchmark", "load_training_set"]

OXFORD_PARIS = ("oxford5k", "paris6k", "roxford5k", "rparis6k")
BENCHMARKS = ("toy-landmarks", "grocery-store", "grocery-store-validation", *OXFORD_PARIS, "image-folder")
TRAINING_SETS = ("toy-landmarks", "grocery-store", "retrieval-sfm-30k", "retrieval-sfm-120k")


def load_benchmark(name: str, root: str | Path | None = None, download: bool = False, size: str = "smoke") -> Benchmark:
    """The benchmark `name`, read from the data root (see `data_root`); toy landmarks are drawn on first use.

    name: one of BENCHMARKS; `+r1m` after one of Oxford or Paris, as in `roxford5k+r1m`, adds a million distractors.
    root: folder that holds the data sets; of `image-folder` the folder of the photos itself. download: fetch what is
    missing. size: of the toy landmarks only. Raises ValueError for an unknown name or malformed data, FileNotFoundError
    for missing data.
    """
    base, plus, more = name.partition("+")
    if base in OXFORD_PARIS and more == ("r1m" if plus else ""):
        return _oxford_paris(base, bool(plus), data_root(root), download)
    if name == "toy-landmarks":
        return _toy(size, root, "load_toy_benchmark")
    if name.startswith("grocery-store"):
        from retrieval_utils.datasets import grocery_store

        return grocery_store.load_grocery_benchmark(data_root(root), name, download)
    if name == "image-folder":
        from retrieval_utils.datasets.image_folder import load_image_folder

        return load_image_folder(root or data_root() / name)
    raise ValueError(f"There is no benchmark '{name}'; choose one of {', '.join(BENCHMARKS)}.")


def load_training_set(
    name: str, part: str = "instances", root: str | Path | None = None, download: bool = False, size: str = "smoke"
) -> TrainingSet:
    """The part of data set `name` to train on, disjoint from its benchmark's instances.

    part: "categories", the pretraining pool (its labels serve the classifier alone), or "instances", for fine-tuning;
    of retrieval-sfm-*, whose sets are `sfm.PairSet`, "instances", "validation" or "whitening".
    Raises ValueError for an unknown name or part, FileNotFoundError for missing data.
    """
    if name in ("retrieval-sfm-30k", "retrieval-sfm-120k"):
        from retrieval_utils.datasets import sfm

        _get((name,), data_root(root), download)
        return sfm.load_sfm(data_root(root), name, part)
    if part not in ("categories", "instances"):
        raise ValueError(f"There is no part '{part}'; choose 'categories' or 'instances'.")
    if name == "toy-landmarks":
        return _toy(size, root, "load_toy_training_set", part)
    if name == "grocery-store":
        from retrieval_utils.datasets import grocery_store

        return grocery_store.load_grocery_training_set(data_root(root), part, download)
    raise ValueError(f"There is no training set '{name}'; choose one of {', '.join(TRAINING_SETS)}.")


def _oxford_paris(name: str, distractors: bool, root: Path, download: bool) -> Benchmark:
    from retrieval_utils.datasets import oxford_paris

    _get((name, "r1m") if distractors else (name,), root, download)
    bench = oxford_paris.load_oxford_paris(root, name)
    return oxford_paris.add_distractors(bench, root) if distractors else bench


def _get(names: tuple[str, ...], root: Path, download: bool) -> None:
    if download:
        from retrieval_utils.datasets.download import get_dataset

        for name in names:
            get_dataset(name, root)


def _toy(size: str, root: str | Path | None, loader: str, *args):
    from retrieval_utils.datasets import toy_landmarks

    # Drawn, not downloaded: $RETRIEVAL_DATA may be a read-only share, so only a root named on purpose is drawn into.
    folder = toy_landmarks.generate_toy_landmarks(data_root(root) if root else PROJECT_DATA, size=size)
    return getattr(toy_landmarks, loader)(folder, *args)
