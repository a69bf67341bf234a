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
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from retrieval_utils.networks import resolve_device
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

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

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


def fit(module: pl.LightningModule, loader: DataLoader, epochs: int, name: str, device: str, precision: str) -> History:
    """Trains `module` and returns its history, one value an epoch for everything it logged."""
    resolve_device(device)  # one clear sentence for a card that is not there
    for quiet in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(quiet).setLevel(logging.ERROR)
    record = EpochHistory(name)
    module.train()  # Lightning keeps the mode it finds, and networks are loaded in evaluation mode
    accelerator, _, index = device.partition(":")
    with warnings.catch_warnings():
        # Lightning recommends workers; in a notebook they break on two of three systems, and 64-pixel images need none.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*|.*treespec.*")
        warnings.filterwarnings("ignore", message=".*number of training batches.*")
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="gpu" if accelerator == "cuda" else accelerator,
            devices=[int(index)] if index else 1,
            precision=precision,
            callbacks=[record],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
    return record.history


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
