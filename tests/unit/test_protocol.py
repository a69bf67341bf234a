"""The protocol card: every field counts for its hash, is printed, and is a reason against a comparison."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch

from retrieval_utils.protocol import MODEL, ProtocolCard, state_sha256

CARD = ProtocolCard(
    benchmark="roxford5k",
    benchmark_hash="ab" * 32,
    variant="faces blurred (2022)",
    images=4993,
    queries=70,
    query_crop="cropped to the box",
    image_size=1024,
    resize="longer side to image_size",
    interpolation="bicubic",
    scales=(1.0, 2**-0.5, 0.5),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    whitening="none",
    whitening_fitted_on="nothing",
    average_precision="trapezoid (Oxford/Paris)",
    precision_cap="k capped",
    junk="junk removed",
    network="resnet50 + gem",
    checkpoint="cd" * 32,
)


def changed(field: str) -> ProtocolCard:
    value = getattr(CARD, field)
    other = {str: "something else", int: 7, tuple: (0.25,)}[type(value)]
    return replace(CARD, **{field: other})


@pytest.mark.parametrize("field", [field.name for field in fields(ProtocolCard)])
def test_every_field_is_hashed_printed_and_told_apart(field):
    other = changed(field)
    assert other.hash != CARD.hash
    assert str(other).splitlines()[1:] != str(CARD).splitlines()[1:]
    differences = CARD.differences(other)
    if field in MODEL:
        assert differences == []
    else:
        (line,) = differences
        assert line.startswith(f"{field}: ") and " against " in line and "\n" not in line


def test_a_card_survives_json():
    read = ProtocolCard(**json.loads(json.dumps(CARD.to_dict())))
    assert read.hash == CARD.hash and read.differences(CARD) == [] and str(read) == str(CARD)


def test_a_variant_that_is_not_known_is_left_out_and_said():
    plain = replace(CARD, variant="")
    assert "variant" not in plain.to_dict() and "roxford5k ab" in str(plain)
    assert plain.differences(CARD) == ["variant: unknown against faces blurred (2022)"]


def test_what_is_not_done_with_neighbours_is_left_out_and_what_is_done_is_a_line():
    assert not {"query_expansion", "database_augmentation", "reranking"} & CARD.to_dict().keys()
    assert "neighbours" not in str(CARD)
    expanded = replace(CARD, query_expansion="alpha, 10 neighbours", reranking="the best 400")
    line = "  neighbours query expansion: alpha, 10 neighbours; reranking: the best 400"
    assert str(expanded).splitlines()[4] == line
    assert ProtocolCard(**expanded.to_dict()) == replace(expanded, scales=list(CARD.scales), mean=list(CARD.mean),
                                                         std=list(CARD.std))  # fmt: skip


def test_half_precision_is_on_the_card_and_a_reason_and_full_precision_is_left_out():
    half = replace(CARD, precision="float16")
    assert "precision" not in CARD.to_dict() and "float" not in str(CARD)
    assert half.to_dict()["precision"] == "float16" and "std 0.229, 0.224, 0.225; float16\n" in str(half)
    assert CARD.differences(half) == ["precision: float32 against float16"]


def test_the_committed_cards_keep_their_hash(project):
    cards = json.loads((project / "results/cards.json").read_text())
    assert cards and all(ProtocolCard(**values).hash == name for name, values in cards.items())


def test_the_checkpoint_is_the_hash_of_names_and_values():
    one, two = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert state_sha256(one) != state_sha256(two)
    two.load_state_dict(one.state_dict())
    assert state_sha256(one) == state_sha256(two) != state_sha256(torch.nn.Sequential(one))
    assert len(state_sha256(one)) == 64
