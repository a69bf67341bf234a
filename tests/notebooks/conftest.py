"""One pass of the runner over the committed notebooks, on the tiny profile, shared by all tests that look at it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

NOTEBOOKS = sorted(Path(__file__).resolve().parents[2].glob("notebooks/*.ipynb"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "notebook" in metafunc.fixturenames:
        metafunc.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


@dataclass(frozen=True)
class TinyRun:
    """Copies of the notebooks, what the run printed, its record, and the folder with steps, networks and notebooks."""

    notebooks: Path
    printed: str
    record: dict
    folder: Path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> TinyRun:
    from rich.console import Console

    from retrieval_utils.reproduce import reproduce

    # Copies, so that ../runs, the default of the parameters cell, is a new folder.
    project = tmp_path_factory.mktemp("project")
    notebooks = project / "notebooks"
    notebooks.mkdir()
    for path in NOTEBOOKS:
        shutil.copy(path, notebooks)
    with (project / "printed.txt").open("w+") as text:
        console = Console(file=text, width=200)
        (record,) = reproduce("tiny", run_dir=project / "runs", notebooks_dir=notebooks, console=console)
        text.seek(0)
        return TinyRun(notebooks, text.read(), record, project / "runs/tiny/seed-0")
