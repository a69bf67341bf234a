"""The notebooks as committed: executed, tidy, short-celled, with their parameters, costs and claims."""

from __future__ import annotations

import base64
import json
import re

import nbformat
import pytest

from retrieval_utils.report import block

NAMES = (
    "00_retrieval_by_hand",
    "01_classifier_features",
    "02_contrastive_pretraining",
    "03_average_precision_loss",
    "04_ap_finetuning",
    "05_evaluation_and_ladder",
    "06_learning_to_rank",
    "07_autoret",
    "08_search_at_scale",
)
PARAMETERS = """\
profile: str = "smoke"  # tiny | smoke | laptop | gpu
seed: int = 0  # seeds the network, the batches and the augmentations
data_root: str = ""  # folder with the data sets; empty: $RETRIEVAL_DATA, else ../data
run_dir: str = "../runs"  # networks, records and figures land here"""
MACHINE = re.compile(r"(?<![\w.<])/(home|root|Users|tmp|var|work|opt|mnt)/|[A-Z]:\\\\|ipykernel_\d")
LINES = 12


@pytest.fixture
def nb(notebook) -> nbformat.NotebookNode:
    return nbformat.read(notebook, as_version=4)


def code_cells(nb) -> list:
    return [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]


def tagged(nb, tag: str) -> list:
    return [cell for cell in nb.cells if tag in cell.metadata.get("tags", [])]


def test_the_road_is_there(project):
    found = [path.stem for path in sorted((project / "notebooks").glob("*.ipynb"))]
    assert found[: len(NAMES)] == list(NAMES)


def test_nothing_lies_beside_the_notebooks(project):
    kept = {path.suffix for path in (project / "notebooks").iterdir() if path.name != ".ipynb_checkpoints"}
    assert kept == {".ipynb"}


def test_it_is_valid_with_cell_ids_and_the_plain_kernel(nb):
    nbformat.validate(nb)
    assert (nb.nbformat, nb.nbformat_minor) == (4, 5)
    assert nb.metadata.kernelspec.name == "python3" and "widgets" not in nb.metadata
    assert len({cell.id for cell in nb.cells}) == len(nb.cells)


def test_it_was_run_from_top_to_bottom_without_an_error(nb):
    cells = code_cells(nb)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


def test_its_parameters_cell_is_the_same_everywhere(nb):
    (cell,) = tagged(nb, "parameters")
    assert cell.source.strip() == PARAMETERS
    assert tagged(nb, "injected-parameters") == []


def test_it_opens_with_aims_needs_and_costs(nb):
    first = nb.cells[0]
    assert first.cell_type == "markdown" and re.match(r"# \d\d \S", first.source)
    for heading in ("What you will be able to do", "What you need first", "What it costs"):
        assert f"**{heading}" in first.source, heading
    aims = first.source.split("What you will be able to do")[1].split("What you need first")[0]
    assert 1 <= len(re.findall(r"^[-*] ", aims, flags=re.M)) <= 5
    assert block(first.source, "cost") is not None


def test_it_ends_with_questions_and_answers(nb):
    tail = "\n".join(cell.source for cell in nb.cells[-4:] if cell.cell_type == "markdown")
    assert "<details>" in tail and "?" in tail


def test_its_cells_are_short_and_introduced(nb):
    long = [cell.source.splitlines()[0] for cell in code_cells(nb) if len(cell.source.splitlines()) > LINES]
    assert not long, f"more than {LINES} lines: {long}"
    pairs = zip(nb.cells, nb.cells[1:], strict=False)
    alone = [b.source[:60] for a, b in pairs if a.cell_type == b.cell_type == "code"]
    assert not alone, f"no sentence before: {alone}"


def test_its_claims_are_checked(nb):
    claims = tagged(nb, "nbval-check-output")
    assert claims, "tag at least one cell whose output is a claim with nbval-check-output"
    assert all(cell.outputs for cell in claims), "a checked cell without an output checks nothing"


def test_it_is_light_and_names_no_machine(nb, notebook):
    assert notebook.stat().st_size <= 1_000_000
    for cell in code_cells(nb):
        for output in cell.outputs:
            data = dict(output.get("data", {}))
            for kind in ("image/png", "image/jpeg"):
                size = len(base64.b64decode(data.pop(kind, "")))
                assert size <= 150_000, f"a figure of {size / 1000:.0f} kB in: {cell.source[:60]}"
            text = json.dumps([data, output.get("text", "")])
            assert not MACHINE.search(text), MACHINE.search(text)
