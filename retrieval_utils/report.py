"""Evidence: runs/ becomes results/, and results/ becomes the tables of README.md and the notebooks' cost cards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from PIL import Image

from retrieval_utils.claims import (
    ALL_CLAIMS,
    FINETUNING_QUESTIONS,
    RECONSTRUCTION_QUESTIONS,
    beyond_the_seeds,
    finetuning_answers,
    untested,
    verdicts,
    what_decides,
)
from retrieval_utils.datasets.catalogue import TABLE as DATASETS
from retrieval_utils.evaluation import SETUPS
from retrieval_utils.plotting import CONTROLS, LADDER, plot_ladder
from retrieval_utils.profiles import PROFILES, get_profile
from retrieval_utils.records import ProtocolCard, load_steps, write_json
from retrieval_utils.result_files import write_text
from retrieval_utils.side_tables import CATEGORY, COMPACT, category_block, compact_block, markdown

COLUMNS = ["step", "benchmark", "setup", "seed", "mean_ap", "ap_low", "ap_high", "minutes", "card"]
WHITENED = "+whitening"
ABLATION = "ablation/pretraining.csv"  # below results/
FINETUNING = "ablation/finetuning.csv"
RECONSTRUCTIONS = "ablation/reconstructions.csv"
METHODS = "methods-smoke.csv"
BENCH = "bench.csv"
DRAWN_FROM = "Drawn from sha256"  # of the scores, in the picture itself
LEGEND = (
    "Cells: mAP, mean over seeds (lowest–highest seed) [95 % bootstrap interval over queries, seeds averaged]."
    f" Minutes: training, of all that a step builds on. Controls, not rungs: {', '.join(CONTROLS)}."
)
CLAIMS_LEGEND = (
    "What this says of the claims of Wu, Luo and Wunsch (2022), and of LRML (2019) and AutoRet (2022), both"
    " reconstructed: differences of mAP, mean over seeds (lowest to highest seed). A claim holds where every seed says"
    " so, plain and whitened; where they disagree it is open. Tested in: notebook and section."
)


def collect(profile: str, run_dir: str | Path = "runs") -> tuple[pd.DataFrame, dict[str, dict], list[dict]]:
    """Scores (columns as in results/<profile>.csv), protocol cards by hash, and run records of all seeds in `run_dir`.

    Raises FileNotFoundError if no seed has recorded a step.
    """
    rows, cards, runs = [], {}, []
    for folder in sorted(Path(run_dir, get_profile(profile).name).glob("seed-*"), key=lambda f: int(f.name[5:])):
        for record in load_steps(folder).values():
            cards[record["card_hash"]] = record["card"]
            for setup, scores in record["setups"].items():
                numbers = [round(value, 4) for value in (scores["mean_ap"], *scores["interval"])]
                where = [record["step"], record["benchmark"], setup, record["seed"]]
                rows.append([*where, *numbers, round(record["minutes"], 2), record["card_hash"]])
        if (folder / "run.json").is_file():
            runs.append(json.loads((folder / "run.json").read_text(encoding="utf-8")))
    if not rows:
        raise FileNotFoundError(
            f"No step of the profile '{profile}' is recorded in '{run_dir}': "
            f"run python -m retrieval_utils reproduce --profile {profile} first."
        )
    return pd.DataFrame(sorted(rows, key=_order), columns=COLUMNS), cards, runs


def _order(row: Iterable[Any]) -> tuple:
    step, benchmark, setup, seed, *_ = row
    plain, known = step.removesuffix(WHITENED), (*LADDER, *CONTROLS)
    place = known.index(plain) if plain in known else len(LADDER) - 0.5  # a new step extends the ladder
    return benchmark, place, plain, step != plain, list(SETUPS).index(setup), seed


def write_results(profile: str, run_dir: str | Path = "runs", results: str | Path = "results") -> pd.DataFrame:
    """Write results/<profile>.csv and .json and the cards they name in results/cards.json; return the scores.

    Seeds that `run_dir` does not hold keep what is committed of them.
    """
    frame, cards, runs = collect(profile, run_dir)
    results = Path(results)
    file, record = results / f"{profile}.csv", results / f"{profile}.json"
    if file.is_file() and record.is_file():
        committed = read_scores(file)
        committed = committed[~committed["seed"].isin(frame["seed"].unique())]
        rows = [*frame.to_numpy().tolist(), *committed.to_numpy().tolist()]
        frame = pd.DataFrame(sorted(rows, key=_order), columns=COLUMNS)
        old = json.loads(record.read_text(encoding="utf-8"))["runs"]
        runs = sorted([*runs, *(r for r in old if r["seed"] in set(committed["seed"]))], key=lambda r: r["seed"])
    for run in runs:  # where the data lay on that machine decides nothing
        run["parameters"].pop("data_root", None)
    shown = frame.assign(minutes=frame["minutes"].map("{:.2f}".format))
    write_text(results / f"{profile}.csv", shown.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
    write_json(results / f"{profile}.json", {"runs": runs})
    known = read_cards(results) | cards
    used = {name for file in score_files(results) for name in read_scores(file)["card"]}
    write_json(results / "cards.json", {name: known[name] for name in sorted(used) if name in known})
    return frame


def score_files(results: Path) -> list[Path]:
    """The committed scores, a file a profile; other tables may lie beside them."""
    return [file for file in sorted(results.glob("*.csv")) if file.stem in PROFILES]


def read_scores(file: Path) -> pd.DataFrame:
    """The committed scores of one profile."""
    return pd.read_csv(file, dtype={"card": str})


def read_cards(results: str | Path) -> dict[str, dict]:
    """The committed protocol cards by hash; empty if there are none yet."""
    file = Path(results) / "cards.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def protocols(frame: pd.DataFrame, cards: Mapping[str, dict]) -> tuple[dict[str, str], list[str]]:
    """A letter for each card's protocol (network and checkpoint aside), and one line a letter that says what it is."""
    letters: dict[str, str] = {}
    first: dict[str, ProtocolCard] = {}
    for name in frame["card"].unique():
        card = ProtocolCard(**cards[name])
        letter = next((known for known, other in first.items() if not other.differences(card)), None)
        if letter is None:
            letter = chr(ord("A") + len(first))
            first[letter] = card
        letters[name] = letter
    base = next(iter(first.values()))
    lines = []
    for letter, card in first.items():
        if card is base:
            parts = [f"{key.replace('_', ' ')} {_short(value)}" for key, value in card.to_dict().items()]
            lines.append(f"Protocol {letter}: {'; '.join(parts[:-2])}.")
        else:
            changes = [line.split(" against ")[0].split(": ", 1) for line in card.differences(base)]
            changed = "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in changes)
            lines.append(f"Protocol {letter}: as A, but {changed}.")
    return letters, lines


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{number:.3g}" for number in value)
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def ladder(frame: pd.DataFrame, cards: Mapping[str, dict]) -> tuple[pd.DataFrame, list[str]]:
    """The ladder as text, one row a step and one column a set-up, and the lines that explain its protocols."""
    letters, lines = protocols(frame, cards)
    rows = []
    for step, group in frame.groupby("step", sort=False):
        row = {"step": step}
        for setup in frame["setup"].unique():
            row[setup] = _cell(group[group["setup"] == setup])
        row["minutes"] = f"{group['minutes'].mean():.1f}"
        row["protocol"] = ", ".join(sorted({letters[name] for name in group["card"]}))
        rows.append(row)
    return pd.DataFrame(rows), lines


def _cell(seeds: pd.DataFrame) -> str:
    if seeds.empty:
        return ""
    values = seeds["mean_ap"]
    spread = f" ({values.min():.3f}–{values.max():.3f})" if len(seeds) > 1 else ""
    return f"{values.mean():.3f}{spread} [{seeds['ap_low'].mean():.3f}–{seeds['ap_high'].mean():.3f}]"


def results_block(results: str | Path, profile: str) -> str:
    """What stands in README.md between the markers of `profile`."""
    frame = read_scores(Path(results) / f"{profile}.csv")
    table, lines = ladder(frame, read_cards(results))
    seeds = sorted(frame["seed"].unique())
    what = f"`{profile}`: {PROFILES[profile].about}; {len(seeds)} seed{'s' * (len(seeds) > 1)}."
    parts = [what, markdown(table), f"{LEGEND} {' '.join(lines)}"]
    parts.insert(1, f"![The ladder of {profile}: mAP of every step](results/{profile}.png)")
    claims = verdicts(frame, ALL_CLAIMS)
    if not claims.empty:
        parts += [CLAIMS_LEGEND, markdown(claims)]
    return "\n\n".join(parts)


def draw_ladder(scores: Path) -> bool:
    """Draw results/<profile>.csv into the .png beside it, unless that is drawn already; True if it was not."""
    picture, digest = scores.with_suffix(".png"), sha256(scores.read_bytes()).hexdigest()
    if drawn_from(picture) == digest:
        return False
    frame = read_scores(scores)
    setup = "medium" if "medium" in set(frame["setup"]) else frame["setup"].iloc[0]
    plot_ladder(frame, setup).savefig(picture, dpi=110, metadata={DRAWN_FROM: digest})
    return True


def drawn_from(picture: Path) -> str:
    """Hex sha256 of the scores that a ladder was drawn from; "" for no such picture."""
    if not picture.is_file():
        return ""
    with Image.open(picture) as image:
        return image.info.get(DRAWN_FROM, "")


def ablation_block(results: str | Path) -> str:
    """What stands in README.md between the markers of the ablation of pretraining."""
    frame = pd.read_csv(Path(results) / ABLATION)
    seeds = frame["seed"].nunique()
    return f"mAP plain / whitened, {seeds} seed{'s' * (seeds > 1)}.\n\n{markdown(what_decides(frame))}"


def finetuning_block(results: str | Path) -> str:
    """What stands in README.md between the markers of the ablation of fine-tuning."""
    return _answers_block(Path(results) / FINETUNING, FINETUNING_QUESTIONS)


def reconstructions_block(results: str | Path) -> str:
    """What stands in README.md between the markers of the ablation of LRML and AutoRet."""
    return _answers_block(Path(results) / RECONSTRUCTIONS, RECONSTRUCTION_QUESTIONS)


def _answers_block(file: Path, questions: Mapping[str, tuple[str, Sequence[str]]]) -> str:
    """The questions of an ablation whose arms have all seeds of it; the script that writes `file` may be under way."""
    frame = pd.read_csv(file)
    seeds = frame["seed"].nunique()
    done = {name for name, rows in frame.groupby("name") if rows["seed"].nunique() == seeds}
    whole = {question: (first, arms) for question, (first, arms) in questions.items() if {first, *arms} <= done}
    what = (
        f"mAP, mean over {seeds} seed{'s' * (seeds > 1)} (lowest–highest), and the lead over the question's reference"
    )
    table = finetuning_answers(frame, whole).drop(columns="minutes")
    return f"{what}, * where it is larger than the seed spread of both.\n\n{markdown(table)}"


def methods_block(results: str | Path) -> str:
    """What stands in README.md between the markers of the comparison of methods and losses."""
    frame = pd.read_csv(Path(results) / METHODS)
    seeds = frame["seed"].nunique()
    what = f"mAP, mean over {seeds} seed{'s' * (seeds > 1)} (lowest–highest), and the lead over SimCLR or Smooth-AP"
    tables = [markdown(beyond_the_seeds(group)) for _, group in frame.groupby("kind", sort=False)]
    return "\n\n".join([f"{what}, * where it is larger than the seed spread of both.", *tables])


def bench_block(results: str | Path) -> str:
    """What stands in README.md between the markers of speed and memory: the last record of every comparison."""
    frame = pd.read_csv(Path(results) / BENCH).drop_duplicates("benchmark", keep="last")
    shown = frame[["benchmark"]].copy()
    for column, title in (("ours", "ours"), ("theirs", "the field's"), ("ratio", "ratio")):
        unit = "" if column == "ratio" else " " + frame["unit"]
        shown[title] = (frame[column].map("{:,.4g}".format) + unit).where(frame[column].notna(), "")
    return f"Measured on {'; '.join(frame['machine'].unique())}.\n\n{markdown(shown)}"


TABLES = {  # markers in README.md -> file below results/, its name in a sentence, what stands between the markers
    "results:ablation": (ABLATION, "the ablation", ablation_block),
    "results:finetuning": (FINETUNING, "fine-tuning", finetuning_block),
    "results:reconstructions": (RECONSTRUCTIONS, "the reconstructions", reconstructions_block),
    "results:methods": (METHODS, "methods", methods_block),
    "results:bench": (BENCH, "speed and memory", bench_block),
    "results:category": (CATEGORY, "categories", category_block),
    "results:compact": (COMPACT, "compact codes", compact_block),
}


UNTESTED = "results:untested"  # markers of what no file is needed for


def cost_block(results: str | Path, stem: str) -> str:
    """What stands in notebook `stem` between the cost markers: measured, from records that trained everything."""
    rows = []
    for profile in PROFILES.values():
        file = Path(results) / f"{profile.name}.json"
        runs = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.is_file() else []
        runs = [run for run in runs if run["notebooks"].get(stem, {}).get("cold")]
        entries = [run["notebooks"][stem] | run["machine"] for run in runs]
        if entries:
            device = "no GPU" if entries[0]["device"] == "cpu" else entries[0]["device"]
            rows.append(
                {
                    "profile": f"`{profile.name}`",
                    "minutes": f"{sum(entry['seconds'] for entry in entries) / len(entries) / 60:.1f}",
                    "peak memory": f"{max(entry['peak_memory_mb'] for entry in entries) / 1000:.1f} GB",
                    "data": DATASETS[profile.data][2],
                    "measured on": f"{entries[0]['cores']} cores, {device}",
                }
            )
    return markdown(pd.DataFrame(rows)) if rows else "Not measured yet."


def block(text: str, name: str) -> str | None:
    """What stands in `text` between <!-- name:begin --> and <!-- name:end -->; None without the markers."""
    head, found, rest = text.partition(f"<!-- {name}:begin -->\n")
    body, closed, _ = rest.partition(f"<!-- {name}:end -->")
    return body.strip("\n") if found and closed else None


def fill(text: str, name: str, body: str) -> str:
    """`text` with `body` between the markers of `name`; unchanged without them."""
    old = block(text, name)
    if old is None:
        return text
    head, _, rest = text.partition(f"<!-- {name}:begin -->\n")
    return f"{head}<!-- {name}:begin -->\n{body}\n{rest[rest.index(f'<!-- {name}:end -->') :]}"


def update(project: str | Path = ".") -> list[str]:
    """Write README's tables, the ladders' pictures and the notebooks' cost cards from results/; return what changed."""
    project, changed = Path(project), []
    readme = project / "README.md"
    text = old = readme.read_text(encoding="utf-8")
    for file in score_files(project / "results"):
        text = fill(text, f"results:{file.stem}", results_block(project / "results", file.stem))
        if draw_ladder(file):
            changed.append(f"results/{file.stem}.png")
    for name, (file, _, written) in TABLES.items():
        if (project / "results" / file).is_file():
            text = fill(text, name, written(project / "results"))
    text = fill(text, UNTESTED, markdown(untested()))
    if text != old:
        write_text(readme, text)
        changed.append(readme.name)
    for path in sorted((project / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        cell = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
        source = fill(cell.source, "cost", cost_block(project / "results", path.stem))
        if source != cell.source:
            cell.source = source
            write_text(path, nbformat.writes(notebook) + "\n")
            changed.append(path.name)
    return changed


def disagreements(project: str | Path = ".") -> list[str]:
    """One sentence for each place where README.md, a picture, a notebook or a card does not agree with results/."""
    project, found = Path(project), []
    results, readme = project / "results", (project / "README.md").read_text(encoding="utf-8")
    cards = read_cards(results)
    for file in score_files(results):
        wrong = [n for n in read_scores(file)["card"].unique() if n not in cards or ProtocolCard(**cards[n]).hash != n]
        if wrong:
            found.append(f"results/{file.name}: cards {', '.join(wrong)} are missing or altered in cards.json.")
        elif block(readme, f"results:{file.stem}") != results_block(results, file.stem):
            found.append(f"README.md: the table of {file.stem} is not that of results/{file.name}; run make report.")
        if drawn_from(file.with_suffix(".png")) != sha256(file.read_bytes()).hexdigest():
            found.append(f"results/{file.stem}.png is not drawn from results/{file.name}; run make report.")
    for name, (file, what, written) in TABLES.items():
        if (results / file).is_file() and block(readme, name) != written(results):
            found.append(f"README.md: the table of {what} is not that of results/{file}; run make report.")
    if block(readme, UNTESTED) not in (None, markdown(untested())):
        found.append("README.md: what cannot be tested is not what claims.py says; run make report.")
    for path in sorted((project / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        source = next(cell.source for cell in cells if cell.cell_type == "markdown")
        if block(source, "cost") != cost_block(results, path.stem):
            found.append(f"notebooks/{path.name}: the cost card is not that of results/; run make report.")
    return found
