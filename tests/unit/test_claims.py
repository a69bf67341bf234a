from __future__ import annotations

import pandas as pd

from retrieval_utils.claims import (
    ALL_CLAIMS,
    FINETUNING_QUESTIONS,
    LRML_CLAIMS,
    beyond_the_seeds,
    finetuning_answers,
    untested,
    verdicts,
    what_decides,
)


def scores(values: dict[str, list[float]]) -> pd.DataFrame:
    """values: step -> mAP of seeds 0, 1, ...; whitening changes nothing unless a step names it."""
    rows = []
    for step, seeds in values.items():
        for name in {step, f"{step}+whitening"} - (set(values) - {step}):
            for seed, value in enumerate(seeds):
                rows.append({"step": name, "setup": "hard", "seed": seed, "mean_ap": value})
    return pd.DataFrame(rows)


def verdict(frame: pd.DataFrame) -> list[str]:
    return verdicts(frame)["verdict"].tolist()


def test_a_claim_holds_only_when_every_seed_agrees():
    assert verdict(scores({"contrastive": [0.5, 0.6], "classifier": [0.4, 0.5]})) == ["holds"]
    assert verdict(scores({"contrastive": [0.3, 0.2], "classifier": [0.4, 0.5]})) == ["does not hold"]
    assert verdict(scores({"contrastive": [0.5, 0.4], "classifier": [0.4, 0.5]})) == ["open"]


def test_whitening_that_turns_the_sign_leaves_it_open():
    frame = scores({"contrastive": [0.5], "classifier": [0.4], "contrastive+whitening": [0.3]})
    assert verdict(frame) == ["open"]


def test_differences_are_shown_with_their_seed_spread():
    (row,) = verdicts(scores({"ap-finetuned": [0.5, 0.7], "contrastive": [0.4, 0.3]})).itertuples(index=False)
    assert row.plain == "+0.250 (+0.100 to +0.400)"


def test_steps_that_are_missing_are_left_out():
    assert verdicts(scores({"random": [0.1], "classifier": [0.2]})).empty


def test_the_claims_of_another_paper_are_judged_by_the_same_rule():
    frame = scores({"lrml": [0.5, 0.6], "lrml-contrastive": [0.4, 0.5], "lrml-triplet": [0.5, 0.7]})
    table = verdicts(frame, LRML_CLAIMS).set_index("claim")["verdict"]
    assert table.tolist() == ["holds", "open"]
    assert verdicts(frame).empty


def test_every_claim_says_where_it_is_tested():
    steps = {step for _, *pair in ALL_CLAIMS for step in pair}
    table = verdicts(scores(dict.fromkeys(steps, [0.5, 0.6])), ALL_CLAIMS)
    assert len(table) == len(ALL_CLAIMS)
    where = table.set_index("claim")["tested in"]
    assert where["AutoRet: a small portion of labels, 25 %, adds to self-supervision"] == "07, section 5"
    assert where["LRML does better than the triplet loss"] == "06, section 7"
    assert where["the road as a whole beats the classifier off the shelf"] == "05, section 4"


def test_what_cannot_be_tested_is_told_of_each_paper_once():
    table = untested()
    assert [claim.split(" (")[0] for claim in table["claim"]] == ["Wu, Luo and Wunsch", "LRML", "AutoRet"]
    assert set(table["verdict"]) == {"cannot be tested here"} and table["why"].str.len().min() > 10


def test_an_ablation_sets_both_methods_side_by_side():
    arms = {"random network": 0.1, "classifier": 0.3, "simclr": 0.2, "simclr, head": 0.25, "classifier, long": 0.4}
    frame = pd.DataFrame([{"arm": a, "seed": 0, "mean_ap": v, "mean_ap_whitened": v + 0.1} for a, v in arms.items()])
    table = what_decides(frame).set_index("setting")
    assert list(table.index) == ["base", "head", "long"]
    assert table.loc["base", "simclr leads by"] == "-0.100 / -0.100"
    assert table.loc["head", "classifier"] == "0.300 / 0.400" and table.loc["head", "simclr"] == "0.250 / 0.350"
    assert table.loc["long", "simclr leads by"] == "-0.200 / -0.200"


def test_a_lead_is_marked_only_where_it_exceeds_the_seed_spread_of_both():
    columns = ["medium", "medium_whitened", "hard", "hard_whitened"]
    values = {"simclr": (0.10, 0.14), "byol": (0.20, 0.22), "dino": (0.10, 0.20)}
    rows = [
        {"name": name, "kind": "method", "seed": seed, "minutes": 0.5} | dict.fromkeys(columns, value)
        for name, seeds in values.items()
        for seed, value in enumerate(seeds)
    ]
    table = beyond_the_seeds(pd.DataFrame(rows)).set_index("name")
    assert list(table.columns) == ["medium", "medium, whitened", "hard", "hard, whitened", "minutes"]
    assert table.loc["simclr", "hard"] == "0.120 (0.100–0.140)"
    assert table.loc["byol", "hard"] == "0.210 (0.200–0.220) +0.090*"
    assert table.loc["dino", "hard"] == "0.150 (0.100–0.200) +0.030"
    single = pd.DataFrame(rows)[lambda frame: frame["seed"] == 0]
    assert "*" not in beyond_the_seeds(single).to_string()


def test_each_question_of_the_ablation_has_a_reference_and_verdicts():
    names = list(dict.fromkeys(n for reference, arms in FINETUNING_QUESTIONS.values() for n in (reference, *arms)))
    columns = ["medium", "medium_whitened", "hard", "hard_whitened"]
    seeds = dict.fromkeys(names, (0.10, 0.11, 0.12)) | {"pooling: mac": (0.05, 0.06, 0.07)}
    rows = [
        {"name": name, "seed": seed, "minutes": None} | dict.fromkeys(columns, value)
        for name in names
        for seed, value in enumerate(seeds[name])
    ]
    frame = pd.DataFrame(rows)
    frame.loc[frame["name"] == "head: none", "hard"] += 0.03
    table = finetuning_answers(frame)
    assert len(table) == sum(1 + len(arms) for _, arms in FINETUNING_QUESTIONS.values())
    assert table["question"].iloc[:4].tolist() == ["which pooling", "", "whitening before or after", ""]
    assert table["verdict"].iloc[:4].tolist() == ["reference", "worse: all", "reference", "better: hard"]
    assert set(table["verdict"].iloc[4:]) == {"within the seeds", "reference"} and set(table["minutes"]) == {""}
    assert table["medium"].iloc[1] == "0.060 (0.050–0.070) -0.050*"
    assert len(finetuning_answers(frame, {"one": ("base", ("pooling: mac",))})) == 2
