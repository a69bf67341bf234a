"""Many runs at once: what is refused, what a row says, who goes on when one fails. The notebooks are stood in for."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

pytest.importorskip("dask.distributed")

from dask.distributed import Client, LocalCluster

from retrieval_utils import __main__ as cli
from retrieval_utils import cluster
from retrieval_utils.reproduce import Interrupted

# Stands in for the process of a run: waits for its input to end where it is told to, else leaves a record and ends.
STAND_IN = """
import json, os, pathlib, sys
job = json.loads(sys.argv[1])
(seed,), profile = job["seeds"], job["profile"]
pathlib.Path(f"began-{profile}-{seed}").write_text(os.environ["OMP_NUM_THREADS"])
if job["settings"].get("data_root") == "wait":
    os.read(0, 1)
    pathlib.Path(f"stopped-{profile}-{seed}").touch()
    sys.exit(130)
if seed == 1:
    print("of a library", file=sys.stderr)
    sys.exit("\\x1e02_b failed at cell In [3]\\nValueError: nine\\nThe notebook as far as it ran: x")
if seed == 2:
    os.abort()
entry = {"status": "done", "seconds": 1.0, "peak_memory_mb": 100.0 + seed}
folder = pathlib.Path(job["run_dir"], profile, f"seed-{seed}")
folder.mkdir(parents=True, exist_ok=True)
(folder / "run.json").write_text(json.dumps({"git": {"commit": "c0"}, "notebooks": {"00": entry, "01": entry}}))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one notebook as the current folder, and the process of a run stood in for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "COMMAND", (sys.executable, "-S", "-c", STAND_IN))
    names = 'profile: str = "smoke"', "seed: int = 0", 'data_root: str = ""', 'run_dir: str = "../runs"'
    cell = nbformat.v4.new_code_cell("\n".join(names), metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    Path("notebooks").mkdir()
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
    nbformat.write(notebook, "notebooks/00_one.ipynb")
    return tmp_path


def quiet() -> Console:
    return Console(file=open(os.devnull, "w"))  # noqa: SIM115


def test_a_row_a_run_and_the_others_go_on_when_one_fails(project):
    rows = cluster.reproduce_many(["tiny", "smoke", "tiny"], [0, 1, 2, 3], workers=2, console=quiet())
    found = [(row["profile"], row["seed"], row["status"]) for row in rows]
    ends = ("done", "failed", "failed", "done")
    assert found == [(name, seed, ends[seed]) for name in ("tiny", "smoke") for seed in range(4)]
    assert rows[1]["error"] == "02_b failed at cell In [3] ValueError: nine The notebook as far as it ran: x"
    assert rows[2]["error"].startswith("Exit code -") and not rows[0]["error"]
    assert (rows[3]["notebooks"], rows[3]["peak_memory_mb"], rows[3]["commit"]) == (2, 103.0, "c0")
    share = max(1, cluster.usable_cores() // 2)  # two runs at once on this machine
    assert {row["threads"] for row in rows} == {share}
    assert Path("began-smoke-3").read_text() == str(share)

    kept = pd.read_csv("runs/runs.csv", keep_default_na=False, dtype={"worker": str})
    assert tuple(kept.columns) == cluster.COLUMNS and len(kept) == 8
    assert kept.to_dict("records") == sorted(rows, key=lambda row: (row["profile"], row["seed"]))


def test_a_new_row_takes_the_place_of_the_old_one(tmp_path):
    row = cluster._row({"profile": "tiny", "seeds": [10]}, error="no, not this", worker="tcp://a:1")
    for new in (row, row | {"seed": 9}, row | {"status": "done", "error": ""}):
        cluster.keep(new, tmp_path / "below/runs.csv")
    kept = pd.read_csv(tmp_path / "below/runs.csv", keep_default_na=False)
    assert kept[["seed", "status"]].values.tolist() == [[9, "failed"], [10, "done"]]
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["runs.csv"]


def test_the_command_line_ends_with_a_table_the_failed_runs_and_exit_code_1(project):
    words = ["reproduce", "--profiles", "tiny", "smoke", "--only", "00", "00_one", "--seeds", "0,1", "--workers", "2"]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 1 and "The runs" in result.stdout
    first, *failed = result.stderr.strip().splitlines()
    assert first == "2 of 4 runs failed:"
    assert [line.split(": ")[0] for line in failed] == ["tiny (seed 1)", "smoke (seed 1)"]
    assert CliRunner().invoke(cli.app, ["reproduce", "--seeds", "3", "--workers", "1"]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"profiles": ["tiny", "smok"], "workers": 2}, "no profile 'smok'"),
        ({"profiles": ["tiny"], "only": ["07"], "workers": 2}, "no notebook '07'"),
        ({"profiles": ["tiny"], "settings": {"sede": "1"}, "workers": 2}, "Did you mean 'seed'"),
        ({"profiles": ["tiny"]}, "Name either --scheduler ADDRESS or --workers N"),
        ({"profiles": ["tiny"], "workers": 0}, "at least 1"),
        ({"profiles": ["tiny"], "workers": 2, "scheduler": "tcp://a:1"}, "Name either"),
    ],
)
def test_a_wrong_argument_is_one_sentence_before_anything_runs(project, arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        cluster.reproduce_many(console=quiet(), **arguments)
    assert "\n" not in str(caught.value) and os.listdir() == ["notebooks"]


def test_a_mistyped_profile_is_refused_by_the_command_line(project):
    result = CliRunner().invoke(cli.app, ["reproduce", "--profiles", "tiny", "smok", "--workers", "2"])
    assert (result.exit_code, os.listdir()) == (1, ["notebooks"]) and "no profile 'smok'" in result.stderr
    result = CliRunner().invoke(cli.app, ["reproduce", "--profiles", "tiny", "smok"])  # one after the other, no Dask
    assert (result.exit_code, os.listdir()) == (1, ["notebooks"]) and "no profile 'smok'" in result.stderr


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere"])
def test_a_scheduler_that_does_not_answer_is_a_sentence_within_seconds(monkeypatch, address):
    monkeypatch.setattr(cluster, "ANSWER", 1)
    began = time.monotonic()
    with pytest.raises(ValueError, match=f"No Dask scheduler answers at '{address}': start one") as caught:
        cluster.connect(address).__enter__()
    assert time.monotonic() - began < 10 and "\n" not in str(caught.value)
    left_open = [thing for thing in gc.get_objects() if type(thing) is Client and thing.status != "closed"]
    assert left_open == []  # it would close itself at any time, and block the start of another one


def test_a_running_scheduler_is_used_and_one_without_workers_named(project):
    size = {"threads_per_worker": 1, "processes": False, "dashboard_address": None, "protocol": "tcp"}
    with LocalCluster(n_workers=1, **size) as running:
        (row,) = cluster.reproduce_many(["tiny"], [3], scheduler=running.scheduler_address, console=quiet())
        assert (row["status"], row["threads"]) == ("done", cluster.usable_cores())
    with LocalCluster(n_workers=0, **size) as empty:
        with pytest.raises(ValueError, match="has no worker: start one with `dask worker tcp://"):
            cluster.reproduce_many(["tiny"], scheduler=empty.scheduler_address, console=quiet())


def test_without_dask_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(ValueError, match=r"need Dask: pip install 'dask\[distributed\]'"):
        cluster.connect(workers=1).__enter__()


def test_ctrl_c_stops_all_runs_and_starts_no_other(project):
    def press() -> None:
        while not Path("began-tiny-0").exists() or not Path("began-tiny-1").exists():
            time.sleep(0.05)
        cluster._thread.interrupt_main()

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(Interrupted, match="Stopped after 0 of 4 runs; what was finished is kept, --resume"):
        cluster.reproduce_many(["tiny"], range(4), workers=2, settings={"data_root": "wait"}, console=quiet())
    assert sorted(path.name for path in Path().glob("*-tiny-*")) == [
        "began-tiny-0", "began-tiny-1", "stopped-tiny-0", "stopped-tiny-1"
    ]  # fmt: skip
