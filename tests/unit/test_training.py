from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrieval_utils.contrastive import PretrainingSettings, pretrain
from retrieval_utils.contrastive_base import mean_rank_of_positive
from retrieval_utils.evaluation import evaluate
from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.finetuning import BalancedBatches, FinetuningSettings, finetune
from retrieval_utils.networks import load_network
from retrieval_utils.ranking import cosine_scores
from retrieval_utils.records import state_sha256
from retrieval_utils.training import SeededBatches, ShuffledBatches, TrainingImages
from retrieval_utils.transforms import training_view
from retrieval_utils.whitening import PCAWhitening

PRETRAINING = PretrainingSettings(epochs=3, batch_size=24, image_size=32, device="cpu")
FINETUNING = FinetuningSettings(
    head_dim=16, epochs=4, batches=4, instances=8, learning_rate=2e-3, image_size=32, device="cpu"
)


@pytest.mark.parametrize("method", ["simclr", "classifier"])
def test_pretraining_learns_and_is_the_same_for_the_same_seed(cards, method):
    settings = replace(PRETRAINING, method=method)
    first, again = load_network("resnet18-thin"), load_network("resnet18-thin")
    history = pretrain(first, cards, settings)
    assert pretrain(again, cards, settings) == history
    assert state_sha256(first) == state_sha256(again)
    assert len(history["loss"]) == 3
    assert history["loss"][-1] < history["loss"][0]
    assert ("rank" in history) == (method == "simclr")


def test_batch_normalisation_is_trained_and_the_network_comes_back_in_evaluation_mode(cards):
    network = load_network("resnet18-thin")
    before = network.trunk.bn1.running_mean.clone()
    pretrain(network, cards, replace(PRETRAINING, epochs=1))
    assert not torch.equal(network.trunk.bn1.running_mean, before)
    assert not network.training


@pytest.mark.parametrize("loss", ["smooth-ap", "quantized-ap"])
def test_fine_tuning_raises_the_average_precision_it_is_named_after(cards, cards_benchmark, loss):
    def mean_ap(network):
        queries = extract_descriptors(network, cards_benchmark.queries, image_size=32, device="cpu")
        database = extract_descriptors(network, cards_benchmark.images, image_size=32, device="cpu")
        return evaluate(cosine_scores(queries, database), cards_benchmark.ground_truth)["medium"].mean_ap

    network = load_network("resnet18-thin")
    before = mean_ap(network)
    history = finetune(network, cards, replace(FINETUNING, loss=loss, epochs=10))
    assert history["loss"][-1] < history["loss"][0]
    assert mean_ap(network) > before + 0.02


def test_the_head_starts_as_the_whitening_of_the_training_images(cards):
    network = load_network("resnet18-thin")
    plain = extract_descriptors(network, cards.images, image_size=48, device="cpu")
    expected = PCAWhitening.fit(plain, dim=16)(plain)  # (N, 16)
    finetune(network, cards, replace(FINETUNING, epochs=1, batches=1, learning_rate=0.0))
    for module in network.modules():  # the one batch moved nothing but the statistics of batch normalisation
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    assert network.dim == 16
    descriptors = extract_descriptors(network, cards.images, image_size=48, device="cpu")
    torch.testing.assert_close(descriptors, expected, atol=1e-3, rtol=0)


def test_fine_tuning_without_a_head_keeps_the_dimension(cards):
    network = load_network("resnet18-thin")
    finetune(network, cards, replace(FINETUNING, head_dim=0, epochs=1))
    assert network.dim == 256


def test_the_size_of_a_chunk_decides_memory_and_not_the_result(cards):
    trained = []
    for chunk in (3, 1000):
        network = load_network("resnet18-thin")
        history = finetune(network, cards, replace(FINETUNING, epochs=2, batches=2, chunk=chunk))
        trained.append((network.state_dict(), history["loss"]))
    (few, losses), (many, expected) = trained
    assert losses == pytest.approx(expected, abs=1e-4)
    start = load_network("resnet18-thin").state_dict()
    learned = [name for name, value in start.items() if value.is_floating_point() and "running" not in name]
    apart = sum((few[name] - many[name]).square().sum() for name in learned).sqrt()
    moved = sum((many[name] - start[name]).square().sum() for name in learned if name in start).sqrt()
    # Adam's first steps are as long for a tiny gradient as for a large one, so where one is near 0 rounding shows.
    assert apart < 0.05 * moved
    running = [name for name in start if "running" in name]
    assert all(torch.equal(few[name], start[name]) for name in running)
    assert not torch.equal(few["trunk.conv1.weight"], start["trunk.conv1.weight"])


def test_fine_tuning_in_bf16_gives_finite_descriptors(cards):
    network = load_network("resnet18-thin")
    before = network.trunk.conv1.weight.detach().clone()
    history = finetune(network, cards, replace(FINETUNING, epochs=1, batches=2, precision="bf16-mixed"))
    descriptors = extract_descriptors(network, cards.images, image_size=32, device="cpu")
    assert np.isfinite(history["loss"]).all() and descriptors.isfinite().all()
    assert network.trunk.conv1.weight.dtype == torch.float32 and not network.trunk.conv1.weight.equal(before)


def test_instances_with_one_image_are_counted_in_a_warning(cards, monkeypatch):
    monkeypatch.setattr("retrieval_utils.finetuning.TrainingImages", lambda *_: 1 / 0)
    alone = replace(cards, labels=np.arange(48))
    for images, message in (
        (replace(cards, labels=np.r_[8, cards.labels[1:]]), "^1 of the 9 "),
        (alone, "^48 of the 48 "),
    ):
        with (
            pytest.raises(ZeroDivisionError),
            pytest.warns(UserWarning, match=message + "instances of cards have one im"),
        ):
            finetune(load_network("resnet18-thin"), images, FINETUNING)
    with pytest.raises(ZeroDivisionError), warnings.catch_warnings():
        warnings.simplefilter("error")
        finetune(load_network("resnet18-thin"), cards, FINETUNING)


def test_rank_of_the_positive_by_hand():
    pairs = torch.eye(4)  # four directions, partners equal
    assert mean_rank_of_positive(torch.cat([pairs, pairs])) == 1
    opposed = torch.tensor([[1.0, 0.0], [0.99, 0.1], [-1.0, 0.0], [-0.99, -0.1]])  # partners are 0, 2 and 1, 3
    assert mean_rank_of_positive(opposed) > 2.4


@given(st.integers(2, 5), st.integers(2, 4), st.integers(0, 3), st.integers(0, 99))
def test_batches_are_balanced_and_follow_seed_and_epoch(instances, images_per_instance, epoch, seed):
    labels = np.repeat(np.arange(6), [1, 2, 3, 4, 5, 9])
    sampler = BalancedBatches(labels, instances, images_per_instance, batches=3, seed=seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert batches == list(sampler)
    for batch in batches:
        drawn, counts = np.unique(labels[batch], return_counts=True)
        assert len(drawn) == instances
        assert set(counts) == {images_per_instance}
        for label in drawn:  # no image twice where there are enough of them
            members = [index for index in batch if labels[index] == label]
            assert len(set(members)) == images_per_instance or (labels == label).sum() < images_per_instance
    sampler.set_epoch(epoch + 1)
    assert batches != list(sampler) or instances * images_per_instance < 6


def test_the_epoch_reaches_the_sampler_during_training(cards, monkeypatch):
    epochs = []
    monkeypatch.setattr(BalancedBatches, "set_epoch", lambda self, epoch: epochs.append(epoch))
    finetune(load_network("resnet18-thin"), cards, replace(FINETUNING, epochs=3, batches=1, instances=2))
    assert epochs == [0, 1, 2]


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 3), st.integers(0, 99))
def test_an_epoch_shows_every_image_once_in_full_batches(images, batch_size, epoch, seed):
    sampler = ShuffledBatches(images, batch_size, seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) == images // batch_size
    assert all(len(batch) == batch_size for batch in batches)
    shown = sum(batches, [])
    assert len(set(shown)) == len(shown) and set(shown) <= set(range(images))
    seeded = SeededBatches(sampler, seed)
    assert [[index for index, _ in batch] for batch in seeded] == batches
    seeds = [drawn for batch in seeded for _, drawn in batch]
    assert seeds == [drawn for batch in seeded for _, drawn in batch]
    assert len(set(seeds)) == len(seeds)
    seeded.set_epoch(epoch + 1)
    assert not set(seeds) & {drawn for batch in seeded for _, drawn in batch}


def test_what_is_learned_does_not_depend_on_the_processes_that_augment(cards, monkeypatch):
    settings = replace(PRETRAINING, epochs=2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    with_worker, alone = load_network("resnet18-thin"), load_network("resnet18-thin")
    torch.manual_seed(1)
    with monkeypatch.context() as two_threads:  # as many threads in both cases: with fewer, sums round otherwise
        two_threads.setattr("torch.set_num_threads", lambda _: None)
        pretrain(with_worker, cards, settings)
        two_threads.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))  # no shared memory, no worker
        torch.manual_seed(2)
        pretrain(alone, cards, settings)
    assert state_sha256(with_worker) == state_sha256(alone)


def test_drawing_a_view_leaves_the_random_streams_of_training_alone(cards):
    images = TrainingImages(cards.images, cards.labels, training_view(32), 2, 48)
    before = torch.get_rng_state()
    first, label = images[3, 7]
    assert first.shape == (2, 3, 32, 32) and label == cards.labels[3]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images[3, 7][0], first) and not torch.equal(images[3, 8][0], first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "smoothap"}, "no loss 'smoothap'; choose one of smooth-ap, quantized-ap"),
        ({"instances": 9}, "9 instances needs more than the 8"),
        ({"images_per_instance": 1}, "1 images an instance leave no positive"),
        ({"device": "cuda:99"}, "no device 'cuda:99'"),
    ],
)
def test_fine_tuning_that_cannot_work_says_why(cards, change, message):
    with pytest.raises(ValueError, match=message):
        finetune(load_network("resnet18-thin"), cards, replace(FINETUNING, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "simcrl"}, "no pretraining method 'simcrl'"),
        ({"batch_size": 49}, "A batch of 49 is larger than cards, which has 48 images"),
    ],
)
def test_pretraining_that_cannot_work_says_why(cards, change, message):
    with pytest.raises(ValueError, match=message):
        pretrain(load_network("resnet18-thin"), cards, replace(PRETRAINING, **change))
