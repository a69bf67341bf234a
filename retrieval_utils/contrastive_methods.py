"""The pretraining methods by name: each a head and a loss of Lightly's around one network, with the views it needs.

The network that is kept is the one that was trained, the student where there is a teacher; only of DINO it is the
teacher. Widths of heads are in proportion to the pooled features, 256 of the thin ResNet-18, 2,048 in the papers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightly.loss import (
    BarlowTwinsLoss,
    DINOLoss,
    LeJEPALoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    SwaVLoss,
)
from lightly.models.modules.heads import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    LeJEPAProjectionHead,
    MoCoProjectionHead,
    SimCLRProjectionHead,
    SwaVProjectionHead,
    SwaVPrototypes,
)
from lightly.models.utils import batch_shuffle, batch_unshuffle
from torch import Tensor, nn
from torch.nn import functional as F

from retrieval_utils.contrastive_base import ContrastiveMethod, MethodWithTeacher, Pretraining, in_one_batch
from retrieval_utils.contrastive_views import multi_crop, multi_crop_one_solarized, one_solarized, two_views
from retrieval_utils.networks import DescriptorNetwork

if TYPE_CHECKING:
    from retrieval_utils.contrastive import PretrainingSettings
    from retrieval_utils.datasets.base import TrainingSet


class SimCLR(ContrastiveMethod):
    """Chen, Kornblith, Norouzi, Hinton (ICML 2020): find an image's other view among all views of the batch."""

    views = staticmethod(two_views)
    advice = "lower the learning rate or the temperature"

    def __init__(self, network: DescriptorNetwork, settings: PretrainingSettings, steps: int, data: TrainingSet):
        width = settings.projection_dim
        head = SimCLRProjectionHead(network.channels, network.channels, width) if width else nn.Identity()
        super().__init__(network, settings, steps, head)
        self.criterion = NTXentLoss(settings.temperature)

    def loss_of(self, pooled: Tensor, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
        projected = self.head(pooled)  # (2B, P)
        return self.criterion(*projected.chunk(2)), projected


class MoCoV2(MethodWithTeacher):
    """He, Fan, Wu, Xie, Girshick (CVPR 2020) and Chen, Fan, Girshick, He (2020): find the teacher's key in a queue.

    Symmetric, as in Chen and He (CVPR 2021, table 4): each view is once the query and once the key, as in SimCLR.
    """

    views = staticmethod(two_views)
    advice = "lower the learning rate, or take a larger queue_size"
    parts = 4  # the keys' batch is shuffled and normalised in so many parts, on one device as on several

    def __init__(self, network: DescriptorNetwork, settings: PretrainingSettings, steps: int, data: TrainingSet):
        width = settings.projection_dim

        def head() -> nn.Module:
            return MoCoProjectionHead(network.channels, network.channels, width) if width else nn.Identity()

        super().__init__(network, settings, steps, head)
        size = settings.queue_size or max(2 * settings.batch_size, len(data.images) // 2)
        self.criterion = NTXentLoss(settings.temperature, (size, width or network.channels))

    def loss_of(self, pooled: Tensor, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
        queries = self.head(pooled)  # (2B, P)
        keys = self.teach(crops[0])  # (2B, P)
        return self.criterion(queries, keys.roll(len(keys) // 2, 0)), queries

    @torch.no_grad()
    def teach(self, views: Tensor) -> Tensor:
        # The statistics of a common batch would give the positive away: no key of the queue has them.
        shuffled, order = batch_shuffle(in_one_batch(views))
        keys = [self.teacher_head(self.teacher.pooled(part)) for part in shuffled.chunk(self.parts)]
        return batch_unshuffle(torch.cat(keys), order)

    def on_save_checkpoint(self, checkpoint: dict) -> None:  # Lightly leaves the queue out of the state
        bank = self.criterion.memory_bank
        checkpoint["queue"] = {"bank": bank.bank, "bank_ptr": bank.bank_ptr}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        bank = self.criterion.memory_bank
        bank.bank.copy_(checkpoint["queue"]["bank"])
        bank.bank_ptr.copy_(checkpoint["queue"]["bank_ptr"])


class BYOL(MethodWithTeacher):
    """Grill et al. (NeurIPS 2020): predict the teacher's projection of the other view; there are no negatives."""

    views = staticmethod(one_solarized)
    advice = "lower the learning rate, or let the teacher follow more slowly (momentum nearer to 1)"

    def __init__(self, network: DescriptorNetwork, settings: PretrainingSettings, steps: int, data: TrainingSet):
        hidden, width = 2 * network.channels, network.channels // 2
        super().__init__(network, settings, steps, lambda: BYOLProjectionHead(network.channels, hidden, width))
        self.predictor = BYOLPredictionHead(width, hidden, width)
        self.criterion = NegativeCosineSimilarity()

    def loss_of(self, pooled: Tensor, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
        projected = self.head(pooled)  # (2B, P)
        taught = self.teach(crops[0])  # (2B, P)
        return self.criterion(self.predictor(projected), taught.roll(len(taught) // 2, 0)), projected


class SwAV(ContrastiveMethod):
    """Caron et al. (NeurIPS 2020): predict from each crop the prototypes that the views are assigned to, evenly.

    As many prototypes as images in a batch, at most 512, so that a batch fills them without a queue of earlier ones.
    They stay as drawn for the first tenth of the steps.
    """

    views = staticmethod(multi_crop)
    advice = "lower the learning rate, or take a larger batch, which brings more prototypes"

    def __init__(self, network: DescriptorNetwork, settings: PretrainingSettings, steps: int, data: TrainingSet):
        width = network.channels // 2
        super().__init__(network, settings, steps, SwaVProjectionHead(network.channels, network.channels, width))
        self.prototypes = SwaVPrototypes(width, min(512, settings.batch_size), max(1, steps // 10))
        self.criterion = SwaVLoss()

    def loss_of(self, pooled: Tensor, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
        self.prototypes.normalize()
        projected = F.normalize(self.head(self.with_small_crops(pooled, crops)), dim=1)  # ((2 + L) B, P)
        scores = self.prototypes(projected, self.global_step).split(len(pooled) // 2)  # 2 + L of (B, prototypes)
        return self.criterion(scores[:2], scores[2:]).squeeze(), projected[: len(pooled)]


class BarlowTwins(ContrastiveMethod):
    """Zbontar, Jing, Misra, LeCun, Deny (ICML 2021): make the two views' cross-correlation the identity matrix."""

    views = staticmethod(one_solarized)

    def __init__(self, network: DescriptorNetwork, settings: PretrainingSettings, steps: int, data: TrainingSet):
        wide = 4 * network.channels  # the larger the better, says its figure 4
        super().__init__(network, settings, steps, BarlowTwinsProjectionHead(network.channels, wide, wide))
        self.criterion = BarlowTwinsLoss()

    def loss_of(self, pooled: Tensor, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
        projected = self.head(pooled)  # (2B, P)
        return self.criterion(*projected.chunk(2)), projected


class DINO(MethodWithTeacher):
    """Caron et al. (ICCV 2021): predict from each crop what the teacher, centred and sharpened, says of the views.

    The teacher's temperature rises from 0.04 to 0.07 over the first third of the steps, and the last layer of the head
    stays as drawn for the first tenth. The network that is kept is the teacher, as the authors evaluate it.
    """

    views = staticmethod(multi_crop_one_solarized)
    advice = "lower the learning rate, or let the teacher follow more slowly (momentum nearer to 1)"
    outputs = 1024

    def __init__(self, network: DescriptorNetwork, settings: PretrainingSettings, steps: int, data: TrainingSet):
        channels = network.channels

        def head() -> nn.Module:
            return DINOProjectionHead(channels, 2 * channels, channels // 4, self.outputs, True, freeze_last_layer=1)

        super().__init__(network, settings, steps, head)
        self.criterion = DINOLoss(self.outputs)

    @property
    def published(self) -> DescriptorNetwork:
        return self.teacher

    def loss_of(self, pooled: Tensor, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits = self.head(self.with_small_crops(pooled, crops))  # ((2 + L) B, K)
        taught = self.teach(crops[0])  # (2B, K)
        temperature = 0.04 + 0.03 * min(1.0, 3 * self.global_step / self.steps)
        loss = self.criterion(taught.chunk(2), logits.split(len(pooled) // 2), temperature)
        return loss, logits[: len(pooled)]

    def on_after_backward(self) -> None:
        if self.global_step < self.steps // 10:
            self.head.cancel_last_layer_gradients(current_epoch=0)


class LeJEPA(ContrastiveMethod):
    """Balestriero and LeCun (2025): pull crops to the mean of the views, and push all to an isotropic Gaussian."""

    views = staticmethod(multi_crop_one_solarized)

    def __init__(self, network: DescriptorNetwork, settings: PretrainingSettings, steps: int, data: TrainingSet):
        head = LeJEPAProjectionHead(network.channels, 2 * network.channels, 64)
        super().__init__(network, settings, steps, head)
        self.criterion = LeJEPALoss(sigreg_num_vectors=256)  # directions a step; they are new in each

    def loss_of(self, pooled: Tensor, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
        projected = self.head(self.with_small_crops(pooled, crops))  # ((2 + L) B, P)
        each = projected.unflatten(0, (-1, len(pooled) // 2))  # (2 + L, B, P)
        return self.criterion(global_proj=each[:2], local_proj=each[2:]), projected[: len(pooled)]


class Classifier(Pretraining):
    """The supervised twin on the same views: cross-entropy over the labels. Logs `accuracy` in place of a rank."""

    views = staticmethod(two_views)

    def __init__(self, network: DescriptorNetwork, settings: PretrainingSettings, steps: int, data: TrainingSet):
        super().__init__(network, settings, steps, nn.Linear(network.channels, len(data.label_names)))

    def training_step(self, batch, _):
        (views, *_), labels = batch
        logits, labels = self.head(self.pooled_views(views)), labels.repeat(2)  # (2B, classes), (2B,)
        loss = F.cross_entropy(logits, labels)
        self.log("loss", loss, on_epoch=True, on_step=False)
        self.log("accuracy", (logits.argmax(1) == labels).float().mean(), on_epoch=True, on_step=False)
        return loss


METHODS: dict[str, type[Pretraining]] = {
    "simclr": SimCLR,
    "moco-v2": MoCoV2,
    "byol": BYOL,
    "swav": SwAV,
    "barlow-twins": BarlowTwins,
    "dino": DINO,
    "lejepa": LeJEPA,
    "classifier": Classifier,
}
