"""What AP fine-tuning owes to its parts, and whether a photo's own views can stand in for labels: smoke profile.

Every arm changes one thing of the base, which is the ladder's ap-finetuned: the contrastive start, GeM, a head that
starts as PCA whitening, all layers trained with Smooth-AP. The arms without labels (as in InsCLR, AAAI 2022) see as
many views of the same photos. Where an arm holds layers fixed, these get no gradient, so that AdamW leaves them alone,
weight decay included, and their batch normalisation stays in evaluation mode: it uses and keeps the statistics of the
pretraining. Scored on the toy benchmark, with which nothing is chosen here. Writes each row to
results/ablation/finetuning.csv, skips those it holds, and prints the answer to each question.

    .venv/bin/python benchmarks/finetuning_ablation.py [ARM ...] [--seeds 0 1 2] [--runs runs]

minutes: of one CPU core, of what the arm trains itself; none for the steps of the ladder, which are taken from the run
(and trained there if it has none), as the two starts are.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from ablation import run_arms  # of this folder
from torch import nn

from retrieval_utils.claims import FINETUNING_QUESTIONS
from retrieval_utils.contrastive import PretrainingSettings, pretrain
from retrieval_utils.datasets import TrainingSet
from retrieval_utils.finetuning import add_whitening_head, finetune
from retrieval_utils.networks import DescriptorNetwork, load_network
from retrieval_utils.profiles import get_profile
from retrieval_utils.records import Run, Trained

RESULTS = Path(__file__).resolve().parents[1] / "results" / "ablation" / "finetuning.csv"
PROFILE = get_profile("smoke")


class Bench:
    """One seed: its starts, its data, and how an arm is fine-tuned from them."""

    def __init__(self, seed: int, run_dir: str):
        self.seed, self.run = seed, Run.open(run_dir, PROFILE.name, seed)
        self.photos = self.run.training_set("instances")
        self.settings = replace(PROFILE.finetuning_settings(seed), device="cpu")

    def fresh(self, pooling: str = PROFILE.pooling) -> DescriptorNetwork:
        return load_network(PROFILE.backbone, pooling=pooling, seed=self.seed)

    def _start(self, name: str, method: str) -> Trained:
        general, settings = self.run.training_set("categories"), PROFILE.pretraining_settings(method, self.seed)
        return self.run.train(name, self.fresh(), pretrain, general, settings)

    @cached_property
    def contrastive(self) -> Trained:
        return self._start("contrastive", "simclr")

    @cached_property
    def classifier(self) -> Trained:
        return self._start("classifier", "classifier")

    def ladder(self, step: str, start: Trained | None) -> DescriptorNetwork:
        """A step of the ladder, from the run."""
        network, settings = deepcopy(start.network) if start else self.fresh(), PROFILE.finetuning_settings(self.seed)
        return self.run.train(step, network, finetune, self.photos, settings, start).network

    def pretraining(self, method: str) -> PretrainingSettings:
        """The profile's, but MoCo v2 with the projection head that makes it version 2; SimCLR has none here."""
        settings = replace(PROFILE.pretraining_settings(method, self.seed), device="cpu")
        return replace(settings, projection_dim=128) if method == "moco-v2" else settings

    def tuned(
        self, network: DescriptorNetwork, photos: TrainingSet | None = None, **changes: object
    ) -> DescriptorNetwork:
        """`network` after the base's fine-tuning with these changes of its settings."""
        finetune(network, photos or self.photos, replace(self.settings, **changes))
        return network

    def own_views(self) -> TrainingSet:
        """The same photos, each an instance of its own: then a positive is another view of the same photo."""
        numbers = np.arange(len(self.photos.images))
        names = [str(number) for number in numbers]
        return replace(self.photos, labels=numbers, label_names=names, fingerprint=self.photos.fingerprint + "/photos")

    def continued(self, method: str, start: Trained) -> DescriptorNetwork:
        """`start` pretrained further on the photos without labels, on as many and the same views as the base sees."""
        base = self.settings
        views = base.epochs * base.batches * base.instances * base.images_per_instance
        settings = self.pretraining(method)
        settings = replace(settings, epochs=views // views_per_epoch(len(self.photos.images), settings.batch_size))
        same = ("learning_rate", "weight_decay", "image_size", "min_scale", "jitter", "grayscale")
        network = deepcopy(start.network)
        pretrain(network, self.photos, replace(settings, **{name: getattr(base, name) for name in same}))
        return network


def views_per_epoch(images: int, batch_size: int) -> int:
    """What `pretrain` sees in an epoch: two views of each image, in full batches."""
    return 2 * batch_size * (images // batch_size)


def hold(*layers: nn.Module) -> None:
    """Nothing in `layers` moves any more: neither weights nor the statistics of batch normalisation."""
    for layer in layers:
        layer.requires_grad_(False).eval()
        layer.train = partial(_stay, layer)  # training puts the whole network into training mode


def _stay(layer: nn.Module, mode: bool = True) -> nn.Module:
    return layer


def other_pooling(pooling: str, bench: Bench) -> DescriptorNetwork:
    network = bench.fresh(pooling)
    network.trunk.load_state_dict(bench.contrastive.network.trunk.state_dict())
    return bench.tuned(network)


def other_start(method: str, bench: Bench) -> DescriptorNetwork:
    """The base from another contrastive pretraining of the same pictures, epochs and views."""
    network = bench.fresh()
    pretrain(network, bench.run.training_set("categories"), bench.pretraining(method))
    return bench.tuned(network)


def other_batch(factor: float, bench: Bench) -> DescriptorNetwork:
    """Batches of `factor` times as many instances, and as many fewer batches: the images seen are as many."""
    instances, batches = round(bench.settings.instances * factor), round(bench.settings.batches / factor)
    return bench.tuned(deepcopy(bench.contrastive.network), instances=instances, batches=batches)


def untrained_head(bench: Bench) -> DescriptorNetwork:
    network, size = deepcopy(bench.contrastive.network), bench.settings.image_size * 3 // 2
    add_whitening_head(network, bench.photos, bench.settings.head_dim, size, "cpu")
    return network.eval()


def some_layers(moving: tuple[str, ...], bench: Bench) -> DescriptorNetwork:
    """Only these stages of the trunk learn, and the head; the pooling with the trunk's last stage."""
    network = deepcopy(bench.contrastive.network)
    hold(*(stage for name, stage in network.trunk.named_children() if name not in moving))
    if not moving:
        hold(network.pooling)
    return bench.tuned(network)


def nt_xent(bench: Bench, photos: TrainingSet) -> DescriptorNetwork:
    """Fine-tuned with NT-Xent, whose positives are the labels of `photos`; all else is the base's."""
    return bench.tuned(deepcopy(bench.contrastive.network), photos, loss="nt-xent")


ARMS: dict[str, Callable[[Bench], DescriptorNetwork]] = {
    "base": lambda bench: bench.ladder("ap-finetuned", bench.contrastive),
    "start: classifier": lambda bench: bench.ladder("classifier-ap", bench.classifier),
    "start: random": lambda bench: bench.ladder("scratch-ap", None),
    "start: moco-v2": partial(other_start, "moco-v2"),
    "contrastive, as it was": lambda bench: bench.contrastive.network,
    "head: whitening, not trained": untrained_head,
    "layers: head alone": partial(some_layers, ()),
    "layers: last stage and head": partial(some_layers, ("layer4",)),
    "pooling: mac": partial(other_pooling, "mac"),
    "head: none": lambda bench: bench.tuned(deepcopy(bench.contrastive.network), head_dim=0),
    "batch: half": partial(other_batch, 0.5),
    "batch: double": partial(other_batch, 2),
    "contrastive, simclr continued": lambda bench: bench.continued("simclr", bench.contrastive),
    "contrastive, moco-v2 continued": lambda bench: bench.continued("moco-v2", bench.contrastive),
    "own views: nt-xent": lambda bench: nt_xent(bench, bench.own_views()),
    "labels: nt-xent": lambda bench: nt_xent(bench, bench.photos),
}
LADDER = ("base", "start: classifier", "start: random")  # taken from the run


def prepared(seed: int, run_dir: str) -> Bench:
    bench = Bench(seed, run_dir)
    bench.contrastive, bench.classifier  # noqa: B018 - trained now, if they have to be
    return bench


if __name__ == "__main__":
    about = __doc__.splitlines()[0]
    run_arms(about, RESULTS, list(ARMS), FINETUNING_QUESTIONS, prepared, lambda bench, arm: ARMS[arm](bench), LADDER)
