"""What every data set becomes, whatever its source: a `Benchmark` to be scored on, or a `TrainingSet` to learn from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval_utils.evaluation import GroundTruth

PROJECT_DATA = Path(__file__).resolve().parents[2] / "data"

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Benchmark:
    """Q queries to be answered from N database images.

    images, queries: paths of the N database and Q query images. boxes: per query (x1, y1, x2, y2) in pixels of the
    query image, or None where the whole image is the query. ground_truth: per query the int64 database indices that
    are easy, hard or junk; every other image is negative. setups: which of `evaluation.SETUPS` this benchmark reports.
    fingerprint: sha256 over what the numbers depend on, for the protocol card. variant: which of the versions that a
    data set exists in, for the card as well; empty where there is only one.
    """

    name: str
    images: tuple[Path, ...]
    queries: tuple[Path, ...]
    boxes: tuple[Box, ...] | None
    ground_truth: tuple[GroundTruth, ...]
    setups: tuple[str, ...]
    fingerprint: str
    variant: str = ""

    def __post_init__(self) -> None:
        for what, value in (("ground truth", self.ground_truth), ("box", self.boxes)):
            if value is not None and len(value) != len(self.queries):
                message = f"{self.name}: {len(self.queries)} queries but {len(value)} {what} entries; give one each."
                raise ValueError(message)

    def __repr__(self) -> str:  # the paths would fill the screen
        counts = f"{len(self.images):,} images, {len(self.queries)} queries"
        return f"Benchmark({self.name!r}: {counts}, setups {', '.join(self.setups)})"


@dataclass(frozen=True)
class TrainingSet:
    """N images with one integer label each: a category (for a classifier) or an instance (for retrieval).

    labels: (N,) int64, values 0 .. len(label_names)-1. fingerprint: sha256 over files and labels.
    """

    name: str
    images: tuple[Path, ...]
    labels: np.ndarray
    label_names: tuple[str, ...]
    fingerprint: str

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(f"{self.name}: {len(self.images)} images but {len(self.labels)} labels; give one each.")

    def __repr__(self) -> str:
        return f"TrainingSet({self.name!r}: {len(self.images):,} images, {len(self.label_names)} labels)"


def data_root(root: str | Path | None = None) -> Path:
    """Folder of the data sets: `root` if named, else $RETRIEVAL_DATA, else the project's `data/`.

    Raises FileNotFoundError if a folder was named, by argument or variable, that does not exist.
    """
    for named, source in ((root, "data root"), (os.environ.get("RETRIEVAL_DATA"), "RETRIEVAL_DATA")):
        if named:
            folder = Path(named).expanduser()
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"The {source} '{named}' is not a folder; create it, or name the folder that holds the data sets."
                )
            return folder
    return PROJECT_DATA
