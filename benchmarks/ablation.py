"""What the ablations share: each arm trained and scored once a seed, a row each, and the answers to their questions."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from methods import score  # of this folder: mAP on medium and hard, plain and whitened

from retrieval_utils.claims import finetuning_answers
from retrieval_utils.networks import DescriptorNetwork


def run_arms(
    description: str,
    results: Path,
    arms: Sequence[str],
    questions: Mapping[str, tuple[str, Sequence[str]]],
    prepared: Callable[[int, str], Any],
    train: Callable[[Any, str], DescriptorNetwork],
    untimed: Sequence[str] = (),
) -> None:
    """The command line of an ablation.

    prepared(seed, run_dir): what the arms of a seed start from, made before the clock runs. train(prepared, arm): the
    network of an arm. untimed: arms that are taken from the run, whose minutes stay empty.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("arms", nargs="*", metavar="ARM", help=f"default: all of {', '.join(arms)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", default="runs", help="folder of the runs whose networks are the starts")
    options = parser.parse_args()
    unknown = [arm for arm in options.arms if arm not in arms]
    if unknown:
        parser.error(f"there is no arm '{unknown[0]}'; there are {', '.join(arms)}")
    torch.set_num_threads(1)
    rows = pd.read_csv(results).to_dict("records") if results.is_file() else []
    starts = {seed: prepared(seed, options.runs) for seed in options.seeds}
    for arm in options.arms or arms:
        for seed, start in starts.items():
            if not any(row["name"] == arm and row["seed"] == seed for row in rows):
                began = time.process_time()
                network = train(start, arm)
                minutes = None if arm in untimed else round((time.process_time() - began) / 60, 2)
                rows.append({"name": arm, "seed": seed} | score(network) | {"minutes": minutes})
                print(rows[-1], flush=True)
                results.parent.mkdir(exist_ok=True)
                pd.DataFrame(rows).to_csv(results, index=False, float_format="%.4f", lineterminator="\n")
    frame = pd.DataFrame(rows)
    for question, (reference, others) in questions.items():
        if {reference, *others} <= set(frame["name"]):
            print(finetuning_answers(frame, {question: (reference, others)}).to_string(index=False), end="\n\n")
