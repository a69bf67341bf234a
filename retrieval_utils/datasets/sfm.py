"""retrieval-SfM-30k and -120k: photos of buildings in clusters, one 3D model each, with matching pairs to train on.

    <root>/retrieval-SfM-120k/ims/46/46/8f/...8f4646      a photo by its name's last six characters, two by two
    <root>/retrieval-SfM-120k/retrieval-SfM-120k.pkl      {"train" | "val": {cids, cluster, qidxs, pidxs}}
    <root>/retrieval-SfM-120k/retrieval-SfM-120k-whiten.pkl       {cids, qidxs, pidxs}
    <root>/retrieval-SfM-30k/                             the same lists; shares those photos, or has its own ims/

Source: Radenović, Tolias, Chum, "CNN image retrieval learns from BoW", ECCV 2016 (30k), and "Fine-tuning CNN image
retrieval with no human annotation", PAMI 2019 (120k). No landmark of Oxford5k or Paris6k is among the clusters.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval_utils.datasets.base import TrainingSet
from retrieval_utils.datasets.manifest import file_sha256
from retrieval_utils.datasets.revisited import load_pickle_safely

FOLDERS = {"retrieval-sfm-30k": "retrieval-SfM-30k", "retrieval-sfm-120k": "retrieval-SfM-120k"}
KEYS = {"instances": "train", "validation": "val", "whitening": ""}  # our name of a part, and the pickle's


@dataclass(frozen=True, repr=False)
class PairSet(TrainingSet):
    """N images, their clusters as labels, and P pairs of a query and a positive that show the same of one building.

    queries, positives: (P,) int64 indices of images, pair by pair; an image may be in many pairs. A tuple is a pair and
    negatives from other labels. The whitening list names no clusters: there a label is a set of images linked by pairs.
    """

    queries: np.ndarray
    positives: np.ndarray

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {len(self.queries):,} pairs)"


def load_sfm(root: Path, name: str, part: str = "instances") -> PairSet:
    """`retrieval-sfm-30k` or `-120k`; part: "instances" (to train on), "validation", or "whitening" (to learn it on).

    fingerprint: over the list, and the names and sizes in bytes of the photos. Raises ValueError for an unknown part or
    a malformed list, FileNotFoundError for missing files.
    """
    if part not in KEYS:
        raise ValueError(f"There is no part '{part}' of {name}; choose one of {', '.join(KEYS)}.")
    folder = root / FOLDERS[name]
    path = folder / f"{FOLDERS[name]}{'-whiten' if part == 'whitening' else ''}.pkl"
    photos = next((root / f / "ims" for f in (FOLDERS[name], *FOLDERS.values()) if (root / f / "ims").is_dir()), None)
    if photos is None or not path.is_file():
        lacking = path if not path.is_file() else root / FOLDERS["retrieval-sfm-120k"] / "ims"
        raise FileNotFoundError(f"There is no '{lacking}'; run `python -m retrieval_utils data get {name}`.")
    listed = _read(path, KEYS[part])
    images = [photos / cid[-2:] / cid[-4:-2] / cid[-6:-4] / cid for cid in listed["cids"]]
    sizes = [image.stat().st_size if image.is_file() else None for image in images]
    if None in sizes:
        message = f"{sizes.count(None):,} of {len(sizes):,} photos of {name} are missing"
        raise FileNotFoundError(f"{message}, the first is '{images[sizes.index(None)]}'; get the data again.")
    clusters, labels = np.unique(listed["cluster"], return_inverse=True)
    digest = hashlib.sha256(f"{file_sha256(path)} {part}\n".encode())
    digest.update("".join(f"{image.name} {size}\n" for image, size in zip(images, sizes, strict=True)).encode())
    return PairSet(
        name=f"{name}/{part}",
        images=tuple(images),
        labels=labels.astype(np.int64).ravel(),
        label_names=tuple(str(cluster) for cluster in clusters),
        fingerprint=digest.hexdigest(),
        queries=listed["qidxs"],
        positives=listed["pidxs"],
    )


def _read(path: Path, key: str) -> dict:
    """The checked lists: cids of N, cluster (N,), qidxs and pidxs (P,)."""
    content = load_pickle_safely(path)
    lists = content.get(key) if key and isinstance(content, dict) else content
    wanted = ("cids", "cluster", "qidxs", "pidxs") if key else ("cids", "qidxs", "pidxs")
    if not isinstance(lists, dict) or not set(wanted) <= lists.keys():
        raise ValueError(f"'{path}' has no lists {', '.join(wanted)}{f' of {key}' if key else ''}; get it again.")
    cids = list(lists["cids"]) if isinstance(lists["cids"], (list, tuple, np.ndarray)) else []
    # a name becomes a path
    if bad := [cid for cid in cids if not (isinstance(cid, str) and re.fullmatch(r"[\w-]{6,}", cid))]:
        raise ValueError(f"'{path}' lists {bad[0]!r}, which is no photo name; get it again.")
    numbers = {name: _indices(lists[name]) for name in wanted[1:]}
    if any(value is None for value in numbers.values()):
        raise ValueError(f"'{path}' has a list of clusters or pairs that does not hold whole numbers; get it again.")
    pairs = numbers["qidxs"], numbers["pidxs"]
    if len(pairs[0]) != len(pairs[1]) or len(numbers.setdefault("cluster", np.arange(len(cids)))) != len(cids):
        raise ValueError(f"'{path}' has lists whose lengths do not fit each other; get it again.")
    if any(len(index) and not 0 <= index.min() <= index.max() < len(cids) for index in pairs):
        raise ValueError(f"'{path}' has pairs of images that it does not list; get it again.")
    if not key:
        numbers["cluster"] = _linked(len(cids), *pairs)
    return {"cids": cids, **numbers}


def _indices(value: object) -> np.ndarray | None:
    try:
        array = np.asarray(value)
    except ValueError:
        return None
    if array.ndim != 1 or not (array.size == 0 or np.issubdtype(array.dtype, np.number)):
        return None
    whole = array.astype(np.int64)
    return whole if (whole == array).all() else None


def _linked(n: int, queries: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """(n,) int64: the lowest index among all images that pairs link, directly or not, to each image."""
    labels, before = np.arange(n), None
    while before is None or (labels != before).any():
        before = labels.copy()
        low = np.minimum(labels[queries], labels[positives])
        np.minimum.at(labels, queries, low)
        np.minimum.at(labels, positives, low)
        labels = labels[labels]  # jump ahead, so that long chains take few rounds
    return labels
