"""The lists of retrieval-SfM: pairs, clusters and whitening, and a malformed list is named."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_utils.datasets import TrainingSet, load_training_set
from retrieval_utils.datasets.sfm import _linked

CIDS = [f"00000000000000000000000000{i:02x}8f46" for i in range(5)]


@pytest.fixture
def write(tmp_path):
    """Writes the list of `part` into the layout of the real set, with its photos; gives the data root."""

    def write(part="train", photos=CIDS, **changes):
        lists = {"cids": CIDS, "cluster": [30, 30, 10, 10, 30], "qidxs": [0, 2, 0], "pidxs": [1, 3, 4], **changes}
        folder = tmp_path / "retrieval-SfM-120k"
        for cid in photos:
            path = folder / "ims" / cid[-2:] / cid[-4:-2] / cid[-6:-4] / cid
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"photo")
        content = lists if part == "whitening" else {part: lists}
        name = "retrieval-SfM-120k-whiten.pkl" if part == "whitening" else "retrieval-SfM-120k.pkl"
        (folder / name).write_bytes(pickle.dumps(content, 2))
        return tmp_path

    return write


def test_pairs_and_clusters(write):
    pairs = load_training_set("retrieval-sfm-120k", root=write(qidxs=np.array([0.0, 2.0, 0.0])))
    assert isinstance(pairs, TrainingSet) and pairs.name == "retrieval-sfm-120k/instances"
    assert pairs.images[1] == pairs.images[1].parents[3] / "46/8f/01" / CIDS[1]
    assert pairs.labels.tolist() == [1, 1, 0, 0, 1] and pairs.label_names == ("10", "30")
    assert (pairs.queries.tolist(), pairs.positives.tolist()) == ([0, 2, 0], [1, 3, 4])
    assert {pairs.labels.dtype, pairs.queries.dtype, pairs.positives.dtype} == {np.dtype(np.int64)}
    assert "5 images, 2 labels, 3 pairs" in repr(pairs)


def test_whitening_has_pairs_and_links_for_clusters(write):
    root = write("whitening", qidxs=[4, 1], pidxs=[1, 3])
    whitening = load_training_set("retrieval-sfm-120k", "whitening", root)
    assert whitening.labels.tolist() == [0, 1, 2, 1, 1] and len(whitening.queries) == 2
    with pytest.raises(FileNotFoundError, match="retrieval-SfM-120k.pkl'; run .*data get retrieval-sfm-120k"):
        load_training_set("retrieval-sfm-120k", "validation", root)


def test_the_smaller_set_shares_the_photos(write, tmp_path):
    write()
    (tmp_path / "retrieval-SfM-30k").mkdir()
    (tmp_path / "retrieval-SfM-120k/retrieval-SfM-120k.pkl").rename(
        tmp_path / "retrieval-SfM-30k/retrieval-SfM-30k.pkl"
    )
    small = load_training_set("retrieval-sfm-30k", root=tmp_path)
    assert len(small.images) == 5 and "retrieval-SfM-120k/ims" in small.images[0].as_posix()


def test_the_fingerprint_follows_list_part_and_photos(write):
    before = load_training_set("retrieval-sfm-120k", root=write()).fingerprint
    root = write(pidxs=[1, 3, 1])
    changed = load_training_set("retrieval-sfm-120k", root=root)
    changed.images[0].write_bytes(b"another photo")
    assert len({before, changed.fingerprint, load_training_set("retrieval-sfm-120k", root=root).fingerprint}) == 3


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_linked_images_are_those_a_walk_reaches(drawn):
    n, pairs = drawn
    queries, positives = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    neighbours = {i: {i} for i in range(n)}
    for a, b in pairs:
        neighbours[a].add(b)
        neighbours[b].add(a)
    for start, label in enumerate(_linked(n, queries, positives)):
        reached, before = {start}, set()
        while reached != before:
            before = set(reached)
            reached |= {j for i in before for j in neighbours[i]}
        assert label == min(reached)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"cids": [*CIDS[:4], "../../../etc/passwd"]}, "'../../../etc/passwd', which is no photo name"),
        ({"cids": [*CIDS[:4], 7]}, "lists 7, which is no photo name"),
        ({"cluster": [1, 2]}, "lengths do not fit"),
        ({"pidxs": [1]}, "lengths do not fit"),
        ({"pidxs": [1, 3, 5]}, "pairs of images that it does not list"),
        ({"pidxs": [1, 3, -1]}, "pairs of images that it does not list"),
        ({"pidxs": [1, 3, 0.5]}, "does not hold whole numbers"),
        ({"cluster": ["a"] * 5}, "does not hold whole numbers"),
        ({"cluster": [[1], [2, 3]]}, "does not hold whole numbers"),
        ({"cluster": None}, "does not hold whole numbers"),
    ],
)
def test_a_malformed_list_is_named(write, changes, match):
    with pytest.raises(ValueError, match=match):
        load_training_set("retrieval-sfm-120k", root=write(**changes))


def test_what_is_missing_or_unknown_is_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="data get retrieval-sfm-30k"):
        load_training_set("retrieval-sfm-30k", root=tmp_path)
    root = write(photos=CIDS[:3])
    with pytest.raises(
        FileNotFoundError, match=f"2 of 5 photos of retrieval-sfm-120k are missing, the first is .*{CIDS[3]}"
    ):
        load_training_set("retrieval-sfm-120k", root=root)
    with pytest.raises(ValueError, match="has no lists cids, cluster, qidxs, pidxs of val"):
        load_training_set("retrieval-sfm-120k", "validation", root)
    with pytest.raises(ValueError, match="no part 'categories' of .*; choose one of instances, validation, whitening"):
        load_training_set("retrieval-sfm-120k", "categories", root)
