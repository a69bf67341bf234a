"""A set of striped cards, a few dozen pixels each: the smallest images on which a network learns to tell instances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from retrieval_utils.datasets import Benchmark, GroundTruth, TrainingSet

torch.set_num_threads(1)  # on images this small a second thread costs more than it gives

INSTANCES, VIEWS = 8, 6


def striped_card(instance: int, view: int) -> Image.Image:
    random = np.random.default_rng([instance, view])
    colours = np.random.default_rng(instance).integers(0, 256, (4, 3))
    stripes = np.repeat(colours, 12, axis=0)  # (48, 3)
    pixels = np.broadcast_to(stripes[:, None], (48, 40 if view % 2 else 48, 3))
    noisy = pixels * random.uniform(0.4, 1.4, 3) + random.normal(0, 60, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def cards(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    folder: Path = tmp_path_factory.mktemp("cards")
    paths, labels = [], []
    for instance in range(INSTANCES):
        for view in range(VIEWS):
            paths.append(folder / f"{instance}_{view}.png")
            striped_card(instance, view).save(paths[-1])
            labels.append(instance)
    names = tuple(f"card {instance}" for instance in range(INSTANCES))
    return TrainingSet("cards", tuple(paths), np.array(labels), names, fingerprint="cards-1")


@pytest.fixture(scope="session")
def cards_benchmark(cards: TrainingSet) -> Benchmark:
    """The first view of every card is the query, with a box; the others are the database, the last one junk."""
    queries = cards.images[::VIEWS]
    images = tuple(path for number, path in enumerate(cards.images) if number % VIEWS)
    labels = np.repeat(np.arange(INSTANCES), VIEWS - 1)
    truth = []
    for instance in range(INSTANCES):
        own = np.flatnonzero(labels == instance)
        truth.append(GroundTruth(own[:2], own[2:-1], own[-1:]))
    boxes = tuple((2.0, 2.5, 40.0, 44.0) for _ in queries)
    setups = ("easy", "medium", "hard")
    return Benchmark("cards", images, queries, boxes, tuple(truth), setups, fingerprint="cards-test")
