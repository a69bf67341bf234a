"""Training on tuples in the manner of SfM-120k: LRML, and under the same budget the losses it is set against.

LRML: Fan, Zhao, Zhao, Liu, Hu, "Image Retrieval Based on Learning to Rank and Multiple Loss", ISPRS IJGI 8(9):393,
2019. Its text could not be had, so this is a reconstruction: five negatives ranked by similarity are known, the rest is
taken from Radenovic, Tolias, Chum (TPAMI 2018), on whose tuples, mining and network it builds, or chosen here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from retrieval_utils.datasets.base import TrainingSet
from retrieval_utils.datasets.sfm import PairSet
from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.finetuning import FinetuningSettings, add_whitening_head, finetune
from retrieval_utils.losses import (
    LiftedStructureLoss,
    LRMLLoss,
    MarginSampleMiningLoss,
    QuadrupletLoss,
    TripletLoss,
)
from retrieval_utils.losses.base import check_unit_norm
from retrieval_utils.losses.tuples import NEGATIVES
from retrieval_utils.mining import TUPLE, TupleBatches
from retrieval_utils.multistage import freeze_normalization
from retrieval_utils.networks import DescriptorNetwork
from retrieval_utils.resume import SavedTraining
from retrieval_utils.training import History, SeededBatches, TrainingImages, cosine_schedule, fit
from retrieval_utils.transforms import training_view

ARMS = ("lrml", "contrastive", "triplet", "quadruplet", "lifted-structure", "margin-sample-mining", "ap")
AP_IMAGES = 4  # of an instance, in the batches of the arm "ap"


@dataclass(frozen=True)
class LRMLSettings:
    """loss: one of ARMS. All of them see as many images a step, and start with the same head.

    margin, delta, order: of LRML. "contrastive" asks for the mean of LRML's five margins, so that what differs is the
    ranking of the distances and not their mean. The last of the five margins is near the root of 2, the distance of
    descriptors at right angles: farther than that not all instances can be from each other.
    """

    loss: str = "lrml"
    margin: float = 1.2
    delta: float = 0.05
    order: float = 0.1
    positives: str = "random"  # another image of the instance, or "listed": the pairs that retrieval-sfm-* come with
    pool: int = 400  # images that negatives are mined from, drawn anew at every mining
    mine_every: int = 8  # batches
    tuples: int = 8  # in a batch, 7 images each
    batches: int = 16  # in an epoch
    epochs: int = 12
    frozen: bool = True  # statistics of batch normalisation stay, as in Radenovic's code
    head_dim: int = 128  # outputs of the linear head, which starts as the PCA whitening of the training images; 0: none
    learning_rate: float = 1e-4  # AdamW, cosine schedule; a tenth of that of fine-tuning: 1e-3 raises the loss at first
    weight_decay: float = 1e-4
    image_size: int = 64
    min_scale: float = 0.25
    jitter: float = 0.5
    grayscale: float = 0.1
    seed: int = 0
    device: str = "auto"
    precision: str = "32-true"

    @property
    def images_per_batch(self) -> int:
        return self.tuples * TUPLE

    @property
    def images(self) -> int:
        """Images that training sees, the same for every arm; what is described for mining comes on top."""
        return self.epochs * self.batches * self.images_per_batch


def learn_to_rank(
    network: DescriptorNetwork,
    training_set: TrainingSet,
    settings: LRMLSettings,
    checkpoint: str | Path | None = None,
) -> History:
    """Trains `network` in place and gives it a linear head; returns the loss per epoch.

    On tuples also `described`, the images described for mining so far. checkpoint: as in `finetune`. Raises ValueError
    for an unknown loss, listed positives of a set without a list, a checkpoint of another training, and what
    `TupleBatches` or, for "ap", `finetune` cannot work with.
    """
    if settings.loss not in ARMS:
        raise ValueError(f"There is no loss '{settings.loss}'; choose one of {', '.join(ARMS)}.")
    if settings.loss == "ap":
        return finetune(network, training_set, balanced_settings(settings), checkpoint)
    saved = SavedTraining.of(checkpoint, network, training_set, settings)
    size = settings.image_size * 3 // 2

    def describe(indices: np.ndarray) -> Tensor:
        paths = [training_set.images[i] for i in indices]
        return extract_descriptors(network, paths, image_size=size, device=settings.device)

    batches = TupleBatches(
        training_set.labels,
        describe,
        settings.tuples,
        settings.batches,
        settings.mine_every,
        settings.pool,
        settings.seed,
        _listed(training_set, settings.positives),
    )
    pl.seed_everything(settings.seed, verbose=False)
    view = training_view(settings.image_size, settings.min_scale, settings.jitter, settings.grayscale)
    images = TrainingImages(training_set.images, training_set.labels, view, 1, size)
    add_whitening_head(network, training_set, settings.head_dim, size, settings.device)
    # No worker processes: they would draw batches, and so mine negatives, ahead of the network's steps.
    loader = DataLoader(images, batch_sampler=SeededBatches(batches, settings.seed))
    module = _TupleTraining(network, tuple_loss(settings), batches, settings)
    history = fit(module, loader, settings.epochs, settings.loss, settings.device, settings.precision, saved=saved)
    network.cpu().eval()
    return history


def tuple_loss(settings: LRMLSettings) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of an arm: descriptors (T, 7, D) of tuples, L2-normalised, and labels (T, 7) -> scalar.

    Quadruplets and triplets are of one tuple, their margin that of Radenovic's code for triplets (0.5, on squared
    distances, with a head that learns a whitening). Lifted structure and margin sample mining look at all pairs of the
    batch, as they are meant to.
    """
    mean_margin = settings.margin + (NEGATIVES - 1) / 2 * settings.delta
    if settings.loss in ("lrml", "contrastive", "quadruplet"):
        loss = {
            "lrml": lambda: LRMLLoss(settings.margin, settings.delta, settings.order),
            "contrastive": lambda: LRMLLoss(mean_margin, delta=0, order=0),
            "quadruplet": lambda: QuadrupletLoss(0.5),
        }[settings.loss]()
        return lambda tuples, labels: loss(tuples[:, 0], tuples[:, 1], tuples[:, 2:])
    if settings.loss == "triplet":
        triplet = TripletLoss(0.5)

        def loss_of_triplets(tuples: Tensor, labels: Tensor) -> Tensor:
            check_unit_norm(tuples.flatten(0, 1).detach())
            scores = torch.einsum("td,tkd->tk", tuples[:, 0], tuples[:, 1:])  # (T, 6)
            return triplet.from_scores(scores, labels[:, 1:] == labels[:, :1])

        return loss_of_triplets
    whole = {"lifted-structure": LiftedStructureLoss, "margin-sample-mining": MarginSampleMiningLoss}[settings.loss]()
    return lambda tuples, labels: whole(tuples.flatten(0, 1), labels.flatten())


def balanced_settings(settings: LRMLSettings) -> FinetuningSettings:
    """Of the arm "ap": Smooth-AP on the whole batch, as many images a step as the tuples have, 4 of an instance.

    Frozen normalisation is that of multi-stage back-propagation with one chunk, at the price of a second forward pass.
    Raises ValueError if the images of the tuples cannot be divided by 4.
    """
    images = settings.images_per_batch
    if images % AP_IMAGES:
        raise ValueError(
            f"{settings.tuples} tuples are {images} images, which {AP_IMAGES} images of an instance do not fill: "
            f"take a number of tuples that {AP_IMAGES} divides."
        )
    return FinetuningSettings(
        loss="smooth-ap",
        head_dim=settings.head_dim,
        epochs=settings.epochs,
        batches=settings.batches,
        instances=images // AP_IMAGES,
        images_per_instance=AP_IMAGES,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        image_size=settings.image_size,
        min_scale=settings.min_scale,
        jitter=settings.jitter,
        grayscale=settings.grayscale,
        chunk=images if settings.frozen else 0,
        seed=settings.seed,
        device=settings.device,
        precision=settings.precision,
    )


def _listed(training_set: TrainingSet, positives: str) -> tuple[np.ndarray, np.ndarray] | None:
    if positives not in ("random", "listed"):
        raise ValueError(f"There are no positives '{positives}'; choose random or listed.")
    if positives == "random":
        return None
    if not isinstance(training_set, PairSet):
        raise ValueError(f"{training_set.name} lists no pairs as retrieval-sfm-* do: choose the positives 'random'.")
    return training_set.queries, training_set.positives


class _TupleTraining(pl.LightningModule):
    def __init__(
        self,
        network: DescriptorNetwork,
        criterion: Callable[[Tensor, Tensor], Tensor],
        batches: TupleBatches,
        settings: LRMLSettings,
    ):
        super().__init__()
        self.network, self.criterion, self.batches, self.settings = network, criterion, batches, settings

    def training_step(self, batch: tuple[Tensor, Tensor], _) -> Tensor:
        if self.settings.frozen:
            freeze_normalization(self.network)
        images = batch[0][:, 0].contiguous(memory_format=torch.channels_last)  # (T * 7, 3, S, S)
        descriptors = self.network(images).float()  # (T * 7, D)
        loss = self.criterion(descriptors.unflatten(0, (-1, TUPLE)), batch[1].unflatten(0, (-1, TUPLE)))
        self.log("loss", loss, on_epoch=True, on_step=False)
        self.log("described", float(self.batches.described), on_epoch=True, on_step=False, reduce_fx="max")
        return loss

    # Pairs, pools and negatives follow from the seed, the epoch and the weights; this count does not.
    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["described"] = self.batches.described

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.batches.described = checkpoint["described"]

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        steps = self.settings.epochs * self.settings.batches
        return {"optimizer": optimizer, "lr_scheduler": cosine_schedule(optimizer, steps)}
