"""The claims of the papers, each as a difference between two steps, and the verdict the records give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

CLAIMS = (
    ("contrastive features retrieve better than a classifier's, off the shelf", "contrastive", "classifier"),
    ("fine-tuning with an AP loss adds to contrastive features", "ap-finetuned", "contrastive"),
    ("the road as a whole beats the classifier off the shelf", "ap-finetuned", "classifier"),
    ("control: the contrastive start serves the AP loss better than the classifier's", "ap-finetuned", "classifier-ap"),
    ("control: the contrastive start serves the AP loss better than none", "ap-finetuned", "scratch-ap"),
)

# Fan, Zhao, Zhao, Liu, Hu (2019), reconstructed: every step named lrml is trained on as many images.
LRML_CLAIMS = (
    ("LRML: negatives at distances by rank do better than at one distance", "lrml", "lrml-contrastive"),
    ("LRML does better than the triplet loss", "lrml", "lrml-triplet"),
    ("LRML does better than the quadruplet loss", "lrml", "lrml-quadruplet"),
    ("LRML does better than the lifted structure loss", "lrml", "lrml-lifted-structure"),
    ("LRML does better than margin sample mining", "lrml", "lrml-margin-sample-mining"),
    ("LRML: five mined negatives do better than an AP loss on the whole batch", "lrml", "lrml-ap"),
    ("control: LRML training adds to contrastive features", "lrml", "contrastive"),
)

# The AutoRet paper (2022), reconstructed: every step named autoret has the same images and budget.
AUTORET_CLAIMS = (
    ("AutoRet: self-supervised pairs teach what an untrained network lacks", "autoret", "autoret-untrained"),
    ("AutoRet: patches and their fusion retrieve better than the whole image", "autoret", "autoret-whole-image"),
    ("AutoRet: a recurrent layer fuses patches better than their mean", "autoret", "autoret-mean"),
    ("AutoRet: a small portion of labels, 25 %, adds to self-supervision", "autoret-labels-25", "autoret"),
    ("AutoRet: all labels add to self-supervision", "autoret-labels", "autoret"),
    ("control: AutoRet's pair regression retrieves better than NT-Xent", "autoret", "autoret-nt-xent"),
)
ALL_CLAIMS = CLAIMS + LRML_CLAIMS + AUTORET_CLAIMS

TESTED_IN = {  # the two steps of a claim -> notebook and section
    ("contrastive", "classifier"): "02, section 6",
    ("ap-finetuned", "contrastive"): "04, section 5",
    ("ap-finetuned", "classifier"): "05, section 4",
    ("ap-finetuned", "classifier-ap"): "04, section 6",
    ("ap-finetuned", "scratch-ap"): "04, section 6",
    **{(better, worse): "06, section 7" for _, better, worse in LRML_CLAIMS},
    **{(better, worse): "07, section 5" for _, better, worse in AUTORET_CLAIMS},
}

# What the papers claim and this project has no means to test: the claim, where it is said to be so, and why.
CANNOT_BE_TESTED = (
    (
        "Wu, Luo and Wunsch (2022): large gains on Oxford and Paris with a ResNet-50",
        "05, section 4",
        "it takes ImageNet-scale pretraining and those photos",
    ),
    (
        "LRML (2019): state of the art on three benchmarks",
        "06, section 9",
        "its text, network and tables were not available to us",
    ),
    (
        "AutoRet (2022): better than self-supervised hashing and quantisation on three data sets of categories",
        "07, section 8",
        "its settings, its size and its budget are not known; only our own codes stand beside it, at equal bits",
    ),
)

# What benchmarks/finetuning_ablation.py asks: the arm to compare with, and the arms.
FINETUNING_QUESTIONS = {
    "which pooling": ("base", ("pooling: mac",)),
    "whitening before or after": ("base", ("head: none", "head: whitening, not trained")),
    "which layers move": ("base", ("layers: last stage and head", "layers: head alone")),
    "which start": ("base", ("start: moco-v2", "start: classifier", "start: random")),
    "batch size, as many images": ("base", ("batch: half", "batch: double")),
    "own views, without a head": (
        "contrastive, as it was",
        ("contrastive, simclr continued", "contrastive, moco-v2 continued"),
    ),
    "own views or labels, with the head": (
        "head: whitening, not trained",
        ("own views: nt-xent", "labels: nt-xent", "base"),
    ),
}

# What benchmarks/reconstruction_ablation.py asks of the choices that the papers of LRML and AutoRet leave open.
RECONSTRUCTION_QUESTIONS = {
    "LRML: ranked margins, the order, or both": (
        "lrml, delta 0 and order 0",
        ("lrml, order 0", "lrml, delta 0", "lrml"),
    ),
    "LRML: how far apart, how strict, how far away": (
        "lrml",
        ("lrml, delta 0.1", "lrml, order 0.5", "lrml, margin 0.7"),
    ),
    "LRML: how many to mine from, how often": (
        "lrml",
        ("lrml, pool 50", "lrml, pool 200", "lrml, mined every batch", "lrml, mined once an epoch"),
    ),
    "LRML: batch normalisation": ("lrml", ("lrml, statistics move",)),
    "AutoRet: which patches, in which order": (
        "autoret",
        ("autoret, overlap 0", "autoret, snake", "autoret, without the whole"),
    ),
    "AutoRet: spatial pooling": ("autoret", ("autoret, no atrous rates", "autoret, no pyramid")),
    "AutoRet: the loss and its pairs": (
        "autoret",
        ("autoret, alpha 10", "autoret, leak 0.1", "autoret, other not augmented"),
    ),
}


def verdicts(frame: pd.DataFrame, claims: Sequence[tuple[str, str, str]] = CLAIMS) -> pd.DataFrame:
    """One row a claim and set-up: where it is tested, mAP differences, plain and whitened, and a verdict on both.

    frame: scores with the columns of results/<profile>.csv. claims: the claim, the step that is to be better, and the
    other one. A claim holds where the difference is positive for every seed, plain and whitened; it does not hold where
    it is negative for every seed, both ways; else it is open. Steps that are not recorded are left out.
    """
    scores = frame.pivot_table(index=["setup", "seed"], columns="step", values="mean_ap", sort=False)
    rows = []
    for claim, better, worse in claims:
        if not {better, worse} <= set(scores.columns):
            continue
        for setup in scores.index.unique("setup"):
            both = scores.loc[setup]
            plain = both[better] - both[worse]  # a difference a seed
            whitened = both[f"{better}+whitening"] - both[f"{worse}+whitening"]
            every = pd.concat([plain, whitened])
            verdict = "holds" if (every > 0).all() else "does not hold" if (every < 0).all() else "open"
            rows.append([claim, TESTED_IN[better, worse], setup, _span(plain), _span(whitened), verdict])
    return pd.DataFrame(rows, columns=["claim", "tested in", "set-up", "plain", "whitened", "verdict"])


def untested() -> pd.DataFrame:
    """What the papers claim and cannot be tested here, one row a claim."""
    rows = [[claim, where, "cannot be tested here", why] for claim, where, why in CANNOT_BE_TESTED]
    return pd.DataFrame(rows, columns=["claim", "told in", "verdict", "why"])


def what_decides(frame: pd.DataFrame) -> pd.DataFrame:
    """The first claim under changed settings: one row a setting, mAP plain / whitened of both methods, and who leads.

    frame: the columns arm ("simclr" or "classifier", then ", <what was changed>"), mean_ap and mean_ap_whitened that
    benchmarks/pretraining_ablation.py writes. Where a setting is of one method alone, the other stays at its base.
    """
    means = frame.groupby("arm", sort=False)[["mean_ap", "mean_ap_whitened"]].mean()
    rows = []
    for setting in dict.fromkeys(arm.partition(", ")[2] for arm in means.index if arm != "random network"):
        arms = {method: f"{method}, {setting}" if setting else method for method in ("classifier", "simclr")}
        arms = {method: arm if arm in means.index else method for method, arm in arms.items()}
        lead = means.loc[arms["simclr"]] - means.loc[arms["classifier"]]  # plain, whitened
        both = {method: "{:.3f} / {:.3f}".format(*means.loc[arm]) for method, arm in arms.items()}
        rows.append({"setting": setting or "base", **both, "simclr leads by": "{:+.3f} / {:+.3f}".format(*lead)})
    return pd.DataFrame(rows)


def finetuning_answers(
    frame: pd.DataFrame, questions: Mapping[str, tuple[str, Sequence[str]]] = FINETUNING_QUESTIONS
) -> pd.DataFrame:
    """One row an arm of each question, cells as in `beyond_the_seeds`, and a verdict in words.

    frame: results/ablation/finetuning.csv, three rows an arm or more. questions: title -> (reference, arms). A question
    is named once, in the row of its reference; a verdict names the columns marked with *, or says that all differences
    are within the seeds.
    """
    tables = []
    for question, (reference, arms) in questions.items():
        chosen = [frame[frame["name"] == name] for name in (reference, *arms)]
        table = beyond_the_seeds(pd.concat(chosen), reference)
        table.insert(0, "question", [question] + [""] * (len(table) - 1))
        table["verdict"] = ["reference", *(_verdict(row) for _, row in table.iloc[1:].iterrows())]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _verdict(row: pd.Series) -> str:
    clear = {column: str(cell).split()[-1] for column, cell in row.items() if str(cell).endswith("*")}
    words = [
        f"{word}: {'all' if len(columns) == 4 else '; '.join(columns)}"
        for word, sign in (("better", "+"), ("worse", "-"))
        if (columns := [column for column, lead in clear.items() if lead.startswith(sign)])
    ]
    return ", ".join(words) or "within the seeds"


def _span(differences: pd.Series) -> str:
    return f"{differences.mean():+.3f} ({differences.min():+.3f} to {differences.max():+.3f})"


def beyond_the_seeds(frame: pd.DataFrame, reference: str | None = None) -> pd.DataFrame:
    """One row a method (or loss): mAP, its seed spread, and its lead over SimCLR (Smooth-AP) beside that spread.

    frame: rows of one kind of results/methods-smoke.csv, or of an ablation. reference: another one to compare
    with. Cells: mean (lowest–highest seed), then the difference of the means to the reference; it is marked with *
    where it is larger than the seed spread, highest minus lowest, of both.
    """
    reference = reference or ("simclr" if "simclr" in set(frame["name"]) else "smooth-ap")
    columns = [f"{setup}{suffix}" for setup in ("medium", "hard") for suffix in ("", "_whitened")]
    rows = []
    for name in frame["name"].unique():
        own, other = frame[frame["name"] == name], frame[frame["name"] == reference]
        row = {"name": name}
        for column in columns:
            mean, low, high = own[column].mean(), own[column].min(), own[column].max()
            cell = f"{mean:.3f} ({low:.3f}–{high:.3f})"
            if name != reference and len(other):
                lead, spread = mean - other[column].mean(), max(high - low, other[column].max() - other[column].min())
                cell += f" {lead:+.3f}{'*' * bool(len(own) > 1 and abs(lead) > spread)}"
            row[column.replace("_", ", ")] = cell
        minutes = own["minutes"].mean()  # nan where they were not measured
        rows.append(row | {"minutes": "" if pd.isna(minutes) else f"{minutes:.1f}"})
    return pd.DataFrame(rows)
