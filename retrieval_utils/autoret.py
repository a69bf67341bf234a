"""AutoRet (Sensors 22(6):2188, 2022): self-supervised pairs, a regression of their distances; a reconstruction.

Known: the pairs (`link_pairs`), the kinds of augmentation, patches fused by a recurrent layer (`recurrent_network`),
and the loss with the values in KNOWN, of AutoEmbedder's code. Everything else is a field of `AutoRetSettings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

from retrieval_utils.datasets.base import TrainingSet
from retrieval_utils.link_pairs import CAN_LINK, LinkPairs
from retrieval_utils.losses import AutoEmbedderLoss, NTXentLoss
from retrieval_utils.networks import resolve_device
from retrieval_utils.pooling import l2_normalize
from retrieval_utils.recurrent_network import AutoRetNetwork, PatchSettings
from retrieval_utils.resume import SavedTraining
from retrieval_utils.training import History, TrainingImages, drawn_with, fit, training_loader
from retrieval_utils.transforms import MEAN, STD

KNOWN = {"alpha": 100.0, "leak": 0.0, "can_link": CAN_LINK, "batch_size": 128, "learning_rate": 1e-3, "epochs": 120}
LOSSES = ("pair-regression", "nt-xent")


@dataclass(frozen=True)
class AutoRetSettings:
    """The values in KNOWN are those of AutoEmbedder's code (`departures` tells where these differ); others are ours."""

    network: PatchSettings = field(default_factory=PatchSettings)
    loss: str = "pair-regression"  # or the control "nt-xent" on the can-link pairs alone
    alpha: float = KNOWN["alpha"]  # the distance of cannot-link pairs
    leak: float = KNOWN["leak"]  # slope of the cap beyond alpha for can-link pairs
    can_link: float = KNOWN["can_link"]  # share of the pairs
    label_fraction: float = 0.0  # of the images, drawn at random
    augment_other: bool = True  # the second image of every pair, or only of an image and itself
    epochs: int = KNOWN["epochs"]
    batch_size: int = KNOWN["batch_size"]  # pairs
    learning_rate: float = KNOWN["learning_rate"]  # Adam, constant
    image_size: int = 64  # side of a training image, pixels
    min_scale: float = 0.4  # smallest crop, share of the area
    rotation: float = 15.0  # degrees, either way
    shear: float = 10.0  # degrees, either way
    brightness: float = 0.4
    contrast: float = 0.4
    flip: float = 0.5  # probability, left to right
    noise: float = 0.03  # standard deviation, of values in [0, 1]
    temperature: float = 0.2  # of NT-Xent
    seed: int = 0
    device: str = "auto"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"There is no loss '{self.loss}' for AutoRet; choose {' or '.join(LOSSES)}.")
        if not self.alpha > 0:
            raise ValueError(f"The distance alpha of cannot-link pairs must be positive, got {self.alpha:g}.")
        if not 0 <= self.label_fraction <= 1:
            raise ValueError(
                f"The fraction of labels lies in [0, 1], got {self.label_fraction:g}; 0 is self-supervision."
            )
        if self.batch_size < 2 or self.batch_size % 2:
            raise ValueError(
                f"A batch holds as many can-link as cannot-link pairs; {self.batch_size} is no even number."
            )


ARMS: dict[str, Callable[[AutoRetSettings], AutoRetSettings]] = {
    "autoret": lambda settings: settings,
    "autoret-whole-image": lambda settings: replace(settings, network=replace(settings.network, grid=1)),
    "autoret-mean": lambda settings: replace(settings, network=replace(settings.network, fusion="mean")),
    "autoret-nt-xent": lambda settings: replace(settings, loss="nt-xent"),
    "autoret-labels": lambda settings: replace(settings, label_fraction=1.0),
}


def departures(settings: AutoRetSettings) -> dict[str, tuple[float, float]]:
    """(known, chosen) for each known value that these settings do not take over."""
    chosen = {name: (value, getattr(settings, name)) for name, value in KNOWN.items()}
    return {name: values for name, values in chosen.items() if values[0] != values[1]}


def train_autoret(
    network: AutoRetNetwork,
    training_set: TrainingSet,
    settings: AutoRetSettings,
    checkpoint: str | Path | None = None,
) -> History:
    """Trains `network` in place and centres its descriptors on the training images; returns means per epoch.

    loss; of the pair regression also `near` and `far`, the mean distances of can-link and cannot-link pairs, `stuck`,
    the share of the can-link pairs beyond alpha, and `false_cannot_link`, the share of the cannot-link pairs whose
    true labels agree (which the training does not see).
    checkpoint: as in `pretrain`. Raises ValueError for bad settings, and for a set smaller than a batch.
    """
    if settings.batch_size > len(training_set.images):
        raise ValueError(
            f"A batch of {settings.batch_size} pairs is larger than {training_set.name}, which has "
            f"{len(training_set.images)} images; take a smaller batch."
        )
    saved = SavedTraining.of(checkpoint, network, training_set, settings)
    pl.seed_everything(settings.seed, verbose=False)
    share = 1.0 if settings.loss == "nt-xent" else settings.can_link
    source = LinkPairs(training_set.labels, settings.label_fraction, share, settings.seed)
    pairs = PairImages(training_set, source, settings)
    loader = training_loader(pairs, PairBatches(source, settings.batch_size), settings.seed, settings.device)
    module = (_NTXent if settings.loss == "nt-xent" else _PairRegression)(network, source, settings)
    history = fit(module, loader, settings.epochs, settings.loss, settings.device, settings.precision, saved=saved)
    network.cpu().eval()
    network.centre.copy_(_mean_embedding(network, pairs, settings))
    return history


def augmentation(settings: AutoRetSettings) -> v2.Compose:
    """Shear, rotation, crop, flip, brightness and contrast, noise: (3, H, W) uint8 -> (3, S, S), normalised."""
    return v2.Compose(
        [
            v2.RandomAffine(
                settings.rotation, shear=settings.shear, interpolation=v2.InterpolationMode.BILINEAR, fill=128
            ),
            v2.RandomResizedCrop(settings.image_size, (settings.min_scale, 1.0)),
            v2.RandomHorizontalFlip(settings.flip),
            v2.ColorJitter(settings.brightness, settings.contrast),
            v2.ToDtype(torch.float32, scale=True),
            v2.GaussianNoise(sigma=settings.noise),
            v2.Normalize(MEAN, STD),
        ]
    )


class PairBatches(Sampler[list[tuple[int, int, bool]]]):
    """An epoch's pairs (first, second, can_link) in full batches of `batch_size`."""

    def __init__(self, source: LinkPairs, batch_size: int):
        self.source, self.batch_size, self.epoch = source, batch_size, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.source.labels) // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int, bool]]]:
        drawn = self.source.draw(self.epoch)
        pairs = list(zip(drawn.first.tolist(), drawn.second.tolist(), drawn.can_link.tolist(), strict=True))
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield pairs[start : start + self.batch_size]


class PairImages(Dataset):
    """Item (pair, s): its images (2, 3, S, S), augmented with seed s, can_link, and the label NT-Xent may know."""

    def __init__(self, training_set: TrainingSet, source: LinkPairs, settings: AutoRetSettings):
        self.source, self.paths = source, training_set.images
        size = settings.image_size
        self.images = TrainingImages(training_set.images, training_set.labels, v2.PILToTensor(), 1, size * 3 // 2)
        self.augment, self.augment_other = augmentation(settings), settings.augment_other
        middle = v2.Compose([v2.Resize(size), v2.CenterCrop(size)])
        self.middles = [middle(self.whole(index)) for index in range(len(self.images))]  # (3, S, S) uint8 each
        self.normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[tuple[int, int, bool], int]) -> tuple[Tensor, bool, int]:
        (first, second, can_link), seed = item
        with drawn_with(seed):
            augmented = first == second or self.augment_other
            other = self.augment(self.whole(second)) if augmented else self.view(second)
        label = int(self.source.labels[first]) if self.source.known[first] else -1 - first  # nobody else's
        return torch.stack([self.view(first), other]), can_link, label

    def whole(self, index: int) -> Tensor:
        """(3, H, W) uint8, as it is stored."""
        return self.images[index, 0][0][0]

    def view(self, index: int) -> Tensor:
        """(3, S, S) of the middle of image `index`, not augmented."""
        return self.normalize(self.middles[index])


class _Pairwise(pl.LightningModule):
    def __init__(self, network: AutoRetNetwork, source: LinkPairs, settings: AutoRetSettings):
        super().__init__()
        self.network, self.source, self.settings = network, source, settings

    def embed(self, pairs: Tensor) -> Tensor:
        """Pairs (B, 2, 3, S, S) in one pass, so that batch normalisation sees both images: (2B, D), the first first."""
        images = pairs.transpose(0, 1).flatten(0, 1)  # (2B, 3, S, S)
        return self.network.pooled(images.contiguous(memory_format=torch.channels_last)).float()

    def note(self, **values: Tensor | float) -> None:
        self.log_dict(values, on_epoch=True, on_step=False)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.settings.learning_rate)


class _PairRegression(_Pairwise):
    def __init__(self, network: AutoRetNetwork, source: LinkPairs, settings: AutoRetSettings):
        super().__init__(network, source, settings)
        self.criterion = AutoEmbedderLoss(settings.alpha, settings.leak)

    def on_train_epoch_start(self) -> None:
        self.false_cannot_link = self.source.false_cannot_link(self.source.draw(self.current_epoch))

    def training_step(self, batch, _):
        pairs, can_link, _ = batch  # (B, 2, 3, S, S), (B,) bool, (B,)
        first, second = self.embed(pairs).chunk(2)  # (B, D) twice
        loss = self.criterion(first, second, can_link)
        distance = (first - second).detach().norm(dim=1)  # (B,)
        self.note(
            loss=loss,
            near=distance[can_link].mean(),
            far=distance[~can_link].mean(),
            stuck=self.criterion.stuck(first.detach(), second.detach(), can_link),
            false_cannot_link=self.false_cannot_link,
        )
        return loss


class _NTXent(_Pairwise):
    def __init__(self, network: AutoRetNetwork, source: LinkPairs, settings: AutoRetSettings):
        super().__init__(network, source, settings)
        self.criterion = NTXentLoss(settings.temperature)

    def training_step(self, batch, _):
        pairs, _, labels = batch  # (B, 2, 3, S, S), (B,), (B,)
        loss = self.criterion(l2_normalize(self.embed(pairs)), labels.repeat(2))
        self.note(loss=loss)
        return loss


@torch.inference_mode()
def _mean_embedding(network: AutoRetNetwork, pairs: PairImages, settings: AutoRetSettings) -> Tensor:
    """(D,) over the training images as they are; the network is on the CPU."""
    device = resolve_device(settings.device)
    network.to(device)
    total = torch.zeros(network.channels)
    for start in range(0, len(pairs), 64):
        images = torch.stack([pairs.view(index) for index in range(start, min(start + 64, len(pairs)))])  # (B, 3, S, S)
        total += network.pooled(images.to(device)).float().sum(dim=0).cpu()
    network.cpu()
    return total / len(pairs)
