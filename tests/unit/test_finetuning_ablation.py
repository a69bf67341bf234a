"""The arms of benchmarks/finetuning_ablation.py change what they say, and nothing else."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from retrieval_utils.claims import FINETUNING_QUESTIONS
from retrieval_utils.finetuning import BalancedBatches, FinetuningSettings, finetune
from retrieval_utils.networks import load_network


@pytest.fixture
def ablation(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    return importlib.import_module("finetuning_ablation")


def changed_by_training(network, cards) -> set[str]:
    """Names of the weights and statistics that two steps with a strong weight decay leave different."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    settings = FinetuningSettings(
        head_dim=4, epochs=1, batches=2, instances=4, images_per_instance=2, weight_decay=0.5, image_size=32
    )
    finetune(network, cards, settings)
    after = network.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_layers_that_are_held_stay_bit_for_bit_with_their_statistics(ablation, cards):
    network = load_network("resnet18-thin")
    ablation.hold(*(stage for name, stage in network.trunk.named_children() if name != "layer4"))
    changed = changed_by_training(network, cards)
    assert {name.split(".")[1] for name in changed if name.startswith("trunk")} == {"layer4"}
    assert {"trunk.layer4.0.conv1.weight", "trunk.layer4.0.bn1.running_mean", "pooling.p"} <= changed


def test_in_own_views_a_positive_is_the_same_photo(ablation, cards):
    photos = ablation.Bench.own_views(SimpleNamespace(photos=cards))
    assert photos.images == cards.images and photos.fingerprint != cards.fingerprint
    assert len(photos.label_names) == len(set(photos.labels.tolist())) == len(cards.images)
    (batch,) = BalancedBatches(photos.labels, 4, 3, batches=1)
    assert [len(set(batch[i : i + 3])) for i in range(0, 12, 3)] == [1, 1, 1, 1] and len(set(batch)) == 4


def test_without_labels_as_many_views_are_seen(ablation):
    settings = ablation.PROFILE.finetuning_settings(0)
    views = settings.epochs * settings.batches * settings.instances * settings.images_per_instance
    each = ablation.views_per_epoch(800, ablation.PROFILE.pretraining_settings("simclr", 0).batch_size)  # of 800 photos
    assert each == 2 * 64 * 12 and views % each == 0


def test_every_arm_answers_a_question(ablation):
    asked = {name for reference, arms in FINETUNING_QUESTIONS.values() for name in (reference, *arms)}
    assert asked == set(ablation.ARMS) and set(ablation.LADDER) <= asked


def test_another_pooling_keeps_the_trunk(ablation):
    contrastive = load_network("resnet18-thin", seed=3)
    bench = SimpleNamespace(
        contrastive=SimpleNamespace(network=contrastive),
        fresh=lambda pooling: load_network("resnet18-thin", pooling=pooling, seed=0),
        tuned=lambda network: network,
    )
    network = ablation.other_pooling("mac", bench)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.features(images), contrastive.features(images))
    assert np.allclose(network.pooled(images).detach(), network.features(images).amax((2, 3)).detach())
