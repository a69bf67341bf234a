"""A person's own photos: described once, indexed, and searched by a photo or a part of one."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from retrieval_utils.datasets.archives import disk_trouble
from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.index import MANIFEST, Index
from retrieval_utils.networks import DescriptorNetwork
from retrieval_utils.protocol import state_sha256
from retrieval_utils.transforms import load_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif")
CHUNK = 128  # photos described between two looks at the clock
SAVE_EVERY = 30  # seconds: what a kill can lose
UNREADABLE = (ValueError, OSError)

Key = tuple[str, int, int]  # name below the folder, bytes, time of the last change in ns


@dataclass(frozen=True)
class PhotoIndex:
    """An index whose row i is the photo names[i] below `folder`, and what making it took.

    unreadable: photos left out because they cannot be read. described: photos described now; the others were known.
    """

    folder: Path
    index: Index
    names: tuple[str, ...]
    unreadable: tuple[str, ...]
    described: int


@dataclass(frozen=True)
class Hit:
    """A photo found: its name below the folder and its cosine to the query, in [-1, 1]."""

    name: str
    score: float


def find_photos(folder: str | Path) -> list[str]:
    """Photos below `folder` by their suffix, as sorted names relative to it; hidden files and folders are left out.

    Raises FileNotFoundError if there is no such folder, or no photo in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder '{folder}'; name the one that holds your photos.")
    names = []
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        photos = [name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        names += [Path(path, name).relative_to(folder).as_posix() for name in photos]
    if not names:
        raise FileNotFoundError(f"There are no photos in '{folder}': none of its files ends in {', '.join(SUFFIXES)}.")
    return sorted(names)


def fingerprint(network: DescriptorNetwork, image_size: int) -> str:
    """What descriptors depend on besides the photo, as text: network, pooling, size, turning, hash of the weights."""
    name, pooling = network.settings["name"], network.settings["pooling"]
    return f"{name} + {pooling} at {image_size} px, upright, weights {state_sha256(network)[:12]}"


def default_index_dir(folder: str | Path, network: DescriptorNetwork, image_size: int) -> Path:
    """Folder below runs/search that is this network's and these photos' own."""
    folder = Path(folder).resolve()
    digest = hashlib.sha256(f"{folder}\n{fingerprint(network, image_size)}".encode()).hexdigest()
    return Path("runs/search") / f"{folder.name or 'photos'}-{digest[:12]}"


def index_photos(
    folder: str | Path,
    network: DescriptorNetwork,
    index_dir: str | Path,
    image_size: int = 512,
    progress: bool = False,
) -> PhotoIndex:
    """The exact index of all photos below `folder`, kept in `index_dir`: only new and changed photos are described.

    A photo counts as unchanged when name, size and time of change are the same. Photos that cannot be read are left
    out and named. A kill loses at most the last half minute. Raises FileNotFoundError without folder or photos;
    ValueError if no photo can be read, or `index_dir` holds a damaged index or one of another network.
    """
    folder, index_dir = Path(folder), Path(index_dir)
    keys = [_key(folder, name) for name in find_photos(folder)]
    wanted, known = fingerprint(network, image_size), {}
    if (index_dir / MANIFEST).is_file():
        index = Index.load(index_dir, network=wanted, dim=network.dim)
        before = _read_keys(index_dir, index)
        if before == keys:
            return PhotoIndex(folder, index, tuple(name for name, *_ in keys), (), 0)
        known = dict(zip(before, index.descriptors(), strict=True))
    new = [key for key in keys if key not in known]
    bad: list[str] = []
    saved = time.monotonic()
    with tqdm(total=len(new), desc="photos described", disable=not progress) as bar:
        for start in range(0, len(new), CHUNK):
            chunk = new[start : start + CHUNK]
            readable, descriptors = _describe(network, folder, chunk, image_size)
            known |= dict(zip(readable, descriptors, strict=True))
            bad += [printable(key[0]) for key in chunk if key not in known]
            bar.update(len(chunk))
            if known and time.monotonic() - saved > SAVE_EVERY:
                _save(index_dir, wanted, known)
                saved = time.monotonic()
    kept = {key: known[key] for key in keys if key in known}
    if not kept:
        raise ValueError(f"None of the {len(keys):,} photos in '{folder}' can be read; the first is '{bad[0]}'.")
    names = tuple(name for name, *_ in kept)
    return PhotoIndex(folder, _save(index_dir, wanted, kept), names, tuple(bad), len(new) - len(bad))


def search_photos(
    photos: PhotoIndex,
    network: DescriptorNetwork,
    query: str | Path,
    box: Sequence[float] | None = None,
    k: int = 20,
    image_size: int = 512,
) -> list[Hit]:
    """The k photos most similar to `query`, or to the part of it in `box`, best first; the query itself is left out.

    box: (x1, y1, x2, y2) in pixels of the upright photo, as viewers show it. Raises FileNotFoundError or ValueError for
    a query that is not there, cannot be read, or does not hold the box.
    """
    descriptor = extract_descriptors(network, [query], None if box is None else [box], image_size=image_size)  # (1, D)
    scores, rows = photos.index.search(descriptor, k + 1)  # (1, k + 1)
    found = [Hit(photos.names[i], score) for score, i in zip(scores[0].tolist(), rows[0].tolist(), strict=True)]
    return [hit for hit in found if not _same(photos.folder / hit.name, Path(query))][:k]


def printable(name: str) -> str:
    """`name` with a question mark for what no terminal or page can show: the bytes of another file system's names."""
    return name.encode("utf-8", "replace").decode()


def check_query(query: str | Path, box: Sequence[float] | None, k: int) -> None:
    """Raises what `search_photos` would raise for them, before anything is described."""
    if k < 1:
        raise ValueError(f"A search needs k >= 1, got k={k}.")
    load_image(query, box)


def _key(folder: Path, name: str) -> Key:
    path = folder / name
    status = path.stat() if path.exists() else path.lstat()  # a link to nowhere is left out later, with its name
    return name, status.st_size, status.st_mtime_ns


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.samefile(other)


def _describe(
    network: DescriptorNetwork, folder: Path, keys: Sequence[Key], image_size: int
) -> tuple[list[Key], list[Tensor]]:
    """Those of `keys` whose photo can be read, and their descriptors (D,)."""
    try:
        return list(keys), list(extract_descriptors(network, [folder / key[0] for key in keys], image_size=image_size))
    except UNREADABLE:
        readable = [key for key in keys if _readable(folder / key[0], image_size)]
        if len(readable) == len(keys):  # then it was not the photos
            raise
    return _describe(network, folder, readable, image_size) if readable else ([], [])


def _readable(path: Path, image_size: int) -> bool:
    try:
        load_image(path, image_size=image_size)
    except UNREADABLE:
        return False
    return True


def _save(index_dir: Path, network: str, known: dict[Key, Tensor]) -> Index:
    """The photos' list is written under the name of its hash, before the manifest that names it: no kill parts them."""
    content = (json.dumps(list(known), indent=0) + "\n").encode()
    digest = hashlib.sha256(content).hexdigest()
    part = index_dir / "photos.part"
    with disk_trouble(_keys_file(index_dir, digest), leftovers=(part,)):
        index_dir.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(_keys_file(index_dir, digest))
    index = Index.build(torch.stack(list(known.values())), network=network, images=digest)
    index.save(index_dir)
    for old in index_dir.glob("photos-*.json"):
        if old != _keys_file(index_dir, digest):
            old.unlink()
    return index


def _keys_file(index_dir: Path, digest: str) -> Path:
    return index_dir / f"photos-{digest[:16]}.json"


def _read_keys(index_dir: Path, index: Index) -> list[Key]:
    file = _keys_file(index_dir, index.images)
    content = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(content).hexdigest() != index.images:
        raise ValueError(f"The list of photos in '{index_dir}' is damaged; delete the folder to build the index again.")
    return [tuple(key) for key in json.loads(content)]
