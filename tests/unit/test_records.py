from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import torch

from retrieval_utils import records
from retrieval_utils.evaluation import evaluate
from retrieval_utils.neighbours import Neighbours
from retrieval_utils.networks import load_network
from retrieval_utils.profiles import PROFILES, get_profile
from retrieval_utils.ranking import cosine_scores, expand_queries
from retrieval_utils.records import Run, load_steps, write_json
from retrieval_utils.whitening import PCAWhitening


@dataclass(frozen=True)
class Settings:
    amount: float = 0.5


def shift(network, training_set, settings):
    """A procedure that trains nothing: it moves one weight, so that what came back can be recognised."""
    with torch.no_grad():
        network.pooling.p += settings.amount
    return {"loss": [1.0, 0.5]}


@pytest.fixture
def run(tmp_path, cards, cards_benchmark, monkeypatch) -> Run:
    monkeypatch.setattr(records, "load_benchmark", lambda *_, **__: cards_benchmark)
    monkeypatch.setattr(records, "load_training_set", lambda _, part, *__, **___: replace(cards, name=f"cards/{part}"))
    return Run.open(tmp_path, "tiny", seed=3)


def test_a_trained_network_is_reused_only_under_the_same_conditions(run, cards):
    first = run.train("moved", load_network("resnet18-thin"), shift, cards, Settings())
    again = run.train("moved", load_network("resnet18-thin"), shift, cards, Settings())
    assert not first.reused and again.reused
    assert float(again.network.pooling.p) == 3.5
    assert again.history == {"loss": [1.0, 0.5]}
    for network, data, settings in (
        (load_network("resnet18-thin"), cards, Settings(0.25)),
        (load_network("resnet18-thin"), replace(cards, fingerprint="other"), Settings()),
        (load_network("resnet18-thin", seed=1), cards, Settings()),
    ):
        assert not run.train("moved", network, shift, data, settings).reused


def test_an_edit_of_the_training_code_ends_reuse(run, cards, monkeypatch):
    run.train("moved", load_network("resnet18-thin"), shift, cards, Settings())
    monkeypatch.setattr(records, "code_sha256", lambda: "edited")
    assert not run.train("moved", load_network("resnet18-thin"), shift, cards, Settings()).reused


def test_minutes_add_up_along_the_road(run, cards):
    first = run.train("first", load_network("resnet18-thin"), shift, cards, Settings())
    second = run.train("second", first.network, shift, cards, Settings(), start=first)
    assert second.minutes > first.minutes > 0


def test_score_records_both_steps_with_their_cards(run):
    scored = run.score("random", load_network("resnet18-thin"), minutes=1.5)
    steps = load_steps(run.folder)
    assert list(steps) == ["random", "random+whitening"]
    plain, whitened = steps.values()
    assert plain["setups"]["medium"]["mean_ap"] == scored.report["medium"].mean_ap
    assert plain["minutes"] == 1.5 and plain["seed"] == 3 and plain["profile"] == "tiny"
    assert plain["card_hash"] == scored.card.hash != whitened["card_hash"]
    assert whitened["card"]["whitening_fitted_on"] == "cards/categories and cards/instances"
    assert scored.card.differences(scored.whitened_card) == [
        f"whitening: none against {scored.whitened_card.whitening}",
        "whitening_fitted_on: nothing against cards/categories and cards/instances",
    ]
    low, high = plain["setups"]["medium"]["interval"]
    assert low < plain["setups"]["medium"]["mean_ap"] < high


def test_on_a_card_the_records_say_that_it_was_half_precision(run, monkeypatch):
    monkeypatch.setattr(records, "precision", lambda: "float16")
    scored = run.score("random", load_network("resnet18-thin"))
    assert (scored.card.precision, scored.whitened_card.precision) == ("float16", "float16")
    assert load_steps(run.folder)["random"]["card"]["precision"] == "float16"


def test_a_whitening_on_fewer_images_takes_them_evenly_and_says_so(run, cards):
    few = replace(run, profile=replace(run.profile, whitening_images=len(cards.images)))
    assert run.whitening_images == [*cards.images, *cards.images]  # one set plays both parts here
    assert few.whitening_images == [*cards.images, *cards.images][::2]
    scored = few.score("random", load_network("resnet18-thin"))
    count = f"{len(few.whitening_images):,} images of cards/categories and cards/instances"
    assert scored.whitened_card.whitening_fitted_on == count


def test_a_rung_of_ones_own_is_recorded_with_its_card(run, cards_benchmark):
    scored = run.score("random", load_network("resnet18-thin"), minutes=1.5)
    expansion = Neighbours("alpha", count=3)
    card = replace(scored.whitened_card, **expansion.on_card())
    whitening = PCAWhitening.fit(scored.database, dim=8)
    queries, database = whitening(scored.queries), whitening(scored.database)  # (Q, 8) (N, 8)
    report = run.record("random+whitening+qe", expansion.scores(queries, database), card, 1.5)
    record = load_steps(run.folder)["random+whitening+qe"]
    scores = cosine_scores(expand_queries(queries, database, 3, 3.0), database)
    expected = evaluate(scores, cards_benchmark.ground_truth)
    assert record["setups"]["hard"]["mean_ap"] == report["hard"].mean_ap == pytest.approx(expected["hard"].mean_ap)
    assert (record["minutes"], record["seed"], record["card_hash"]) == (1.5, 3, card.hash)
    assert report.card.differences(scored.whitened_card) == [
        "query_expansion: alpha, exponent 3, 3 neighbours against none"
    ]


def test_cards_of_two_networks_compare_but_have_two_hashes(run):
    one = run.score("one", load_network("resnet18-thin")).card
    two = run.score("two", load_network("resnet18-thin", seed=1)).card
    assert one.differences(two) == []
    assert one.hash != two.hash


def test_a_record_appears_under_its_name_only_when_whole(tmp_path):
    path = tmp_path / "step.json"
    write_json(path, {"mean_ap": 0.5})
    with pytest.raises(TypeError):
        write_json(path, {"mean_ap": object()})
    assert json.loads(path.read_text()) == {"mean_ap": 0.5}


def test_an_unknown_profile_lists_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"no profile 'smok' \(did you mean 'smoke'\?\); choose one of tiny, smoke"):
        Run.open(tmp_path, "smok")


@pytest.mark.parametrize("name", PROFILES)
def test_both_arms_of_a_profile_share_everything_but_the_method(name):
    profile = get_profile(name)
    classifier, simclr = (profile.pretraining_settings(method, seed=1) for method in ("classifier", "simclr"))
    assert replace(classifier, method="simclr") == simclr
