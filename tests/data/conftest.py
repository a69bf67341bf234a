"""A Grocery Store of 18 photos in the layout of the real one."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

PRODUCE, PACKAGES = ("Fruit/Apple", "Vegetables/Leek"), ("Milk/Oat", "Juice/Plum", "Milk/Soy", "Juice/Pear")


@pytest.fixture
def draw_grocery_store():
    """Writes GroceryStoreDataset below a folder and returns it; every list names one photo of each of six kinds.

    Kinds 0 and 1 are produce, 2 to 5 packages: so 2 and 4 are for learning, 3 and 5 for the test.
    """

    def draw(root):
        folder = root / "GroceryStoreDataset"
        rng = np.random.default_rng(0)
        for split in ("train", "val", "test"):
            lines = []
            for number, kind in enumerate((*PRODUCE, *(f"Packages/{name}" for name in PACKAGES))):
                path = f"{split}/{kind}/{kind.split('/')[-1]}_001.jpg"
                (folder / "dataset" / path).parent.mkdir(parents=True)
                Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(folder / "dataset" / path)
                lines.append(f"{path}, {number}, {number // 2}\n")
            (folder / "dataset" / f"{split}.txt").write_text("".join(lines))
        return folder

    return draw
