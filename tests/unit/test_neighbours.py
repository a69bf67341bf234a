"""Expansion, augmentation and re-ranking by name: the steps of `ranking` in their order, and their words on a card."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from retrieval_utils import neighbours, ranking
from retrieval_utils.neighbours import NONE, Neighbours
from retrieval_utils.pooling import l2_normalize

QUERIES, DATABASE = (l2_normalize(torch.rand(n, 8, generator=torch.Generator().manual_seed(n))) for n in (5, 40))


def scores(chosen: Neighbours) -> torch.Tensor:
    return torch.cat(list(chosen.scores(QUERIES, DATABASE)), dim=1)  # (Q, N)


@pytest.mark.parametrize("block", [50_000, 7])
def test_augmentation_comes_first_then_expansion_then_reranking(monkeypatch, block):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    torch.testing.assert_close(scores(NONE), QUERIES @ DATABASE.T)
    database = ranking.augment_database(DATABASE, 4, 3.0)
    torch.testing.assert_close(scores(Neighbours("none", "alpha", 4)), QUERIES @ database.T)
    queries = ranking.expand_queries(QUERIES, database, 4, 0.0)
    torch.testing.assert_close(scores(Neighbours("average", "alpha", 4)), queries @ database.T)
    torch.testing.assert_close(scores(Neighbours("average", "alpha", 4, True)), ranking.rerank(queries, database))
    torch.testing.assert_close(scores(Neighbours(rerank=True)), ranking.rerank(QUERIES, DATABASE))


def test_the_counts_on_the_card_are_those_that_are_used():
    ten = ranking.expand_queries(QUERIES, DATABASE, 10, 3.0)
    torch.testing.assert_close(scores(Neighbours("alpha")), ten @ DATABASE.T)
    assert Neighbours("alpha").on_card()["query_expansion"] == "alpha, exponent 3, 10 neighbours"
    assert Neighbours("none", "average", 2).on_card() == {
        "query_expansion": "none",
        "database_augmentation": "average, exponent 0, 2 neighbours",
        "reranking": "none",
    }
    defaults = {name: p.default for name, p in inspect.signature(ranking.rerank).parameters.items()}
    said = re.findall(r"[\d.]+", Neighbours(rerank=True).on_card()["reranking"])
    assert [float(number) for number in said] == [defaults[name] for name in ("top", "k", "beta")]


def test_nothing_is_nothing():
    assert not NONE and not Neighbours("none", "none") and Neighbours("alpha") and Neighbours(rerank=True)
    assert set(NONE.on_card().values()) == {"none"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("best",), "no query expansion 'best'; choose one of none, average, alpha"),
        (("none", "mean"), "no database augmentation 'mean'; choose one of none, average, alpha"),
        (("alpha", "none", 0), "takes 1 neighbour or more, such as 10; 0 is not"),
        (("none", "none", 5), "name a --query-expansion too, such as alpha"),
    ],
)
def test_what_cannot_be_is_named(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Neighbours(*arguments)
