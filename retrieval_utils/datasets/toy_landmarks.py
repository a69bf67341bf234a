"""Toy landmarks: a drawn benchmark for instance retrieval in the layout of Revisited Oxford, with its training parts.

A style (gothic church, pagoda, ...) is the category, a building the instance. All styles share one distribution of
colours and ornaments, so a classifier of styles has no reason to keep what tells two buildings of a style apart. Labels
follow from what is visible (`toy.scenes.View.label`). Every photo has its own random stream, keyed by seed, building
and view: the same seed gives the same bytes in any process and for any number of workers (with the same Pillow, numpy).

    toy-landmarks-smoke-seed0/
        jpg/*.jpg, gnd_toy-landmarks.pkl    the benchmark
        train/*.jpg, train.csv              file, part, style, building, visible
        manifest.json                       sha256 of every file
"""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL

from retrieval_utils.datasets.base import Benchmark, TrainingSet
from retrieval_utils.datasets.revisited import read_revisited
from retrieval_utils.datasets.toy.look import Lots
from retrieval_utils.datasets.toy.photo import take_photo
from retrieval_utils.datasets.toy.scenes import Building, View, plan_view
from retrieval_utils.datasets.toy.styles import STYLES

NAME = "toy-landmarks"
VERSION = 12  # of the drawing: raise it whenever a seed gives other photos than before
TRAINING_PARTS = ("categories", "instances")


@dataclass(frozen=True)
class Size:
    """For each part: buildings a style, and views a building."""

    categories: tuple[int, int]
    instances: tuple[int, int]
    test: tuple[int, int]  # views in the database
    queries: int  # views more, for each test building
    distractors: tuple[int, int]
    streets: int  # database images without a landmark
    city: tuple[str, ...] = ()  # styles of test buildings and distractors; empty: all


SIZES = {
    "tiny": Size(categories=(2, 4), instances=(1, 5), test=(1, 5), queries=1, distractors=(1, 1), streets=3),
    # An old town of timbered houses: whoever knows them from churches has learned nothing yet about which house it is,
    # as with the colleges of Oxford.
    "smoke": Size(
        categories=(80, 1),
        instances=(10, 8),
        test=(40, 9),
        queries=2,
        distractors=(150, 1),
        streets=40,
        city=("timbered-house",),
    ),
}


# Pretraining pictures show one thing each, plainly, by day and filling the frame, as those of classification sets do;
# nobody labels a landmark that cannot be recognised; the database holds whatever people photograph.
WANTED = {
    "categories": {"easy"},
    "instances": {"easy", "hard"},
    "queries": {"easy"},
    "test": {"easy", "hard", "junk"},
    "distractors": {"easy", "hard", "junk"},
}


@dataclass(frozen=True)
class _Job:
    """One building (or a street without one) and the photos to take of it."""

    seed: int
    key: int
    style: str
    part: str
    views: int
    queries: int = 0


def generate_toy_landmarks(
    root: str | Path, size: str = "smoke", seed: int = 0, workers: int | None = None, progress: bool = True
) -> Path:
    """Draw the set into `<root>/toy-landmarks-<size>-seed<seed>`, or reuse it if it is there and intact; its folder.

    size: one of SIZES. workers: processes, at most 2 by default; the bytes do not depend on it. The folder has its name
    only when whole; one that was altered or drawn by another version is drawn again.
    Raises ValueError for an unknown size or a negative seed, OSError if it cannot be written.
    """
    if size not in SIZES:
        raise ValueError(f"There is no size '{size}' of toy landmarks; choose one of {', '.join(SIZES)}.")
    if seed < 0:
        raise ValueError(f"The seed is {seed}; it must be 0 or more.")
    folder = Path(root) / f"{NAME}-{size}-seed{seed}"
    fault = _fault(folder)
    if not fault:
        return folder
    if progress and folder.exists():
        print(f"Drawing {folder.name} again: {fault}", file=sys.stderr)
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=root))
        try:
            _draw_all(draft, size, seed, workers, folder.name if progress and sys.stderr.isatty() else "")
            _publish(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        reason = f"{folder.name} could not be written to '{root}' ({error.strerror})"
        raise OSError(error.errno, f"{reason}; free some space there, or name another data root.") from None
    return folder


def load_toy_benchmark(folder: str | Path) -> Benchmark:
    """The test part of a drawn folder; fingerprint: hash of its files. Raises ValueError if a file was altered."""
    manifest = _verified(Path(folder))
    return replace(read_revisited(folder, NAME), fingerprint=manifest["test_sha256"])


def load_toy_training_set(folder: str | Path, part: str) -> TrainingSet:
    """A training part: "categories" (label: style) or "instances" (label: building).

    fingerprint: hash of train.csv and the part's photos. Raises ValueError for an unknown part or an altered file.
    """
    if part not in TRAINING_PARTS:
        raise ValueError(f"There is no part '{part}'; choose one of {', '.join(TRAINING_PARTS)}.")
    folder = Path(folder)
    manifest = _verified(folder)
    with (folder / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == part]
    names = [row["style" if part == "categories" else "building"] for row in rows]
    label_names, labels = np.unique(names, return_inverse=True)
    used = {"train.csv", *(f"train/{row['file']}" for row in rows)}
    return TrainingSet(
        name=f"{NAME}-{part}",
        images=tuple(folder / "train" / row["file"] for row in rows),
        labels=labels.astype(np.int64),
        label_names=tuple(str(name) for name in label_names),
        fingerprint=_hash_of({name: digest for name, digest in manifest["files"].items() if name in used}),
    )


def _fault(folder: Path) -> str:
    """Why the folder cannot be used as it is; empty if it can."""
    try:
        return "" if _verified(folder)["version"] == VERSION else "it was drawn by another version of the package."
    except (ValueError, FileNotFoundError) as error:
        return str(error)


def _publish(draft: Path, folder: Path) -> None:
    """Give the finished draft its name, in place of a folder that cannot be used."""
    draft.chmod(0o755)  # mkdtemp's folders are private
    if folder.exists():
        if not _fault(folder):
            return  # another process was faster, with the same bytes
        folder.rename(draft / "replaced")
    draft.rename(folder)
    shutil.rmtree(folder / "replaced", ignore_errors=True)


def _stream(seed: int, building: int, view: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, building, view])))


def _jobs(size: Size, seed: int) -> list[_Job]:
    """Every building has a number of its own, so no two parts share one."""
    jobs: list[_Job] = []
    for part in (*TRAINING_PARTS, "test", "distractors"):
        buildings, views = getattr(size, part)
        styles = size.city if part not in TRAINING_PARTS and size.city else tuple(STYLES)
        for style in (style for style in styles for _ in range(buildings)):
            jobs.append(_Job(seed, len(jobs), style, part, views, size.queries if part == "test" else 0))
    return jobs + [_Job(seed, len(jobs) + i, "street", "distractors", 1) for i in range(size.streets)]


def _photograph(job: _Job, folder: Path) -> list[dict]:
    """Draw one building and take its photos; a row for each."""
    train, street, studio = job.part in TRAINING_PARTS, job.style == "street", job.part == "categories"
    # a street is framed for a building that is then left out
    building = Building.build("warehouse" if street else job.style, _stream(job.seed, job.key, 0))
    rows = []
    for view in range(job.views + job.queries):
        lots, query = Lots(_stream(job.seed, job.key, view + 1)), view >= job.views
        plan = _plan(building, lots, WANTED["queries" if query else job.part], studio)
        photo, box = take_photo(None if street else building, plan, lots, studio)
        if studio:
            photo = photo.crop(box)
        name = f"{job.style}_{job.key:03d}"
        file = f"{name}_{view:03d}.jpg"
        quality = 90 if studio else lots.count(45, 92)
        photo.save(folder / ("train" if train else "jpg") / file, quality=quality)
        rows.append({"file": file, "part": job.part, "style": job.style, "building": name, "query": query, "box": box,
                     "label": "" if street else plan.label, "visible": plan.visible})  # fmt: skip
    return rows


def _plan(building: Building, lots: Lots, wanted: set[str], studio: bool) -> View:
    while True:
        view = plan_view(building, lots)
        if view.label in wanted and (not studio or (view.hour in ("day", "overcast") and view.weather == "clear")):
            return view


def _draw_all(folder: Path, size: str, seed: int, workers: int | None, title: str) -> None:
    for name in ("jpg", "train"):
        (folder / name).mkdir()
    jobs = _jobs(SIZES[size], seed)
    total = sum(job.views + job.queries for job in jobs)
    if workers is None:
        workers = min(2, os.cpu_count() or 1) if total > 300 else 1  # below that, starting processes costs more
    rows: list[dict] = []
    for done in _photograph_all(jobs, folder, workers):
        rows += done
        if title:
            print(f"\rdrawing {title}: {len(rows):,} of {total:,}", end="", file=sys.stderr, flush=True)
    if title:
        print(file=sys.stderr)
    _write_ground_truth(folder, [r for r in rows if r["part"] not in TRAINING_PARTS], seed)
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "part", "style", "building", "visible"])
        for r in rows:
            if r["part"] in TRAINING_PARTS:
                table.writerow([r["file"], r["part"], r["style"], r["building"], f"{r['visible']:.3f}"])
    _write_manifest(folder, rows, size, seed)


def _photograph_all(jobs: list[_Job], folder: Path, workers: int) -> Iterator[list[dict]]:
    if workers <= 1:
        yield from (_photograph(job, folder) for job in jobs)
        return
    # Forked children start at once and need no importable main module; they use numpy and Pillow only, no threads.
    method = "fork" if sys.platform == "linux" else "spawn"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method)) as pool:
            yield from pool.map(_photograph, jobs, [folder] * len(jobs), chunksize=4)


def _write_ground_truth(folder: Path, rows: list[dict], seed: int) -> None:
    queries = [r for r in rows if r["query"]]
    shown = [r for r in rows if not r["query"]]
    database = [shown[i] for i in _stream(seed, 2**31, 0).permutation(len(shown))]  # as in Oxford, order says nothing
    gnd = []
    for query in queries:
        labels = {"easy": [], "hard": [], "junk": []}
        for i, row in enumerate(database):
            if row["building"] == query["building"]:
                labels[row["label"]].append(i)
        gnd.append({"bbx": [float(v) for v in query["box"]], **labels})
    names, query_names = ([r["file"].removesuffix(".jpg") for r in part] for part in (database, queries))
    content = {"gnd": gnd, "imlist": names, "qimlist": query_names}
    (folder / f"gnd_{NAME}.pkl").write_bytes(pickle.dumps(content, protocol=2))


def _write_manifest(folder: Path, rows: list[dict], size: str, seed: int) -> None:
    files = {p.relative_to(folder).as_posix(): _sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    database = [r for r in rows if r["part"] not in TRAINING_PARTS and not r["query"]]
    labels = [r["label"] for r in database if r["part"] == "test"]
    manifest = {
        "name": NAME,
        "size": size,
        "seed": seed,
        "version": VERSION,
        "drawn_with": {"numpy": np.__version__, "pillow": PIL.__version__},
        "counts": {
            **{part: sum(r["part"] == part for r in rows) for part in TRAINING_PARTS},
            "database": len(database),
            "queries": sum(r["query"] for r in rows),
            **{label: labels.count(label) for label in ("easy", "hard", "junk")},
        },
        "sha256": _hash_of(files),
        "test_sha256": _hash_of({name: digest for name, digest in files.items() if not name.startswith("train")}),
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _verified(folder: Path) -> dict:
    """The manifest of a whole, unaltered folder; raises FileNotFoundError or ValueError, naming the first bad file."""
    way_out = "draw it again with generate_toy_landmarks."
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files, total = manifest["files"], manifest["sha256"]
        if total != _hash_of(files) or not {"version", "test_sha256"} <= manifest.keys():
            raise ValueError
    except FileNotFoundError:
        raise FileNotFoundError(f"'{folder}' has no manifest.json: it is no set of toy landmarks; {way_out}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"'{folder / 'manifest.json'}' is damaged; {way_out}") from None
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"'{path}' is missing; {way_out}")
        if _sha256(path) != digest:
            raise ValueError(f"'{path}' is not the file that was drawn; {way_out}")
    return manifest


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _hash_of(files: dict[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in sorted(files.items())).encode()).hexdigest()
