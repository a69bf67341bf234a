"""The committed numbers: complete, of at least three seeds, the same everywhere they are told, in the order claimed."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from retrieval_utils.autoret import ARMS as AUTORET
from retrieval_utils.claims import (
    ALL_CLAIMS,
    CANNOT_BE_TESTED,
    FINETUNING_QUESTIONS,
    RECONSTRUCTION_QUESTIONS,
    TESTED_IN,
)
from retrieval_utils.contrastive_methods import METHODS as CONTRASTIVE
from retrieval_utils.finetuning import LOSSES
from retrieval_utils.lrml import ARMS as LRML
from retrieval_utils.plotting import CONTROLS, LADDER
from retrieval_utils.report import (
    COLUMNS,
    FINETUNING,
    METHODS,
    RECONSTRUCTIONS,
    disagreements,
    read_cards,
    read_scores,
)
from retrieval_utils.side_tables import CATEGORY, COMPACT, NAMES, read_side_table

OTHER_PAPERS = (
    *(arm if arm == "lrml" else f"lrml-{arm}" for arm in LRML),
    *("autoret-untrained", *AUTORET, "autoret-labels-25"),
)


@pytest.fixture
def scores(project, request):
    return read_scores(project / f"results/{request.param}.csv")


def test_readme_notebooks_and_results_agree(project):
    assert disagreements(project) == []


@pytest.mark.parametrize("scores", ["smoke", "laptop"], indirect=True)
def test_every_step_is_scored_on_every_setup_with_three_seeds(scores, project):
    assert list(scores.columns) == COLUMNS and not scores.isna().any().any()
    steps = {step + suffix for step in (*LADDER, *CONTROLS, *OTHER_PAPERS) for suffix in ("", "+whitening")}
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


@pytest.mark.parametrize(
    ("file", "questions"), [(FINETUNING, FINETUNING_QUESTIONS), (RECONSTRUCTIONS, RECONSTRUCTION_QUESTIONS)]
)
def test_every_arm_of_an_ablation_has_three_seeds(project, file, questions):
    frame = pd.read_csv(project / "results" / file)
    arms = {name for reference, others in questions.values() for name in (reference, *others)}
    assert set(frame["name"]) == arms and not frame.duplicated(["name", "seed"]).any()
    assert (frame.groupby("name")["seed"].nunique() >= 3).all()


def test_every_contrastive_method_and_every_loss_has_three_seeds(project):
    frame = pd.read_csv(project / "results" / METHODS)
    assert set(frame["name"]) == {*CONTRASTIVE, *LOSSES} and not frame.duplicated(["name", "seed"]).any()
    assert (frame.groupby("name")["seed"].nunique() >= 3).all()


@pytest.mark.parametrize("profile", ["smoke", "laptop"])
def test_categories_and_compact_codes_have_three_seeds(project, profile):
    category, compact = (read_side_table(project / "results" / name) for name in (CATEGORY, COMPACT))
    category, compact = (frame[frame["profile"] == profile] for frame in (category, compact))
    assert set(NAMES) <= set(category["name"]) and {"ap-finetuned", "autoret-labels"} == set(compact["step"])
    assert {("product", bits) for bits in (16, 32, 64)} < set(zip(compact["code"], compact["bits"], strict=True))
    assert (category.groupby(["task", "name", "k"])["seed"].nunique() >= 3).all()
    assert (compact.groupby(["step", "code", "bits", "setup"])["seed"].nunique() >= 3).all()
    assert set(compact["card"]) <= set(read_cards(project / "results"))  # of the floats, which are a step's


def test_every_claim_names_a_section_that_is_there_and_the_readme_tells_what_cannot_be_tested(project):
    assert {(better, worse) for _, better, worse in ALL_CLAIMS} == set(TESTED_IN)
    for where in {*TESTED_IN.values(), *(told for _, told, _ in CANNOT_BE_TESTED)}:
        number, section = re.fullmatch(r"(\d\d), section (\d)", where).groups()
        (notebook,) = project.glob(f"notebooks/{number}_*.ipynb")
        assert f'"## {section} ' in notebook.read_text(encoding="utf-8"), where
    readme = (project / "README.md").read_text(encoding="utf-8")
    assert all(f"| {claim} |" in readme for claim, _, _ in CANNOT_BE_TESTED)


# What a comparison has to show: the least ratio of theirs to ours, or the most that ours may be.
LEAST_RATIO = {
    "evaluate roxford5k+1M, a good network: time": 15,
    "Smooth-AP forward and backward, N = 512: time": 25,
    "Smooth-AP forward and backward, N = 512: memory": 20,
    "quantised AP forward and backward, N = 4,096: memory": 5,
    "extraction: resnet18-thin, 96 px, 3 scales, 200 images": 1.5,
    "extraction: resnet50, 362 px, 3 scales, 60 images": 1.5,
}
MOST_MB = {
    "evaluate roxford5k+1M, a good network: memory above the scores": 50,
    "evaluate roxford5k+1M, random scores: memory above the scores": 50,
    "Smooth-AP forward and backward, N = 4,096: memory": 1000,
    "quantised AP forward and backward, N = 4,096: memory": 1000,
}


def test_what_the_benchmarks_recorded_last_is_what_they_have_to_show(project):
    last = pd.read_csv(project / "results/bench.csv").groupby("benchmark").last()
    assert {name: least for name, least in LEAST_RATIO.items() if not last.loc[name, "ratio"] >= least} == {}
    assert {name: most for name, most in MOST_MB.items() if not last.loc[name, "ours"] <= most} == {}


@pytest.mark.xfail(strict=True, reason="not reached on the machine of the record; README says so")
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("evaluate roxford5k+1M, random scores: time", 15),
        ("extraction: resnet50, 1024 px, 3 scales, 16 images", 1.5),
    ],
)
def test_what_the_benchmarks_still_have_to_show(project, name, least):
    assert pd.read_csv(project / "results/bench.csv").groupby("benchmark").last().loc[name, "ratio"] >= least


def test_what_notebook_08_says_of_a_million_is_what_was_measured(project):
    frame = (
        pd.read_csv(project / "results/search_scale.csv").fillna({"effort": 0}).set_index(["kind", "images", "effort"])
    )
    flat, code = frame.loc["flat", 1_000_000, 0], frame.loc["ivf-pq", 1_000_000, 16]
    usual, highest = (frame.loc["hnsw", 1_000_000, effort] for effort in (64, 512))
    assert flat["recall_at_10"] == 1 and usual["recall_at_10"] == pytest.approx(0.8, abs=0.02)
    assert usual["recall_at_10"] < highest["recall_at_10"] < frame.loc["hnsw", 10_000, 64]["recall_at_10"]
    assert highest["ms_a_query"] < flat["ms_a_query"] / 10 and highest["mb"] / flat["mb"] == pytest.approx(1.5, abs=0.1)
    assert code["mb"] / flat["mb"] == pytest.approx(0.1, abs=0.01)
    ceiling = frame.loc["ivf-pq", 1_000_000, 256]["recall_at_10"]
    assert ceiling - code["recall_at_10"] < 0.01 and ceiling < 0.7
