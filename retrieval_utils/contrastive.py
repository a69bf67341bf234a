"""Pretraining on the general domain: a contrastive method, or its supervised twin on the same images and views.

The comparison of Wu, Luo and Wunsch (2022) is between the two, so they share everything but the loss: the same images,
the same two augmented views an image, the same batches, steps, optimiser and schedule.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl

from retrieval_utils.datasets.base import TrainingSet
from retrieval_utils.networks import DescriptorNetwork
from retrieval_utils.resume import SavedTraining
from retrieval_utils.training import History, ShuffledBatches, fit, training_loader


@dataclass(frozen=True)
class PretrainingSettings:
    """method: "simclr", "moco-v2", "byol", "swav", "barlow-twins", "dino" or "lejepa", which use no labels, or
    "classifier" (cross-entropy over the categories).
    """

    method: str = "simclr"
    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 1e-3  # AdamW, cosine schedule
    weight_decay: float = 1e-4
    image_size: int = 64  # side of a training crop, pixels
    min_scale: float = 0.25  # smallest crop, fraction of the image's area
    jitter: float = 0.5  # colour jitter; 1 is SimCLR's on ImageNet
    grayscale: float = 0.1  # probability
    temperature: float = 0.2  # of NT-Xent: SimCLR and MoCo v2
    projection_dim: int = 128  # of these two; 0: no projection head, the loss sees the pooled features
    queue_size: int = 0  # of MoCo v2: keys, of which an image gives two; 0: half as many as there are images
    momentum: float | None = None  # of the teacher (MoCo v2, BYOL, DINO) at first, then up to 1; None: 0.99 or less
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

    score: of the classifier, training accuracy; of the others, `rank`, the mean rank of an image's other view among all
    2B - 1 candidates of the batch (1 is perfect), where the loss compares them. `spread` is the mean standard deviation
    of a descriptor's entries over the batch, times the root of D: near 1 for directions spread over the sphere, near 0
    for a collapsed network, of which a warning tells.
    checkpoint: a file that is written after every epoch, and gone on from if it is there; remove it when the network is
    saved. Raises ValueError for an unknown method, a batch or a queue larger than the set, a momentum outside [0, 1],
    or a checkpoint of another training.
    """
    # Here, because Lightly takes seconds to import, and most who import this module reuse a network or want settings.
    from retrieval_utils.contrastive_methods import METHODS
    from retrieval_utils.contrastive_views import TrainingCrops

    _check(settings, training_set, METHODS)
    saved = SavedTraining.of(checkpoint, network, training_set, settings)
    pl.seed_everything(settings.seed, verbose=False)
    method = METHODS[settings.method]
    images = TrainingCrops(
        training_set.images, training_set.labels, method.views(settings), settings.image_size * 3 // 2
    )
    batches = ShuffledBatches(len(images), settings.batch_size, settings.seed)
    loader = training_loader(images, batches, settings.seed, settings.device)
    module = method(network, settings, settings.epochs * len(loader), training_set)
    history = fit(module, loader, settings.epochs, settings.method, settings.device, settings.precision, saved=saved)
    if module.published is not network:
        network.load_state_dict(module.published.state_dict())
    network.cpu().eval()
    return history


def _check(settings: PretrainingSettings, training_set: TrainingSet, methods: Collection[str]) -> None:
    if settings.method not in methods:
        near = difflib.get_close_matches(settings.method, methods, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise ValueError(
            f"There is no pretraining method '{settings.method}'{hint}; choose one of {', '.join(methods)}."
        )
    if settings.batch_size > len(training_set.images):
        raise ValueError(
            f"A batch of {settings.batch_size} is larger than {training_set.name}, which has "
            f"{len(training_set.images)} images; take a smaller batch."
        )
    if not 0 <= settings.queue_size <= len(training_set.images):
        raise ValueError(
            f"A queue of {settings.queue_size} keys does not fit {training_set.name}: with more than its "
            f"{len(training_set.images)} images, each would be its own negative; take 0, which is half as many keys."
        )
    if settings.momentum is not None and not 0 <= settings.momentum <= 1:
        raise ValueError(f"The momentum of a teacher lies in [0, 1], got {settings.momentum}; 0.99 is usual.")
