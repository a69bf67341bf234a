"""The committed numbers: complete, of at least three seeds, the same everywhere they are told, in the order claimed."""

from __future__ import annotations

import pandas as pd
import pytest

from retrieval_utils.claims import FINETUNING_QUESTIONS
from retrieval_utils.plotting import CONTROLS, LADDER
from retrieval_utils.report import COLUMNS, FINETUNING, disagreements, read_cards, read_scores


@pytest.fixture
def scores(project, request):
    return read_scores(project / f"results/{request.param}.csv")


def test_readme_notebooks_and_results_agree(project):
    assert disagreements(project) == []


@pytest.mark.parametrize("scores", ["smoke", "laptop"], indirect=True)
def test_every_step_is_scored_on_every_setup_with_three_seeds(scores, project):
    assert list(scores.columns) == COLUMNS and not scores.isna().any().any()
    steps = {step + suffix for step in (*LADDER, *CONTROLS) for suffix in ("", "+whitening")}
    assert steps <= set(scores["step"])
    assert (scores.groupby(["step", "setup"])["seed"].nunique() >= 3).all()
    assert not scores.duplicated(["step", "setup", "seed"]).any()
    assert set(scores["card"]) <= set(read_cards(project / "results"))


@pytest.mark.parametrize("scores", ["smoke", "laptop"], indirect=True)
def test_every_interval_holds_its_mean(scores):
    assert ((scores["ap_low"] <= scores["mean_ap"]) & (scores["mean_ap"] <= scores["ap_high"])).all()
    assert (scores["ap_low"] < scores["ap_high"]).all()


@pytest.mark.parametrize("suffix", ["", "+whitening"])
@pytest.mark.parametrize("scores", ["smoke"], indirect=True)
def test_on_toy_landmarks_errors_fall_from_classifier_to_contrastive_to_ap(scores, suffix):
    means = scores.groupby(["setup", "step"])["mean_ap"].mean()
    for setup in ("medium", "hard"):
        classifier, contrastive, finetuned = (means[setup, step + suffix] for step in LADDER[1:4])
        assert classifier < contrastive < finetuned


def test_every_arm_of_the_ablation_of_fine_tuning_has_three_seeds(project):
    frame = pd.read_csv(project / "results" / FINETUNING)
    arms = {name for reference, others in FINETUNING_QUESTIONS.values() for name in (reference, *others)}
    assert set(frame["name"]) == arms and not frame.duplicated(["name", "seed"]).any()
    assert (frame.groupby("name")["seed"].nunique() >= 3).all()
