"""What notebook 08 measures with: drawn descriptors, recall and milliseconds."""

from __future__ import annotations

import pytest
import torch

from retrieval_utils.evaluation import evaluate
from retrieval_utils.index import TRAINING_POINTS, Index
from retrieval_utils.profiles import PROFILES
from retrieval_utils.ranking import nearest
from retrieval_utils.scale import database_sizes, draw_descriptors, draw_views, milliseconds, recall


def test_every_profile_has_sizes_on_which_every_index_can_be_built():
    for name in PROFILES:
        sizes = database_sizes(name)
        assert list(sizes) == sorted(set(sizes)) and sizes[0] >= TRAINING_POINTS
    assert max(database_sizes("smoke")) <= 200_000 and max(database_sizes("gpu")) == 1_000_000
    with pytest.raises(ValueError, match="No database sizes are set for 'paper'; choose one of tiny, smoke"):
        database_sizes("paper")


def test_drawn_descriptors_are_clustered_and_repeatable():
    database, queries = draw_descriptors(4000, 50, dim=32, seed=3)
    assert (database.shape, queries.shape, database.dtype) == ((4000, 32), (50, 32), torch.float32)
    torch.testing.assert_close(database.norm(dim=1), torch.ones(4000))
    assert torch.equal(draw_descriptors(4000, 50, dim=32, seed=3)[0], database)
    assert not torch.equal(draw_descriptors(4000, 50, dim=32, seed=4)[0], database)
    cosines = queries @ database.T
    assert cosines.mean().abs() < 0.05 and nearest(queries, database, 5)[0].mean() > 0.6


def test_drawn_views_are_easier_with_less_noise_and_less_likeness():
    def mean_ap(noise, likeness):
        queries, database, truth = draw_views(noise, likeness)
        assert (queries.shape, database.shape) == ((60, 32), (660, 32))
        return evaluate(queries @ database.T, truth, setups=("easy",))["easy"].mean_ap

    assert mean_ap(0.3, 0) > 0.99 > mean_ap(1.2, 0) > mean_ap(1.2, 0.95) > 1 / 60


def test_recall_by_pencil():
    exact = torch.tensor([[1, 2], [3, 4]])
    assert recall(torch.tensor([[2, 1], [4, 3]]), exact) == 1
    assert recall(torch.tensor([[9, 1, -1], [8, 7, -1]]), exact) == 0.25


def test_milliseconds_are_of_one_query_and_threads_are_given_back():
    database, queries = draw_descriptors(2000, 20)
    before = torch.get_num_threads()
    assert 0 < milliseconds(Index.build(database), queries) < 1000
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="effort"):
        milliseconds(Index.build(database), queries, effort=3)
    assert torch.get_num_threads() == before
