"""What is measured beside the ladder, from runs/ to results/: retrieval by category, and descriptors as compact codes.

Each has a file and a table of its own: mAP@k by category is another quantity than the mAP of the ladder, and a code of
16 bits another descriptor than the floats it is made of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from retrieval_utils.evaluation import SETUPS
from retrieval_utils.profiles import PROFILES
from retrieval_utils.result_files import write_text

CATEGORY = "category.csv"  # below results/
COMPACT = "compact.csv"
CATEGORY_COLUMNS = [
    *("profile", "task", "name", "k", "seed", "map_at_k", "ap_low", "ap_high"),
    *("queries", "database", "image_size", "network", "query_hash", "database_hash", "checkpoint"),
]
COMPACT_COLUMNS = ["profile", "step", "code", "bits", "setup", "seed", "mean_ap", "by_index", "card"]
NAMES = ("untrained", "self-supervised", "all-labels")  # of the networks that are scored by category
CATEGORY_LEGEND = (
    "mAP@k by category: any image of the query's category is right, and AP is over the relevant ones among the first k."
    " **This is another quantity than the mAP of the ladders, and no number here may be compared with one there.**"
    " Networks are AutoRet's, trained on the database."
)
COMPACT_LEGEND = (
    "mAP of the ladder's queries when the database is kept in so few bits an image, ties in random order. product:"
    " product quantisation, 4 bits a word; sign: on which side of random planes; the training instances teach both."
)


def collect_category(profile: str, run_dir: str | Path = "runs") -> list[list]:
    """Rows of results/category.csv of all seeds of `profile` in `run_dir`."""
    rows = []
    for seed, record in _records(profile, run_dir, "category"):
        card = record["card"]
        task, k = card["task"].removesuffix(", by category"), card["measure"].split(",")[0].removeprefix("mAP@")
        name = record["step"].removeprefix(f"{task}-")
        scores = [round(value, 4) for value in (record["mean_ap"], *record["interval"])]
        (_, queries, query_hash), (_, database, database_hash) = card["queries"], card["database"]
        short = [text[:12] for text in (query_hash, database_hash, card["checkpoint"])]
        where = [profile, task, name, int(k), seed]
        rows.append([*where, *scores, queries, database, card["image_size"], card["network"], *short])
    return rows


def collect_compact(profile: str, run_dir: str | Path = "runs") -> list[list]:
    """Rows of results/compact.csv of all seeds of `profile` in `run_dir`."""
    return [
        [profile, record["step"], code["code"], code["bits"], code["setup"], seed]
        + [round(code["mean_ap"], 4), round(code["by_index"], 4), record["card_hash"]]
        for seed, record in _records(profile, run_dir, "compact")
        for code in record["codes"]
    ]


def _records(profile: str, run_dir: str | Path, kind: str) -> Iterator[tuple[int, dict]]:
    for folder in Path(run_dir, profile).glob("seed-*"):
        for file in folder.glob(f"{kind}/*.json"):
            yield int(folder.name[5:]), json.loads(file.read_text(encoding="utf-8"))


def _category_order(row: Sequence) -> tuple:
    profile, task, name, k, seed, *_ = row
    return list(PROFILES).index(profile), task, NAMES.index(name) if name in NAMES else len(NAMES), name, k, seed


def _compact_order(row: Sequence) -> tuple:
    profile, step, code, bits, setup, seed, *_ = row
    return list(PROFILES).index(profile), step, code, bits, list(SETUPS).index(setup), seed


TABLES: dict[str, tuple[list[str], Callable, Callable]] = {
    CATEGORY: (CATEGORY_COLUMNS, collect_category, _category_order),
    COMPACT: (COMPACT_COLUMNS, collect_compact, _compact_order),
}


def write_side_tables(
    profiles: Iterable[str], run_dir: str | Path = "runs", results: str | Path = "results"
) -> list[str]:
    """Write results/category.csv and results/compact.csv from the records of these profiles; the files written.

    Profiles and seeds that `run_dir` has no such record of keep what is committed of them.
    """
    written, profiles = [], list(profiles)
    for name, (columns, collect, order) in TABLES.items():
        rows = [row for profile in profiles for row in collect(profile, run_dir)]
        if not rows:
            continue
        file, seed = Path(results) / name, columns.index("seed")
        run = {(row[0], row[seed]) for row in rows}
        committed = read_side_table(file).to_numpy().tolist() if file.is_file() else []
        rows += [row for row in committed if (row[0], row[seed]) not in run]
        frame = pd.DataFrame(sorted(rows, key=order), columns=columns)
        write_text(file, frame.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
        written.append(name)
    return written


def read_side_table(file: Path) -> pd.DataFrame:
    """A committed table; hashes stay text."""
    hashes = ("card", "query_hash", "database_hash", "checkpoint")
    return pd.read_csv(file, dtype=dict.fromkeys(hashes, str))


def category_block(results: str | Path) -> str:
    """What stands in README.md between the markers of retrieval by category."""
    frame = read_side_table(Path(results) / CATEGORY)
    same = ["profile", "task", "name", "k", "queries", "database", "image_size", "query_hash", "database_hash"]
    rows = []
    for (profile, task, name, k, queries, database, size, *_), seeds in frame.groupby(same, sort=False):
        interval = f"[{seeds['ap_low'].mean():.3f}–{seeds['ap_high'].mean():.3f}]"
        rows.append(
            {
                "profile": f"`{profile}`",
                "task": f"{task}, {queries:,} queries, {database:,} images, {size} px",
                "AutoRet": name,
                "k": str(k),
                "mAP@k by category": f"{mean_and_seeds(seeds['map_at_k'])} {interval}",
            }
        )
    cells = "Cells: mean over seeds (lowest–highest seed) [95 % bootstrap interval over queries, seeds averaged]."
    return f"{CATEGORY_LEGEND} {cells}\n\n{markdown(pd.DataFrame(rows))}"


def compact_block(results: str | Path) -> str:
    """What stands in README.md between the markers of the compact codes."""
    frame = read_side_table(Path(results) / COMPACT)
    every = sorted(frame.loc[frame["code"] != "float", "bits"].unique())
    rows = []
    for (profile, setup, step), group in frame.groupby(["profile", "setup", "step"], sort=False):
        floats = group[group["code"] == "float"]
        for code, codes in group[group["code"] != "float"].groupby("code", sort=False):
            row = {"profile": f"`{profile}`", "set-up": setup, "descriptors of": step, "code": code}
            row |= {f"{bits} bits": mean_and_seeds(codes.loc[codes["bits"] == bits, "mean_ap"]) for bits in every}
            width = " and ".join(f"{bits:,}" for bits in floats["bits"].unique())
            rows.append(row | {"as floats": f"{mean_and_seeds(floats['mean_ap'])}, {width} bits"})
    cells = "Cells: mean over seeds (lowest–highest seed)."
    return f"{COMPACT_LEGEND} {cells}\n\n{markdown(pd.DataFrame(rows))}"


def mean_and_seeds(values: pd.Series) -> str:
    """The mean, and of several seeds the lowest and the highest; nothing of none."""
    if values.empty:
        return ""
    return f"{values.mean():.3f}" + (f" ({values.min():.3f}–{values.max():.3f})" if len(values) > 1 else "")


def markdown(table: pd.DataFrame) -> str:
    """`table` as a Markdown table; its cells are text."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
