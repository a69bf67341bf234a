"""The runner: notebooks in order through papermill, everything checked before anything runs, one record a seed."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from retrieval_utils.card import driver
from retrieval_utils.profiles import get_profile
from retrieval_utils.progress import Progress
from retrieval_utils.records import write_json

OWN_OPTIONS = {"profile": "--profile", "run_dir": "--run-dir"}  # parameters that the runner fills in itself
TYPES = {"int": int, "float": float, "str": str, "bool": bool}
PACKAGES = ("torch", "torchvision", "lightly", "pytorch-lightning", "numpy", "pillow", "papermill")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the message says where the run stopped and how to go on."""


def reproduce(
    profile: str = "smoke",
    only: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    run_dir: str | Path = "runs",
    notebooks_dir: str | Path = "notebooks",
    seeds: Sequence[int] | None = None,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Run the notebooks of `notebooks_dir` in order on `profile`, once a seed (default: 0); return one record a seed.

    only: numbers or names ("02", "02_contrastive_pretraining"). settings: notebook parameters, as values or as text.
    resume: skip notebooks that are done with the same code and parameters. Executed notebooks and run.json land in
    <run_dir>/<profile>/seed-<n>/. A notebook that fails ends the run of its seed, and the other seeds go on. Raises
    ValueError for a name or value that does not exist before anything runs, `execution.NotebookFailed`, in the end, for
    all that failed, `Interrupted` on Ctrl-C.
    """
    console = console or Console()
    notebooks, known, typed, seeds = check(profile, only, settings, notebooks_dir, seeds)
    from retrieval_utils.execution import NotebookFailed

    if typed.get("data_root"):  # the notebooks stand in their own folder, the user somewhere else
        typed["data_root"] = _relative(Path(typed["data_root"]).expanduser(), notebooks_dir)

    expected = expected_seconds(Path(notebooks_dir).parent / "results" / f"{profile}.json")
    records, failed = [], []
    with Progress(console, [path.stem for path in notebooks] * len(seeds), expected) as progress:
        for seed in seeds:
            folder = Path(run_dir) / profile / f"seed-{seed}"
            parameters = {"profile": profile, "seed": seed, **typed}
            record = open_record(folder, parameters)
            if not resume:
                for path in notebooks:
                    record["notebooks"].pop(path.stem, None)
            cold = not (resume or only) and not any((folder / "networks").glob("*"))
            write_json(folder / "run.json", record)
            records.append(record)
            for place, path in enumerate(notebooks):
                values = parameters | {"run_dir": _relative(run_dir, notebooks_dir)}
                values = {name: value for name, value in values.items() if name in known[path.stem]}
                try:
                    _run(path, folder, record, values, cold, progress)
                except NotebookFailed as failure:
                    failed.append(str(failure) if len(seeds) == 1 else f"seed {seed}: {failure}")
                    progress.failed(path.stem, seed, len(notebooks) - place - 1)
                    break
    if failed:
        raise NotebookFailed("\n".join(failed))
    return records


def check(
    profile: str,
    only: Sequence[str],
    settings: Mapping[str, Any] | None,
    notebooks_dir: str | Path,
    seeds: Sequence[int] | None,
) -> tuple[list[Path], dict[str, dict[str, str]], dict[str, Any], list[int]]:
    """The notebooks chosen, the types of their parameters, settings of these types, and the seeds.

    Raises ValueError or FileNotFoundError for a name or value that does not exist; runs nothing.
    """
    get_profile(profile)
    notebooks = select(find_notebooks(notebooks_dir), only)
    known = {path.stem: parameters_of(path) for path in notebooks}
    typed = check_settings(settings or {}, known)
    if "seed" in typed and seeds is not None:
        raise ValueError("The seed is set twice, by --set seed and by --seeds: name one of them.")
    return notebooks, known, typed, [typed.pop("seed")] if "seed" in typed else list(seeds or [0])


def _run(path: Path, folder: Path, record: dict, parameters: dict[str, Any], cold: bool, progress: Progress) -> None:
    """Run one notebook unless the record has it as done, and write down how it went."""
    from retrieval_utils.execution import NotebookFailed, execute

    seed, output, digest = record["seed"], folder / "notebooks" / path.name, source_sha256(path)
    before = record["notebooks"].get(path.stem, {})
    if before.get("status") == "done" and before["source_sha256"] == digest and output.is_file():
        progress.skip(path.stem, seed)
        return
    progress.start(path.stem, seed)
    started = time.monotonic()
    try:
        done = execute(path, output, parameters, progress.cell)
    except NotebookFailed:
        record["notebooks"][path.stem] = _entry("failed", time.monotonic() - started, digest)
        write_json(folder / "run.json", record)
        raise
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped in {path.stem} (seed {seed}); what was finished is kept, --resume goes on from there."
        ) from None
    measured = {"peak_memory_mb": done.peak_memory_mb, "cold": cold, **done.card}
    record["notebooks"][path.stem] = _entry("done", done.seconds, digest) | measured
    write_json(folder / "run.json", record)
    progress.done(path.stem, seed, done.seconds, done.peak_memory_mb)


def find_notebooks(folder: str | Path) -> list[Path]:
    """The notebooks NN_*.ipynb of `folder` in reading order; FileNotFoundError if there are none."""
    found = sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(
            f"There are no notebooks in '{folder}': run this in the project's folder, the one with the Makefile."
        )
    return found


def select(notebooks: Sequence[Path], only: Sequence[str]) -> list[Path]:
    """Those of `notebooks` whose number or name is in `only` (all if empty), in reading order."""
    chosen = set()
    for name in only:
        stem = Path(name).name.removesuffix(".ipynb")
        match = [path for path in notebooks if stem in (path.stem, path.stem[:2])]
        if not match:
            raise ValueError(f"There is no notebook '{name}'; there are {', '.join(p.stem for p in notebooks)}.")
        chosen.update(match)
    return [path for path in notebooks if not only or path in chosen]


def parameters_of(notebook: Path) -> dict[str, str]:
    """Names and annotated types in the notebook's cell tagged `parameters`; ValueError if it has no such cell."""
    import papermill

    found = papermill.inspect_notebook(str(notebook))
    if not {"profile", "seed", "run_dir"} <= set(found):
        raise ValueError(f"{notebook.name} has no cell tagged 'parameters' with profile, seed and run_dir; add one.")
    return {name: parameter["inferred_type_name"] for name, parameter in found.items()}


def check_settings(settings: Mapping[str, Any], known: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """`settings` with values of the annotated types; ValueError names what does not exist or does not fit.

    known: per notebook the types of its parameters, by name. Text is read as the type: "3", "0.5", "true".
    """
    types = {name: kind for parameters in known.values() for name, kind in parameters.items()}
    typed = {}
    for name, value in settings.items():
        if name in OWN_OPTIONS:
            raise ValueError(f"The parameter '{name}' is set by {OWN_OPTIONS[name]}, not by --set.")
        if name not in types:
            near = difflib.get_close_matches(name, types, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"The notebooks have no parameter '{name}'; they have {', '.join(types)}.{hint}")
        typed[name] = _typed(name, value, types[name])
    return typed


def _typed(name: str, value: Any, kind: str) -> Any:
    wanted = TYPES.get(kind, str)
    if isinstance(value, str) and wanted is not str:
        try:
            value = {"true": True, "false": False}[value.lower()] if wanted is bool else wanted(value)
        except (ValueError, KeyError):
            pass
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        example = {int: "1", float: "0.5", bool: "true", str: "text"}[wanted]
        raise ValueError(f"The parameter '{name}' is of type {kind}, and {value!r} is not; as in {name}={example}.")
    return value


def source_sha256(notebook: Path) -> str:
    """sha256 of the notebook's code cells: what decides its results, not its prose, outputs or cost card."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def expected_seconds(results: Path) -> dict[str, float]:
    """Mean seconds a notebook in the committed record `results`, of runs that trained everything; empty if none."""
    if not results.is_file():
        return {}
    seconds: dict[str, list[float]] = {}
    for run in json.loads(results.read_text(encoding="utf-8"))["runs"]:
        for stem, entry in run["notebooks"].items():
            if entry["status"] == "done" and entry.get("cold"):
                seconds.setdefault(stem, []).append(entry["seconds"])
    return {stem: sum(values) / len(values) for stem, values in seconds.items()}


def open_record(folder: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """The record of this run: what stands in run.json if it was made with the same parameters, else a new one."""
    file = folder / "run.json"
    old = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {
        "profile": parameters["profile"],
        "seed": parameters["seed"],
        "parameters": parameters,
        "git": git_state(),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
        "machine": machine(),
        "notebooks": old.get("notebooks", {}) if old.get("parameters") == parameters else {},
    }


def git_state() -> dict[str, Any]:
    """Commit of the project and whether tracked files differ from it; None where there is no git."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def machine() -> dict[str, Any]:
    """System, cores this process may use, memory in GB, the device that training would take and an NVIDIA driver."""
    import psutil
    import torch

    threads = os.environ.get("OMP_NUM_THREADS", "")
    cores = min(usable_cores(), int(threads)) if threads.isdecimal() else usable_cores()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    memory = round(psutil.virtual_memory().total / 1e9, 1)
    system = f"{platform.system()} {platform.machine()}"
    found = {"system": system, "cores": cores, "memory_gb": memory, "device": device}
    return found | ({"driver": driver()} if device != "cpu" else {})


def usable_cores() -> int:
    """Cores that the system lets this process use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _entry(status: str, seconds: float, digest: str) -> dict[str, Any]:
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    return {"status": status, "seconds": round(seconds, 1), "finished": finished, "source_sha256": digest}


def _relative(path: str | Path, start: str | Path) -> str:
    try:
        return Path(os.path.relpath(path, start)).as_posix()
    except ValueError:  # another drive on Windows
        return Path(path).absolute().as_posix()
