"""The arms of benchmarks/reconstruction_ablation.py: one thing changed in each, and a question that asks for it."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from retrieval_utils.claims import RECONSTRUCTION_QUESTIONS
from retrieval_utils.losses.tuples import NEGATIVES
from retrieval_utils.lrml import tuple_loss


@pytest.fixture
def ablation(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    return importlib.import_module("reconstruction_ablation")


def flat(settings) -> dict:
    values = asdict(settings)
    return values | values.pop("network", {})


def test_every_arm_answers_a_question(ablation):
    asked = {name for reference, arms in RECONSTRUCTION_QUESTIONS.values() for name in (reference, *arms)}
    assert asked == set(ablation.ARMS) and len(ablation.ARMS) == len(set(ablation.ARMS))


def test_every_arm_changes_one_thing(ablation):
    for arms, base in ((ablation.LRML_ARMS, ablation.PROFILE.lrml), (ablation.AUTORET_ARMS, ablation.PROFILE.autoret)):
        for name, change in arms.items():
            own, other = flat(change(base)), flat(base)
            changed = {key for key in own if own[key] != other[key]}
            if "delta" in name:
                changed.remove("margin")  # keeps their mean
            assert len(changed) == (name.count(", ") + name.count(" and ")), name


def test_another_delta_keeps_the_mean_of_the_margins(ablation):
    base = ablation.PROFILE.lrml
    for delta in (0.0, 0.1):
        changed = ablation.about_the_mean(base, delta)
        margins = [[s.margin + k * s.delta for k in range(NEGATIVES)] for s in (base, changed)]
        assert sum(margins[0]) == pytest.approx(sum(margins[1])) and changed.delta == delta


def test_without_ranks_and_order_it_is_the_contrastive_arm_of_the_ladder(ablation):
    tuples = torch.nn.functional.normalize(torch.randn(4, 7, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    labels = torch.zeros(4, 7, dtype=torch.int64)
    plain = tuple_loss(ablation.LRML_ARMS["lrml, delta 0 and order 0"](ablation.PROFILE.lrml))(tuples, labels)
    torch.testing.assert_close(plain, tuple_loss(ablation.PROFILE.lrml_settings(0, "contrastive"))(tuples, labels))
