"""Fine-tuning on instances with an average-precision loss, in batches that hold several images of each instance."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import Sampler

from retrieval_utils.datasets.base import TrainingSet
from retrieval_utils.distributed import global_loss
from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.losses import (
    ContrastiveLoss,
    FastAPLoss,
    NTXentLoss,
    QuantizedAPLoss,
    RecallLoss,
    RetrievalLoss,
    SmoothAPLoss,
    SupAPLoss,
    TripletLoss,
)
from retrieval_utils.multistage import freeze_normalization, multistage_backward
from retrieval_utils.networks import DescriptorNetwork
from retrieval_utils.resume import SavedTraining
from retrieval_utils.training import History, TrainingImages, cosine_schedule, fit, training_loader
from retrieval_utils.transforms import training_view
from retrieval_utils.validation import BestWeights, hold_out
from retrieval_utils.whitening import PCAWhitening


@dataclass(frozen=True)
class FinetuningSettings:
    """loss: "smooth-ap" (Brown et al. 2020), "quantized-ap" (Revaud et al. 2019), or another one in LOSSES."""

    loss: str = "smooth-ap"
    head_dim: int = 128  # outputs of the linear head, which starts as the PCA whitening of the training images; 0: none
    epochs: int = 12
    batches: int = 16  # in an epoch
    instances: int = 16  # in a batch
    images_per_instance: int = 4
    learning_rate: float = 1e-3  # AdamW, cosine schedule
    weight_decay: float = 1e-4
    image_size: int = 64
    min_scale: float = 0.25
    jitter: float = 0.5
    grayscale: float = 0.1
    temperature: float = 0.05  # of Smooth-AP
    bins: int = 20  # of quantised AP
    chunk: int = (
        0  # images in memory at a time, by multi-stage back-propagation with frozen normalisation; 0: the batch
    )
    validation_fraction: float = 0.0  # of the instances, held out to stop early and keep the best epoch; 0: all trained
    patience: int = 3  # epochs without a better mAP on them
    seed: int = 0
    device: str = "auto"
    devices: int = 1  # processes on a node that share every batch, started by torchrun or srun
    nodes: int = 1
    precision: str = "32-true"


# Temperature and bins are set for the two AP losses of the road; the others have the values of their papers.
LOSSES: dict[str, Callable[[FinetuningSettings], RetrievalLoss]] = {
    "smooth-ap": lambda settings: SmoothAPLoss(temperature=settings.temperature),
    "quantized-ap": lambda settings: QuantizedAPLoss(bins=settings.bins),
    "sup-ap": lambda _: SupAPLoss(),
    "fast-ap": lambda _: FastAPLoss(),
    "recall": lambda _: RecallLoss(),
    "contrastive": lambda _: ContrastiveLoss(),
    "triplet": lambda _: TripletLoss(),
    "nt-xent": lambda _: NTXentLoss(),
}


def make_loss(settings: FinetuningSettings) -> RetrievalLoss:
    """The loss that `settings` name; raises ValueError, with those there are, for an unknown one."""
    if settings.loss not in LOSSES:
        raise ValueError(f"There is no loss '{settings.loss}'; choose one of {', '.join(LOSSES)}.")
    return LOSSES[settings.loss](settings)


def finetune(
    network: DescriptorNetwork,
    training_set: TrainingSet,
    settings: FinetuningSettings,
    checkpoint: str | Path | None = None,
) -> History:
    """Trains `network` in place and gives it a linear head; returns the loss per epoch.

    Descriptors off the shelf share one large mean direction, all their cosines are near 1, and the loss has little to
    push on; a head that starts as their PCA whitening removes it, and is then trained with everything else.
    checkpoint: a file that is written after every epoch, and gone on from if it is there; remove it when the network is
    saved. Warns of instances with one image. Raises ValueError for an unknown loss, a set with fewer instances than a
    batch needs, or a checkpoint of another training.
    """
    criterion = make_loss(settings)
    saved = SavedTraining.of(checkpoint, network, training_set, settings)
    pl.seed_everything(settings.seed, verbose=False)
    size = settings.image_size * 3 // 2
    watchers = []
    if settings.validation_fraction:
        training_set, validation = hold_out(training_set, settings.validation_fraction, settings.seed)
        watchers = [BestWeights(network, validation, size, settings.patience)]
    _warn_of_single_images(training_set)
    view = training_view(settings.image_size, settings.min_scale, settings.jitter, settings.grayscale)
    images = TrainingImages(training_set.images, training_set.labels, view, 1, size)
    sampler = BalancedBatches(
        training_set.labels, settings.instances, settings.images_per_instance, settings.batches, settings.seed
    )
    loader = training_loader(images, sampler, settings.seed, settings.device)
    add_whitening_head(network, training_set, settings.head_dim, size, settings.device)
    module = _FineTuning(network, criterion, settings)
    history = fit(
        *(module, loader, settings.epochs, settings.loss, settings.device, settings.precision),
        saved=saved,
        devices=settings.devices,
        nodes=settings.nodes,
        callbacks=watchers,
    )
    network.cpu().eval()
    for best in watchers:
        best.restore()
    return history


def _warn_of_single_images(training_set: TrainingSet) -> None:
    counts = np.unique(training_set.labels, return_counts=True)[1]  # (instances,)
    if single := int((counts == 1).sum()):
        warnings.warn(
            f"{single} of the {len(counts)} instances of {training_set.name} have one image, whose only positives are "
            "other views of itself: leave them out, unless you mean to learn from own views.",
            stacklevel=3,
        )


def add_whitening_head(
    network: DescriptorNetwork, training_set: TrainingSet, dim: int, image_size: int, device: str
) -> None:
    """Gives `network` a linear head of `dim` outputs that is the PCA whitening of the training images; none for 0."""
    if dim:
        descriptors = extract_descriptors(network, training_set.images, image_size=image_size, device=device)
        whitening = PCAWhitening.fit(descriptors, dim=dim)
        network.cpu().add_head(whitening.projection, -whitening.projection @ whitening.mean)


class BalancedBatches(Sampler[list[int]]):
    """`batches` lists an epoch of `instances` x `images_per_instance` image indices, drawn by seed and epoch alone.

    An instance with fewer images than asked gives some of them twice, in different augmentations.
    """

    def __init__(self, labels: np.ndarray, instances: int, images_per_instance: int, batches: int, seed: int = 0):
        labels = np.asarray(labels)
        self.members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        if images_per_instance < 2:
            raise ValueError(f"{images_per_instance} images an instance leave no positive; take at least 2, better 4.")
        if instances > len(self.members):
            raise ValueError(f"A batch of {instances} instances needs more than the {len(self.members)} there are.")
        self.instances, self.images_per_instance, self.batches = instances, images_per_instance, batches
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        for _ in range(self.batches):
            batch = []
            for number in random.choice(len(self.members), self.instances, replace=False):
                members = self.members[number]
                few = len(members) < self.images_per_instance
                batch.extend(random.choice(members, self.images_per_instance, replace=few).tolist())
            yield batch


class _FineTuning(pl.LightningModule):
    def __init__(self, network: DescriptorNetwork, criterion: torch.nn.Module, settings: FinetuningSettings):
        super().__init__()
        self.network, self.criterion, self.settings = network, criterion, settings
        self.automatic_optimization = not settings.chunk

    def training_step(self, batch, _):
        images, labels = batch  # (B, 1, 3, S, S), (B,)
        images = images[:, 0].contiguous(memory_format=torch.channels_last)
        if self.settings.chunk:
            loss = self.multistage_step(images, labels)
        else:
            loss = global_loss(self, self.criterion)(self.network(images).float(), labels)
        self.log("loss", loss, on_epoch=True, on_step=False)
        return loss

    def multistage_step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        freeze_normalization(self.network)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        criterion = global_loss(self, self.criterion)
        loss = multistage_backward(self.network, images, labels, criterion, self.settings.chunk, self.manual_backward)
        optimizer.step()
        self.lr_schedulers().step()
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        steps = self.settings.epochs * self.settings.batches
        return {"optimizer": optimizer, "lr_scheduler": cosine_schedule(optimizer, steps)}
