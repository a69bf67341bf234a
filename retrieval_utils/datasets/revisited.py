"""Benchmarks in the layout of Revisited Oxford and Paris: `gnd_<name>.pkl` beside `jpg/*.jpg`.

Source: Radenović, Iscen, Tolias, Avrithis, Chum, "Revisiting Oxford and Paris", CVPR 2018. Its ground truth is a
pickle, so it is read by an unpickler that can build plain containers and numpy arrays and nothing else.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from retrieval_utils.datasets.base import Benchmark
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


def read_revisited(folder: str | Path, name: str, check_images: bool = True) -> Benchmark:
    """The benchmark `name` from `<folder>/gnd_<name>.pkl` and `<folder>/jpg/*.jpg`, checked.

    check_images: also require every image, and every query box inside its image; False reads the ground truth alone.
    fingerprint: sha256 of the ground truth file, and of the images' names and sizes in bytes where they were checked.
    Raises FileNotFoundError for missing files, ValueError for a malformed ground truth, naming the query.
    """
    folder = Path(folder)
    path = folder / f"gnd_{name}.pkl"
    content = load_pickle_safely(path)
    if not isinstance(content, dict) or {"imlist", "qimlist", "gnd"} - content.keys():
        raise ValueError(f"'{path}' has no imlist, qimlist and gnd; name the ground truth of a revisited benchmark.")
    names, queries, entries = (list(content[key]) for key in ("imlist", "qimlist", "gnd"))
    _check_names(path, names, queries)
    if len(queries) != len(entries):
        raise ValueError(f"'{path}' has {len(queries)} queries but {len(entries)} ground truth entries; get it again.")
    truth = tuple(_ground_truth(entry, query, len(names)) for entry, query in zip(entries, queries, strict=True))
    boxes = tuple(tuple(float(v) for v in np.ravel(entry["bbx"])) for entry in entries)
    images = tuple(folder / "jpg" / f"{n}.jpg" for n in names)
    query_images = tuple(folder / "jpg" / f"{n}.jpg" for n in queries)
    digest = hashlib.sha256(path.read_bytes())
    if check_images:
        missing = [p for p in (*images, *query_images) if not p.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing):,} of {len(names) + len(queries):,} images of {name} are missing, the first is "
                f"'{missing[0]}'; put the photos into '{folder / 'jpg'}'."
            )
        for query, box, image in zip(queries, boxes, query_images, strict=True):
            _check_box(query, box, image)
        for image in (*images, *query_images):
            digest.update(f"{image.name} {image.stat().st_size}\n".encode())
    return Benchmark(name, images, query_images, boxes, truth, ("easy", "medium", "hard"), digest.hexdigest())


def _check_names(path: Path, names: list, queries: list) -> None:
    seen: set[str] = set()
    for name in (*names, *queries):
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"'{path}' lists {name!r}, which is no image name; get it again.")
        if name in seen:
            raise ValueError(f"'{path}' lists '{name}' twice; database images and queries must differ from each other.")
        seen.add(name)


def _ground_truth(entry: dict, query: str, n: int) -> GroundTruth:
    absent = {"bbx", "easy", "hard", "junk"} - set(entry)
    if absent:
        raise ValueError(f"The ground truth of query '{query}' has no {', '.join(sorted(absent))}; get it again.")
    if np.size(entry["bbx"]) != 4:
        raise ValueError(f"The box of query '{query}' has {np.size(entry['bbx'])} numbers; it needs x1, y1, x2, y2.")
    lists = [np.asarray(entry[key], dtype=np.int64).ravel() for key in ("easy", "hard", "junk")]
    indices, counts = np.unique(np.concatenate(lists), return_counts=True)
    outside = indices[(indices < 0) | (indices >= n)]
    if len(outside):
        raise ValueError(f"Query '{query}' refers to database image {outside[0]}, but they run from 0 to {n - 1}.")
    if (counts > 1).any():
        twice = indices[counts > 1][0]
        raise ValueError(
            f"Query '{query}' labels database image {twice} twice; easy, hard and junk exclude each other."
        )
    return GroundTruth(*lists)


def _check_box(query: str, box: tuple[float, ...], path: Path) -> None:
    try:
        with Image.open(path) as image:
            width, height = image.size
    except OSError:
        raise ValueError(f"The query image '{path}' cannot be read as an image; get it again.") from None
    x1, y1, x2, y2 = box
    # published boxes are rounded: a pixel beyond the edge is theirs, not an error
    if not (-1 <= x1 < x2 <= width + 1 and -1 <= y1 < y2 <= height + 1):
        raise ValueError(f"The box {box} of query '{query}' is not inside its image of {width} x {height} pixels.")
