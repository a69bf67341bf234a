"""What the comparisons share: a measurement in a process of its own, and the row it leaves in results/bench.csv."""

from __future__ import annotations

import csv
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

BENCH = Path(__file__).resolve().parents[1] / "results" / "bench.csv"
COLUMNS = ("benchmark", "ours", "theirs", "ratio", "unit", "machine", "date")


def measure(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, peak memory in MB above what was there before, and the value of `function()`, run in a forked process.

    Seconds are the processor's, which do not count what else runs on the machine: for code on one thread they are those
    of the clock on an idle one. Memory is the resident set of the whole process, so that no allocation of any library
    is missed. Not on Windows, which cannot fork.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        before, began = _peak_memory(), time.process_time()
        value = function()
        sender.send((time.process_time() - began, _peak_memory() - before, value))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        sys.exit("The measured process ended without a result; is there enough memory?")
    finally:
        process.join()


def _peak_memory() -> float:
    """Largest resident set of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes, kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def record(benchmark: str, ours: float, theirs: float | None, unit: str) -> None:
    """Prints a line for `benchmark` and appends it to results/bench.csv; the ratio is theirs to ours.

    theirs: None where there is nothing to compare with; then it and the ratio stay empty.
    """
    compared = ("", "") if theirs is None else (f"{theirs:.4g}", f"{theirs / ours:.3g}")
    row = (benchmark, f"{ours:.4g}", *compared, unit, machine(), date.today().isoformat())
    print(f"{row[0]}: ours {row[1]} {unit}" + ("" if theirs is None else f", theirs {row[2]} {unit}, ratio {row[3]}"))
    new = not BENCH.is_file()
    with BENCH.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, row] if new else [row])


def machine() -> str:
    """Cores, processor, card if there is one, and versions; no name of a host."""
    card = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    versions = f"Python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}"
    return f"{os.cpu_count()} cores, {_processor()}, {card}{versions}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
