"""The road as committed, on the smoke profile: nbval trains it and compares what the tagged cells print.

A file of its own, because it takes longest: another process can run all other tests meanwhile.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from retrieval_utils.execution import kernel_environment

pytestmark = pytest.mark.notebooks


def test_the_claims_of_the_road_hold_here(project, tmp_path):
    copies = tmp_path / "notebooks"  # so that ../runs, the default of their parameters cell, is a new folder
    copies.mkdir()
    road = sorted(shutil.copy(path, copies) for path in project.glob("notebooks/0[0-5]_*.ipynb"))
    assert len(road) == 6
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", "-p", "no:cacheprovider"]
    command += ["--rootdir", str(copies), "-c", os.devnull, *map(str, road)]
    environment = {key: value for key, value in kernel_environment().items() if not key.startswith("PYTEST_")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
