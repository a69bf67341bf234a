"""The official ground truth of the original Oxford5k, and both protocols side by side."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from retrieval_utils.datasets import load_benchmark
from retrieval_utils.datasets.download import verify_dataset
from retrieval_utils.datasets.oxford_paris import read_gt_files, read_original
from retrieval_utils.datasets.revisited import read_revisited
from retrieval_utils.datasets.sources import CORRUPT_PARIS
from retrieval_utils.evaluation import average_precision, evaluate

pytestmark = pytest.mark.real_data

LANDMARKS = (
    "all_souls ashmolean balliol bodleian christ_church cornmarket hertford keble magdalen pitt_rivers radcliffe_camera"
).split()


@pytest.fixture(scope="module")
def revisited(photos):
    if not (photos / "roxford5k/gnd_roxford5k.pkl").is_file():
        pytest.skip(f"no ground truth in {photos}/roxford5k")
    return read_revisited(photos / "roxford5k", "roxford5k", check_images=False)


@pytest.fixture(scope="module")
def original(photos, revisited):
    """Over the names of the revisited set: its database and its queries are the photos of the original one."""
    folder = photos / "oxford5k/gt_files"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    names = sorted((*revisited.images, *revisited.queries))
    return read_original(folder, "oxford5k", names, check_images=False)


def test_counts_are_the_published_ones(original):
    assert (len(original.images), len(original.queries), original.setups) == (5063, 55, ("original",))
    sizes = [(len(t.easy), len(t.hard), len(t.junk)) for t in original.ground_truth]
    assert tuple(np.sum(sizes, axis=0)) == (1360, 1480, 1495)


def test_there_are_five_queries_a_landmark(photos):
    names = [query["name"] for query in read_gt_files(photos / "oxford5k/gt_files")]
    assert names == [f"{landmark}_{number}" for landmark in LANDMARKS for number in range(1, 6)]


def test_the_official_list_that_names_a_photo_twice_counts_it_once(photos):
    text = (photos / "oxford5k/gt_files/all_souls_1_good.txt").read_text().split()
    query = read_gt_files(photos / "oxford5k/gt_files")[0]
    assert (len(text), len(query["good"])) == (25, 24) and text.count("all_souls_000091") == 2


def test_good_ok_and_junk_are_disjoint(original):
    for truth in original.ground_truth:
        labelled = np.concatenate([truth.easy, truth.hard, truth.junk])
        assert len(labelled) == len(set(labelled)) and labelled.min() >= 0 and labelled.max() < 5063


def test_boxes_lie_within_the_1024_pixels_of_the_photos(original):
    x1, y1, x2, y2 = np.array(original.boxes).T
    assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= 1024).all() and (y2 <= 1024).all()
    assert (x2 > x1 + 10).all() and (y2 > y1 + 10).all()


def test_in_the_original_protocol_every_query_is_in_the_database_and_a_positive(original):
    lists = {"easy": 0, "hard": 0, "junk": 0}
    for query, truth in zip(original.queries, original.ground_truth, strict=True):
        place = original.images.index(query)
        for name in lists:
            lists[name] += place in getattr(truth, name)
    assert lists == {"easy": 41, "hard": 14, "junk": 0}


def test_in_the_revisited_protocol_no_query_is_and_the_55_are_among_its_70(original, revisited):
    assert not set(revisited.queries) & set(revisited.images)
    assert len(set(revisited.queries)) == 70 and set(original.queries) < set(revisited.queries)
    assert {*revisited.queries, *revisited.images} == set(original.images)


def test_a_query_that_finds_only_itself_scores_what_the_original_protocol_says(original):
    """The photo of the query on top, every other positive at the bottom: worked out from its ranks alone."""
    scores = np.zeros((55, 5063))
    for row, query, truth in zip(scores, original.queries, original.ground_truth, strict=True):
        row[np.concatenate([truth.easy, truth.hard])] = -1
        row[original.images.index(query)] = 1
    report = evaluate(scores, original.ground_truth, original.setups)
    for ap, truth in zip(report["original"].ap, original.ground_truth, strict=True):
        others, junk = len(truth.easy) + len(truth.hard) - 1, len(truth.junk)
        bottom = 5063 - junk - others + np.arange(others)
        assert ap == pytest.approx(average_precision([0, *bottom]), abs=1e-12)


def test_easy_of_the_revisited_protocol_averages_68_of_its_70_queries(revisited):
    scores = np.random.default_rng(0).normal(size=(70, 4993))
    report = evaluate(scores, revisited.ground_truth, revisited.setups)
    assert [report[setup].counted for setup in ("easy", "medium", "hard")] == [68, 70, 70]
    assert np.isnan(report["easy"].ap).sum() == 2 and report["easy"].mean_ap == np.nanmean(report["easy"].ap)


def blank(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def cities(photos, tmp_path_factory):
    """The official ground truth in a data root with as many photos as there are: blank ones, queries of full size."""
    root = tmp_path_factory.mktemp("cities")
    small, full = blank(8), blank(1024)
    for name in ("roxford5k", "rparis6k"):
        if not (photos / name / f"gnd_{name}.pkl").is_file() or not (photos / "oxford5k/gt_files").is_dir():
            pytest.skip(f"no ground truth in {photos}")
        bench = read_revisited(photos / name, name, check_images=False)
        (root / name).mkdir()
        shutil.copyfile(photos / name / f"gnd_{name}.pkl", root / name / f"gnd_{name}.pkl")
        (root / name[1:] / "jpg").mkdir(parents=True)
        for path in (*bench.images, *bench.queries):
            (root / name[1:] / "jpg" / path.name).write_bytes(full if path in bench.queries else small)
    for name in CORRUPT_PARIS:
        (root / "paris6k/jpg" / f"{name}.jpg").write_bytes(b"no photo")
    (root / "oxford5k/gt_files").mkdir()
    for path in (photos / "oxford5k/gt_files").glob("*.txt"):
        shutil.copyfile(path, root / "oxford5k/gt_files" / path.name)
    return root


@pytest.mark.parametrize(
    ("name", "images", "queries"), [("oxford5k", 5063, 55), ("roxford5k", 4993, 70), ("rparis6k", 6322, 70)]
)
def test_load_and_verify_at_full_size_with_the_official_ground_truth(cities, name, images, queries):
    for _ in range(2):  # from its source, then from the JSON beside
        bench = load_benchmark(name, cities)
        assert (len(bench.images), len(bench.queries)) == (images, queries)
    assert (cities / name / f"gnd_{name}.json").is_file()
    found = verify_dataset(name, cities, progress=False)
    total = images if name == "oxford5k" else images + queries
    assert f"{images:,} images and {queries} queries as published" in found and f"{total:,} photos decode" in found
    assert all((corrupt in found) == (name == "rparis6k") for corrupt in CORRUPT_PARIS)
    assert ("20 photos that the publisher names as corrupt" in found) == (name == "rparis6k")


def test_one_corrupt_photo_among_five_thousand_is_named(cities):
    photo = cities / "oxford5k/jpg/radcliffe_camera_000031.jpg"
    whole = photo.read_bytes()
    photo.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"1 photos in .* do not decode \(radcliffe_camera_000031\.jpg\)"):
        verify_dataset("roxford5k", cities, progress=False)
    photo.write_bytes(whole)
