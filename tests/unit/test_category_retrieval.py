"""Retrieval by category: AP@k against counting, tasks that share nothing, CIFAR-10's layout drawn small."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from retrieval_utils.category_retrieval import (
    CategoryTask,
    average_precision_at,
    load_category_task,
    record_category,
    score_categories,
)
from retrieval_utils.datasets import TrainingSet
from retrieval_utils.datasets.cifar10 import load_cifar10
from retrieval_utils.networks import load_network


def test_average_precision_at_k_by_pencil():
    relevant = torch.tensor([[1, 0, 1, 0, 1], [0, 0, 0, 1, 1], [0, 1, 0, 0, 0]]).bool()
    # Of the first 3: (1/1 + 2/3) / 2; none; (1/2) / 1. What lies behind the third place does not count.
    assert average_precision_at(relevant, 3).tolist() == pytest.approx([5 / 6, 0, 0.5])
    assert average_precision_at(relevant, 5).tolist() == pytest.approx(
        [(1 + 2 / 3 + 3 / 5) / 3, (1 / 4 + 2 / 5) / 2, 0.5]
    )


def test_average_precision_at_k_against_counting():
    relevant = torch.rand(20, 30, generator=torch.Generator().manual_seed(0)) < 0.2
    for k in (1, 7, 30, 99):
        slow = []
        for row in relevant.tolist():
            precisions = [sum(row[: place + 1]) / (place + 1) for place in range(min(k, 30)) if row[place]]
            slow.append(sum(precisions) / len(precisions) if precisions else 0.0)
        assert average_precision_at(relevant, k).tolist() == pytest.approx(slow)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        average_precision_at(relevant, 0)


def test_a_task_is_scored_with_a_card_and_recorded_apart_from_the_ladder(cards, tmp_path):
    every = np.arange(len(cards.images))
    queries, database = (
        TrainingSet(name, tuple(np.array(cards.images)[places]), cards.labels[places], cards.label_names, name)
        for name, places in (("q", every[::6]), ("d", every[every % 6 > 0]))
    )
    result = score_categories(CategoryTask("cards", queries, database), load_network("autoret"), 48, k=5)
    assert result.ap.shape == (8,) and 0.125 < result.mean_ap <= 1
    low, high = result.interval()
    assert low <= result.mean_ap <= high and result.card["measure"].startswith("mAP@5,")
    record_category(tmp_path, "autoret", result)
    record = json.loads((tmp_path / "category/autoret.json").read_text())
    assert record["mean_ap"] == result.mean_ap and record["card"] == result.card
    assert not (tmp_path / "steps").exists()


def test_toy_queries_and_database_share_no_photo():
    task = load_category_task("toy-landmarks", size="tiny")
    assert not set(task.queries.images) & set(task.database.images)
    assert len(task.database.images) == 4 * len(task.queries.images)
    assert task.queries.fingerprint != task.database.fingerprint
    assert set(task.queries.labels) <= set(task.database.labels)


def test_there_is_no_other_task(tmp_path):
    with pytest.raises(ValueError, match="no category task 'imagenet'"):
        load_category_task("imagenet")
    with pytest.raises(FileNotFoundError, match="CIFAR-10 is not in"):
        load_category_task("cifar10", tmp_path)


@pytest.fixture
def cifar(tmp_path):
    """Two images a class in every batch, whose first red pixel is the label and the second the number of the batch."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    labels = [label for label in range(10) for _ in range(2)]
    for number, name in enumerate([f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]):
        data = np.zeros((20, 3072), np.uint8)
        data[:, 0], data[:, 1], data[:, 1024 + 32] = labels, number, 7
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {n}" for n in range(10)]}))
    return tmp_path


def test_cifar_is_read_from_the_folder_of_torchvision(cifar):
    from PIL import Image

    train, test = load_cifar10(cifar, "train", 3), load_cifar10(cifar, "test", 100)
    assert np.bincount(train.labels).tolist() == [3] * 10 and len(test.images) == 20
    pixels = [np.asarray(Image.open(path)) for path in train.images]
    assert all(image.shape == (32, 32, 3) and image[1, 0].tolist() == [0, 7, 0] for image in pixels)
    assert [image[0, 0, 0] for image in pixels] == train.labels.tolist()
    assert {image[0, 1, 0] for image in pixels} == {0, 1}  # three of a class reach into the second batch
    assert (
        load_cifar10(cifar, "train", 3).fingerprint == train.fingerprint != load_cifar10(cifar, "train", 2).fingerprint
    )
    task = load_category_task("cifar10", cifar)
    assert len(task.queries.images) == 20 and len(task.database.images) == 100


def test_cifar_runs_no_code_and_refuses_other_files(cifar):
    batch = cifar / "cifar-10-batches-py" / "test_batch"
    batch.write_bytes(pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]}))
    with pytest.raises(ValueError, match="no batch of CIFAR-10"):
        load_cifar10(cifar, "test", 1)
    batch.write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match="code that could run"):
        load_cifar10(cifar, "test", 1)
    with pytest.raises(ValueError, match="no split 'val'"):
        load_cifar10(cifar, "val", 1)
