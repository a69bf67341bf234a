"""What the whole suite shares: tests that need real photos or a GPU are skipped where there are none."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("any machine")

# A shell's background jobs ignore Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def project() -> Path:
    """Folder of the project: README.md, notebooks/, results/."""
    return PROJECT


@pytest.fixture(scope="session")
def photos() -> Path:
    """Data root that holds the real photos; ask for it only in tests marked real_data."""
    return _data_root()


def _data_root() -> Path:
    return Path(os.environ.get("RETRIEVAL_DATA") or PROJECT / "data")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = {name: [item for item in items if item.get_closest_marker(name)] for name in ("real_data", "gpu")}
    if marked["real_data"] and not (_data_root() / "GroceryStoreDataset").is_dir():
        for item in marked["real_data"]:
            item.add_marker(pytest.mark.skip(reason=f"no GroceryStoreDataset in {_data_root()} (set RETRIEVAL_DATA)"))
    if marked["gpu"] and not _cuda():
        for item in marked["gpu"]:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
