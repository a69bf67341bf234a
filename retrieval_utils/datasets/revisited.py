"""Benchmarks in the layout of Revisited Oxford and Paris: `gnd_<name>.pkl` beside `jpg/*.jpg`.

Source: Radenović, Iscen, Tolias, Avrithis, Chum, "Revisiting Oxford and Paris", CVPR 2018. Its ground truth is a
pickle, so it is read by an unpickler that can build plain containers and numpy arrays and nothing else.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from retrieval_utils.datasets.base import Benchmark
from retrieval_utils.datasets.manifest import cached_json, file_sha256
from retrieval_utils.evaluation import GroundTruth

_ADMITTED = {
    "numpy": {"ndarray", "dtype"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "builtins": {"set", "frozenset", "list", "dict", "tuple", "int", "float", "complex", "bool"},
    "collections": {"OrderedDict"},
}


class _Refused(Exception):
    pass


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) == ("_codecs", "encode"):
            return _latin1  # how old protocols write the bytes of an array; the real function would take any codec
        home = module.replace("numpy.core", "numpy._core").replace(
            "__builtin__", "builtins"
        )  # names of numpy 1, Python 2
        if name in _ADMITTED.get(home, ()):
            return super().find_class(home, name)
        raise _Refused(f"{module}.{name}")


def load_pickle_safely(path: str | Path) -> object:
    """The object in a pickle made of plain containers, numbers, strings and numpy arrays; nothing in it is executed.

    Raises FileNotFoundError if there is no such file, ValueError if it asks for any other class or function (named), or
    is truncated or no pickle at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file '{path}'; get the ground truth, or name the folder that holds it.")
    with path.open("rb") as file:
        try:
            return _PlainUnpickler(file, encoding="latin1").load()
        except _Refused as refused:
            raise ValueError(
                f"'{path}' asks for '{refused}', code that could run; only plain containers and numpy arrays are read, "
                "so get the file from its publisher."
            ) from None
        except Exception as error:  # a broken pickle can raise almost anything
            raise ValueError(f"'{path}' is truncated or not a pickle ({type(error).__name__}); get it again.") from None


def read_revisited(
    folder: str | Path, name: str, check_images: bool = True, photos: Path | None = None, cache: bool = False
) -> Benchmark:
    """The benchmark `name` from `<folder>/gnd_<name>.pkl` and `<folder>/jpg/*.jpg`, checked.

    check_images: also require every image, and every query box inside its image; False reads the ground truth alone.
    photos: the folder of the photos, if another. cache: keep the ground truth as JSON beside the pickle.
    fingerprint: over the ground truth file, and over the images' names and sizes in bytes where they were checked.
    Raises FileNotFoundError for missing files, ValueError for a malformed ground truth, naming the query.
    """
    folder = Path(folder)
    path = folder / f"gnd_{name}.pkl"
    photos = photos or folder / "jpg"
    if not path.is_file():
        raise FileNotFoundError(f"There is no file '{path}'; get the ground truth, or name the folder that holds it.")
    source = file_sha256(path)
    content = cached_json(path.with_suffix(".json"), source, lambda: _parse(path)) if cache else _parse(path)
    truth = tuple(GroundTruth(entry["easy"], entry["hard"], entry["junk"]) for entry in content["gnd"])
    boxes = tuple(tuple(entry["bbx"]) for entry in content["gnd"])
    images, queries = (tuple(photos / f"{n}.jpg" for n in content[key]) for key in ("imlist", "qimlist"))
    digest = hashlib.sha256(source.encode())
    if check_images:
        check_photos(name, (*images, *queries), digest)
        for query, box, image in zip(content["qimlist"], boxes, queries, strict=True):
            check_box(query, box, image)
    return Benchmark(name, images, queries, boxes, truth, ("easy", "medium", "hard"), digest.hexdigest())


def check_photos(name: str, images: Sequence[Path], digest) -> None:
    """Adds name and size in bytes of each image to `digest` (of hashlib); FileNotFoundError if any is missing."""
    sizes = [image.stat().st_size if image.is_file() else None for image in images]
    missing = [image for image, size in zip(images, sizes, strict=True) if size is None]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of {len(images):,} images of {name} are missing, the first is '{missing[0]}'; put the "
            f"photos into '{missing[0].parent}'."
        )
    for image, size in zip(images, sizes, strict=True):
        digest.update(f"{image.name} {size}\n".encode())


def _parse(path: Path) -> dict:
    """The checked content of a ground truth pickle as plain lists, numbers and strings."""
    content = load_pickle_safely(path)
    if not isinstance(content, dict) or {"imlist", "qimlist", "gnd"} - content.keys():
        raise ValueError(f"'{path}' has no imlist, qimlist and gnd; name the ground truth of a revisited benchmark.")
    if not all(isinstance(content[key], (list, tuple, np.ndarray)) for key in ("imlist", "qimlist", "gnd")):
        raise ValueError(f"'{path}' has an imlist, qimlist or gnd that is no list; get it again.")
    names, queries, entries = (list(content[key]) for key in ("imlist", "qimlist", "gnd"))
    _check_names(path, names, queries)
    if len(queries) != len(entries):
        raise ValueError(f"'{path}' has {len(queries)} queries but {len(entries)} ground truth entries; get it again.")
    gnd = [_entry(entry, query, len(names)) for entry, query in zip(entries, queries, strict=True)]
    return {"imlist": names, "qimlist": queries, "gnd": gnd}


def _check_names(path: Path, names: list, queries: list) -> None:
    seen: set[str] = set()
    for name in (*names, *queries):
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"'{path}' lists {name!r}, which is no image name; get it again.")
        if name in seen:
            raise ValueError(f"'{path}' lists '{name}' twice; database images and queries must differ from each other.")
        seen.add(name)


def _entry(entry: dict, query: str, n: int) -> dict:
    absent = {"bbx", "easy", "hard", "junk"} - (set(entry) if isinstance(entry, dict) else set())
    if absent:
        raise ValueError(f"The ground truth of query '{query}' has no {', '.join(sorted(absent))}; get it again.")
    box = _numbers(entry["bbx"], np.number, f"box of query '{query}'")
    if box.size != 4:
        raise ValueError(f"The box of query '{query}' has {box.size} numbers; it needs x1, y1, x2, y2.")
    lists = [_numbers(entry[key], np.integer, f"list {key} of query '{query}'") for key in ("easy", "hard", "junk")]
    indices, counts = np.unique(np.concatenate(lists).astype(np.int64), return_counts=True)
    outside = indices[(indices < 0) | (indices >= n)]
    if len(outside):
        raise ValueError(f"Query '{query}' refers to database image {outside[0]}, but they run from 0 to {n - 1}.")
    if (counts > 1).any():
        twice = indices[counts > 1][0]
        raise ValueError(
            f"Query '{query}' labels database image {twice} twice; easy, hard and junk exclude each other."
        )
    easy, hard, junk = (indices.tolist() for indices in lists)
    return {"bbx": box.astype(float).tolist(), "easy": easy, "hard": hard, "junk": junk}


def _numbers(value: object, kind: type, what: str) -> np.ndarray:
    """(n,) of that kind of number; an empty list is of any kind."""
    try:
        values = np.asarray(value).ravel()
    except ValueError:  # lists of unequal lengths
        values = np.asarray(["uneven"])
    if values.size and not np.issubdtype(values.dtype, kind):
        wanted = "whole numbers" if kind is np.integer else "numbers"
        raise ValueError(f"The {what} holds something else than {wanted}; get the ground truth again.")
    return values


def check_box(query: str, box: tuple[float, ...], path: Path) -> None:
    """Raises ValueError if the box (x1, y1, x2, y2) of `query` does not lie in the image at `path`, or that is none."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError):  # as `transforms.UNREADABLE`
        raise ValueError(f"The query image '{path}' cannot be read as an image; get it again.") from None
    x1, y1, x2, y2 = box
    # published boxes are rounded: a pixel beyond the edge is theirs, not an error
    near = -1 <= x1 < x2 <= width + 1 and -1 <= y1 < y2 <= height + 1
    if not (near and x1 < width and y1 < height and x2 > 0 and y2 > 0):  # some of it has to lie in the image
        raise ValueError(f"The box {box} of query '{query}' is not inside its image of {width} x {height} pixels.")
