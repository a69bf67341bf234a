"""The road as committed, on the smoke profile: nbval trains it and compares what the tagged cells print.

A file of its own, because it takes longest: another process can run all other tests meanwhile.
"""

from __future__ import annotations

import shutil

import pytest

pytestmark = pytest.mark.notebooks


def test_the_claims_of_the_road_hold_here(project, tmp_path, nbval):
    copies = tmp_path / "notebooks"  # so that ../runs, the default of their parameters cell, is a new folder
    copies.mkdir()
    road = sorted(shutil.copy(path, copies) for path in project.glob("notebooks/0[0-5]_*.ipynb"))
    assert len(road) == 6
    nbval(*map(copies.joinpath, road))
