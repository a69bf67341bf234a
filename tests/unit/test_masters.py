"""Outputs of an executed notebook go back into the one that is committed, and only if the code is the same."""

from __future__ import annotations

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from retrieval_utils.masters import refresh_outputs


@pytest.fixture
def folders(tmp_path):
    """A master of four cells and its executed copy, in which papermill injected a cell and an interrupted count."""
    cells = [new_markdown_cell("# 00"), new_code_cell("seed = 0"), new_code_cell("seed"), new_code_cell("")]
    master = new_notebook(cells=cells)
    cells[1].metadata.tags = ["parameters"]
    executed = nbformat.from_dict(master)
    executed.cells.insert(2, new_code_cell("seed = 0", execution_count=2))
    executed.cells[1].execution_count = 1
    executed.cells[3].execution_count = 3
    executed.cells[3].outputs = [new_output("execute_result", {"text/plain": "0"}, execution_count=3)]
    executed.metadata.widgets = {"state": {}}
    for name, notebook in (("notebooks", master), ("executed", executed)):
        (tmp_path / name).mkdir()
        nbformat.write(notebook, tmp_path / name / "00_one.ipynb")
    nbformat.write(new_notebook(), tmp_path / "notebooks/01_not_run.ipynb")
    return tmp_path


def test_outputs_are_copied_and_counted_anew(folders):
    assert refresh_outputs(folders / "executed", folders / "notebooks") == ["00_one.ipynb"]
    master = nbformat.read(folders / "notebooks/00_one.ipynb", as_version=4)
    assert [cell.source for cell in master.cells] == ["# 00", "seed = 0", "seed", ""]
    assert [cell.execution_count for cell in master.cells[1:]] == [1, 2, None]
    assert master.cells[2].outputs[0].data == {"text/plain": "0"} and master.cells[2].outputs[0].execution_count == 2
    assert master.cells[1].metadata.tags == ["parameters"] and "widgets" not in master.metadata
    assert refresh_outputs(folders / "executed", folders / "notebooks") == []


def test_outputs_of_other_code_are_refused(folders):
    path = folders / "notebooks/00_one.ipynb"
    before = path.read_text().replace('"seed"', '"seed + 1"')
    path.write_text(before)
    with pytest.raises(ValueError, match="00_one.ipynb was edited since .* was executed: run reproduce again"):
        refresh_outputs(folders / "executed", folders / "notebooks")
    assert path.read_text() == before
