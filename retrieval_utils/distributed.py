"""One batch over several processes: each has a part of the images, and the loss sees the descriptors of all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler


class PlannedBatches(Sampler[list]):
    """Another sampler's batches, of which rank r of `world` gets the r-th part, and a note of which were drawn.

    That sampler draws by seed and epoch alone, so it is in step in all processes. Raises ValueError for a batch that
    cannot be shared equally.
    """

    def __init__(self, batches: Sampler[list], rank: int = 0, world: int = 1):
        self.batches, self.rank, self.world, self.drawn = batches, rank, world, []

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list]:
        self.drawn = []
        for batch in self.batches:
            self.drawn.append(batch)
            if len(batch) % self.world:
                raise ValueError(
                    f"A batch of {len(batch)} images cannot be shared by {self.world} processes; take a multiple."
                )
            part = len(batch) // self.world
            yield batch[self.rank * part : (self.rank + 1) * part]


def planned(loader: DataLoader, rank: int = 0, world: int = 1) -> DataLoader:
    """The same loader, with its batches in a `PlannedBatches`."""
    batches = PlannedBatches(loader.batch_sampler, rank, world)
    workers = {"num_workers": loader.num_workers, "persistent_workers": loader.persistent_workers}
    return DataLoader(loader.dataset, batch_sampler=batches, **workers)


def global_loss(
    module: pl.LightningModule, criterion: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """`criterion(descriptors, labels)` of the batches of all processes, given those of one; the same value in each.

    Its gradient is summed over the processes on the way back, and DistributedDataParallel takes the mean over them, so
    every weight gets the gradient that one process with the whole batch would give it.
    """
    if module.trainer.world_size == 1:
        return criterion

    def gathered(descriptors: Tensor, labels: Tensor) -> Tensor:
        descriptors = module.all_gather(descriptors, sync_grads=True).flatten(0, 1)  # (W, B, D) -> (WB, D)
        return criterion(descriptors, module.all_gather(labels).flatten())

    return gathered


def check_processes(devices: int, nodes: int, module: nn.Module, on_card: bool) -> None:
    """Raises ValueError unless as many processes were started, and batch normalisation can do without the others.

    On cards it is replaced by SyncBatchNorm, whose statistics are those of the whole batch; torch has none for CPUs.
    """
    started = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    if devices < 1 or nodes < 1:
        raise ValueError(f"{devices} devices on {nodes} nodes cannot train; give at least 1 of each.")
    if devices * nodes > 1 and started != devices * nodes:
        raise ValueError(
            f"{devices} devices on {nodes} nodes need {devices * nodes} processes, and there are {started}: start the "
            f"script with `torchrun --nnodes {nodes} --nproc-per-node {devices}`, or with srun."
        )
    chunked = getattr(getattr(module, "settings", None), "chunk", 0)  # freezes the normalisation itself
    if devices * nodes > 1 and not on_card and not chunked:
        for name, layer in module.named_modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    f"The layer '{name}' would see a part of the batch on each of {devices * nodes} CPUs; "
                    "set chunk, which freezes batch normalisation, or train on cards, where it is synchronised."
                )
