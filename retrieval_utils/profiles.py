"""Profiles: one named, documented set of values each, so that a notebook needs only a profile's name and a seed."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace

from retrieval_utils.autoret import AutoRetSettings
from retrieval_utils.contrastive import PretrainingSettings
from retrieval_utils.finetuning import FinetuningSettings
from retrieval_utils.lrml import LRMLSettings
from retrieval_utils.recurrent_network import PatchSettings


@dataclass(frozen=True)
class Profile:
    """Everything that differs between a run on a laptop and one on a GPU; the notebooks are the same."""

    name: str
    about: str
    data: str  # name of the benchmark and of the training set
    toy_size: str = "smoke"  # only for toy landmarks
    backbone: str = "resnet18-thin"
    pooling: str = "gem"
    image_size: int = 96  # longer side at test time, pixels: half as large again as the training crops show it
    scales: tuple[float, ...] = (1.0,)
    whitening_dim: int | None = 64
    whitening_images: int | None = None  # at most so many training images it is fitted on, evenly spread; None: all
    pretraining: PretrainingSettings = field(default_factory=PretrainingSettings)
    finetuning: FinetuningSettings = field(default_factory=FinetuningSettings)
    autoret: AutoRetSettings = field(default_factory=AutoRetSettings)
    label_fractions: tuple[float, ...] = (0.1, 0.25, 0.5)  # that AutoRet also trains with, between none and all
    lrml: LRMLSettings = field(default_factory=LRMLSettings)

    def pretraining_settings(self, method: str, seed: int) -> PretrainingSettings:
        """The profile's pretraining with this method and seed; the budget is the same for all."""
        return replace(self.pretraining, method=method, seed=seed)

    def finetuning_settings(self, seed: int, loss: str | None = None) -> FinetuningSettings:
        """The profile's fine-tuning with this seed, and this loss if named."""
        return replace(self.finetuning, seed=seed, loss=loss or self.finetuning.loss)

    def lrml_settings(self, seed: int, loss: str | None = None) -> LRMLSettings:
        """The profile's training on tuples with this seed, and the loss of this arm if named; one budget for all."""
        return replace(self.lrml, seed=seed, loss=loss or self.lrml.loss)


# SimCLR without its projection head: telling one photo from all others is what retrieval does too, so nothing has to be
# shielded from the loss. benchmarks/pretraining_ablation.py puts the head beside it, on validation products.
SMALL = PretrainingSettings(
    epochs=12, learning_rate=2e-3, min_scale=0.2, grayscale=0.0, temperature=0.1, projection_dim=0
)

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="tiny",
            about="a handful of toy landmarks, to see in a minute that everything runs; its numbers mean nothing",
            data="toy-landmarks",
            toy_size="tiny",
            whitening_dim=16,
            pretraining=replace(SMALL, epochs=2, batch_size=32),
            finetuning=FinetuningSettings(epochs=2, batches=2, instances=8, head_dim=32),
            autoret=AutoRetSettings(epochs=2, batch_size=10, image_size=32),
            lrml=LRMLSettings(epochs=2, batches=2, mine_every=1, tuples=4, pool=40, head_dim=32),
        ),
        Profile(
            name="smoke",
            about="toy landmarks, drawn by code; 2 CPU cores, offline",
            data="toy-landmarks",
            image_size=72,
            whitening_images=800,
            pretraining=replace(SMALL, epochs=12, image_size=48),
            # Larger crops than on laptop: in so few steps a network does not learn to match quarters of a building.
            finetuning=FinetuningSettings(epochs=9, image_size=48, min_scale=0.5),
            autoret=AutoRetSettings(network=PatchSettings(width=16), epochs=1, batch_size=16, image_size=40),
            label_fractions=(0.25,),
            lrml=LRMLSettings(epochs=2, batches=5, mine_every=3, pool=100, image_size=48, min_scale=0.5),
        ),
        Profile(
            name="laptop",
            about="real photos (Grocery Store, 64 px); 2 CPU cores or any GPU",
            data="grocery-store",
            pretraining=SMALL,
            finetuning=FinetuningSettings(epochs=20),
            autoret=AutoRetSettings(epochs=8, batch_size=32),
            label_fractions=(0.25,),
            lrml=LRMLSettings(epochs=2),
        ),
        Profile(
            name="gpu",
            about="real photos (Grocery Store, 224 px), ResNet-50 in bfloat16; one GPU",
            data="grocery-store",
            backbone="resnet50",
            image_size=320,
            whitening_dim=256,
            pretraining=replace(SMALL, epochs=100, batch_size=256, image_size=224, precision="bf16-mixed"),
            finetuning=FinetuningSettings(epochs=30, image_size=224, precision="bf16-mixed"),
            autoret=AutoRetSettings(network=PatchSettings(backbone="resnet50"), image_size=224, precision="bf16-mixed"),
            lrml=LRMLSettings(epochs=30, image_size=224, precision="bf16-mixed"),
        ),
    )
}


def get_profile(name: str) -> Profile:
    """The profile of that name; raises ValueError with the names there are."""
    if name not in PROFILES:
        near = difflib.get_close_matches(name, PROFILES, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise ValueError(f"There is no profile '{name}'{hint}; choose one of {', '.join(PROFILES)}.")
    return PROFILES[name]
