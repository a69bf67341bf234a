"""The official ground truth of Revisited Oxford and Paris, read from the data root."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from retrieval_utils.datasets.revisited import read_revisited

pytestmark = pytest.mark.real_data

# sha256 of the file; database images, queries; labels in all; queries without an easy, hard or junk image
FACTS = {
    "roxford5k": (
        "ba7967754bd2d7d2210a5799f9c45ad5835e269a80ef9d3eba44caa35816c471",
        (4993, 70),
        (3029, 2497, 1356),
        {"easy": 2},
    ),
    "rparis6k": (
        "d2e729a5293dda7dda8a15c8383424a42e4964a2c4cfea2f32fa85d11d2df499",
        (6322, 70),
        (6874, 10350, 7153),
        {"easy": 0, "junk": 5},
    ),
}


@pytest.fixture(params=FACTS)
def published(request, photos):
    folder = photos / request.param
    path = folder / f"gnd_{request.param}.pkl"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {folder}")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == FACTS[request.param][0]
    return read_revisited(folder, request.param, check_images=False), *FACTS[request.param][1:]


def test_counts_are_the_published_ones(published):
    bench, (images, queries), labels, without = published
    assert (len(bench.images), len(bench.queries)) == (images, queries)
    for name, total in zip(("easy", "hard", "junk"), labels, strict=True):
        counts = [len(getattr(truth, name)) for truth in bench.ground_truth]
        assert sum(counts) == total
        if name in without:
            assert counts.count(0) == without[name]


def test_easy_hard_and_junk_are_disjoint_and_no_query_is_in_the_database(published):
    bench = published[0]
    for truth in bench.ground_truth:
        labelled = np.concatenate([truth.easy, truth.hard, truth.junk])
        assert len(labelled) == len(set(labelled)) and 0 <= labelled.min() <= labelled.max() < len(bench.images)
    assert len({*bench.images, *bench.queries}) == len(bench.images) + len(bench.queries)


def test_boxes_are_boxes(published):
    bench = published[0]
    x1, y1, x2, y2 = np.array(bench.boxes).T
    assert (x2 <= 1024).all() and (y2 <= 1024).all()  # the longer side of every photo
    assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 > x1 + 10).all() and (y2 > y1 + 10).all()


def test_queries_show_the_landmark_that_their_positives_show(photos):
    folder = photos / "roxford5k"
    if not (folder / "gnd_roxford5k.pkl").is_file():
        pytest.skip(f"no ground truth in {folder}")
    bench = read_revisited(folder, "roxford5k", check_images=False)
    query = next(i for i, path in enumerate(bench.queries) if path.name.startswith("radcliffe_camera"))
    names = [bench.images[i].name for i in bench.ground_truth[query].easy]
    assert sum(name.startswith("radcliffe_camera") for name in names) > len(names) / 2


def test_missing_photos_are_counted(photos):
    folder = photos / "roxford5k"
    if not (folder / "gnd_roxford5k.pkl").is_file() or (folder / "jpg").is_dir():
        pytest.skip("the photos are there, or their ground truth is not")
    with pytest.raises(FileNotFoundError, match="5,063 of 5,063 images of roxford5k are missing"):
        read_revisited(folder, "roxford5k")
