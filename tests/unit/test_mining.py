"""Hard negatives against a walk down the list, and tuples that follow from seed, epoch and the current network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from retrieval_utils.losses.tuples import NEGATIVES
from retrieval_utils.mining import TUPLE, TupleBatches, draw_pairs, hard_negatives

LABELS = np.repeat(np.arange(8), [2, 3, 4, 5, 2, 3, 4, 5])  # 28 images of 8 instances


def descriptors_of(indices: np.ndarray, epoch: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(epoch)
    return normalize(torch.randn(len(LABELS), 6, generator=generator), dim=1)[torch.as_tensor(indices)]


def batches(describe=descriptors_of, **changes) -> TupleBatches:
    settings = {"labels": LABELS, "tuples": 3, "batches": 5, "mine_every": 2, "pool": 24, "seed": 1}
    return TupleBatches(describe=describe, **settings | changes)


def walk(query, own, pool, labels, count):
    """The negatives of one query as Radenovic's code finds them."""
    chosen, taken = [], {own}
    for place in sorted(range(len(pool)), key=lambda i: (-float(query @ pool[i]), i)):
        if labels[place] not in taken:
            chosen.append(place)
            taken.add(labels[place])
        if len(chosen) == count:
            return chosen
    raise AssertionError("too few")


def test_a_tuple_is_a_query_a_positive_and_five_negatives():
    assert (NEGATIVES, TUPLE) == (5, 7)


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_the_negatives_of_a_walk_down_the_ranking(seed, count):
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(6), random.integers(0, 6, 14)])
    pool = torch.from_numpy(random.integers(-1, 2, (20, 4)).astype(np.float32))  # many ties
    queries = torch.from_numpy(random.integers(-1, 2, (7, 4)).astype(np.float32))
    own = random.integers(0, 7, 7)  # 6 is an instance that the pool lacks
    found = hard_negatives(queries, own, pool, labels, count)
    assert found.dtype == np.int64
    assert found.tolist() == [walk(q, o, pool, labels, count) for q, o in zip(queries, own, strict=True)]


def test_one_an_instance_and_none_of_the_querys_by_hand():
    angles = torch.tensor([5.0, 10, 15, 20, 25, 30]).deg2rad()
    pool = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = np.array([7, 1, 1, 2, 7, 3])  # the query is of 7; the second image of 1 is left out
    assert hard_negatives(torch.tensor([[1.0, 0.0]]), np.array([7]), pool, labels, 3).tolist() == [[1, 3, 5]]


@given(st.integers(1, 80), st.integers(0, 99))
def test_positives_are_other_images_of_the_instance(count, seed):
    queries, positives = draw_pairs(LABELS, count, np.random.default_rng(seed))
    assert len(queries) == len(positives) == count
    assert (LABELS[queries] == LABELS[positives]).all() and (queries != positives).all()
    assert np.ptp(np.bincount(queries, minlength=len(LABELS))) <= 1  # none twice before all came once


def test_listed_pairs_are_kept_together():
    listed = np.array([0, 2, 9, 14]), np.array([1, 3, 10, 15])
    queries, positives = draw_pairs(LABELS, 6, np.random.default_rng(0), listed)
    assert set(zip(queries, positives, strict=True)) == set(zip(*listed, strict=True))
    (tuples,) = batches(batches=1, tuples=4, listed=listed)
    drawn = np.reshape(tuples, (4, TUPLE))
    assert set(zip(drawn[:, 0], drawn[:, 1], strict=True)) == set(zip(*listed, strict=True))


def test_every_tuple_is_one():
    for batch in batches():
        for query, positive, *negatives in np.reshape(batch, (3, TUPLE)):
            assert LABELS[query] == LABELS[positive] and query != positive
            assert len(set(LABELS[negatives])) == NEGATIVES and LABELS[query] not in LABELS[negatives]
            similarity = descriptors_of(negatives) @ descriptors_of([query])[0]
            assert (similarity.diff() <= 0).all()  # the hardest first


def test_with_the_whole_set_as_pool_they_are_the_hardest_there_are():
    for batch in batches(pool=10_000):
        for query, _, *negatives in np.reshape(batch, (3, TUPLE)):
            (one,) = descriptors_of([query])
            assert negatives == walk(one, LABELS[query], descriptors_of(range(28)), LABELS, NEGATIVES)


def test_seed_and_epoch_decide():
    first, again, other = batches(), batches(), batches(seed=2)
    assert list(first) == list(again) != list(other)
    before = list(first)
    first.set_epoch(1)
    assert list(first) != before
    first.set_epoch(0)
    assert list(first) == before


def test_negatives_come_from_the_network_as_it_is_at_that_moment():
    """The same pairs and pools; only blocks that are mined after the change have other negatives."""
    now = {"epoch": 0}
    changing = iter(batches(lambda indices: descriptors_of(indices, now["epoch"])))
    kept = list(batches())
    got = [next(changing), next(changing)]
    now["epoch"] = 5
    got += list(changing)
    assert got[:2] == kept[:2] and got[2:] != kept[2:]
    old, new = (np.reshape(tuples, (15, TUPLE)) for tuples in (kept, got))
    assert (old[:, :2] == new[:, :2]).all()


def test_it_mines_at_the_start_and_every_n_batches_and_counts_what_it_costs():
    calls = []

    def describe(indices):
        calls.append(len(indices))
        assert len(set(indices)) == len(indices)  # nothing is described twice
        return descriptors_of(indices)

    sampler = batches(describe)
    assert len(list(sampler)) == len(sampler) == 5
    assert len(calls) == 3 and sampler.described == sum(calls)
    assert all(24 <= number <= 28 for number in calls)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.array([*LABELS, 8])}, "instance with label 8 has one image, .* add a photo of it"),
        ({"labels": np.repeat(np.arange(5), 4)}, "6 are needed and there are 5: take a set with more instances"),
        ({"pool": 6}, "pool of 6 images is smaller than a tuple of 7"),
        ({"mine_every": 0}, "at least 1, got 3, 5 and 0"),
        ({"tuples": 0}, "at least 1, got 0, 5 and 2"),
    ],
)
def test_what_cannot_give_tuples_says_why(changes, message):
    with pytest.raises(ValueError, match=message):
        batches(**changes)


def test_six_instances_are_enough_and_listed_pairs_may_leave_an_image_alone():
    labels = np.array([0, 0, 1, 2, 3, 4, 5])
    listed = np.array([0]), np.array([1])
    sampler = TupleBatches(labels, descriptors_of, 2, 1, 1, pool=7, listed=listed)
    assert all(sorted(row[2:]) == [2, 3, 4, 5, 6] for row in np.reshape(list(sampler), (2, TUPLE)))


def test_a_pool_of_few_instances_is_named():
    pool, labels = normalize(torch.randn(9, 3), dim=1), np.repeat([0, 1, 2], 3)
    with pytest.raises(ValueError, match="shows 2 instances other than that of query 1, .* take a larger pool"):
        hard_negatives(pool[:2], np.array([9, 0]), pool, labels, 3)


def test_a_network_that_gives_nan_is_named():
    pool = torch.full((9, 3), torch.nan)
    with pytest.raises(ValueError, match="nan or infinite"):
        hard_negatives(pool[:1], np.array([9]), pool, np.arange(9))
