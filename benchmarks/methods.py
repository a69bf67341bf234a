"""Every contrastive method and every loss at one small budget, several seeds: which differences exceed the seeds'?

Methods pretrain the smoke profile's network on half of the toy landmarks' pretraining pictures; losses fine-tune what
SimCLR gave at that budget. Scored on the toy benchmark, with which nothing is chosen here. Appends each row to
results/methods-smoke.csv, skips those it holds already, and prints the table.

    .venv/bin/python benchmarks/methods.py [--seeds 0 1 2] [--methods NAME ...] [--epochs 4]
"""

from __future__ import annotations

import argparse
import time
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import torch

from retrieval_utils.claims import beyond_the_seeds
from retrieval_utils.contrastive import pretrain
from retrieval_utils.contrastive_methods import METHODS
from retrieval_utils.datasets import TrainingSet, load_benchmark, load_training_set
from retrieval_utils.evaluation import evaluate
from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.finetuning import LOSSES, finetune
from retrieval_utils.networks import DescriptorNetwork, load_network
from retrieval_utils.profiles import get_profile
from retrieval_utils.ranking import cosine_scores
from retrieval_utils.whitening import PCAWhitening

RESULTS = Path(__file__).resolve().parents[1] / "results" / "methods-smoke.csv"
PROFILE = get_profile("smoke")
DATA = PROFILE.data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=[*METHODS, *LOSSES], metavar="NAME", help="methods and losses")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    unknown = [name for name in options.methods if name not in {*METHODS, *LOSSES}]
    if unknown:
        parser.error(f"there is no method or loss '{unknown[0]}'; there are {', '.join([*METHODS, *LOSSES])}")
    torch.set_num_threads(1)
    rows = pd.read_csv(RESULTS).to_dict("records") if RESULTS.is_file() else []
    if any(row["epochs"] != options.epochs for row in rows):
        parser.error(f"{RESULTS.name} holds rows of {rows[0]['epochs']} epochs; take as many, or move it away")
    for seed in options.seeds:
        for name in options.methods:
            if not any(row["name"] == name and row["seed"] == seed for row in rows):
                kind = "method" if name in METHODS else "loss"
                network, minutes = (pretrained if kind == "method" else finetuned)(name, seed, options.epochs)
                what = {"name": name, "kind": kind, "seed": seed, "epochs": options.epochs}
                rows.append(what | score(network) | {"minutes": minutes})
                print(rows[-1], flush=True)
                pd.DataFrame(rows).to_csv(RESULTS, index=False, float_format="%.4f", lineterminator="\n")
    for _, group in pd.DataFrame(rows).groupby("kind", sort=False):
        print(beyond_the_seeds(group).to_string(index=False), end="\n\n")


@cache
def pretrained(method: str, seed: int, epochs: int) -> tuple[DescriptorNetwork, float]:
    """The network that `method` trains on every second picture, and the CPU minutes this took."""
    whole = load_training_set(DATA, "categories")
    half = TrainingSet(whole.name, whole.images[::2], whole.labels[::2], whole.label_names, whole.fingerprint + "/2")
    network = load_network(PROFILE.backbone, pooling=PROFILE.pooling, seed=seed)
    settings = replace(PROFILE.pretraining_settings(method, seed), epochs=epochs, device="cpu")
    began = time.process_time()
    pretrain(network, half, settings)
    return network, (time.process_time() - began) / 60


def finetuned(loss: str, seed: int, epochs: int) -> tuple[DescriptorNetwork, float]:
    """SimCLR's network of this seed and budget, fine-tuned with `loss`, and the CPU minutes of the fine-tuning."""
    network = deepcopy(pretrained("simclr", seed, epochs)[0])
    settings = replace(PROFILE.finetuning_settings(seed, loss), epochs=epochs, device="cpu")
    began = time.process_time()
    finetune(network, load_training_set(DATA, "instances"), settings)
    return network, (time.process_time() - began) / 60


def score(network: DescriptorNetwork) -> dict[str, float]:
    """mAP on the toy benchmark, medium and hard, plain and after a whitening fitted on the training pictures."""
    bench = load_benchmark(DATA)
    parts = [load_training_set(DATA, part) for part in ("categories", "instances")]

    def describe(images, boxes=None):
        return extract_descriptors(network, images, boxes, image_size=PROFILE.image_size, device="cpu")

    queries, database = describe(bench.queries, bench.boxes), describe(bench.images)  # (Q, D), (N, D)
    whitening = PCAWhitening.fit(describe([path for part in parts for path in part.images]), dim=PROFILE.whitening_dim)
    plain = evaluate(cosine_scores(queries, database), bench.ground_truth, bench.setups)
    whitened = evaluate(cosine_scores(whitening(queries), whitening(database)), bench.ground_truth, bench.setups)
    both = {"": plain, "_whitened": whitened}
    return {f"{setup}{suffix}": both[suffix][setup].mean_ap for setup in ("medium", "hard") for suffix in both}


if __name__ == "__main__":
    main()
