"""What the pretraining methods share: one pass over both views, a rank to watch, a teacher, a warning of collapse."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING

import pytorch_lightning as pl
import torch
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule as cosine_value
from torch import Tensor, nn
from torch.nn import functional as F

from retrieval_utils.networks import DescriptorNetwork
from retrieval_utils.training import cosine_schedule

if TYPE_CHECKING:
    from retrieval_utils.contrastive import PretrainingSettings

COLLAPSED = 0.05  # spread of the descriptors below which they all point the same way; 1 is the whole sphere


class Pretraining(pl.LightningModule):
    """A network, a head on its pooled features, AdamW with a cosine schedule, and what is logged of every method.

    A batch is (crops, labels): crops a list of (B, 2, 3, S, S), the two views, and of methods with small crops also
    (B, L, 3, s, s). Logs `loss` and `spread`, the norm of the standard deviation of the views' L2-normalised pooled
    features, and warns once when `spread` of an epoch is below COLLAPSED.
    """

    views: Callable[[PretrainingSettings], Callable]  # the transform: PIL image -> its crops
    advice = "lower the learning rate"  # against collapse

    def __init__(self, network: DescriptorNetwork, settings: PretrainingSettings, steps: int, head: nn.Module):
        super().__init__()
        self.network, self.settings, self.steps, self.head = network, settings, steps, head
        self.warned = False

    @property
    def published(self) -> DescriptorNetwork:
        """The network that is kept after training."""
        return self.network

    def pooled_views(self, views: Tensor) -> Tensor:
        """Views (B, 2, 3, S, S) in one pass, so that batch normalisation sees both: (2B, D), first views first."""
        pooled = self.network.pooled(in_one_batch(views))  # (2B, D)
        descriptors = F.normalize(pooled.detach().float(), dim=1)
        self.log("spread", descriptors.std(0).norm(), on_epoch=True, on_step=False)
        return pooled

    def on_train_epoch_end(self) -> None:
        spread = float(self.trainer.callback_metrics["spread"])
        if spread < COLLAPSED and not self.warned:
            self.warned = True
            warnings.warn(
                f"{self.settings.method} has collapsed: in epoch {self.current_epoch + 1} the spread of descriptors "
                f"is {spread:.3g}, below {COLLAPSED} (1 is all directions, 0 a single one); {self.advice}.",
                stacklevel=2,
            )

    def configure_optimizers(self):
        parameters = (p for p in self.parameters() if p.requires_grad)
        optimizer = torch.optim.AdamW(
            parameters, lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        return {"optimizer": optimizer, "lr_scheduler": cosine_schedule(optimizer, self.steps)}


class ContrastiveMethod(Pretraining):
    """A method without labels: it says what its loss is and on which vectors; the rank of the positive is logged."""

    def loss_of(self, pooled: Tensor, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
        """From pooled (2B, D) and all crops: the scalar loss, and the projections (2B, P) it compares."""
        raise NotImplementedError

    def with_small_crops(self, pooled: Tensor, crops: list[Tensor]) -> Tensor:
        """Pooled features (2B, D) of the views, and after them those of the small crops: ((2 + L) B, D)."""
        return torch.cat([pooled, self.network.pooled(in_one_batch(crops[1]))])

    def training_step(self, batch, _):
        crops = batch[0]
        loss, projected = self.loss_of(self.pooled_views(crops[0]), crops)
        self.log("loss", loss, on_epoch=True, on_step=False)
        self.log("rank", mean_rank_of_positive(projected.detach()), on_epoch=True, on_step=False)
        return loss


class MethodWithTeacher(ContrastiveMethod):
    """A second network and head, the teacher: the moving average of the trained ones, the student, and no gradient.

    After every step each parameter is m * teacher + (1 - m) * student, where m rises from `first_momentum` to 1 over
    the training along half a cosine (Grill et al. 2020). The statistics of batch normalisation are the teacher's own.
    """

    def __init__(
        self, network: DescriptorNetwork, settings: PretrainingSettings, steps: int, make_head: Callable[[], nn.Module]
    ):
        super().__init__(network, settings, steps, make_head())
        self.teacher, self.teacher_head = deepcopy(network), make_head()
        self.teacher_head.load_state_dict(self.head.state_dict())
        deactivate_requires_grad(self.teacher)
        deactivate_requires_grad(self.teacher_head)

    @property
    def first_momentum(self) -> float:
        """0.99 looks back on 100 steps; where a tenth of the training is less, on that: the start must be forgotten."""
        return min(0.99, 1 - 1 / max(1, self.steps / 10)) if self.settings.momentum is None else self.settings.momentum

    def momentum(self, step: int) -> float:
        return cosine_value(step, self.steps, self.first_momentum, 1.0)

    def optimizer_step(self, *args, **kwargs) -> None:
        step = self.global_step
        super().optimizer_step(*args, **kwargs)
        m = self.momentum(step)
        # In one call, because the head may have no parameters, and Lightly refuses a module without any.
        student, teacher = nn.ModuleList([self.network, self.head]), nn.ModuleList([self.teacher, self.teacher_head])
        update_momentum(student, teacher, m)

    @torch.no_grad()
    def teach(self, views: Tensor) -> Tensor:
        """Views (B, 2, 3, S, S) -> the teacher's projections (2B, P), without a graph."""
        return self.teacher_head(self.teacher.pooled(in_one_batch(views)))


def in_one_batch(crops: Tensor) -> Tensor:
    """Crops (B, V, 3, S, S) -> (V * B, 3, S, S), the first crops of all images first."""
    return crops.transpose(0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def mean_rank_of_positive(projected: Tensor) -> Tensor:
    """Mean rank, 1 the best, of each view's partner among the other 2B - 1; projected (2B, P), partners B apart."""
    projected = F.normalize(projected.float(), dim=1)
    scores = projected @ projected.T  # (2B, 2B)
    partner = torch.arange(len(scores), device=scores.device).roll(len(scores) // 2)
    positive = scores.gather(1, partner[:, None])  # (2B, 1)
    scores.fill_diagonal_(-torch.inf)
    return 1 + (scores > positive).sum(1).float().mean()
