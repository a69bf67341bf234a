"""Oxford5k, Paris6k, their revisited versions, and the million distractors R1M.

    <root>/oxford5k/jpg/*.jpg, gt_files/*.txt       as the Visual Geometry Group publishes them, photos in one folder
    <root>/roxford5k/gnd_roxford5k.pkl              shares those photos, or has its own jpg/; the same for Paris
    <root>/revisitop1m/revisitop1m.txt, jpg/        `+r1m`

Original protocol (Philbin et al., "Object retrieval with large vocabularies and fast spatial matching", CVPR 2007, and
"Lost in quantization", CVPR 2008): the photo of the query is one of the database and counts, as its ground truth lists
it, among the positives. Revisited protocol (Radenović et al., CVPR 2018): the 70 query photos are not in the database.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retrieval_utils.datasets.base import Benchmark
from retrieval_utils.datasets.manifest import cached_json, read_manifest
from retrieval_utils.datasets.revisited import check_box, check_photos, read_revisited
from retrieval_utils.datasets.sources import BLURRED, CORRUPT_PARIS, COUNTS, DISTRACTORS, PIECES
from retrieval_utils.evaluation import GroundTruth

OWN_COPY = "own copy, original or face-blurred unknown"
LISTS = ("good", "ok", "junk")


def load_oxford_paris(root: Path, name: str) -> Benchmark:
    """`oxford5k`, `paris6k` (one set-up, "original"), `roxford5k` or `rparis6k`, from the data root.

    fingerprint: over the ground truth, and the names and sizes in bytes of the photos; so face-blurred photos, with
    which the publisher replaced the originals in 2022, have another one. variant: which they are, where that is known.
    Raises FileNotFoundError for what is missing, ValueError for a malformed ground truth or counts that are not the
    published ones.
    """
    photos = photo_folder(root, name)
    if name in ("roxford5k", "rparis6k"):
        bench = read_revisited(_labels(root, name).parent, name, photos=photos, cache=True)
    else:
        names = [path for path in jpegs(photos) if path.stem not in CORRUPT_PARIS]
        bench = read_original(_labels(root, name), name, names, cache=True)
    found, expected = (len(bench.images), len(bench.queries)), (COUNTS[name].images, COUNTS[name].queries)
    if found != expected:
        raise ValueError(
            f"{name} has {expected[0]:,} images and {expected[1]} queries, but '{photos.parent}' has {found[0]:,} and "
            f"{found[1]}; get the data again, or take away what does not belong to it."
        )
    return replace(bench, variant=variant_of(photos))


def read_original(
    folder: Path, name: str, images: Sequence[Path], check_images: bool = True, cache: bool = False
) -> Benchmark:
    """The benchmark of the ground truth text files in `folder` over the database `images`, whose stems are the names.

    good is easy, ok is hard, and both are positive; the query photo is one of `images`. cache: keep the ground truth as
    `gnd_<name>.json` beside `folder`. check_images: also read the size of every query photo, and compare its box.
    """
    queries = read_gt_files(folder, folder.parent / f"gnd_{name}.json" if cache else None)
    places = {path.stem: place for place, path in enumerate(images)}
    query_images, boxes, truth = [], [], []
    for query in queries:
        labels = {key: [n for n in query[key] if n not in CORRUPT_PARIS] for key in LISTS}
        for label in (query["image"], *(n for key in LISTS for n in labels[key])):
            if label not in places:
                raise FileNotFoundError(
                    f"The ground truth of '{query['name']}' names '{label}', which is not among the {len(images):,} "
                    f"photos of {name}; get the photos again."
                )
        query_images.append(images[places[query["image"]]])
        boxes.append(tuple(query["box"]))
        truth.append(GroundTruth(*([places[n] for n in labels[key]] for key in LISTS)))
        if check_images:
            check_box(query["name"], boxes[-1], query_images[-1])
    digest = hashlib.sha256(repr(queries).encode())
    if check_images:
        check_photos(name, images, digest)
    return Benchmark(
        name, tuple(images), tuple(query_images), tuple(boxes), tuple(truth), ("original",), digest.hexdigest()
    )


def read_gt_files(folder: Path, cache: Path | None = None) -> list[dict]:
    """Per query {"name", "image", "box": [x1, y1, x2, y2], "good", "ok", "junk"} from `<name>_{query,good,...}.txt`.

    A name that a list has twice counts once, as for the publisher's own program. Sorted by query name.
    Raises FileNotFoundError if a file is missing, ValueError naming the file if one is malformed.
    """
    if not folder.is_dir() or not (files := sorted(folder.glob("*_query.txt"))):
        raise FileNotFoundError(f"There is no ground truth in '{folder}' (*_query.txt); get it, or put it there.")
    names = [path.name.removesuffix("_query.txt") for path in files]
    texts = {file: _text(folder / file) for n in names for file in (f"{n}_{key}.txt" for key in ("query", *LISTS))}

    def read() -> dict:
        return {"queries": [_query(folder, n, {k: texts[f"{n}_{k}.txt"] for k in ("query", *LISTS)}) for n in names]}

    if cache is None:
        return read()["queries"]
    return cached_json(cache, hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest(), read)["queries"]


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"The ground truth file '{path}' is missing; get the ground truth again.")
    try:
        return path.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise ValueError(f"'{path}' is no ground truth file: it is not plain text; get it again.") from None


def _query(folder: Path, name: str, texts: dict[str, str]) -> dict:
    words = texts["query"].split()
    try:
        box = [float(word) for word in words[1:]]
    except ValueError:
        box = []
    if len(box) != 4:
        line = texts["query"].strip()[:80]
        raise ValueError(
            f"'{folder / f'{name}_query.txt'}' says '{line}', expected a photo and x1 y1 x2 y2; get it again."
        )
    lists = {key: list(dict.fromkeys(texts[key].split())) for key in LISTS}
    seen: set[str] = set()
    for key, labels in lists.items():
        if twice := seen & set(labels):
            raise ValueError(
                f"'{folder / f'{name}_{key}.txt'}' labels '{min(twice)}' again; good, ok and junk exclude each other."
            )
        seen |= set(labels)
    # the files of Oxford give the query photo the name of another collection
    return {"name": name, "image": words[0].removeprefix("oxc1_"), "box": box, **lists}


def add_distractors(bench: Benchmark, root: Path) -> Benchmark:
    """`bench` with the R1M photos of the data root appended to its database: labels and queries stay as they are.

    fingerprint: also over the list of distractors. Raises FileNotFoundError, ValueError as `load_oxford_paris`.
    """
    folder = root / "revisitop1m"
    names = distractor_names(folder)
    listed = hashlib.sha256("\n".join(names).encode()).hexdigest()
    place = str(folder / "jpg")
    return replace(
        bench,
        name=f"{bench.name}+r1m",
        images=(*bench.images, *(Path(f"{place}/{name}") for name in names)),
        fingerprint=hashlib.sha256(f"{bench.fingerprint} {listed}".encode()).hexdigest(),
    )


def distractor_names(folder: Path) -> list[str]:
    """Paths below `<folder>/jpg`, in the order of `revisitop1m.txt`; each is there, as many as published."""
    path = folder / "revisitop1m.txt"
    if not path.is_file() or not (folder / "jpg").is_dir():
        raise FileNotFoundError(
            f"R1M is not in '{folder.parent}' ('revisitop1m/jpg' and 'revisitop1m/revisitop1m.txt'); run "
            "`python -m retrieval_utils data get r1m`."
        )
    names = path.read_text(encoding="utf-8", errors="replace").split()
    if len(names) != DISTRACTORS:
        raise ValueError(f"'{path}' lists {len(names):,} photos, expected {DISTRACTORS:,}; get it again.")
    top = str(folder / "jpg")
    there = {  # one walk: asking for a million files one by one takes minutes on a network disk
        f"{place[len(top) + 1 :]}/{file}".lstrip("/").replace(os.sep, "/")
        for place, _, files in os.walk(top)
        for file in files
    }
    if missing := [name for name in names if name not in there]:
        raise FileNotFoundError(
            f"{len(missing):,} of {DISTRACTORS:,} photos of R1M are not in '{top}', the first is '{missing[0]}'; get "
            "them again."
        )
    return names


def variant_of(photos: Path) -> str:
    """Which photos these are: known where `data get` loaded them, since the manifest has the name of their archive."""
    loaded = read_manifest(photos.parent)["downloads"]
    return BLURRED if any("-v1.tgz" in file for file in loaded) else OWN_COPY


def jpegs(folder: Path) -> list[Path]:
    """The photos of a folder, sorted by name, without the hidden files that some systems leave beside them."""
    return sorted(path for path in folder.glob("*.jpg") if not path.name.startswith("."))


def photo_folder(root: Path, name: str) -> Path:
    """Own photos of a revisited set, else those of the original one; and the other way round."""
    (photos,) = (piece for piece in PIECES[name] if piece.flat == ".jpg")
    for place in sorted(photos.places, key=lambda place: not place.startswith(f"{name}/")):
        if (root / place).is_dir():
            return root / place
    raise FileNotFoundError(
        f"The photos of {name} are not in '{root}' ('{photos.target}'); run `python -m retrieval_utils data get "
        f"{name}`, or point RETRIEVAL_DATA at the folder they are in."
    )


def _labels(root: Path, name: str) -> Path:
    (labels,) = (piece for piece in PIECES[name] if piece.flat != ".jpg")
    if not (root / labels.target).exists():
        raise FileNotFoundError(
            f"The ground truth of {name} is not in '{root}' ('{labels.target}'); run "
            f"`python -m retrieval_utils data get {name}`."
        )
    return root / labels.target
