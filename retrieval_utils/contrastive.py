"""Pretraining on the general domain: a contrastive method, or its supervised twin on the same images and views.

The comparison of Wu, Luo and Wunsch (2022) is between the two, so they share everything but the loss: the same images,
the same two augmented views an image, the same batches, steps, optimiser and schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from retrieval_utils.datasets.base import TrainingSet
from retrieval_utils.networks import DescriptorNetwork
from retrieval_utils.resume import SavedTraining
from retrieval_utils.training import History, TrainingImages, cosine_schedule, fit
from retrieval_utils.transforms import training_view


@dataclass(frozen=True)
class PretrainingSettings:
    """method: "simclr" (Chen et al. 2020; labels unused) or "classifier" (cross-entropy over the categories)."""

    method: str = "simclr"
    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 1e-3  # AdamW, cosine schedule
    weight_decay: float = 1e-4
    image_size: int = 64  # side of a training crop, pixels
    min_scale: float = 0.25  # smallest crop, fraction of the image's area
    jitter: float = 0.5  # colour jitter; 1 is SimCLR's on ImageNet
    grayscale: float = 0.1  # probability
    temperature: float = 0.2  # of NT-Xent
    projection_dim: int = 128  # 0: no projection head, the loss sees the pooled features
    seed: int = 0
    device: str = "auto"
    precision: str = "32-true"


def pretrain(
    network: DescriptorNetwork,
    training_set: TrainingSet,
    settings: PretrainingSettings,
    checkpoint: str | Path | None = None,
) -> History:
    """Trains `network` in place (its head is dropped afterwards); returns the loss and a score per epoch.

    score: of the classifier, training accuracy; of SimCLR, `rank`, the mean rank of an image's other view among all
    2B - 1 candidates of the batch (1 is perfect). `spread` is the mean standard deviation of a descriptor's entries
    over the batch, times the root of D: near 1 for directions spread over the sphere, near 0 for a collapsed network.
    checkpoint: a file that is written after every epoch, and gone on from if it is there; remove it when the network is
    saved. Raises ValueError for an unknown method, a batch larger than the set, or a checkpoint of another training.
    """
    if settings.method not in ("simclr", "classifier"):
        raise ValueError(f"There is no pretraining method '{settings.method}'; choose simclr or classifier.")
    if settings.batch_size > len(training_set.images):
        raise ValueError(
            f"A batch of {settings.batch_size} is larger than {training_set.name}, which has "
            f"{len(training_set.images)} images; take a smaller batch."
        )
    saved = SavedTraining.of(checkpoint, network, training_set, settings)
    pl.seed_everything(settings.seed, verbose=False)
    view = training_view(settings.image_size, settings.min_scale, settings.jitter, settings.grayscale)
    images = TrainingImages(training_set.images, training_set.labels, view, 2, settings.image_size * 3 // 2)
    loader = DataLoader(images, settings.batch_size, shuffle=True, drop_last=True)
    steps = settings.epochs * len(loader)
    if settings.method == "simclr":
        module = _SimCLR(network, settings, steps)
    else:
        module = _Classifier(network, settings, steps, len(training_set.label_names))
    history = fit(module, loader, settings.epochs, settings.method, settings.device, settings.precision, saved=saved)
    network.cpu().eval()
    return history


class _Pretraining(pl.LightningModule):
    def __init__(self, network: DescriptorNetwork, settings: PretrainingSettings, steps: int, head: nn.Module):
        super().__init__()
        self.network, self.settings, self.steps, self.head = network, settings, steps, head

    def forward_views(self, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Both views through one pass, so that batch normalisation sees them together: (2B, D) and (2B, head)."""
        views = batch[0]  # (B, 2, 3, S, S)
        images = views.transpose(0, 1).flatten(0, 1)  # (2B, 3, S, S), first views first
        pooled = self.network.pooled(images.contiguous(memory_format=torch.channels_last))  # (2B, D)
        descriptors = F.normalize(pooled.detach().float(), dim=1)
        self.log("spread", descriptors.std(0).norm(), on_epoch=True, on_step=False)
        return pooled, self.head(pooled)

    def configure_optimizers(self):
        parameters = (p for p in self.parameters() if p.requires_grad)
        optimizer = torch.optim.AdamW(
            parameters, lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        return {"optimizer": optimizer, "lr_scheduler": cosine_schedule(optimizer, self.steps)}


class _SimCLR(_Pretraining):
    def __init__(self, network: DescriptorNetwork, settings: PretrainingSettings, steps: int):
        width = settings.projection_dim
        head = SimCLRProjectionHead(network.channels, network.channels, width) if width else nn.Identity()
        super().__init__(network, settings, steps, head)
        self.criterion = NTXentLoss(settings.temperature)

    def training_step(self, batch, _):
        _, projected = self.forward_views(batch)  # (2B, P)
        loss = self.criterion(*projected.chunk(2))
        self.log("loss", loss, on_epoch=True, on_step=False)
        self.log("rank", mean_rank_of_positive(projected.detach()), on_epoch=True, on_step=False)
        return loss


class _Classifier(_Pretraining):
    def __init__(self, network: DescriptorNetwork, settings: PretrainingSettings, steps: int, classes: int):
        super().__init__(network, settings, steps, nn.Linear(network.channels, classes))

    def training_step(self, batch, _):
        _, logits = self.forward_views(batch)  # (2B, classes)
        labels = batch[1].repeat(2)  # (2B,)
        loss = F.cross_entropy(logits, labels)
        self.log("loss", loss, on_epoch=True, on_step=False)
        self.log("accuracy", (logits.argmax(1) == labels).float().mean(), on_epoch=True, on_step=False)
        return loss


def mean_rank_of_positive(projected: torch.Tensor) -> torch.Tensor:
    """Mean rank, 1 the best, of each view's partner among the other 2B - 1; projected (2B, P), partners B apart."""
    projected = F.normalize(projected.float(), dim=1)
    scores = projected @ projected.T  # (2B, 2B)
    partner = torch.arange(len(scores), device=scores.device).roll(len(scores) // 2)
    positive = scores.gather(1, partner[:, None])  # (2B, 1)
    scores.fill_diagonal_(-torch.inf)
    return 1 + (scores > positive).sum(1).float().mean()
