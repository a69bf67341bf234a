"""What nvidia-smi says of a card, with a program of that name in its place."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from retrieval_utils.card import CardUse, driver
from retrieval_utils.page import notebook_table


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts a program named nvidia-smi in front of PATH that runs these lines of sh."""

    def install(*lines: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_mean_use_and_peak_memory_of_the_samples(nvidia_smi, tmp_path):
    nvidia_smi(
        f'echo "$@" > {tmp_path}/asked',
        "printf '10, 1000\\n50, 3000\\n[N/A], 4000\\n90, 2000\\n99, 9'",  # the last line is cut
        f"touch {tmp_path}/printed",
        "exec sleep 60",
    )
    began = time.monotonic()
    with CardUse() as card:
        while not (tmp_path / "printed").exists():
            time.sleep(0.01)
    assert time.monotonic() - began < 30  # and does not wait for the program
    assert card.record == {"card_mean_use": 0.5, "card_peak_memory_mb": pytest.approx(3000 * 1.048576)}
    assert "--query-gpu=utilization.gpu,memory.used" in (tmp_path / "asked").read_text()


def test_without_a_card_there_is_nothing(nvidia_smi, monkeypatch):
    nvidia_smi("echo 'No devices were found'", "exit 6")
    with CardUse() as card:
        pass
    assert card.record == {} and driver() == ""
    monkeypatch.setenv("PATH", str(Path(os.devnull)))
    with CardUse() as card:
        pass
    assert card.record == {} and driver() == ""


def test_driver(nvidia_smi):
    nvidia_smi("echo 570.86.15")
    assert driver() == "570.86.15"


def test_the_page_shows_the_card_where_there_was_one():
    entry = {"status": "done", "seconds": 60.0, "peak_memory_mb": 2000.0}
    used = entry | {"card_mean_use": 0.75, "card_peak_memory_mb": 21000.0}
    table = notebook_table([{"seed": 0, "notebooks": {"00_one": entry, "01_two": used}}])
    assert table["card, mean use"].tolist() == ["", "75%"] and table["card, peak memory"].tolist() == ["", "21.0 GB"]
    assert "card, mean use" not in notebook_table([{"seed": 0, "notebooks": {"00_one": entry}}])
