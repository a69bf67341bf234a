"""What the two reconstructions, LRML and AutoRet, owe to the choices that their papers leave open: smoke profile.

Every arm changes one thing of its base, which is the ladder's `lrml` or `autoret`, trained with the same images and
steps. Scored on the toy benchmark, with which nothing is chosen here. The positives "listed" of LRML are no arm: drawn
landmarks list no pairs. Writes each row to results/ablation/reconstructions.csv, skips those it holds, and prints the
answer to each question.

    .venv/bin/python benchmarks/reconstruction_ablation.py [ARM ...] [--seeds 0 1 2] [--runs runs]

minutes: of one CPU core, of what the arm trains itself; not of the contrastive network that LRML starts from, which is
taken from the run (and trained there if it has none).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from ablation import run_arms  # of this folder

from retrieval_utils.autoret import AutoRetSettings, train_autoret
from retrieval_utils.claims import RECONSTRUCTION_QUESTIONS
from retrieval_utils.contrastive import pretrain
from retrieval_utils.finetuning import add_whitening_head
from retrieval_utils.lrml import LRMLSettings, learn_to_rank
from retrieval_utils.networks import DescriptorNetwork, load_network
from retrieval_utils.profiles import get_profile
from retrieval_utils.records import Run
from retrieval_utils.recurrent_network import load_autoret

RESULTS = Path(__file__).resolve().parents[1] / "results" / "ablation" / "reconstructions.csv"
PROFILE = get_profile("smoke")


def about_the_mean(settings: LRMLSettings, delta: float) -> LRMLSettings:
    """Another delta, and the margin that keeps the mean of the five: else more than the ranks would change."""
    return replace(settings, delta=delta, margin=round(settings.margin + 2 * (settings.delta - delta), 6))


def patches(**changes: object) -> Callable[[AutoRetSettings], AutoRetSettings]:
    return lambda settings: replace(settings, network=replace(settings.network, **changes))


LRML_ARMS: dict[str, Callable[[LRMLSettings], LRMLSettings]] = {
    "lrml": lambda settings: settings,
    "lrml, delta 0 and order 0": lambda settings: replace(about_the_mean(settings, 0.0), order=0.0),
    "lrml, delta 0": lambda settings: about_the_mean(settings, 0.0),
    "lrml, order 0": lambda settings: replace(settings, order=0.0),
    "lrml, delta 0.1": lambda settings: about_the_mean(settings, 0.1),
    "lrml, order 0.5": lambda settings: replace(settings, order=0.5),
    "lrml, margin 0.7": lambda settings: replace(settings, margin=0.7),
    "lrml, pool 50": lambda settings: replace(settings, pool=50),
    "lrml, pool 200": lambda settings: replace(settings, pool=200),
    "lrml, mined every batch": lambda settings: replace(settings, mine_every=1),
    "lrml, mined once an epoch": lambda settings: replace(settings, mine_every=settings.batches),
    "lrml, statistics move": lambda settings: replace(settings, frozen=False),
}
AUTORET_ARMS: dict[str, Callable[[AutoRetSettings], AutoRetSettings]] = {
    "autoret": lambda settings: settings,
    "autoret, overlap 0": patches(overlap=0.0),
    "autoret, snake": patches(snake=True),
    "autoret, without the whole": patches(whole=False),
    "autoret, no atrous rates": patches(rates=1),
    "autoret, no pyramid": patches(pyramid=1),
    "autoret, alpha 10": lambda settings: replace(settings, alpha=10.0),
    "autoret, leak 0.1": lambda settings: replace(settings, leak=0.1),
    "autoret, other not augmented": lambda settings: replace(settings, augment_other=False),
}
ARMS = (*LRML_ARMS, *AUTORET_ARMS)


class Bench:
    """One seed: its starts, its data, and how an arm is trained from them."""

    def __init__(self, seed: int, run_dir: str):
        self.seed, self.run = seed, Run.open(run_dir, PROFILE.name, seed)
        self.photos = self.run.training_set("instances")
        self.lrml = replace(PROFILE.lrml_settings(seed), device="cpu")
        self.autoret = replace(PROFILE.autoret, seed=seed, device="cpu")

    @cached_property
    def headed(self) -> DescriptorNetwork:
        """The contrastive network with the head that all arms of LRML start with, fitted once."""
        fresh = load_network(PROFILE.backbone, pooling=PROFILE.pooling, seed=self.seed)
        general, settings = self.run.training_set("categories"), PROFILE.pretraining_settings("simclr", self.seed)
        network = deepcopy(self.run.train("contrastive", fresh, pretrain, general, settings).network)
        add_whitening_head(network, self.photos, self.lrml.head_dim, self.lrml.image_size * 3 // 2, "cpu")
        return network

    def trained(self, arm: str) -> DescriptorNetwork:
        if arm in LRML_ARMS:
            settings, network = LRML_ARMS[arm](self.lrml), deepcopy(self.headed)
            learn_to_rank(network, self.photos, replace(settings, head_dim=0))  # 0: it has its head
        else:
            settings = AUTORET_ARMS[arm](self.autoret)
            network = load_autoret(seed=self.seed, settings=settings.network)
            train_autoret(network, self.photos, settings)
        return network


def prepared(seed: int, run_dir: str) -> Bench:
    bench = Bench(seed, run_dir)
    bench.headed  # noqa: B018 - trained now, if it has to be
    return bench


if __name__ == "__main__":
    run_arms(__doc__.splitlines()[0], RESULTS, ARMS, RECONSTRUCTION_QUESTIONS, prepared, Bench.trained)
