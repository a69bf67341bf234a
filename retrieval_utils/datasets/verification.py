"""Whether the data that is there is what was meant: every file is read, every photo decoded, every count compared."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import track

from retrieval_utils.datasets import sources, toy_landmarks
from retrieval_utils.datasets.base import data_root
from retrieval_utils.datasets.catalogue import check_name, dataset_folder, missing_pieces
from retrieval_utils.datasets.image_folder import load_image_folder
from retrieval_utils.datasets.manifest import file_sha256, pin_files, read_manifest
from retrieval_utils.datasets.oxford_paris import distractor_names, load_oxford_paris, photo_folder
from retrieval_utils.datasets.sfm import KEYS, load_sfm

WAY_OUT = "move it away and get it again."
BLOCK = 256  # photos handed to the threads at a time


def verify_dataset(name: str, root: str | Path | None = None, progress: bool = True) -> str:
    """Reads every file of data set `name` again; returns a sentence or two on what was found right.

    Files without a published hash are compared with the one they had when they were first verified (`manifest.json`).
    Each call reads everything, and new hashes are noted once all of it was found right: a kill changes nothing on the
    disk, but costs the reading so far, and of a first call the hashes as well.
    Raises FileNotFoundError if it is not there, ValueError naming what is missing, corrupt or changed.
    """
    check_name(name)
    if name == "image-folder":
        return _verify_own(Path(root) if root else dataset_folder(name), progress)
    folder, lacking = dataset_folder(name, root), missing_pieces(name, root)
    if lacking or not folder.is_dir():
        place = data_root(root) / lacking[0].target if lacking else folder
        raise FileNotFoundError(f"There is no '{place}'; run `python -m retrieval_utils data get {name}` first.")
    if name == "toy-landmarks":
        drawn = toy_landmarks.load_toy_benchmark(folder)  # compares every file with the manifest
        return f"{name}: every file as drawn, {len(drawn.images):,} database images in '{folder}'."
    if name == "grocery-store":
        return _verify_grocery(folder, progress)
    photos, found = check_contents(name, data_root(root))
    return f"{name}: {found}; {_compare(name, photos, data_root(root), progress)}"


def check_contents(name: str, root: Path) -> tuple[list[Path], str]:
    """The photos of data set `name`, all there, and words on them; ValueError or FileNotFoundError if one lacks."""
    if name == "grocery-store":
        if problem := grocery_problem(root / sources.PIECES[name][0].target):
            raise ValueError(f"'{root / sources.PIECES[name][0].target}' {problem}; {WAY_OUT}")
        return [], ""
    if name == "r1m":
        names = distractor_names(root / "revisitop1m")
        return [root / "revisitop1m" / "jpg" / path for path in names], f"{len(names):,} distractors"
    if name in sources.COUNTS:
        bench = load_oxford_paris(root, name)
        photos = list(dict.fromkeys((*bench.images, *bench.queries)))
        found = f"{len(bench.images):,} images and {len(bench.queries)} queries as published ({bench.variant})"
        folder = photo_folder(root, name)
        if left_out := sorted(n for n in sources.CORRUPT_PARIS if (folder / f"{n}.jpg").is_file()):
            found += (
                f"; {len(left_out)} photos that the publisher names as corrupt are there and left out, as the protocol "
                f"says, nothing is to be done about them ({', '.join(left_out)})"
            )
        return photos, found
    parts = [load_sfm(root, name, part) for part in KEYS]
    counts = ", ".join(f"{part} {len(pairs.images):,}" for part, pairs in zip(KEYS, parts, strict=True))
    return list(dict.fromkeys(image for pairs in parts for image in pairs.images)), f"photos by part: {counts}"


def _compare(name: str, photos: Sequence[Path], root: Path, progress: bool) -> str:
    """Decodes the photos and compares all files with published or noted hashes, noting those that are new."""
    found = dict(_read_photos(photos, progress))
    if bad := [path for path, digest in found.items() if not digest]:
        raise ValueError(_do_not_decode(bad, photos[0].parent))
    for piece in sources.PIECES[name]:
        target = root / piece.target
        if not piece.archived:
            found[target] = file_sha256(target)
            published = piece.remotes[0].sha256
            if published and found[target] != published:
                message = f"'{target}' has sha256 {found[target]}, published is {published}"
                raise ValueError(f"{message}; {WAY_OUT}")
        elif piece.flat == ".txt":
            found |= {path: file_sha256(path) for path in sorted(target.glob("*.txt"))}
    by_folder: dict[str, dict[str, str]] = {}
    for path, digest in found.items():
        top, _, below = path.relative_to(root).as_posix().partition("/")
        by_folder.setdefault(top, {})[below] = digest
    compared, unwritable = 0, ""
    for top, digests in by_folder.items():
        known = read_manifest(root / top)["files"]
        if changed := [below for below, digest in digests.items() if known.get(below, digest) != digest]:
            message = f"{len(changed):,} files of '{root / top}' are not those that were verified first"
            raise ValueError(f"{message} ({_some(changed)}); get those back, or {WAY_OUT}")
        compared += sum(below in known for below in digests)
        try:
            if digests.keys() - known.keys():
                pin_files(root / top, digests)
        except OSError:
            unwritable = ", but those hashes could not be noted there for the next time"
    return (
        f"{len(photos):,} photos decode, {compared:,} of {len(found):,} files were verified before and are the same"
        f"{unwritable}, in '{root}'."
    )


def _read_photos(paths: Sequence[Path], progress: bool) -> Iterator[tuple[Path, str]]:
    """Each path with the sha256 of its file, or "" if it does not decode; in threads, since decoding frees them."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        blocks = (paths[start : start + BLOCK] for start in range(0, len(paths), BLOCK))
        read = (pair for block in blocks for pair in zip(block, pool.map(_sha256_if_it_decodes, block), strict=True))
        console = Console(stderr=True)
        yield from track(read, "reading every photo", total=len(paths), console=console, disable=not progress)


def _sha256_if_it_decodes(path: Path) -> str:
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except Exception:  # by where in the file the damage is, decoders raise almost anything
        return ""
    return hashlib.sha256(content).hexdigest()


def _do_not_decode(bad: list[Path], folder: Path) -> str:
    return f"{len(bad):,} photos in '{folder}' do not decode ({_some([p.name for p in bad])}); {WAY_OUT}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" and more" if len(names) > 5 else "")


def _verify_own(folder: Path, progress: bool) -> str:
    bench = load_image_folder(folder)
    if bad := [path for path, digest in _read_photos(bench.images, progress) if not digest]:
        message = f"{len(bad):,} of {len(bench.images):,} photos do not decode"
        raise ValueError(f"{message} ({_some([str(path) for path in bad])}); take them away or export them again.")
    queries = f"{len(bench.queries):,} queries" if bench.queries else "no queries, a folder to search"
    return f"image-folder: {len(bench.images):,} photos decode, {queries}, in '{folder}'."


def _verify_grocery(folder: Path, progress: bool) -> str:
    missing = [f"{split}.txt" for split in sources.SPLITS if not (folder / "dataset" / f"{split}.txt").is_file()]
    names = [photo for split in sources.SPLITS if f"{split}.txt" not in missing for photo in _photos(folder, split)]
    read = _read_photos([folder / "dataset" / photo for photo in names], progress)
    if bad := missing + [photo for photo, (_, digest) in zip(names, read, strict=True) if not digest]:
        problem = f"has {len(bad):,} missing or corrupt files ({_some(bad)})"
    else:
        problem = grocery_problem(folder)
    if problem:
        raise ValueError(f"'{folder}' {problem}; {WAY_OUT}")
    return f"grocery-store: {len(names):,} photos decode, content {sources.CONTENT[:12]} as expected, in '{folder}'."


def grocery_problem(folder: Path) -> str | None:
    """How the Grocery Store in `folder` differs from the one the results were made on; None if it does not."""
    lists = {}
    for split, count in sources.SPLITS.items():
        if not (folder / "dataset" / f"{split}.txt").is_file():
            return f"lacks 'dataset/{split}.txt'"
        lists[split] = _photos(folder, split)
        if len(lists[split]) != count:
            return f"names {len(lists[split]):,} photos in '{split}.txt', expected {count:,}"
    names = [f"{split}.txt" for split in lists] + [photo for photos in lists.values() for photo in photos]
    if missing := [name for name in names if not (folder / "dataset" / name).is_file()]:
        return f"lacks {len(missing):,} files, the first of them 'dataset/{missing[0]}'"
    if (found := content_hash(folder / "dataset", names)) != sources.CONTENT:
        return f"has content sha256 {found}, expected {sources.CONTENT}"
    return None


def content_hash(folder: Path, names: list[str]) -> str:
    """sha256 over a line `<name> <sha256 of the file>` for each of `names` (paths below `folder`), sorted."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name} {file_sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def _photos(folder: Path, split: str) -> list[str]:
    """Paths below dataset/ that a list names; its lines are `path, class, coarse class`."""
    lines = (folder / "dataset" / f"{split}.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.split(",")[0].strip() for line in lines if line.strip()]
