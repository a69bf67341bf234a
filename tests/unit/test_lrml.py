"""Training on tuples: the losses of the arms against loops and closed forms, one budget for all, and the reduction."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from retrieval_utils import distributed, finetuning, lrml, training
from retrieval_utils.datasets import load_training_set
from retrieval_utils.datasets.base import TrainingSet
from retrieval_utils.datasets.sfm import PairSet
from retrieval_utils.finetuning import finetune
from retrieval_utils.losses import (
    ContrastiveLoss,
    LiftedStructureLoss,
    MarginSampleMiningLoss,
    QuadrupletLoss,
)
from retrieval_utils.lrml import ARMS, LRMLSettings, balanced_settings, learn_to_rank, tuple_loss
from retrieval_utils.mining import TUPLE, TupleBatches
from retrieval_utils.networks import load_network
from retrieval_utils.records import state_sha256

SETTINGS = LRMLSettings(
    epochs=2, batches=2, mine_every=1, tuples=4, pool=30, head_dim=16, image_size=16, learning_rate=2e-3, device="cpu"
)
LABELS = torch.tensor([0, 1, 0, 2, 2, 3, 0, 1])


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def distance(x, y):
    return float((x - y).norm())


def test_quadruplet_same_as_the_slow_loop():
    tuples, total = drawn(3, TUPLE, 5), 0.0
    for query, positive, *negatives in tuples:
        near = distance(query, positive) ** 2
        total += np.mean([max(near - distance(query, n) ** 2 + 0.8, 0) for n in negatives])
        total += np.mean([max(near - distance(n, m) ** 2 + 0.4, 0) for n, m in combinations(negatives, 2)])
    loss = QuadrupletLoss(0.8)(tuples[:, 0], tuples[:, 1], tuples[:, 2:])
    assert loss.item() == pytest.approx(total / 3)


def test_lifted_structure_same_as_the_slow_loop():
    descriptors, terms = drawn(8, 5), []
    for i, j in combinations(range(8), 2):
        if LABELS[i] == LABELS[j]:
            pushes = [np.exp(1.2 - distance(descriptors[a], descriptors[k])) for a in (i, j) for k in range(8)
                      if LABELS[k] != LABELS[i]]  # fmt: skip
            terms.append(max(np.log(sum(pushes)) + distance(descriptors[i], descriptors[j]), 0) ** 2)
    loss = LiftedStructureLoss(1.2)(descriptors, LABELS)
    assert len(terms) == 5 and loss.item() == pytest.approx(sum(terms) / 10)


def test_margin_sample_mining_same_as_the_slow_loop():
    descriptors = drawn(8, 5)
    pairs = [(LABELS[i] == LABELS[j], distance(descriptors[i], descriptors[j])) for i, j in combinations(range(8), 2)]
    expected = max(d for same, d in pairs if same) - min(d for same, d in pairs if not same) + 0.3
    assert expected > 0
    assert MarginSampleMiningLoss(0.3)(descriptors, LABELS).item() == pytest.approx(expected)


def test_the_losses_of_perfect_descriptors():
    one_hot = torch.eye(TUPLE - 1)  # positive on the query, all else at right angles
    tuples = one_hot[[0, 0, 1, 2, 3, 4, 5]][None]  # (1, 7, D)
    assert QuadrupletLoss(2.0)(tuples[:, 0], tuples[:, 1], tuples[:, 2:]) == 0
    assert MarginSampleMiningLoss(1.4)(tuples[0], torch.tensor([0, 0, 1, 2, 3, 4, 5])) == pytest.approx(0, abs=1e-5)
    lifted = LiftedStructureLoss(1.0)(tuples[0], torch.tensor([0, 0, 1, 2, 3, 4, 5]))
    assert lifted == pytest.approx((np.log(10) + 1 - 2**0.5) ** 2 / 2, abs=1e-4)  # 5 negatives of both


@pytest.mark.parametrize("loss", [LiftedStructureLoss(), MarginSampleMiningLoss(0.8)], ids=lambda loss: str(loss))
def test_gradients_of_the_losses_on_a_batch(loss):
    raw = drawn(8, 4, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(normalize(x, dim=1), LABELS), raw, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "ap"])
def test_gradients_of_the_arms_on_tuples(arm):
    raw = drawn(2, TUPLE, 4, seed=5).requires_grad_()
    labels = torch.tensor([[0, 0, 1, 2, 3, 4, 5], [4, 4, 0, 5, 1, 2, 3]])
    loss = tuple_loss(replace(SETTINGS, loss=arm))
    assert torch.autograd.gradcheck(lambda x: loss(normalize(x, dim=2), labels), raw, eps=1e-7, atol=1e-5)


def test_without_ranks_and_order_lrml_is_the_contrastive_arm_exactly():
    tuples, labels = drawn(4, TUPLE, 6), torch.tensor([[0, 0, 1, 2, 3, 4, 5]] * 4)
    scores = torch.einsum("td,tkd->tk", tuples[:, 0], tuples[:, 1:])
    expected = ContrastiveLoss(1.3).from_scores(scores, torch.arange(6).expand(4, 6) == 0).item()
    plain = tuple_loss(replace(SETTINGS, margin=1.3, delta=0, order=0))(tuples, labels).item()
    arm = tuple_loss(replace(SETTINGS, loss="contrastive", margin=1.3, delta=0))(tuples, labels).item()
    assert plain == arm == expected
    assert tuple_loss(replace(SETTINGS, margin=1.3))(tuples, labels).item() != expected


def test_the_contrastive_arm_asks_for_the_mean_of_the_ranked_margins():
    tuples, labels = drawn(4, TUPLE, 6), torch.zeros(4, TUPLE, dtype=torch.int64)
    margins = [SETTINGS.margin + k * SETTINGS.delta for k in range(5)]
    mean = replace(SETTINGS, margin=float(np.mean(margins)), delta=0, order=0)
    expected = tuple_loss(mean)(tuples, labels)
    torch.testing.assert_close(tuple_loss(replace(SETTINGS, loss="contrastive"))(tuples, labels), expected)


def test_triplets_are_those_of_the_tuple():
    tuples, labels = drawn(3, TUPLE, 5), torch.tensor([[0, 0, 1, 2, 3, 4, 5]] * 3)
    total = 0.0
    for query, positive, *negatives in tuples:
        near = distance(query, positive) ** 2
        total += np.mean([max(near - distance(query, n) ** 2 + 0.5, 0) for n in negatives])
    assert tuple_loss(replace(SETTINGS, loss="triplet"))(tuples, labels).item() == pytest.approx(total / 3)


def test_ranked_margins_order_the_negatives_and_one_margin_does_not():
    """Five free negatives that start alike: at the end LRML holds them a delta apart, contrastive at one distance."""
    ends = {}
    for arm in ("lrml", "contrastive"):
        negatives = (drawn(1, 5, 12, seed=2) + 3 * drawn(1, 1, 12, seed=4)).requires_grad_()
        query, loss = drawn(1, 1, 12, seed=4), tuple_loss(replace(SETTINGS, loss=arm, margin=0.8, delta=0.1, order=0.0))
        optimiser = torch.optim.SGD([negatives], lr=1.0)  # comes to a margin from below: beyond, nothing pulls back
        for _ in range(400):
            optimiser.zero_grad()
            tuples = torch.cat([query, query, normalize(negatives, dim=2)], dim=1)
            loss(tuples, torch.tensor([[0, 0, 1, 2, 3, 4, 5]])).backward()
            optimiser.step()
        ends[arm] = (normalize(negatives, dim=2) - query).norm(dim=2)[0].tolist()
    assert ends["lrml"] == pytest.approx([0.8, 0.9, 1.0, 1.1, 1.2], abs=0.02)
    assert ends["contrastive"] == pytest.approx([1.0] * 5, abs=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LiftedStructureLoss()(drawn(3, 4), torch.tensor([0, 1, 2])), "two images of one label and one of an"),
        (lambda: MarginSampleMiningLoss()(drawn(3, 4), torch.tensor([0, 0, 0])), "two images of one label and one"),
        (lambda: LiftedStructureLoss()(drawn(3, 4), torch.tensor([0, 0])), r"got \(3, 4\), \(2,\)"),
        (lambda: LiftedStructureLoss()(2 * drawn(3, 4), torch.tensor([0, 0, 1])), "has norm 2, not 1"),
        (lambda: QuadrupletLoss()(drawn(2, 4), drawn(2, 4), drawn(2, 1, 4)), "needs 2 negatives of two instances"),
        (lambda: QuadrupletLoss()(drawn(2, 4), drawn(2, 4), drawn(2, 4)), r"Tuples are \(B, D\)"),
        (lambda: QuadrupletLoss(0), "margin must be positive, got 0"),
        (lambda: LiftedStructureLoss(-1), "margin must be positive, got -1"),
        (lambda: MarginSampleMiningLoss(0), "margin must be positive, got 0"),
    ],
)
def test_losses_that_cannot_work_say_why(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def when_trained(act):
    """A hook that acts on the images of every forward pass with a gradient; describing for mining has none."""

    def hook(module, inputs, output):
        if output.requires_grad:
            act(inputs[0])

    return hook


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains_on_as_many_images(cards, arm):
    settings, network, seen = replace(SETTINGS, loss=arm, epochs=1), load_network("resnet18-thin"), []
    network.register_forward_hook(when_trained(lambda images: seen.append(len(images))))
    history = learn_to_rank(network, cards, settings)
    assert sum(seen) == settings.images == 2 * 28 and set(seen) == {28}
    assert len(history["loss"]) == 1 and network.dim == 16 and not network.training
    assert ("described" in history) == (arm != "ap")


def test_the_same_seed_gives_the_same_network_and_another_seed_another(cards):
    networks = [load_network("resnet18-thin") for _ in range(3)]
    histories = [learn_to_rank(n, cards, replace(SETTINGS, seed=s)) for n, s in zip(networks, (0, 0, 1), strict=True)]
    assert histories[0] == histories[1] and state_sha256(networks[0]) == state_sha256(networks[1])
    assert state_sha256(networks[0]) != state_sha256(networks[2])


def test_mining_asks_the_network_as_it_is_after_every_n_steps(cards, monkeypatch):
    network, states, steps = load_network("resnet18-thin"), [], []
    whole = lrml.extract_descriptors

    def extract(net, paths, **options):
        states.append((len(steps), state_sha256(net)))
        return whole(net, paths, **options)

    monkeypatch.setattr(lrml, "extract_descriptors", extract)
    network.register_forward_hook(when_trained(lambda images: steps.append(1)))
    history = learn_to_rank(network, cards, replace(SETTINGS, batches=5, mine_every=2))
    assert [done for done, _ in states] == [0, 2, 4, 5, 7, 9]
    assert len({state for _, state in states}) == 6
    assert all(30 <= total / number <= 38 for total, number in zip(history["described"], (3, 6), strict=True))


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_statistics_stay_and_scale_and_shift_learn(cards, frozen):
    network = load_network("resnet18-thin")
    mean, scale = network.trunk.bn1.running_mean.clone(), network.trunk.bn1.weight.clone()
    learn_to_rank(network, cards, replace(SETTINGS, frozen=frozen, epochs=1))
    assert torch.equal(network.trunk.bn1.running_mean, mean) == frozen
    assert not torch.equal(network.trunk.bn1.weight, scale)


def test_the_ap_arm_is_fine_tuning_with_as_many_images(cards):
    settings, arm, tuned = replace(SETTINGS, loss="ap"), load_network("resnet18-thin"), load_network("resnet18-thin")
    balanced = balanced_settings(settings)
    assert balanced.instances * balanced.images_per_instance == settings.images_per_batch
    assert balanced.epochs * balanced.batches * settings.images_per_batch == settings.images
    assert learn_to_rank(arm, cards, settings) == finetune(tuned, cards, balanced)
    assert state_sha256(arm) == state_sha256(tuned)


def test_listed_positives_are_those_of_the_set(cards, monkeypatch):
    pairs = PairSet(**vars(cards), queries=np.array([0, 6, 12]), positives=np.array([3, 7, 14]))
    taken = []
    monkeypatch.setattr(lrml, "TupleBatches", lambda *values: taken.append(values[-1]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        learn_to_rank(load_network("resnet18-thin"), pairs, replace(SETTINGS, positives="listed"))
    assert taken == [(pairs.queries, pairs.positives)]


@pytest.fixture
def sfm(cards, tmp_path):
    """The cards in the layout of retrieval-SfM-120k: a photo a name, a cluster an instance, two pairs each."""
    folder, names = tmp_path / "retrieval-SfM-120k", [f"{number:032x}" for number in range(len(cards.images))]
    for name, image in zip(names, cards.images, strict=True):
        path = folder / "ims" / name[-2:] / name[-4:-2] / name[-6:-4] / name
        path.parent.mkdir(parents=True)
        shutil.copy(image, path)
    queries = [first + place for first in range(0, len(names), 6) for place in (0, 3)]
    pairs = {"qidxs": queries, "pidxs": [query + 2 for query in queries]}
    lists = {"train": {"cids": names, "cluster": (100 - cards.labels).tolist(), **pairs}}
    (folder / "retrieval-SfM-120k.pkl").write_bytes(pickle.dumps(lists, 2))
    return load_training_set("retrieval-sfm-120k", root=tmp_path)


@pytest.mark.parametrize("positives", ["listed", "random"])
def test_it_trains_on_retrieval_sfm(sfm, positives, monkeypatch):
    tuples = []

    class Watched(TupleBatches):
        def __iter__(self):
            for batch in super().__iter__():
                tuples.extend(np.reshape(batch, (-1, TUPLE)).tolist())
                yield batch

    monkeypatch.setattr(lrml, "TupleBatches", Watched)
    network = load_network("resnet18-thin")
    before = state_sha256(network.trunk)
    history = learn_to_rank(network, sfm, replace(SETTINGS, epochs=1, positives=positives))
    assert len(history["loss"]) == 1 and np.isfinite(history["loss"]).all()
    assert network.dim == 16 and state_sha256(network.trunk) != before
    assert len(tuples) == 2 * 4
    listed = set(zip(sfm.queries.tolist(), sfm.positives.tolist(), strict=True))
    assert all((query, positive) in listed for query, positive, *_ in tuples) == (positives == "listed")
    for query, positive, *negatives in sfm.labels[tuples].tolist():
        assert query == positive and len({query, *negatives}) == 6


@pytest.mark.parametrize("row", [3, 9])
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_names_the_file_whose_descriptor_is_nan(cards, monkeypatch, arm, row):
    """Row 9 is the second negative of the second tuple."""

    def break_row(module, inputs, output):
        return torch.where(torch.arange(len(output))[:, None] == row, torch.nan, output) if module.training else None

    network, loaders = load_network("resnet18-thin"), []
    network.register_forward_hook(break_row)
    monkeypatch.setattr(training, "planned", lambda *of: loaders.append(distributed.planned(*of)) or loaders[0])
    with pytest.raises(ValueError, match="gives a descriptor that is nan or infinite; lower the learning") as caught:
        learn_to_rank(network, cards, replace(SETTINGS, loss=arm, epochs=1, batches=1))
    index, _ = loaders[0].batch_sampler.drawn[0][row]
    assert f"the image '{cards.images[index]}' gives" in str(caught.value)


def test_the_ap_arm_tells_of_instances_with_one_image(cards, monkeypatch):
    monkeypatch.setattr(finetuning, "TrainingImages", lambda *_: 1 / 0)
    few = subset(cards, np.array([0, 6, 12, 13, *range(18, 48)]))
    with pytest.raises(ZeroDivisionError), pytest.warns(UserWarning, match="^2 of the 8 instances of cards have one"):
        learn_to_rank(load_network("resnet18-thin"), few, replace(SETTINGS, loss="ap"))


def subset(cards: TrainingSet, keep: np.ndarray) -> TrainingSet:
    return replace(cards, images=tuple(cards.images[i] for i in keep), labels=cards.labels[keep])


@pytest.mark.parametrize(
    ("keep", "change", "message"),
    [
        (range(48), {"loss": "tripplet"}, "no loss 'tripplet'; choose one of lrml, contrastive, triplet"),
        (range(48), {"positives": "listed"}, "cards lists no pairs .* choose the positives 'random'"),
        (range(48), {"positives": "nearest"}, "no positives 'nearest'; choose random or listed"),
        (range(48), {"pool": 5}, "pool of 5 images is smaller than a tuple of 7"),
        (range(48), {"loss": "ap", "tuples": 3}, "3 tuples are 21 images, .* that 4 divides"),
        (range(48), {"loss": "ap", "tuples": 8}, "14 instances needs more than the 8"),
        (range(48), {"device": "cuda:99"}, "no device 'cuda:99'"),
        (range(43), {}, "label 7 has one image"),
        (range(30), {}, "6 are needed and there are 5"),
    ],
)
def test_training_that_cannot_work_says_why(cards, keep, change, message):
    with pytest.raises(ValueError, match=message):
        learn_to_rank(load_network("resnet18-thin"), subset(cards, np.array(keep)), replace(SETTINGS, **change))
