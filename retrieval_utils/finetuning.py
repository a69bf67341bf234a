"""Fine-tuning on instances with an average-precision loss, in batches that hold several images of each instance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Sampler

from retrieval_utils.datasets.base import TrainingSet
from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.losses import QuantizedAPLoss, SmoothAPLoss
from retrieval_utils.multistage import freeze_normalization, multistage_backward
from retrieval_utils.networks import DescriptorNetwork
from retrieval_utils.training import History, TrainingImages, cosine_schedule, fit
from retrieval_utils.transforms import training_view
from retrieval_utils.whitening import PCAWhitening


@dataclass(frozen=True)
class FinetuningSettings:
    """loss: "smooth-ap" (Brown et al. 2020) or "quantized-ap" (Revaud et al. 2019)."""

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
    seed: int = 0
    device: str = "auto"
    precision: str = "32-true"


def finetune(network: DescriptorNetwork, training_set: TrainingSet, settings: FinetuningSettings) -> History:
    """Trains `network` in place and gives it a linear head; returns the loss per epoch.

    Descriptors off the shelf share one large mean direction, all their cosines are near 1, and the loss has little to
    push on; a head that starts as their PCA whitening removes it, and is then trained with everything else.
    Raises ValueError for an unknown loss, or a set with fewer instances than a batch needs.
    """
    losses = {
        "smooth-ap": lambda: SmoothAPLoss(temperature=settings.temperature),
        "quantized-ap": lambda: QuantizedAPLoss(bins=settings.bins),
    }
    if settings.loss not in losses:
        raise ValueError(f"There is no loss '{settings.loss}'; choose one of {', '.join(losses)}.")
    pl.seed_everything(settings.seed, verbose=False)
    view = training_view(settings.image_size, settings.min_scale, settings.jitter, settings.grayscale)
    images = TrainingImages(training_set.images, training_set.labels, view, 1, settings.image_size * 3 // 2)
    sampler = BalancedBatches(
        training_set.labels, settings.instances, settings.images_per_instance, settings.batches, settings.seed
    )
    loader = DataLoader(images, batch_sampler=sampler)
    add_whitening_head(network, training_set, settings.head_dim, settings.image_size * 3 // 2, settings.device)
    module = _FineTuning(network, losses[settings.loss](), settings)
    history = fit(module, loader, settings.epochs, settings.loss, settings.device, settings.precision)
    network.cpu().eval()
    return history


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

    def on_train_epoch_start(self) -> None:  # Lightning does this for samplers, not for batch samplers
        self.trainer.train_dataloader.batch_sampler.set_epoch(self.current_epoch)

    def training_step(self, batch, _):
        images, labels = batch  # (B, 1, 3, S, S), (B,)
        images = images[:, 0].contiguous(memory_format=torch.channels_last)
        if self.settings.chunk:
            loss = self.multistage_step(images, labels)
        else:
            loss = self.criterion(self.network(images).float(), labels)
        self.log("loss", loss, on_epoch=True, on_step=False)
        return loss

    def multistage_step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        freeze_normalization(self.network)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = multistage_backward(
            self.network, images, labels, self.criterion, self.settings.chunk, self.manual_backward
        )
        optimizer.step()
        self.lr_schedulers().step()
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        steps = self.settings.epochs * self.settings.batches
        return {"optimizer": optimizer, "lr_scheduler": cosine_schedule(optimizer, steps)}
