"""Early stopping on held-out instances, and what fit says of a batch that cannot be trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from retrieval_utils import validation
from retrieval_utils.autoret import AutoRetSettings
from retrieval_utils.contrastive import PretrainingSettings
from retrieval_utils.evaluation import average_precision
from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.finetuning import BalancedBatches, FinetuningSettings, finetune
from retrieval_utils.losses import SmoothAPLoss
from retrieval_utils.lrml import LRMLSettings
from retrieval_utils.networks import load_network
from retrieval_utils.protocol import state_sha256
from retrieval_utils.training import SeededBatches, fit
from retrieval_utils.validation import BestWeights, hold_out, mean_ap

SETTINGS = FinetuningSettings(
    head_dim=8, epochs=4, batches=1, instances=3, images_per_instance=2, image_size=32, device="cpu"
)


def test_held_out_instances_are_trained_on_by_no_batch(cards):
    training, held = hold_out(cards, 0.25, seed=3)
    assert len(np.unique(held.labels)) == 2 and len(np.unique(training.labels)) == 6
    assert sorted(training.images + held.images) == sorted(cards.images)
    for part in (training, held):
        label = dict(zip(cards.images, cards.labels, strict=True))
        assert [label[path] for path in part.images] == part.labels.tolist()
    assert not set(training.labels) & set(held.labels)
    assert hold_out(cards, 0.25, seed=3)[1].images == held.images
    assert len({hold_out(cards, 0.25, seed=seed)[1].images for seed in range(6)}) > 1


def test_score_is_the_average_precision_of_every_image_among_the_others(cards):
    few = replace(cards, images=cards.images[:12], labels=np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4]))
    network = load_network("resnet18-thin")
    descriptors = extract_descriptors(network, few.images, image_size=48, device="cpu").numpy()
    expected = []
    for query, label in enumerate(few.labels):
        others = [i for i in np.argsort(-(descriptors @ descriptors[query]), kind="stable") if i != query]
        ranks = [rank for rank, i in enumerate(others) if few.labels[i] == label]
        expected += [average_precision(np.array(ranks))] if ranks else []
    assert len(expected) == 11
    assert mean_ap(network, few, 48, "cpu") == pytest.approx(np.mean(expected))


def test_the_best_epoch_is_kept_and_patience_ends_the_training(cards, monkeypatch):
    seen, scores = [], iter([0.2, 0.6, 0.5, 0.6, 0.9])

    def score(network, images, image_size, device):
        seen.append((state_sha256(network), images.name))
        return next(scores)

    monkeypatch.setattr(validation, "mean_ap", score)
    network = load_network("resnet18-thin")
    history = finetune(network, cards, replace(SETTINGS, epochs=9, validation_fraction=0.25, patience=2))
    assert history["validation_map"] == pytest.approx([0.2, 0.6, 0.5, 0.6])  # equal is not better
    assert len(history["loss"]) == 4
    assert state_sha256(network) == seen[1][0] != seen[3][0]
    assert {name for _, name in seen} == {"cards/validation"}


def test_scoring_does_not_disturb_the_training(cards):
    class Never(BestWeights):
        def on_train_epoch_end(self, trainer, module):
            pass

    trained = []
    for kind in (BestWeights, Never):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("retrieval_utils.finetuning.BestWeights", kind)
            patch.setattr(kind, "restore", lambda self: None)
            network = load_network("resnet18-thin")
            finetune(network, cards, replace(SETTINGS, epochs=2, validation_fraction=0.25))
            trained.append(state_sha256(network))
    assert trained[0] == trained[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation_fraction": 0.1}, "fraction of 0.1 of the 8 instances of cards leaves fewer than 2"),
        ({"validation_fraction": 0.9}, "leaves fewer than 2 with several images on one side; take another"),
        ({"validation_fraction": 1.5}, "fraction of 1.5"),
        ({"validation_fraction": 0.25, "patience": 0}, "A patience of 0 epochs would stop before the first"),
    ],
)
def test_validation_that_cannot_work_says_why(cards, change, message):
    with pytest.raises(ValueError, match=message):
        finetune(load_network("resnet18-thin"), cards, replace(SETTINGS, **change))


class Pixels(Dataset):
    """Six images of three instances, with the file names they would have."""

    paths = tuple(f"photos/{i}.jpg" for i in range(6))

    def __init__(self):
        self.images = torch.randn(6, 1, 4, generator=torch.Generator().manual_seed(0))  # of one view

    def __len__(self):
        return 6

    def __getitem__(self, item):
        index, _ = item
        return self.images[index], index // 2


class Step(pl.LightningModule):
    """A linear layer, trained with a loss of its outputs and labels; `settings` is what a message looks at."""

    def __init__(self, criterion, settings=None):
        super().__init__()
        self.layer, self.criterion, self.settings = nn.Linear(4, 4), criterion, settings

    def training_step(self, batch, _):
        return self.criterion(self.layer(batch[0][:, 0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def run(criterion, pixels=None, settings=None):
    pixels = pixels or Pixels()
    loader = DataLoader(pixels, batch_sampler=SeededBatches(BalancedBatches(np.arange(6) // 2, 3, 2, 1), 0))
    return fit(Step(criterion, settings), loader, 1, "a training", "cpu", "32-true")


def ap(outputs, labels):
    return SmoothAPLoss()(nn.functional.normalize(outputs), labels)


def mean(outputs, labels):
    return outputs.mean()


def ap_after_batch_normalisation(outputs, labels):
    return ap(outputs - outputs.mean(0), labels)


@pytest.mark.parametrize("criterion", [ap, mean, ap_after_batch_normalisation])
def test_the_file_of_an_image_that_is_nan_is_named(criterion):
    pixels = Pixels()
    pixels.images[4, 0, 2] = torch.nan
    with pytest.raises(ValueError, match="^a training: the image 'photos/4.jpg' is nan; replace the file"):
        run(criterion, pixels)


def test_the_file_of_a_descriptor_that_is_nan_is_named():
    def broken(outputs, labels):
        return ap(torch.where(torch.arange(6)[:, None] == 4, torch.nan, outputs), labels)

    sampler = SeededBatches(BalancedBatches(np.arange(6) // 2, 3, 2, 1), 0)
    index, _ = next(iter(sampler))[4]
    assert index != 4
    with pytest.raises(ValueError, match=f"^a training: the image 'photos/{index}.jpg' gives a descriptor that is nan"):
        run(broken)


def test_a_loss_that_is_nan_by_itself_points_to_the_learning_rate():
    with pytest.raises(ValueError, match="a training: the loss is no longer finite; lower the learning rate"):
        run(lambda outputs, labels: outputs.mean() * torch.nan)


def test_descriptors_that_nobody_normalised_are_named_with_their_norm():
    with pytest.raises(ValueError, match=r"Descriptor \d has norm 5, not 1: L2-normalise"):
        run(lambda outputs, labels: SmoothAPLoss()(nn.functional.normalize(outputs) * 5, labels))


def test_labels_of_the_wrong_length_are_named():
    with pytest.raises(ValueError, match=r"6 descriptors need labels of shape \(6,\)"):
        run(lambda outputs, labels: SmoothAPLoss()(nn.functional.normalize(outputs), labels[:5]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            FinetuningSettings(),
            "6 images .* memory of the device 'cpu'; try chunk=3, .* with batch normalisation frozen.$",
        ),
        (FinetuningSettings(chunk=4), "try chunk=2, which gives the loss of the same batch.$"),
        (FinetuningSettings(chunk=100), "try chunk=3, which gives the loss of the same batch.$"),
        (LRMLSettings(tuples=5), "a batch of 6 images .* try tuples=2, or smaller images"),
        (AutoRetSettings(batch_size=6), "a batch of 6 pairs .* try batch_size=2, or smaller images"),
        (PretrainingSettings(batch_size=6), "a batch of 6 images .* try batch_size=3, or smaller images"),
    ],
)
def test_a_batch_larger_than_memory_says_what_to_try(settings, message):
    def too_much(outputs, labels):
        return torch.empty(1 << 50).sum() + outputs.sum()  # a million gigabytes, which no machine has

    def on_a_card(outputs, labels):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    for criterion in (too_much, on_a_card):
        with pytest.raises(ValueError, match=message):
            run(criterion, settings=settings)


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(lambda outputs, labels: (outputs @ outputs).sum())
