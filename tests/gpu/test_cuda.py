"""On a CUDA card: the same descriptors as on the CPU, training that learns, and the notebooks on the `gpu` profile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.finetuning import FinetuningSettings, finetune
from retrieval_utils.networks import load_network

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def toy():
    from retrieval_utils.datasets import load_training_set

    return load_training_set("toy-landmarks", "instances", size="tiny")


def test_descriptors_equal_those_of_the_cpu(toy):
    network = load_network("resnet50")
    on_card = extract_descriptors(network, toy.images[:16], image_size=128, device="cuda")
    on_cpu = extract_descriptors(network, toy.images[:16], image_size=128, device="cpu")
    assert (on_card * on_cpu).sum(1).min() > 0.999


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fine_tuning_learns_on_the_card(toy, precision):
    settings = FinetuningSettings(epochs=8, batches=8, instances=8, device="cuda", precision=precision)
    history = finetune(load_network("resnet18-thin"), toy, settings)
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.real_data
def test_the_notebooks_run_on_the_gpu_profile(project: Path, tmp_path: Path, monkeypatch):
    from retrieval_utils.reproduce import reproduce

    monkeypatch.chdir(project)
    (record,) = reproduce("gpu", run_dir=tmp_path)
    assert record["machine"]["device"] == torch.cuda.get_device_name()
    assert {entry["status"] for entry in record["notebooks"].values()} == {"done"}
