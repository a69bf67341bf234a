"""A person's own photos: one folder for each instance makes a benchmark, a flat folder can be searched.

photos/mug/1.jpg, 2.jpg, ...   photos/teapot/...     every photo of an instance with two or more is a query in turn
photos/*.jpg                                         no queries: nobody knows which photos belong together
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from retrieval_utils.datasets.base import Benchmark
from retrieval_utils.datasets.revisited import check_photos
from retrieval_utils.evaluation import GroundTruth

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def load_image_folder(folder: str | Path) -> Benchmark:
    """The photos of `folder` and its direct subfolders, sorted by path; hidden files and other suffixes are left out.

    Photos of one subfolder are positives of each other; a query is junk for itself, so its own copy is not counted.
    Photos beside the subfolders are distractors. With no subfolder of two photos there are no queries and no set-ups.
    fingerprint: over names and sizes in bytes. Raises FileNotFoundError if there is no folder, ValueError if no photo.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder '{folder}'; name the one that holds your photos.")
    images = sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if _is_photo(path, folder))
    if not images:
        raise ValueError(f"'{folder}' has no photos ({', '.join(sorted(SUFFIXES))}), nor has any folder in it.")
    owners = np.array([str(path.parent.relative_to(folder)) for path in images])  # (N,)
    _, instances, sizes = np.unique(owners, return_inverse=True, return_counts=True)
    queries = np.flatnonzero((owners != ".") & (sizes[instances] > 1))
    truth = []
    for query in queries:
        same = np.flatnonzero(instances == instances[query])
        truth.append(GroundTruth(same[same != query], junk=np.array([query])))
    digest = hashlib.sha256("\n".join(owners).encode())
    check_photos("image-folder", images, digest)
    return Benchmark(
        name="image-folder",
        images=tuple(images),
        queries=tuple(images[query] for query in queries),
        boxes=None,
        ground_truth=tuple(truth),
        setups=("original",) if len(queries) else (),
        fingerprint=digest.hexdigest(),
    )


def _is_photo(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and path.is_file() and not hidden
