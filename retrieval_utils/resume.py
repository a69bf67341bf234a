"""A training that was killed goes on: what the checkpoint at the end of an epoch holds, and which one is refused.

An epoch that was broken off is done again from its start, with every random state as it was there, so that nothing of
the result is lost: on one CPU thread the weights are, bit for bit, those of a training that nobody interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO

from retrieval_utils.datasets.base import TrainingSet
from retrieval_utils.networks import DescriptorNetwork
from retrieval_utils.protocol import state_sha256

TRAINING_CODE = (
    *("pooling", "losses", "transforms", "networks", "training", "resume", "distributed", "validation"),
    *("contrastive*", "multistage", "finetuning", "mining", "lrml"),
    *("link_pairs", "recurrent_network", "autoret"),
)


@cache
def code_sha256() -> str:
    """Hex sha256 over the modules a trained network depends on: after an edit there, nothing old is reused."""
    digest = hashlib.sha256()
    for module in TRAINING_CODE:
        for file in sorted(Path(__file__).parent.glob(f"{module}.py")) or sorted(
            Path(__file__).parent.glob(f"{module}/*.py")
        ):
            digest.update(file.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class SavedTraining:
    """Where a training keeps its checkpoint, and everything that the result depends on, by name."""

    path: Path
    conditions: Mapping[str, str]

    @classmethod
    def of(
        cls, path: str | Path | None, network: DescriptorNetwork, training_set: TrainingSet, settings: object
    ) -> SavedTraining | None:
        """For `network` as it is before the training; None where `path` is None, and nothing will be saved."""
        if path is None:
            return None
        conditions = {
            "network": json.dumps(network.settings),
            "weights at the start": state_sha256(network),
            "data": training_set.fingerprint,
            "kind of training": type(settings).__name__,
            **{name: json.dumps(value) for name, value in asdict(settings).items()},
            "torch": str(torch.__version__),
            "code": code_sha256(),
        }
        return cls(Path(path), conditions)

    def check(self) -> bool:
        """Whether there is a checkpoint to go on from.

        Raises ValueError for one that is truncated or altered, and for one of another architecture, start, data set,
        settings or code: it is never used in part, and never thrown away by itself.
        """
        if not self.path.exists():
            return False
        found = _read(self.path)["conditions"]
        differing = [
            f"{name} {_short(found.get(name, 'none'))}, now {_short(self.conditions.get(name, 'none'))}"
            for name in {**self.conditions, **found}
            if found.get(name) != self.conditions.get(name)
        ]
        if differing:
            raise ValueError(
                f"The checkpoint '{self.path}' is of another training ({'; '.join(differing)}): "
                "delete it to train from the start, or go back to what it was made with."
            )
        return True


def seconds_spent(path: Path) -> float:
    """Seconds of training that the checkpoint at `path` stands for; 0 where there is none. Raises as `check`."""
    return float(_read(path)["callbacks"]["EpochHistory"]["seconds"]) if path.exists() else 0.0


def _read(path: Path) -> dict:
    """The checkpoint, whole, without running any code in it."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch reads what is left of a tensor without looking at its checksum
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        state = torch.load(path, map_location="cpu", weights_only=True)
        state["conditions"], state["random"], state["callbacks"]["EpochHistory"]["seconds"]
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, ValueError):
        message = f"The checkpoint '{path}' is truncated or none of a training; delete it to train from the start."
        raise ValueError(message) from None
    return state


def _short(value: str) -> str:
    return value[:12] if len(value) == 64 else value


class WholeFile(TorchCheckpointIO):
    """The checkpoint appears under its name only when whole; a kill while it is written leaves the one before."""

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        torch.save(checkpoint, part)
        os.replace(part, path)


class SaveEveryEpoch(pl.Callback):
    """Lightning's checkpoint, with the random states and the conditions, at the end of every epoch."""

    def __init__(self, saved: SavedTraining):
        self.saved, self.states = saved, None

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict) -> None:
        self.states = checkpoint["random"]

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Before Lightning makes the iterator of the epoch's batches, which is the first to draw.
        if self.states is not None:
            if len(self.states) != trainer.world_size:
                raise ValueError(
                    f"The checkpoint '{self.saved.path}' is of {len(self.states)} processes, not {trainer.world_size}: "
                    "delete it to train from the start, or start as many."
                )
            set_random_states(self.states[trainer.global_rank])

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch, batch_index: int) -> None:
        # To start worker processes draws a number. Where they persist, an unbroken training does so in its first epoch
        # alone, and one that was resumed has just done so again.
        if self.states is not None and trainer.train_dataloader.persistent_workers:
            set_random_states(self.states[trainer.global_rank])
        self.states = None

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict) -> None:
        states = [random_states()]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, random_states())
        checkpoint["random"], checkpoint["conditions"] = states, dict(self.saved.conditions)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.saved.path)


def random_states() -> dict:
    """The states of Python's, numpy's and torch's generators, and of the card in use: plain values and tensors."""
    numpy = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_states(states: Mapping) -> None:
    """Puts every generator where `random_states` found it."""
    random.setstate(states["python"])
    numpy = states["numpy"]
    np.random.set_state({**numpy, "state": {**numpy["state"], "key": np.array(numpy["state"]["key"], np.uint32)}})
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())
