"""The data sets by name: what they are, and whether they are there."""

from __future__ import annotations

from pathlib import Path

from retrieval_utils.datasets.base import PROJECT_DATA, data_root
from retrieval_utils.datasets.grocery_store import FOLDER
from retrieval_utils.datasets.oxford_paris import photo_folder, variant_of
from retrieval_utils.datasets.sfm import FOLDERS
from retrieval_utils.datasets.sources import BLURRED, CONTENT, COUNTS, PIECES, Piece

FLICKR = "none stated; photos from Flickr, rights with their owners"

TABLE = {  # what, licence, size, variant
    "toy-landmarks": (
        "buildings drawn by code, to learn and to be scored on in minutes",
        "MIT, as this project",
        "drawn, nothing to load",
        "smoke, seed 0",
    ),
    "grocery-store": (
        "5,421 smartphone photos of 81 products in shops (Klasson et al., WACV 2019)",
        "MIT",
        "124 MB to load, 123 MB on disk",
        f"content {CONTENT[:12]}",
    ),
    "oxford5k": (
        "5,063 photos of Oxford, 55 queries, original protocol (Philbin et al., CVPR 2007)",
        FLICKR,
        "1.9 GB to load, 1.9 GB on disk",
        BLURRED,
    ),
    "paris6k": (
        "6,392 photos of Paris, 55 queries, original protocol (Philbin et al., CVPR 2008)",
        FLICKR,
        "about 2.4 GB to load, 2.4 GB on disk",
        BLURRED,
    ),
    "roxford5k": (
        "the photos of oxford5k, 4,993 and 70 queries, revisited protocol (Radenović et al., CVPR 2018)",
        FLICKR,
        "1.9 GB to load, shared with oxford5k",
        BLURRED,
    ),
    "rparis6k": (
        "the photos of paris6k, 6,322 and 70 queries, revisited protocol (Radenović et al., CVPR 2018)",
        FLICKR,
        "about 2.4 GB to load, shared with paris6k",
        BLURRED,
    ),
    "r1m": (
        "1,001,001 distractors, for any of those four: `roxford5k+r1m` (Radenović et al., CVPR 2018)",
        FLICKR,
        "more than 400 GB to load, as much on disk",
        "one variant",
    ),
    "retrieval-sfm-30k": (
        "matching pairs in clusters of 3D models, to train on (Radenović et al., ECCV 2016)",
        FLICKR,
        "38 GB to load, shared with retrieval-sfm-120k",
        "one variant",
    ),
    "retrieval-sfm-120k": (
        "matching pairs in 713 clusters of 3D models, to train on (Radenović et al., PAMI 2019)",
        FLICKR,
        "38 GB to load, 38 GB on disk",
        "one variant",
    ),
    "image-folder": (
        "your own photos: a folder for each instance to be scored on, or a flat folder to search",
        "yours",
        "yours, nothing to load",
        "one variant",
    ),
}


def list_datasets(root: str | Path | None = None) -> list[dict[str, str]]:
    """One row a data set, all strings: name, what, licence, size, where (a folder, or what is not there), variant."""
    rows = []
    for name, (what, licence, size, variant) in TABLE.items():
        folder, lacking = dataset_folder(name, root), missing_pieces(name, root)
        where = str(folder)
        if lacking:
            lacks = ", ".join(f"'{piece.target}'" for piece in lacking)
            where = (
                "not there" if len(lacking) == len(PIECES[name]) else f"partly in '{data_root(root)}', lacks {lacks}"
            )
        elif not folder.is_dir():
            where = "not there"
        elif name in COUNTS:
            variant = variant_of(photo_folder(data_root(root), name))
        rows.append({"name": name, "what": what, "licence": licence, "size": size, "where": where, "variant": variant})
    return rows


def missing_pieces(name: str, root: str | Path | None = None) -> list[Piece]:
    """What of data set `name` is to be loaded still."""
    place = data_root(root)
    return [p for p in PIECES.get(name, ()) if not any((place / target).exists() for target in p.places)]


def check_name(name: str) -> None:
    """Raises ValueError if no data set has this name."""
    if name not in TABLE:
        raise ValueError(f"There is no data set '{name}'; choose one of {', '.join(TABLE)}.")


def toy_root(root: str | Path | None) -> Path:
    """Where toy landmarks are drawn: the folder named, else the project's `data/`, never a share behind a variable."""
    return data_root(root) if root else PROJECT_DATA


def dataset_folder(name: str, root: str | Path | None = None) -> Path:
    """Folder of a data set below the data root; for Oxford and Paris the one that holds the ground truth."""
    if name == "toy-landmarks":
        return toy_root(root) / f"{name}-smoke-seed0"
    folders = {"grocery-store": FOLDER, "r1m": "revisitop1m", **FOLDERS}
    return data_root(root) / folders.get(name, name)
