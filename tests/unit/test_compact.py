"""Compact codes against brute force: words by nearest neighbour, bits by hand, ties in no one's favour."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from retrieval_utils.compact import (
    at_bits,
    product_codes,
    product_scores,
    record_compact,
    sign_codes,
    sign_scores,
    without_ties,
)
from retrieval_utils.evaluation import GroundTruth, evaluate
from retrieval_utils.protocol import ProtocolCard


def drawn(n, dim=32, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_both_codes_take_exactly_the_bits_they_are_given(bits):
    training, database = drawn(300), drawn(50, seed=1)
    codes, stands_for = product_codes(training, database, bits)
    assert codes.nbytes * 8 == sign_codes(training, database, bits).nbytes * 8 == 50 * bits
    assert stands_for.shape == database.shape


def test_every_part_of_a_descriptor_becomes_its_nearest_word():
    training, database = drawn(300), drawn(40, seed=1)
    _, stands_for = product_codes(training, database, 16)
    _, words = product_codes(training, training, 16)
    for part in range(4):  # 16 bits are 4 codebooks of 8 dimensions
        columns = slice(8 * part, 8 * part + 8)
        book = words[:, columns].unique(dim=0)  # (words in use, 8)
        nearest = torch.cdist(database[:, columns], book).argmin(dim=1)
        chosen = torch.cdist(stands_for[:, columns], database[:, columns]).diagonal()
        assert (chosen <= torch.cdist(book[nearest], database[:, columns]).diagonal() + 1e-5).all()
        assert len(book) <= 16


def test_sixteen_kinds_of_parts_are_stored_without_loss_and_ranked_as_they_are():
    book = drawn(16, 8)
    database = torch.cat(
        [book[torch.randint(16, (64,), generator=torch.Generator().manual_seed(s))] for s in (1, 2)], 1
    )
    training = torch.cat([book, book.flip(0)], dim=1)
    _, stands_for = product_codes(training, database, 8)
    assert torch.allclose(stands_for, database, atol=1e-6)
    queries = drawn(3, 16, seed=5)
    slow = [
        [-sum((a - b) ** 2 for a, b in zip(q, x, strict=True)) for x in database.tolist()] for q in queries.tolist()
    ]
    assert torch.allclose(product_scores(training, queries, database, 8), torch.tensor(slow), atol=1e-3)


def test_more_bits_lose_less():
    training, database = drawn(500), drawn(60, seed=1)
    lost = [float((product_codes(training, database, bits)[1] - database).square().sum()) for bits in (16, 32, 64)]
    assert lost[0] > lost[1] > lost[2]


def test_a_sign_hash_counts_agreeing_bits():
    training, queries, database = drawn(30, 8), drawn(3, 8, 1), drawn(7, 8, 2)
    codes = [sign_codes(training, x, 16) for x in (queries, database)]
    numbers = [[int.from_bytes(bytes(row), "big") for row in side] for side in codes]
    agree = [[16 - (a ^ b).bit_count() for b in numbers[1]] for a in numbers[0]]
    assert sign_scores(training, queries, database, 16).tolist() == agree


def test_the_planes_of_a_sign_hash_go_through_the_mean_of_the_training_descriptors():
    training, database = drawn(30, 8) + 50, drawn(40, 8, 2) + 50
    moved = [x - 50 for x in (training, database)]
    assert (sign_codes(training, database, 16) == sign_codes(*moved, 16)).mean() > 0.98  # float32 rounds near a plane
    assert 0.3 < sign_scores(*moved, moved[1], 64).mean() / 64 < 0.7
    assert not (sign_codes(training, database, 16, seed=1) == sign_codes(training, database, 16)).all()


def test_equal_arguments_give_equal_codes():
    training, database = drawn(300), drawn(20, seed=1)
    for make in (lambda: product_codes(training, database, 32)[0], lambda: sign_codes(training, database, 32)):
        assert (make() == make()).all()


def test_ties_are_shuffled_and_everything_else_keeps_its_order():
    scores = torch.tensor([[3.0, 1, 3, 2, 3, 3]]).repeat(2, 1)
    orders = {tuple(without_ties(scores, seed)[0].argsort(descending=True).tolist()) for seed in range(40)}
    assert len(orders) > 5 and all(set(order[:4]) == {0, 2, 4, 5} and order[4:] == (3, 1) for order in orders)
    assert without_ties(scores, 3).equal(without_ties(scores, 3))
    assert len(without_ties(scores)[0].unique()) == 6


def test_ties_no_longer_favour_a_database_that_lists_its_positives_first():
    everything_equal = torch.zeros(1, 1000)
    places = torch.stack([without_ties(everything_equal, seed)[0].argsort(descending=True) for seed in range(20)])
    assert (places[:, :10] < 10).float().mean() < 0.1


def test_both_codes_are_scored_at_equal_bits_and_ties_favour_nobody(tmp_path):
    training, database, none = drawn(300), drawn(200, seed=1), np.array([], int)
    queries = database[:10] + 0.3 * drawn(10, seed=2)
    truth = [GroundTruth(easy=np.arange(5), hard=none, junk=none)] * 10  # positives stand first, at random otherwise
    rows = at_bits(training, queries, database, truth, ["easy", "medium"])
    kinds = [("float", 1024)] + [(code, bits) for bits in (16, 32, 64) for code in ("product", "sign")]
    assert [(row["code"], row["bits"], row["setup"]) for row in rows] == [
        (code, bits, setup) for code, bits in kinds for setup in ("easy", "medium")
    ]
    floats = evaluate(queries @ database.T, truth, ["easy"])["easy"].mean_ap
    assert rows[0]["mean_ap"] == rows[0]["by_index"] == pytest.approx(floats)
    sign = next(row for row in rows if row["code"] == "sign")
    assert sign["bits"] == 16 and sign["by_index"] > sign["mean_ap"]
    scores = sign_scores(training, queries, database, 16)
    one_by_one = [evaluate(without_ties(scores, s), truth, ["easy"])["easy"].mean_ap for s in range(3)]
    assert sign["mean_ap"] == pytest.approx(np.mean(one_by_one)) and len(set(one_by_one)) == 3

    card = ProtocolCard("toys", "ab", 200, 10, *["x"] * 14)
    record_compact(tmp_path, "autoret-labels", rows, card)
    record = json.loads((tmp_path / "compact/autoret-labels.json").read_text())
    assert (record["step"], record["codes"], record["card_hash"]) == ("autoret-labels", rows, card.hash)


def test_bad_input():
    with pytest.raises(ValueError, match="whole bytes.*not 12"):
        sign_codes(drawn(20), drawn(5), 12)
    with pytest.raises(ValueError, match="20 dimensions cannot be shared"):
        product_codes(drawn(20, 20), drawn(5, 20), 32)
    with pytest.raises(ValueError, match="16 words need as many training descriptors, got 9"):
        product_codes(drawn(9), drawn(5), 16)
    with pytest.raises(ValueError, match=r"got \(20, 32\) and \(5, 16\)"):
        sign_codes(drawn(20), drawn(5, 16), 16)
