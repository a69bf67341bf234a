"""What decides whether contrastive features beat a classifier's on the real photos: one setting changed at a time.

Every arm pretrains the laptop profile's network on the same photos, at a third of its budget, and is scored, plain and
whitened, on `grocery-store-validation`: products of the fine-tuning half, so that nothing is chosen on a test query.
Writes results/ablation/pretraining.csv after each arm and skips the arms it holds already.

    .venv/bin/python benchmarks/pretraining_ablation.py [--seeds 0 1] [ARM ...]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from retrieval_utils.contrastive import pretrain
from retrieval_utils.datasets import load_benchmark, load_training_set
from retrieval_utils.evaluation import evaluate
from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.networks import load_network
from retrieval_utils.profiles import get_profile
from retrieval_utils.ranking import cosine_scores
from retrieval_utils.whitening import PCAWhitening

RESULTS = Path(__file__).resolve().parents[1] / "results" / "ablation" / "pretraining.csv"
BASE = {"image_size": 48, "epochs": 8}  # a third of the profile's budget, so that every arm can be run
STRONG = {"jitter": 1.0, "min_scale": 0.08, "grayscale": 0.2}
ARMS = {
    "random network": None,
    "classifier": {"method": "classifier"},
    "simclr": {},
    "simclr, projection head": {"projection_dim": 128},
    "simclr, temperature 0.5": {"temperature": 0.5},
    "simclr, strong augmentation": STRONG,
    "classifier, strong augmentation": {"method": "classifier", **STRONG},
    "simclr, batch 256": {"batch_size": 256},
    "classifier, batch 256": {"method": "classifier", "batch_size": 256},
    "simclr, 64 px": {"image_size": 64},
    "classifier, 64 px": {"method": "classifier", "image_size": 64},
    "simclr, 3 times the epochs": {"epochs": 24},
    "classifier, 3 times the epochs": {"method": "classifier", "epochs": 24},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="*", metavar="ARM", help=f"default: all of {', '.join(ARMS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    unknown = [arm for arm in options.arms if arm not in ARMS]
    if unknown:
        parser.error(f"there is no arm '{unknown[0]}'; there are {', '.join(ARMS)}")
    rows = pd.read_csv(RESULTS).to_dict("records") if RESULTS.is_file() else []
    for seed in options.seeds:
        for arm in options.arms or ARMS:
            if not any(row["arm"] == arm and row["seed"] == seed for row in rows):
                rows.append({"arm": arm, "seed": seed, **run_arm(ARMS[arm], seed)})
                print(rows[-1], flush=True)
                RESULTS.parent.mkdir(exist_ok=True)
                pd.DataFrame(rows).to_csv(RESULTS, index=False, float_format="%.4f")


def run_arm(change: dict | None, seed: int) -> dict[str, float]:
    """Trains one arm and returns its mAP plain and whitened, and the CPU minutes of its training."""
    profile = get_profile("laptop")
    bench = load_benchmark("grocery-store-validation")
    pool, instances = (load_training_set("grocery-store", part) for part in ("categories", "instances"))
    network = load_network(profile.backbone, pooling=profile.pooling, seed=seed)
    settings = replace(profile.pretraining_settings("simclr", seed), **BASE | (change or {}))
    began = time.process_time()
    if change is not None:
        pretrain(network, pool, settings)
    minutes = (time.process_time() - began) / 60

    def describe(images):
        return extract_descriptors(network, images, image_size=settings.image_size * 3 // 2)

    queries, database = describe(bench.queries), describe(bench.images)  # (Q, D), (N, D)
    whitening = PCAWhitening.fit(describe(pool.images + instances.images), dim=profile.whitening_dim)
    plain = evaluate(cosine_scores(queries, database), bench.ground_truth, bench.setups)["original"]
    whitened = cosine_scores(whitening(queries), whitening(database))  # (Q, N)
    whitened = evaluate(whitened, bench.ground_truth, bench.setups)["original"]
    return {"mean_ap": plain.mean_ap, "mean_ap_whitened": whitened.mean_ap, "cpu_minutes": round(minutes, 2)}


if __name__ == "__main__":
    main()
