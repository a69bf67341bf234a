"""The notebooks run from top to bottom on the tiny profile, and leave a complete ladder."""

from __future__ import annotations

import nbformat
import pytest

from retrieval_utils.page import write_page
from retrieval_utils.plotting import CONTROLS, LADDER
from retrieval_utils.records import ProtocolCard
from retrieval_utils.report import collect

pytestmark = pytest.mark.notebooks


def test_every_notebook_runs_without_an_error(tiny_run, notebook):
    cells = nbformat.read(tiny_run.folder / "notebooks" / notebook.name, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    entry = tiny_run.record["notebooks"][notebook.stem]
    assert entry["status"] == "done" and entry["peak_memory_mb"] < 4000
    assert f"{notebook.stem} (seed 0): done in" in tiny_run.printed


def test_the_run_leaves_only_whole_files(tiny_run):
    names = [path.name for path in tiny_run.folder.rglob("*") if path.is_file()]
    assert not [name for name in names if "partial" in name or "failed" in name or name.endswith(".part")]
    assert [path.name for path in tiny_run.notebooks.iterdir() if path.suffix != ".ipynb"] == []  # nothing beside them


def test_the_ladder_is_complete(tiny_run):
    frame, cards, _ = collect("tiny", tiny_run.folder.parents[1])
    steps = {step + suffix for step in (*LADDER, *CONTROLS) for suffix in ("", "+whitening")}
    assert steps <= set(frame["step"])
    assert len(frame) == frame["step"].nunique() * 3 and set(frame["setup"]) == {"easy", "medium", "hard"}
    assert ((0 <= frame["ap_low"]) & (frame["ap_low"] <= frame["mean_ap"])).all()
    assert ((frame["mean_ap"] <= frame["ap_high"]) & (frame["ap_high"] <= 1)).all()
    assert all(ProtocolCard(**card).hash == name for name, card in cards.items())
    minutes = frame.drop_duplicates("step").set_index("step")["minutes"]
    assert minutes["random"] == 0 and minutes["ap-finetuned"] > minutes["contrastive"] > 0
    assert "<svg" in write_page("tiny", tiny_run.folder.parents[1]).read_text()


def test_what_holds_at_any_size_holds_here(tiny_run, project):
    """The tagged cells of 06 to 08 do not depend on the profile; nbval compares those of 00 to 05 on smoke."""
    compared = 0
    for path in sorted(project.glob("notebooks/0[6-8]_*.ipynb")):
        here = {cell.id: cell for cell in nbformat.read(tiny_run.folder / "notebooks" / path.name, as_version=4).cells}
        for cell in nbformat.read(path, as_version=4).cells:
            if "nbval-check-output" in cell.metadata.get("tags", []):
                assert printed(here[cell.id]) == printed(cell) != ""
                compared += 1
    assert compared >= 6


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)
