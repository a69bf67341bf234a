"""Early stopping on instances held out of the training set: never on the queries of a benchmark."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytorch_lightning as pl

from retrieval_utils.datasets.base import TrainingSet
from retrieval_utils.evaluation import GroundTruth, evaluate
from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.networks import DescriptorNetwork


def hold_out(training_set: TrainingSet, fraction: float, seed: int) -> tuple[TrainingSet, TrainingSet]:
    """Two sets without a common instance: what is trained on, and `fraction` of the instances to validate on.

    Drawn by `seed` alone, without a draw from any other random stream. Raises ValueError where either part would have
    fewer than two instances of at least two images: a ranking needs a positive and a negative.
    """
    labels = np.asarray(training_set.labels)
    instances, counts = np.unique(labels, return_counts=True)
    order = np.random.default_rng([seed, len(instances)]).permutation(len(instances))
    held = order[: round(fraction * len(instances))]
    for numbers in (held, np.setdiff1d(order, held)):
        if not 0 < fraction < 1 or (counts[numbers] > 1).sum() < 2:
            raise ValueError(
                f"A validation fraction of {fraction} of the {len(instances)} instances of {training_set.name} leaves "
                "fewer than 2 with several images on one side; take another fraction, or 0 for none."
            )
    inside = np.isin(labels, instances[held])  # (N,)
    return tuple(
        replace(
            training_set,
            name=f"{training_set.name}/{part}",
            images=tuple(path for path, is_chosen in zip(training_set.images, chosen, strict=True) if is_chosen),
            labels=labels[chosen],
        )
        for part, chosen in (("training", ~inside), ("validation", inside))
    )


def mean_ap(network: DescriptorNetwork, images: TrainingSet, image_size: int, device: str) -> float:
    """mAP in [0, 1] of every image as a query among the others; those that are alone with their label only distract."""
    descriptors = extract_descriptors(network, images.images, image_size=image_size, device=device)  # (N, D)
    labels, everyone = np.asarray(images.labels), np.arange(len(images.labels))
    queries = [i for i in everyone if (labels == labels[i]).sum() > 1]
    truth = [GroundTruth(everyone[(labels == labels[i]) & (everyone != i)], junk=np.array([i])) for i in queries]
    return float(evaluate(descriptors[queries] @ descriptors.T, truth, setups=["original"])["original"].mean_ap)


class BestWeights(pl.Callback):
    """Scores the network after every epoch, logs `validation_map`, stops when it no longer rises, keeps the best."""

    def __init__(self, network: DescriptorNetwork, images: TrainingSet, image_size: int, patience: int):
        if patience < 1:
            raise ValueError(f"A patience of {patience} epochs would stop before the first; take at least 1.")
        self.network, self.images, self.image_size = network, images, image_size
        self.patience, self.best, self.waited, self.weights = patience, -1.0, 0, {}

    def state_dict(self) -> dict:
        return {"best": self.best, "waited": self.waited, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.best, self.waited, self.weights = state["best"], state["waited"], state["weights"]

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        trainer.should_stop = self.waited >= self.patience  # a training that was killed after it had decided to stop

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        score = mean_ap(self.network, self.images, self.image_size, str(module.device))
        module.log("validation_map", score)
        self.waited += 1
        if score > self.best:
            self.best, self.waited = score, 0
            self.weights = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
        trainer.should_stop = self.waited >= self.patience

    def restore(self) -> None:
        """Puts the weights of the best epoch into the network."""
        self.network.load_state_dict(self.weights)
