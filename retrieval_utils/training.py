"""What pretraining and fine-tuning share: images in memory, a Lightning trainer, one line of progress, a history."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from retrieval_utils.distributed import check_processes, planned
from retrieval_utils.losses.base import NotFiniteError
from retrieval_utils.networks import resolve_device
from retrieval_utils.resume import SavedTraining, SaveEveryEpoch, WholeFile
from retrieval_utils.transforms import load_image

History = dict[str, list[float]]


class TrainingImages(Dataset):
    """Item i: `views` augmented views of image i, stacked (V, 3, S, S), and its label.

    Images are decoded once, at `stored_size` pixels on the longer side, and kept in memory as long as they take less
    than `memory_gb`; a photo of Grocery Store at 96 pixels takes 28 kB.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        view: Callable,
        views: int,
        stored_size: int,
        memory_gb: float = 4.0,
    ):
        self.paths, self.labels, self.view, self.views, self.stored_size = paths, labels, view, views, stored_size
        fits = len(paths) * stored_size**2 * 3 < memory_gb * 2**30
        self.stored = [load_image(path, image_size=stored_size) for path in paths] if fits else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.stored[index] if self.stored else load_image(self.paths[index], image_size=self.stored_size)
        return torch.stack([self.view(image) for _ in range(self.views)]), int(self.labels[index])


class EpochHistory(pl.Callback):
    """Keeps the mean of every logged value per epoch, and shows one line that is rewritten, in a terminal or a cell."""

    def __init__(self, name: str):
        self.name, self.history, self.handle = name, {}, None
        self.started, self.spent = time.perf_counter(), 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.started = time.perf_counter() - self.spent

    def state_dict(self) -> dict:
        return {"history": self.history, "seconds": time.perf_counter() - self.started}

    def load_state_dict(self, state: dict) -> None:
        self.history, self.spent = state["history"], state["seconds"]

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for key, value in trainer.callback_metrics.items():
            self.history.setdefault(key, []).append(float(value))
        if not all(torch.isfinite(torch.tensor(values[-1])) for values in self.history.values()):
            raise ValueError(f"{self.name}: the loss is no longer finite; lower the learning rate.")
        done, seconds = trainer.current_epoch + 1, time.perf_counter() - self.started
        left = seconds / done * (trainer.max_epochs - done)
        values = ", ".join(f"{key} {values[-1]:.3f}" for key, values in self.history.items())
        self._show(f"{self.name}: epoch {done} of {trainer.max_epochs}, {values}, {seconds:.0f} s, {left:.0f} s left")

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if sys.stderr.isatty():
            tqdm.write("", file=sys.stderr)

    def _show(self, line: str) -> None:
        ipython = sys.modules.get("IPython")
        if ipython and hasattr(ipython.get_ipython(), "kernel"):  # one line that is updated, not one an epoch
            from IPython.display import display

            shown = {"text/plain": line}
            if self.handle is None:
                self.handle = display(shown, raw=True, display_id=True)
            else:
                self.handle.update(shown, raw=True)
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{line}")


class BatchWatch(pl.Callback):
    """Tells the loader's batches which epoch it is, and a loss that is no number from which file it may come."""

    def __init__(self, name: str, loader: DataLoader):
        self.name, self.batches, self.paths = name, loader.batch_sampler, getattr(loader.dataset, "paths", None)

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict) -> None:
        self.batches.set_epoch(checkpoint["epoch"] + 1)  # workers draw before the epoch starts

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.batches.set_epoch(trainer.current_epoch)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index: int) -> None:
        if outputs is not None and not outputs["loss"].isfinite():
            broken = (~batch[0].flatten(1).isfinite().all(1)).nonzero()  # rows of images (B, ...)
            if len(broken):
                first = self.batches.rank * len(batch[0])
                raise ValueError(self.file(batch_index, first + int(broken[0])) + " is nan; replace the file.")
            raise ValueError(f"{self.name}: the loss is no longer finite; lower the learning rate.")

    def file(self, batch_index: int, row: int) -> str:
        """Words for the image in this row of the batch of all processes."""
        index = self.batches.drawn[batch_index][row]
        return f"{self.name}: the image '{self.paths[index]}'" if self.paths else f"{self.name}: the image {index}"


def fit(
    module: pl.LightningModule,
    loader: DataLoader,
    epochs: int,
    name: str,
    device: str,
    precision: str,
    *,
    saved: SavedTraining | None = None,
    devices: int = 1,
    nodes: int = 1,
    callbacks: Sequence[pl.Callback] = (),
) -> History:
    """Trains `module` and returns its history, one value an epoch for everything it logged.

    saved: where a checkpoint is written after every epoch; if there is one, the training goes on from it, and ends bit
    for bit (one CPU thread) where it would have ended. It stays until the caller, who has kept the result, removes it.
    devices, nodes: processes, a card or a CPU each, that share every batch of `loader`; torchrun or srun starts them.
    Raises ValueError for a checkpoint of another training, for a loss that is no number (the file is named), for a
    batch that does not fit into memory, and where there are not as many processes as devices.
    """
    resolve_device(device)  # one clear sentence for a card that is not there
    resumed = saved is not None and saved.check()
    for quiet in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(quiet).setLevel(logging.ERROR)
    record = EpochHistory(name)
    module.train()  # Lightning keeps the mode it finds, and networks are loaded in evaluation mode
    accelerator, _, index = device.partition(":")
    on_card = resolve_device(device).type == "cuda"
    check_processes(devices, nodes, module, on_card)
    several = devices * nodes > 1
    with warnings.catch_warnings():
        # Lightning recommends workers; in a notebook they break on two of three systems, and 64-pixel images need none.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*|.*treespec.*")
        warnings.filterwarnings("ignore", message=".*number of training batches.*")
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="gpu" if accelerator == "cuda" else accelerator,
            devices=[int(index)] if index and not several else devices,
            num_nodes=nodes,
            strategy="ddp" if several else "auto",
            sync_batchnorm=several and on_card,
            use_distributed_sampler=False,  # `planned` shares the batches
            precision=precision,
            # Lightning's own requeueing under SLURM would load its checkpoint into whatever is trained first.
            plugins=[WholeFile()] + ([SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = planned(loader, trainer.global_rank, trainer.world_size, torch.initial_seed())
        if several:
            pl.seed_everything((torch.initial_seed() + trainer.global_rank) % 2**32, verbose=False)
        watch = BatchWatch(name, loader)
        trainer.callbacks += [watch, *callbacks, record, *([SaveEveryEpoch(saved)] if saved else [])]
        try:
            trainer.fit(module, loader, ckpt_path=saved.path if resumed else None, weights_only=True)
        except NotFiniteError as error:
            message = f"{watch.file(trainer.fit_loop.batch_idx, error.row)} gives a descriptor that is nan or infinite"
            raise ValueError(f"{message}; lower the learning rate, or look at the file.") from None
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            raise ValueError(_too_large(name, loader, getattr(module, "settings", None), device)) from None
    return record.history


def _too_large(name: str, loader: DataLoader, settings: object, device: str) -> str:
    batches = loader.batch_sampler
    size = len(batches.drawn[-1]) // batches.world if batches.drawn else 1
    chunk = getattr(settings, "chunk", None)
    if chunk is None:
        way_out = f"try batch_size={max(1, size * batches.world // 2)}, or smaller images"
    else:
        way_out = f"try chunk={max(1, (chunk or size) // 2)}, which gives the loss of the same batch"
    return f"{name}: a batch of {size} images is larger than the memory of the device '{device}'; {way_out}."


def cosine_schedule(
    optimizer: torch.optim.Optimizer, steps: int, warmup: float = 0.1
) -> dict[str, torch.optim.lr_scheduler.LRScheduler | str]:
    """Linear warm-up over a tenth of the steps, then half a cosine to zero, stepped every batch."""
    first = max(1, round(warmup * steps))
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / first, total_iters=first),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - first)),
        ],
        milestones=[first],
    )
    return {"scheduler": schedule, "interval": "step"}
