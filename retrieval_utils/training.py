"""What pretraining and fine-tuning share: images in memory, a Lightning trainer, one line of progress, a history."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from retrieval_utils.distributed import check_processes, planned
from retrieval_utils.losses.base import NotFiniteError
from retrieval_utils.networks import resolve_device
from retrieval_utils.resume import SavedTraining, SaveEveryEpoch, WholeFile
from retrieval_utils.transforms import load_image

History = dict[str, list[float]]


@contextmanager
def drawn_with(seed: int) -> Iterator[None]:
    """Whatever is drawn inside follows from `seed`, in any process; the random streams outside do not notice."""
    with isolate_rng(include_cuda=False):
        # Not torch.manual_seed: it also seeds CUDA, and where there is none keeps a traceback of every call for later.
        for set_seed in (torch.default_generator.manual_seed, np.random.seed, random.seed):
            set_seed(seed)
        yield


class TrainingImages(Dataset):
    """Item (i, s): `views` augmented views of image i, drawn with seed s, stacked (V, 3, S, S), and its label.

    The seed comes along with the index so that a view does not depend on which process draws it, or when.
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

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, int]:
        index, seed = item
        image = self.stored[index] if self.stored else load_image(self.paths[index], image_size=self.stored_size)
        with drawn_with(seed):
            return self.draw(image), int(self.labels[index])

    def draw(self, image: Image.Image) -> torch.Tensor:
        return torch.stack([self.view(image) for _ in range(self.views)])  # (V, 3, S, S)


class ShuffledBatches(Sampler[list[int]]):
    """All of `images` in a new order each epoch, cut into full batches of `batch_size`; drawn by seed and epoch."""

    def __init__(self, images: int, batch_size: int, seed: int = 0):
        self.images, self.batch_size, self.seed, self.epoch = images, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.images // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size].tolist()


class SeededBatches(Sampler[list[tuple]]):
    """The batches of another sampler, each index with the seed of its views; drawn by seed and epoch."""

    def __init__(self, batches: Sampler[list], seed: int):
        self.batches, self.seed = batches, seed

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple]]:
        drawn = np.random.default_rng([self.seed, self.batches.epoch, 1])
        for batch in self.batches:
            yield list(zip(batch, drawn.integers(2**32, size=len(batch)).tolist(), strict=True))


def training_loader(images: Dataset, batches: Sampler[list], seed: int, device: str) -> DataLoader:
    """A loader of `batches` of items (index, seed), whose content does not depend on its worker processes.

    One process augments while the others' cores train, or several if a card has to be fed. They are forked, so there
    are none where a notebook cannot fork, nor where the memory they share with the trainer is short, as in some
    containers.
    """
    workers = 0
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
        workers = min(8, cores - 1) if resolve_device(device).type == "cuda" else min(1, cores - 1)
        plan = list(batches)
        item = images[plan[0][0], 0][0] if plan else ()  # what is tensors in an item, as a stack or a list
        size = sum(view.nbytes for view in item) * max(map(len, plan), default=0)
        if shutil.disk_usage("/dev/shm").free < (2 * workers + 2) * size:
            workers = 0
    batches = SeededBatches(batches, seed)
    return DataLoader(images, batch_sampler=batches, num_workers=workers, persistent_workers=workers > 0)


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
        self.batches.set_epoch(trainer.current_epoch)  # Lightning does so for samplers, not for batch samplers

    def on_train_batch_start(self, trainer, module, batch, batch_index: int) -> None:
        self.batch, self.batch_index = batch, batch_index

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index: int) -> None:
        if outputs is not None and not outputs["loss"].isfinite():
            raise self.not_finite()
        self.batch = None

    def not_finite(self, row: int | None = None) -> ValueError:
        """The error for a loss that is no number: names the image that is none, or else that of descriptor `row`.

        An image comes first, since batch normalisation makes one that is nan into a whole batch of descriptors.
        """
        images = self.batch[0] if isinstance(self.batch[0], torch.Tensor) else self.batch[0][0]  # (B, V, ...)
        broken = (~images.flatten(2).isfinite().all(2)).nonzero()  # (n, 2) places and views
        if len(broken):
            place, view = broken[0].tolist()
            return ValueError(f"{self.file(self.batches.rank * len(images) + place, view)} is nan; replace the file.")
        if row is None:
            return ValueError(f"{self.name}: the loss is no longer finite; lower the learning rate.")
        view, place = divmod(row, len(self.batches.drawn[self.batch_index]))  # all first images, then all second ones
        words = "gives a descriptor that is nan or infinite; lower the learning rate, or look at the file"
        return ValueError(f"{self.file(place, view)} {words}.")

    def file(self, place: int, view: int) -> str:
        """Words for the image at this place of the batch of all processes; of a pair, for its image `view`."""
        index, _ = self.batches.drawn[self.batch_index][place]
        index = index[view] if isinstance(index, tuple) else index
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
    module.to(memory_format=torch.channels_last)  # as its images are
    accelerator, _, index = device.partition(":")
    on_card = resolve_device(device).type == "cuda"
    check_processes(devices, nodes, module, on_card)
    several = devices * nodes > 1
    with warnings.catch_warnings():
        # Lightning recommends more workers: `training_loader` knows better.
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
        loader = planned(loader, trainer.global_rank, trainer.world_size)
        if several:
            pl.seed_everything((torch.initial_seed() + trainer.global_rank) % 2**32, verbose=False)
        watch = BatchWatch(name, loader)
        trainer.callbacks += [watch, *callbacks, record, *([SaveEveryEpoch(saved)] if saved else [])]
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(max(1, threads - loader.num_workers))  # a core that augments cannot train as well
            trainer.fit(module, loader, ckpt_path=saved.path if resumed else None, weights_only=True)
        except NotFiniteError as error:
            raise watch.not_finite(error.row) from None
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            raise ValueError(_too_large(name, loader, getattr(module, "settings", None), device)) from None
        finally:
            torch.set_num_threads(threads)
    return record.history


def _too_large(name: str, loader: DataLoader, settings: object, device: str) -> str:
    batches = loader.batch_sampler
    size = len(batches.drawn[-1]) // batches.world if batches.drawn else 1
    chunk, tuples, what = getattr(settings, "chunk", None), getattr(settings, "tuples", 0), "images"
    if chunk is not None:
        way_out = f"try chunk={max(1, min(chunk or size, size) // 2)}, which gives the loss of the same batch"
        if not chunk:
            way_out += " with batch normalisation frozen"
    elif tuples:
        way_out = f"try tuples={max(1, tuples // 2)}, or smaller images"
    elif hasattr(settings, "can_link"):  # as many pairs of both kinds
        way_out, what = f"try batch_size={max(2, size // 4 * 2)}, or smaller images", "pairs"
    else:
        way_out = f"try batch_size={max(1, size * batches.world // 2)}, or smaller images"
    return f"{name}: a batch of {size} {what} is larger than the memory of the device '{device}'; {way_out}."


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
