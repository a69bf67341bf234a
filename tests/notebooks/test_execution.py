"""The notebooks run from top to bottom, leave a complete ladder, and their committed claims hold on this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import nbformat
import pytest

from retrieval_utils.execution import kernel_environment
from retrieval_utils.page import write_page
from retrieval_utils.plotting import CONTROLS, LADDER
from retrieval_utils.records import ProtocolCard
from retrieval_utils.report import collect

pytestmark = pytest.mark.notebooks


def test_every_notebook_runs_without_an_error(smoke_run, notebook):
    cells = nbformat.read(smoke_run.folder / "notebooks" / notebook.name, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    entry = smoke_run.record["notebooks"][notebook.stem]
    assert entry["status"] == "done" and entry["peak_memory_mb"] < 4000
    assert f"{notebook.stem} (seed 0): done in" in smoke_run.printed


def test_the_run_leaves_only_whole_files(smoke_run):
    names = [path.name for path in smoke_run.folder.rglob("*") if path.is_file()]
    assert not [name for name in names if "partial" in name or "failed" in name or name.endswith(".part")]
    assert [path.name for path in smoke_run.notebooks.iterdir() if path.suffix != ".ipynb"] == []  # nothing beside them


def test_the_ladder_is_complete(smoke_run):
    frame, cards, _ = collect("smoke", smoke_run.folder.parents[1])
    steps = {step + suffix for step in (*LADDER, *CONTROLS) for suffix in ("", "+whitening")}
    assert steps <= set(frame["step"])
    assert len(frame) == frame["step"].nunique() * 3 and set(frame["setup"]) == {"easy", "medium", "hard"}
    assert ((0 <= frame["ap_low"]) & (frame["ap_low"] <= frame["mean_ap"])).all()
    assert ((frame["mean_ap"] <= frame["ap_high"]) & (frame["ap_high"] <= 1)).all()
    assert all(ProtocolCard(**card).hash == name for name, card in cards.items())
    minutes = frame.drop_duplicates("step").set_index("step")["minutes"]
    assert minutes["random"] == 0 and minutes["ap-finetuned"] > minutes["contrastive"] > 0
    assert "<svg" in write_page("smoke", smoke_run.folder.parents[1]).read_text()


def test_the_committed_claims_hold_here(smoke_run):
    """nbval runs the notebooks as committed, with the networks just trained, and compares the tagged cells."""
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", "-p", "no:cacheprovider"]
    command += ["--rootdir", str(smoke_run.notebooks), "-c", os.devnull, str(smoke_run.notebooks)]
    environment = {key: value for key, value in kernel_environment().items() if not key.startswith("PYTEST_")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
