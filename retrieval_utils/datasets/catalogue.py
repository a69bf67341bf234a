"""The data sets by name: what they are, whether they are there, and whether what is there is what was meant."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import track

from retrieval_utils.datasets import toy_landmarks
from retrieval_utils.datasets.base import PROJECT_DATA, data_root
from retrieval_utils.datasets.grocery_store import FOLDER

# The host packs its archive anew at will, so the content is pinned: see `content_hash`. Taken from the last commit of
# the repository, of 2023-09-08.
CONTENT = "43584b0af84db4d18b20f7352f12c4dcc53cea229a62168e0267b04a778a64d9"
COUNTS = {"train": 2640, "val": 296, "test": 2485}

WAY_OUT = "move it away and get it again."

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
}


def list_datasets(root: str | Path | None = None) -> list[dict[str, str]]:
    """One row a data set, all strings: name, what, licence, size, where (a folder, or "not there"), variant."""
    rows = []
    for name, (what, licence, size, variant) in TABLE.items():
        folder = _folder(name, root)
        where = str(folder) if folder.is_dir() else "not there"
        rows.append({"name": name, "what": what, "licence": licence, "size": size, "where": where, "variant": variant})
    return rows


def verify_dataset(name: str, root: str | Path | None = None, progress: bool = True) -> str:
    """Reads every file of data set `name` again; returns one sentence on what was found right.

    Raises FileNotFoundError if it is not there, ValueError naming what is missing, corrupt or changed.
    """
    check_name(name)
    folder = _folder(name, root)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no '{folder}'; run `python -m retrieval_utils data get {name}` first.")
    if name == "toy-landmarks":
        drawn = toy_landmarks.load_toy_benchmark(folder)  # compares every file with the manifest
        return f"{name}: every file as drawn, {len(drawn.images):,} database images in '{folder}'."
    missing = [f"{split}.txt" for split in COUNTS if not (folder / "dataset" / f"{split}.txt").is_file()]
    photos = [photo for split in COUNTS if f"{split}.txt" not in missing for photo in _photos(folder, split)]
    shown = track(photos, "reading every photo", console=Console(stderr=True), disable=not progress)
    if bad := missing + [photo for photo in shown if not _decodes(folder / "dataset" / photo)]:
        names = ", ".join(bad[:5]) + (" and more" if len(bad) > 5 else "")
        problem = f"has {len(bad):,} missing or corrupt files ({names})"
    else:
        problem = content_problem(folder)
    if problem:
        raise ValueError(f"'{folder}' {problem}; {WAY_OUT}")
    return f"{name}: {len(photos):,} photos decode, content {CONTENT[:12]} as expected, in '{folder}'."


def check_name(name: str) -> None:
    """Raises ValueError if no data set has this name."""
    if name not in TABLE:
        raise ValueError(f"There is no data set '{name}'; choose one of {', '.join(TABLE)}.")


def content_problem(folder: Path) -> str | None:
    """How the Grocery Store in `folder` differs from the one the results were made on; None if it does not."""
    lists = {}
    for split, count in COUNTS.items():
        if not (folder / "dataset" / f"{split}.txt").is_file():
            return f"lacks 'dataset/{split}.txt'"
        lists[split] = _photos(folder, split)
        if len(lists[split]) != count:
            return f"names {len(lists[split]):,} photos in '{split}.txt', expected {count:,}"
    names = [f"{split}.txt" for split in lists] + [photo for photos in lists.values() for photo in photos]
    if missing := [name for name in names if not (folder / "dataset" / name).is_file()]:
        return f"lacks {len(missing):,} files, the first of them 'dataset/{missing[0]}'"
    if (found := content_hash(folder / "dataset", names)) != CONTENT:
        return f"has content sha256 {found}, expected {CONTENT}"
    return None


def content_hash(folder: Path, names: list[str]) -> str:
    """sha256 over a line `<name> <sha256 of the file>` for each of `names` (paths below `folder`), sorted."""
    digest = hashlib.sha256()
    for name in sorted(names):
        with (folder / name).open("rb") as file:
            digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def toy_root(root: str | Path | None) -> Path:
    """Where toy landmarks are drawn: the folder named, else the project's `data/`, never a share behind a variable."""
    return data_root(root) if root else PROJECT_DATA


def _folder(name: str, root: str | Path | None) -> Path:
    return toy_root(root) / f"{name}-smoke-seed0" if name == "toy-landmarks" else data_root(root) / FOLDER


def _photos(folder: Path, split: str) -> list[str]:
    """Paths below dataset/ that a list names; its lines are `path, class, coarse class`."""
    lines = (folder / "dataset" / f"{split}.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.split(",")[0].strip() for line in lines if line.strip()]


def _decodes(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # by where in the file the damage is
        return False
    return True
