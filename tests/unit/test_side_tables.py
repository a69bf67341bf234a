"""Categories and compact codes: from records of a run to results/ and README, seed by seed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from retrieval_utils import report, side_tables
from retrieval_utils.category_retrieval import CategoryResult, record_category
from retrieval_utils.side_tables import CATEGORY, COMPACT, read_side_table, write_side_tables

README = "# T\n" + "".join(f"\n<!-- results:{n}:begin -->\n<!-- results:{n}:end -->\n" for n in ("category", "compact"))


@pytest.fixture
def project(tmp_path):
    """Three seeds of smoke and one of laptop, with what notebook 07 records beside the ladder."""
    for profile, seed in (("smoke", 2), ("smoke", 0), ("smoke", 1), ("laptop", 0)):
        folder = tmp_path / "runs" / profile / f"seed-{seed}"
        for place, name in enumerate(("self-supervised", "untrained", "all-labels")):
            card = {
                "task": "toys-2, by category",
                "queries": ["toys/queries", 160, "ab" * 32],
                "database": ["toys/database", 1640, "0123456789012345"],
                "measure": "mAP@100, AP over the relevant images among the first 100",
                "image_size": 72,
                "network": "autoret",
                "checkpoint": f"{profile}-{seed}-{name}-and-more",
            }
            result = CategoryResult(np.array([0.1, 0.3]) + 0.1 * seed + 0.01 * place, card)
            record_category(folder, f"toys-2-{name}", result)
        codes = [
            {"code": code, "bits": bits, "setup": setup, "mean_ap": value + 0.1 * seed, "by_index": value + 0.2}
            for code, bits, value in (("float", 4096, 0.5), ("sign", 16, 0.1), ("sign", 64, 0.2), ("product", 16, 0.3))
            for setup in ("hard", "easy")
        ]
        (folder / "compact").mkdir()
        record = {"step": "autoret-labels", "codes": codes, "card": {}, "card_hash": "012345678901"}
        (folder / "compact/autoret-labels.json").write_text(json.dumps(record))
    (tmp_path / "results").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def test_every_record_becomes_a_row_in_a_fixed_order(project):
    assert write_side_tables(["smoke", "laptop"], project / "runs", project / "results") == [CATEGORY, COMPACT]
    lines = (project / "results" / CATEGORY).read_text().splitlines()
    assert lines[0] == ",".join(side_tables.CATEGORY_COLUMNS) and len(lines) == 1 + 12
    start = "smoke,toys-2,untrained,100,0,0.2100,0.1100,0.3100,160,1640,72,autoret,abababababab,012345678901,"
    assert lines[1] == start + "smoke-0-untr"
    frame = read_side_table(project / "results" / CATEGORY)
    assert list(frame["name"].unique()) == ["untrained", "self-supervised", "all-labels"]
    assert frame["seed"].tolist() == [0, 1, 2] * 3 + [0] * 3 and frame["database_hash"][0] == "012345678901"
    codes = read_side_table(project / "results" / COMPACT)
    assert list(codes.columns) == side_tables.COMPACT_COLUMNS and len(codes) == 8 * 4
    first = ["smoke", "autoret-labels", "float", 4096, "easy", 0, 0.5, 0.7, "012345678901"]
    assert codes.iloc[0].tolist() == first and codes["bits"].iloc[6:12].unique().tolist() == [16]


def test_seeds_and_profiles_that_are_not_run_again_keep_what_is_committed(project):
    write_side_tables(["smoke", "laptop"], project / "runs", project / "results")
    before = [(project / "results" / name).read_text() for name in (CATEGORY, COMPACT)]
    shutil.rmtree(project / "runs/smoke/seed-1")
    shutil.rmtree(project / "runs/laptop")
    record = project / "runs/smoke/seed-0/category/toys-2-untrained.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"mean_ap": 0.9}))
    write_side_tables(["smoke"], project / "runs", project / "results")
    after = [(project / "results" / name).read_text() for name in (CATEGORY, COMPACT)]
    assert after[1] == before[1] and after[0] == before[0].replace(
        "untrained,100,0,0.2100", "untrained,100,0,0.9000", 1
    )


def test_without_a_record_nothing_is_written_and_what_is_committed_stays(project):
    write_side_tables(["laptop"], project / "runs", project / "results")
    before = (project / "results" / CATEGORY).read_text()
    assert write_side_tables(["gpu"], project / "runs", project / "results") == []
    assert (project / "results" / CATEGORY).read_text() == before


def test_each_has_a_table_in_the_readme_that_is_checked(project):
    assert report.disagreements(project) == []  # no file, no table
    write_side_tables(["smoke", "laptop"], project / "runs", project / "results")
    sentences = [f"README.md: the table of {what} is not that of results/{name}; run make report."
                 for what, name in (("categories", CATEGORY), ("compact codes", COMPACT))]  # fmt: skip
    assert report.disagreements(project) == sentences
    assert report.update(project) == ["README.md"] and report.disagreements(project) == []
    text = (project / "README.md").read_text()
    assert "This is another quantity than the mAP of the ladders" in text
    assert "| `smoke` | toys-2, 160 queries, 1,640 images, 72 px | untrained | 100 | 0.310 (0.210–0.410) [0.2" in text
    assert "| `laptop` | toys-2, 160 queries, 1,640 images, 72 px | all-labels | 100 | 0.220 [0.120–0.320] |" in text
    assert "| profile | set-up | descriptors of | code | 16 bits | 64 bits | as floats |" in text
    sign = "| sign | 0.200 (0.100–0.300) | 0.300 (0.200–0.400) | 0.600 (0.500–0.700), 4,096 bits |"
    assert f"| `smoke` | easy | autoret-labels {sign}" in text and f"| `smoke` | hard | autoret-labels {sign}" in text
    (project / "README.md").write_text(text.replace("0.310", "0.311"))
    assert report.disagreements(project) == sentences[:1]
