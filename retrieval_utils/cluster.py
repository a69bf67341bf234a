"""Many runs at once: every (profile, seed) is a run of the notebooks in a process of its own, handed out by Dask.

A worker starts the runner with its share of the machine's cores and waits for it. The workers of a scheduler elsewhere
need this project in the same folder on a disk that all share; their own RETRIEVAL_DATA says where the data sets are.
"""

from __future__ import annotations

import _thread
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from retrieval_utils.reproduce import Interrupted, check, reproduce, usable_cores

COMMAND = (sys.executable, "-m", "retrieval_utils.cluster")
COLUMNS = (
    "profile",
    "seed",
    "status",
    "notebooks",
    "minutes",
    "peak_memory_mb",
    "threads",
    "worker",
    "commit",
    "error",
)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # Dask sets them to 1 for its workers
ANSWER, PATIENCE = 5, 60  # seconds: for a scheduler to answer, for a stopped run to close its kernel
MARK = "\x1e"  # between what libraries print and a run's own error


@contextmanager
def connect(scheduler: str = "", workers: int | None = None) -> Iterator[Any]:
    """A Dask client of the scheduler at this address, or without one of `workers` new workers on this machine.

    Raises ValueError if both or neither are named, without Dask, and if no scheduler or worker is there in seconds.
    """
    if bool(scheduler) == (workers is not None) or (workers is not None and workers < 1):
        raise ValueError("Name either --scheduler ADDRESS or --workers N, a whole number of at least 1.")
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError:
        raise ValueError("Many runs at once need Dask: pip install 'dask[distributed]'.") from None
    if not scheduler:  # threads are enough for workers that only wait for processes
        size = {"n_workers": workers, "threads_per_worker": 1, "processes": False, "memory_limit": None}
        with LocalCluster(**size, dashboard_address=None) as cluster, Client(cluster) as client:
            yield client
        return
    try:
        client = Client(scheduler, timeout=ANSWER)
    except (OSError, ValueError):
        client = None
    if client is None:
        # The half-open client closes itself when it is collected. Should that happen while Dask starts another event
        # loop, the two would wait for each other for ever; so it happens here.
        gc.collect()
        way_out = "start one with `dask scheduler`, or name --workers to run on this machine"
        raise ValueError(f"No Dask scheduler answers at '{scheduler}': {way_out}.")
    with client:
        if not client.scheduler_info()["workers"]:
            raise ValueError(f"The scheduler at '{scheduler}' has no worker: start one with `dask worker {scheduler}`.")
        yield client


def reproduce_many(
    profiles: Sequence[str],
    seeds: Sequence[int] | None = None,
    scheduler: str = "",
    workers: int | None = None,
    console: Console | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """`reproduce(**options)` for every profile and seed; a row (COLUMNS) a run, kept in <run_dir>/runs.csv too.

    A run that fails has its error in its row, and the others go on. Raises as `reproduce` and `connect` do before
    anything runs, and `Interrupted` on Ctrl-C, when all runs have stopped; what was finished is kept.
    """
    options = {"only": (), "settings": None, "notebooks_dir": "notebooks", "run_dir": "runs"} | options
    jobs = []
    for name in dict.fromkeys(profiles):
        *_, settings, numbers = check(name, options["only"], options["settings"], options["notebooks_dir"], seeds)
        jobs += [options | {"profile": name, "settings": settings, "seeds": [seed]} for seed in numbers]
    console, rows = console or Console(), {}
    with connect(scheduler, workers) as client:
        from dask.distributed import Event, as_completed, wait

        stop = Event(uuid.uuid4().hex, client=client)
        known = os.getcwd(), runs_per_machine(client), stop.name
        futures = {client.submit(run_one, job, *known, pure=False): job for job in jobs}
        try:
            for future in as_completed(futures):
                job = futures[future]
                try:
                    row = future.result()
                except Exception as error:  # the worker died, or could not load the package
                    row = _row(job, error=f"{type(error).__name__}: {error}".splitlines()[0])
                rows[row["profile"], row["seed"]] = row
                keep(row, Path(job["run_dir"], "runs.csv"))
                told = f"{row['profile']} (seed {row['seed']}): {row['status']} after {row['minutes']} min"
                console.print(told, row["error"], highlight=False, markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            stop.set()
            with suppress(TimeoutError):
                wait(list(futures), timeout=PATIENCE + ANSWER)
            done = f"Stopped after {len(rows)} of {len(jobs)} runs"
            raise Interrupted(f"{done}; what was finished is kept, --resume goes on from there.") from None
    return [rows[job["profile"], job["seeds"][0]] for job in jobs]


def runs_per_machine(client) -> dict[str, int]:
    """A worker's address -> how many runs its machine may have at once, over all workers there."""
    workers, runs = client.scheduler_info()["workers"], Counter()
    for worker in workers.values():
        runs[worker["host"]] += worker["nthreads"]
    return {address: runs[worker["host"]] for address, worker in workers.items()}


def run_one(job: dict[str, Any], place: str, runs: Mapping[str, int], stop: str) -> dict[str, Any]:
    """On a worker: `reproduce(**job)` in a process of its own in folder `place`, until `stop` is set; a row."""
    from dask.distributed import Event, get_worker

    worker, stopped, began = get_worker(), Event(stop), time.monotonic()
    threads = max(1, usable_cores() // runs.get(worker.address, 1))
    row = _row(job, threads=threads, worker=str(worker.name))
    paths = filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")))
    own = dict.fromkeys(THREADS, str(threads)) | {"PYTHONPATH": os.pathsep.join(paths)}
    if not stopped.is_set():
        with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
            code = _attend([*COMMAND, json.dumps(job, default=str)], place, os.environ | own, said, stopped)
            said.seek(0)
            lines = said.read().rpartition(MARK)[2].strip().splitlines()[-3:]
        row |= {"status": "failed", "error": " ".join(lines) or f"Exit code {code}."} if code else {"status": "done"}
    file = Path(place, job["run_dir"], job["profile"], f"seed-{row['seed']}", "run.json")
    if file.is_file():
        record = json.loads(file.read_text(encoding="utf-8"))
        done = [entry for entry in record["notebooks"].values() if entry["status"] == "done"]
        peak = max((entry["peak_memory_mb"] for entry in done), default=0.0)
        row |= {"notebooks": len(done), "peak_memory_mb": peak, "commit": record["git"]["commit"] or ""}
    return row | {"minutes": round((time.monotonic() - began) / 60, 2)}


def _attend(command: Sequence[str], place: str, environment: Mapping[str, str], said, stopped) -> int:
    """Exit code of `command`, which is stopped by the end of its input: once `stopped`, or when this worker dies."""
    # In a session of its own: Ctrl-C reaches the client alone, which lets its workers stop the runs.
    options = {"cwd": place, "env": environment, "stdin": subprocess.PIPE, "start_new_session": True}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, **options)
    try:
        while process.poll() is None and not stopped.wait(timeout=0.5):
            pass
    finally:
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        process.kill()  # does nothing to one that ended
    return process.wait()


def _row(job: Mapping[str, Any], **known: Any) -> dict[str, Any]:
    row = dict.fromkeys(COLUMNS, "") | {"notebooks": 0, "minutes": 0.0, "peak_memory_mb": 0.0, "threads": 0}
    return row | {"profile": job["profile"], "seed": job["seeds"][0], "status": "failed"} | known


def keep(row: dict[str, Any], file: Path) -> None:
    """Put `row` into the table `file`, in place of the row of the same profile and seed."""
    import pandas as pd

    from retrieval_utils.report import write_text

    old = [pd.read_csv(file, keep_default_na=False)] if file.is_file() else []
    table = pd.concat([*old, pd.DataFrame([row])]).drop_duplicates(["profile", "seed"], keep="last")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, table.sort_values(["profile", "seed"]).to_csv(index=False, lineterminator="\n"))


def summary(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows as a table for the terminal, without what only the file has to keep."""
    shown = COLUMNS[:7]
    table = Table(*(name.replace("_", " ") for name in shown), title="The runs")
    for row in rows:
        table.add_row(*(str(row[name]) for name in shown))
    return table


def main() -> None:
    """The process of one run: its job is the argument; it stops when its input ends. Exit code 0, 1 or 130."""

    def follow() -> None:
        os.read(0, 1)  # not sys.stdin, whose lock would be held while Python ends
        _thread.interrupt_main()

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    threading.Thread(target=follow, daemon=True).start()
    try:
        with open(os.devnull, "w") as nowhere:
            reproduce(**json.loads(sys.argv[1]), console=Console(file=nowhere))
    except KeyboardInterrupt:
        sys.exit(130)
    except (RuntimeError, ValueError, OSError) as error:
        sys.exit(f"{MARK}{error}")


if __name__ == "__main__":
    main()
