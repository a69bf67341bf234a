"""From records to results/, README.md, cost cards and the page, with numbers one can check by hand."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from retrieval_utils import report
from retrieval_utils.claims import FINETUNING_QUESTIONS
from retrieval_utils.page import write_page
from retrieval_utils.records import ProtocolCard

STEPS = ("random", "classifier", "contrastive", "ap-finetuned", "classifier-ap", "scratch-ap")


def card(step: str, seed: int, whitened: bool) -> ProtocolCard:
    return ProtocolCard(
        benchmark="toy-landmarks",
        benchmark_hash="ab" * 32,
        images=400,
        queries=20,
        query_crop="cropped to the box",
        image_size=64,
        resize="longer side",
        interpolation="bicubic",
        scales=(1.0, 2**-0.5),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        whitening="PCA to 128" if whitened else "none",
        whitening_fitted_on="toy-landmarks/train" if whitened else "nothing",
        average_precision="trapezoid",
        precision_cap="capped",
        junk="removed",
        network="resnet18-thin + gem",
        checkpoint=f"{step}-{seed}",
    )


def record_step(folder: Path, step: str, seed: int, mean_ap: float, setups=("easy", "medium", "hard")) -> None:
    made = card(step, seed, step.endswith("+whitening"))
    scores = {"mean_ap": mean_ap, "interval": [mean_ap - 0.1, mean_ap + 0.1], "ap": [mean_ap], "precision_at": {}}
    record = {"step": step, "benchmark": "toy-landmarks", "profile": "smoke", "seed": seed, "minutes": 1.234}
    record |= {"setups": dict.fromkeys(setups, scores), "card": made.to_dict(), "card_hash": made.hash}
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    (folder / "steps" / f"{step}.json").write_text(json.dumps(record))


def record_run(folder: Path, seed: int, seconds: float, memory: float, cold: bool = True) -> None:
    entry = {"status": "done", "seconds": seconds, "peak_memory_mb": memory, "cold": cold}
    record = {
        "profile": "smoke",
        "seed": seed,
        "parameters": {"profile": "smoke", "seed": seed, "data_root": "/home/somebody/data"},
        "git": {"commit": "c0ffee" * 6, "dirty": False},
        "versions": {"python": "3.11", "torch": "2.15.0"},
        "machine": {"system": "Linux x86_64", "cores": 2, "memory_gb": 4.0, "device": "cpu"},
        "notebooks": {"00_one": entry},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record))


@pytest.fixture
def project(tmp_path):
    """Three seeds of all steps in runs/, a README.md with markers, one notebook, an empty results/."""
    steps = [step + suffix for step in STEPS for suffix in ("", "+whitening")]
    random.Random(0).shuffle(steps)  # the order of recording must not matter
    for seed in (2, 0, 1):
        folder = tmp_path / "runs/smoke" / f"seed-{seed}"
        for step in steps:
            record_step(folder, step, seed, 0.5 + 0.1 * seed)
        record_run(folder, seed, seconds=60.0 * (seed + 1), memory=1000.0 * (seed + 1))
    (tmp_path / "results").mkdir()
    text = "# Title\n\n<!-- results:smoke:begin -->\n<!-- results:smoke:end -->\n\nAfter.\n"
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "notebooks").mkdir()
    first = nbformat.v4.new_markdown_cell("# 00 One\n\n<!-- cost:begin -->\n<!-- cost:end -->\n\nMore.")
    notebook = nbformat.v4.new_notebook(cells=[first, nbformat.v4.new_code_cell("1")])
    nbformat.write(notebook, tmp_path / "notebooks/00_one.ipynb")
    return tmp_path


def test_results_have_one_row_a_step_setup_and_seed_in_a_fixed_order(project):
    report.write_results("smoke", project / "runs", project / "results")
    lines = (project / "results/smoke.csv").read_text().splitlines()
    assert lines[0] == "step,benchmark,setup,seed,mean_ap,ap_low,ap_high,minutes,card"
    assert lines[1] == f"random,toy-landmarks,easy,0,0.5000,0.4000,0.6000,1.23,{card('random', 0, False).hash}"
    rows = report.read_scores(project / "results/smoke.csv")
    assert list(rows.columns) == report.COLUMNS and len(rows) == 12 * 3 * 3
    assert list(rows["step"].unique()) == [step + suffix for step in STEPS for suffix in ("", "+whitening")]
    assert list(rows["setup"].unique()) == ["easy", "medium", "hard"] and list(rows["seed"][:3]) == [0, 1, 2]
    cards = report.read_cards(project / "results")
    assert set(cards) == set(rows["card"]) and len(cards) == 12 * 3
    assert all(ProtocolCard(**value).hash == name for name, value in cards.items())


def test_seeds_that_are_not_run_again_keep_what_is_committed(project):
    report.write_results("smoke", project / "runs", project / "results")
    before = (project / "results/smoke.csv").read_text()
    cards = (project / "results/cards.json").read_text()
    for seed in (1, 2):
        shutil.rmtree(project / f"runs/smoke/seed-{seed}")
    report.write_results("smoke", project / "runs", project / "results")
    assert (project / "results/smoke.csv").read_text() == before
    assert (project / "results/cards.json").read_text() == cards
    runs = json.loads((project / "results/smoke.json").read_text())["runs"]
    assert [run["seed"] for run in runs] == [0, 1, 2]


def test_committed_records_do_not_say_where_the_data_lay(project):
    report.write_results("smoke", project / "runs", project / "results")
    runs = json.loads((project / "results/smoke.json").read_text())["runs"]
    assert [run["parameters"] for run in runs] == [{"profile": "smoke", "seed": seed} for seed in range(3)]
    assert "/home" not in (project / "results/smoke.json").read_text()


def test_cards_of_other_profiles_are_kept_and_unused_ones_dropped(project):
    other, unused = card("laptop", 0, False), card("unused", 0, False)
    pd.DataFrame([["classifier", "grocery-store", "original", 0, 0.4, 0.3, 0.5, 1, other.hash]],
                 columns=report.COLUMNS).to_csv(project / "results/laptop.csv", index=False)  # fmt: skip
    cards = {made.hash: made.to_dict() for made in (other, unused)}
    (project / "results/cards.json").write_text(json.dumps(cards))
    report.write_results("smoke", project / "runs", project / "results")
    kept = report.read_cards(project / "results")
    assert other.hash in kept and unused.hash not in kept and len(kept) == 37


def test_a_card_hash_of_digits_stays_text(project, tmp_path):
    file = tmp_path / "digits.csv"
    pd.DataFrame([["a", "b", "easy", 0, 0.1, 0.1, 0.1, 1, "012345678901"]], columns=report.COLUMNS).to_csv(file)
    assert list(report.read_scores(file)["card"]) == ["012345678901"]


def test_the_ladder_shows_mean_seeds_and_interval_and_marks_protocols(project):
    frame, cards, _ = report.collect("smoke", project / "runs")
    table, lines = report.ladder(frame, cards)
    assert list(table.columns) == ["step", "easy", "medium", "hard", "minutes", "protocol"]
    assert table.iloc[0].tolist() == ["random", *["0.600 (0.500–0.700) [0.500–0.700]"] * 3, "1.2", "A"]
    assert list(table["protocol"]) == ["A", "B"] * 6
    assert lines[0].startswith("Protocol A: benchmark toy-landmarks; benchmark hash abababababab; images 400;")
    assert "checkpoint" not in lines[0] and "scales 1, 0.707" in lines[0]
    assert lines[1] == "Protocol B: as A, but whitening PCA to 128; whitening fitted on toy-landmarks/train."
    single, _ = report.ladder(frame[frame["seed"] == 0], cards)
    assert single["hard"][0] == "0.500 [0.400–0.600]"


def test_a_new_step_stands_between_the_ladder_and_the_controls(project):
    record_step(project / "runs/smoke/seed-0", "query-expansion", 0, 0.9)
    frame, _, _ = report.collect("smoke", project / "runs")
    steps = list(frame["step"].unique())
    assert steps.index("ap-finetuned+whitening") < steps.index("query-expansion") < steps.index("classifier-ap")


def test_what_is_done_to_whitened_descriptors_follows_them_under_a_protocol_of_its_own(project):
    folder = project / "runs/smoke/seed-0"
    record_step(folder, "ap-finetuned+whitening+qe", 0, 0.9)
    record = json.loads((folder / "steps/ap-finetuned+whitening+qe.json").read_text())
    made = replace(card("ap-finetuned", 0, True), query_expansion="alpha, exponent 3, 10 neighbours")
    record |= {"card": made.to_dict(), "card_hash": made.hash}
    (folder / "steps/ap-finetuned+whitening+qe.json").write_text(json.dumps(record))
    frame, cards, _ = report.collect("smoke", project / "runs")
    table, lines = report.ladder(frame, cards)
    rows = table.set_index("step")
    assert list(rows.index)[7:10] == ["ap-finetuned+whitening", "ap-finetuned+whitening+qe", "classifier-ap"]
    assert rows.loc["ap-finetuned+whitening+qe", "protocol"] == "C"
    assert lines[2].endswith("; query expansion alpha, exponent 3, 10 neighbours.") and "whitening PCA" in lines[2]
    assert "<svg" in write_page("smoke", project / "runs").read_text()


def test_readme_and_cost_card_are_filled_and_agree_until_one_of_them_changes(project):
    report.write_results("smoke", project / "runs", project / "results")
    assert len(report.disagreements(project)) == 3  # nothing filled in yet
    assert report.update(project) == ["results/smoke.png", "README.md", "00_one.ipynb"]
    assert report.disagreements(project) == [] and report.update(project) == []

    readme = (project / "README.md").read_text()
    assert readme.startswith("# Title\n\n<!-- results:smoke:begin -->\n`smoke`: toy landmarks")
    assert readme.endswith("<!-- results:smoke:end -->\n\nAfter.\n")
    assert "| ap-finetuned | 0.600 (0.500–0.700) [0.500–0.700] |" in readme
    cell = nbformat.read(project / "notebooks/00_one.ipynb", as_version=4).cells[0].source
    assert "| `smoke` | 2.0 | 3.0 GB | drawn, nothing to load | 2 cores, no GPU |" in cell
    assert cell.startswith("# 00 One\n\n<!-- cost:begin -->\n| profile |")
    assert cell.endswith("<!-- cost:end -->\n\nMore.")

    (project / "README.md").write_text(readme.replace("0.600", "0.601", 1))
    (found,) = report.disagreements(project)
    assert found.startswith("README.md: the table of smoke is not that of results/smoke.csv")
    (project / "README.md").write_text("# Title")
    assert len(report.disagreements(project)) == 1
    (project / "README.md").write_text(readme)
    record = (project / "results/smoke.json").read_text()
    (project / "results/smoke.json").write_text(record.replace('"seconds": 60.0', '"seconds": 600.0'))
    assert report.disagreements(project)[0].startswith("notebooks/00_one.ipynb: the cost card is not")
    (project / "results/smoke.json").write_text(record)
    cards = (project / "results/cards.json").read_text()
    (project / "results/cards.json").write_text(cards.replace('"images": 400', '"images": 401', 1))
    assert "are missing or altered in cards.json" in report.disagreements(project)[0]


def test_a_run_that_reused_networks_does_not_count_as_cost(project):
    record_run(project / "runs/smoke/seed-0", 0, seconds=1.0, memory=9000.0, cold=False)
    report.write_results("smoke", project / "runs", project / "results")
    assert "| `smoke` | 2.5 | 3.0 GB |" in report.cost_block(project / "results", "00_one")
    assert report.cost_block(project / "results", "07_new") == "Not measured yet."


def test_methods_and_losses_have_a_table_each_in_the_readme(project):
    report.write_results("smoke", project / "runs", project / "results")
    readme = project / "README.md"
    readme.write_text(readme.read_text() + "\n<!-- results:methods:begin -->\n<!-- results:methods:end -->\n")
    report.update(project)
    rows = [f"{name},{kind},{seed},0.1,0.2,0.3,0.4,0.5" for name, kind in (("simclr", "method"), ("smooth-ap", "loss"))
            for seed in range(3)]  # fmt: skip
    file = project / "results/methods-smoke.csv"
    file.write_text("\n".join(["name,kind,seed,medium,medium_whitened,hard,hard_whitened,minutes", *rows, ""]))
    (found,) = report.disagreements(project)
    assert found == "README.md: the table of methods is not that of results/methods-smoke.csv; run make report."
    assert report.update(project) == ["README.md"] and report.disagreements(project) == []
    text = readme.read_text()
    assert "mAP, mean over 3 seeds (lowest–highest)" in text
    assert "| simclr | 0.100 (0.100–0.100) | 0.200 (0.200–0.200) |" in text and "| smooth-ap | 0.100" in text


def test_speed_and_memory_show_the_last_record_of_every_comparison(project):
    rows = [
        "benchmark,ours,theirs,ratio,unit,machine,date",
        'sort,2.0,9.0,4.5,s,"2 cores, one",2026-01-01',
        'sort,1.5,9.0,6,s,"2 cores, two",2026-01-02',
        'pack,331.2,,,MB,"2 cores, two",2026-01-02',
    ]
    (project / "results" / report.BENCH).write_text("\n".join(rows) + "\n")
    readme = project / "README.md"
    readme.write_text(readme.read_text() + "\n<!-- results:bench:begin -->\n<!-- results:bench:end -->\n")
    assert "README.md" in report.update(project) and report.disagreements(project) == []
    body = report.block(readme.read_text(), "results:bench")
    assert body.splitlines()[0] == "Measured on 2 cores, two."
    assert body.splitlines()[-2:] == ["| sort | 1.5 s | 9 s | 6 |", "| pack | 331.2 MB |  |  |"]


def test_the_ladders_picture_says_which_scores_it_shows(project):
    report.write_results("smoke", project / "runs", project / "results")
    scores, picture = project / "results/smoke.csv", project / "results/smoke.png"
    assert (
        "results/smoke.png" in report.update(project) and "(results/smoke.png)" in (project / "README.md").read_text()
    )
    drawn = picture.read_bytes()
    assert report.disagreements(project) == [] and report.update(project) == [] and picture.read_bytes() == drawn
    scores.write_text(scores.read_text().replace("0.6000", "0.6100"))
    assert "results/smoke.png is not drawn from results/smoke.csv; run make report." in report.disagreements(project)
    report.update(project)
    assert report.disagreements(project) == [] and picture.read_bytes() != drawn
    picture.unlink()
    assert len(report.disagreements(project)) == 1


def test_the_ablation_of_fine_tuning_has_a_table_in_the_readme(project):
    report.write_results("smoke", project / "runs", project / "results")
    readme = project / "README.md"
    readme.write_text(readme.read_text() + "\n<!-- results:finetuning:begin -->\n<!-- results:finetuning:end -->\n")
    report.update(project)
    names = dict.fromkeys(n for reference, arms in FINETUNING_QUESTIONS.values() for n in (reference, *arms))
    rows = [f'"{name}",{seed},0.1,0.2,0.3,0.4,' for name in names for seed in range(3)]
    file = project / "results/ablation/finetuning.csv"
    file.parent.mkdir()
    file.write_text("\n".join(["name,seed,medium,medium_whitened,hard,hard_whitened,minutes", *rows, ""]))
    (found,) = report.disagreements(project)
    assert (
        found == "README.md: the table of fine-tuning is not that of results/ablation/finetuning.csv; run make report."
    )
    assert report.update(project) == ["README.md"] and report.disagreements(project) == []
    assert "| which pooling | base | 0.100 (0.100–0.100) | 0.200 (0.200–0.200) |" in readme.read_text()
    assert "mAP, mean over 3 seeds (lowest–highest)" in readme.read_text()


def test_nothing_recorded_is_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="No step of the profile 'smoke' is recorded.*--profile smoke"):
        report.collect("smoke", tmp_path)
    with pytest.raises(ValueError, match="no profile 'none'"):
        report.collect("none", tmp_path)


def test_the_page_is_one_file_with_plot_numbers_and_links(project):
    page = write_page("smoke", project / "runs")
    assert page == project / "runs/smoke/index.html"
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and text.count("<svg") == 1
    assert "http" not in text.replace("http://www.w3.org/", "")  # name spaces of SVG; nothing is loaded
    assert "0.600 (0.500–0.700) [0.500–0.700]" in text and "Protocol B: as A" in text
    assert '<a href="seed-2/notebooks/00_one.ipynb">00_one</a>' in text and 'href="seed-1/run.json"' in text
    assert "c0ffeec0ffee" in text and str(project) not in text
