"""A network scored on a benchmark: described, whitened and expanded if wanted, ranked, evaluated, with its card."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from retrieval_utils import transforms
from retrieval_utils.datasets import Benchmark, TrainingSet, load_benchmark, load_training_set
from retrieval_utils.datasets.archives import disk_trouble
from retrieval_utils.datasets.sfm import PairSet
from retrieval_utils.evaluation import Report, evaluate
from retrieval_utils.extraction import extract_descriptors, precision
from retrieval_utils.neighbours import NONE, Neighbours
from retrieval_utils.networks import DescriptorNetwork, load_network, resolve_device
from retrieval_utils.protocol import AVERAGE_PRECISION, JUNK, PRECISION_CAP, ProtocolCard, state_sha256
from retrieval_utils.ranking import cosine_scores
from retrieval_utils.result_files import report_record, write_json
from retrieval_utils.whitening import LearnedWhitening, PCAWhitening, matching_pairs

BLOCK = 50_000  # database images described at a time: of a million distractors no more are ever in memory
WHITENINGS = ("none", "pca", "learned")
WHITENING_PARTS = {
    "toy-landmarks": ("categories", "instances"),
    "grocery-store": ("categories", "instances"),
    "retrieval-sfm-30k": ("whitening",),
    "retrieval-sfm-120k": ("whitening",),
}
Whitening = PCAWhitening | LearnedWhitening


def run_evaluation(
    benchmark: str,
    network: str,
    weights: str = "imagenet",
    pooling: str = "gem",
    image_size: int = 1024,
    scales: Sequence[float] = (1.0,),
    whitening: str = "none",
    whitening_dim: int | None = None,
    whiten_on: str = "",
    neighbours: Neighbours = NONE,
    root: str | Path | None = None,
    output: Path | None = None,
    **extraction,
) -> Report:
    """Loads benchmark and network by name, scores the one with the other, and writes `output` if it is named.

    whitening: "none", "pca", or "learned" (from pairs of one instance). whitening_dim: dimensions it keeps; None is all
    that the network has. whiten_on: the training set it is fitted on, one of WHITENING_PARTS and never a benchmark; ""
    is the benchmark's own, and retrieval-sfm-120k for one that has none. extraction: device, cache, workers and
    progress, as `extract_descriptors` takes them: nothing that a number depends on.
    Raises ValueError or OSError, one sentence, before the long work where that is possible.
    """
    if image_size < 1:
        raise ValueError(f"The image size is a number of pixels, such as 1024; {image_size} is not.")
    if whitening not in WHITENINGS:
        raise ValueError(f"There is no whitening '{whitening}'; choose one of {', '.join(WHITENINGS)}.")
    if whitening == "none" and (whitening_dim is not None or whiten_on):
        raise ValueError("Nothing is whitened: give --whitening pca or learned too.")
    resolve_device(extraction.get("device", "auto"))
    if output is not None:
        _check_output(output)
    bench = load_benchmark(benchmark, root)
    if not bench.queries:
        raise ValueError(
            f"There is nothing to score in '{root or benchmark}': an image-folder is scored with one folder for "
            "each instance, of two photos or more; a flat one can be searched with the command `search`."
        )
    net = load_network(network, weights, pooling)
    describe = {"image_size": image_size, "scales": tuple(scales), **extraction}
    fitted, fitted_on = None, "nothing"
    if whitening != "none":
        name = whiten_on or _own_training_set(benchmark)
        place = None if benchmark == "image-folder" else root  # a person's own photos, where no training set lies
        fitted, fitted_on = fit_whitening(net, name, whitening, whitening_dim, place, **describe)
    report = score_benchmark(bench, net, whitening=fitted, fitted_on=fitted_on, neighbours=neighbours, **describe)
    if output is not None:
        with disk_trouble(output, leftovers=(output.with_name(f"{output.name}.part"),)):
            write_json(output, report_record(report))
    return report


def score_benchmark(
    benchmark: Benchmark,
    network: DescriptorNetwork,
    image_size: int = 1024,
    scales: Sequence[float] = (1.0,),
    whitening: Whitening | None = None,
    fitted_on: str = "nothing",
    neighbours: Neighbours = NONE,
    **extraction,
) -> Report:
    """The report of `network` on `benchmark`, with its card.

    The database is described and scored block by block; with `neighbours` all of its descriptors are held.
    fitted_on: names of the images that `whitening` was fitted on, for the card.
    """

    def describe(images: Sequence[Path], boxes: Sequence | None = None) -> torch.Tensor:
        found = extract_descriptors(network, images, boxes, scales, image_size, **extraction)  # (n, D)
        return found if whitening is None else whitening(found)

    queries = describe(benchmark.queries, benchmark.boxes)  # (Q, D)
    starts = range(0, len(benchmark.images), BLOCK)
    blocks = (describe(benchmark.images[start : start + BLOCK]) for start in starts)  # (n, D) each
    if neighbours:
        scores = neighbours.scores(queries, torch.cat(list(blocks)))
    else:
        scores = (cosine_scores(queries, block) for block in blocks)  # (Q, n) each
    report = evaluate(scores, benchmark.ground_truth, benchmark.setups)
    numbers = precision(**{key: extraction[key] for key in ("device", "autocast") if key in extraction})
    card = replace(protocol_card(benchmark, network, image_size, scales, numbers), **neighbours.on_card())
    if whitening is not None:
        card = replace(card, whitening=str(whitening), whitening_fitted_on=fitted_on)
    return replace(report, card=card)


def fit_whitening(
    network: DescriptorNetwork,
    name: str,
    method: str = "pca",
    dim: int | None = None,
    root: str | Path | None = None,
    **describe,
) -> tuple[Whitening, str]:
    """A whitening to `dim` dimensions (None: all) fitted on training set `name`, and the words for it on a card.

    method: "pca", on all images of the set, or "learned", on pairs: those of retrieval-sfm, else every two images of an
    instance. describe: settings of `extract_descriptors`, those of the benchmark. Raises ValueError for an unknown
    name, and for more dimensions than the network, the number of images or the number of pairs gives.
    """
    if name not in WHITENING_PARTS:
        raise ValueError(f"There is no training set '{name}' to whiten on; choose one of {', '.join(WHITENING_PARTS)}.")
    of = [part for part in WHITENING_PARTS[name] if method == "pca" or part != "categories"]  # no pairs in a category
    parts = [load_training_set(name, part, root) for part in of]
    images = [path for part in parts for path in part.images]
    dim, most = network.dim if dim is None else dim, min(network.dim, len(images) - 1)
    if not 1 <= dim <= most:
        raise ValueError(
            f"Whitening on {len(images):,} images of {name} keeps 1 to {most} of {network.dim} dimensions, not {dim}."
        )
    if method == "pca":
        fitted = PCAWhitening.fit(extract_descriptors(network, images, **describe), dim)
    else:
        pairs = training_pairs(*parts)  # (P, 2)
        if len(pairs) < network.dim:
            raise ValueError(
                f"Learned whitening of {network.dim} dimensions needs as many pairs of one instance, and {name} has "
                f"{len(pairs):,}: take --whitening pca."
            )
        fitted = LearnedWhitening.fit(extract_descriptors(network, images, **describe), pairs, dim)
    return fitted, " and ".join(part.name for part in parts)


def training_pairs(part: TrainingSet) -> torch.Tensor:
    """Matching pairs (P, 2) int64 of images: the set's own if it is a `PairSet`, else every two of an instance."""
    if isinstance(part, PairSet):
        return torch.from_numpy(np.stack([part.queries, part.positives], axis=1))
    return matching_pairs(torch.from_numpy(part.labels))


def protocol_card(
    benchmark: Benchmark,
    network: DescriptorNetwork,
    image_size: int,
    scales: Sequence[float],
    precision: str,
    method: str = "trapezoid",
) -> ProtocolCard:
    """The card of an evaluation without whitening by `extract_descriptors`, `cosine_scores` and `evaluate`.

    precision: what `extraction.precision` says of the device and autocast that the descriptors were extracted with.
    """
    return ProtocolCard(
        benchmark=benchmark.name,
        benchmark_hash=benchmark.fingerprint,
        variant=benchmark.variant,
        images=len(benchmark.images),
        queries=len(benchmark.queries),
        query_crop="whole image" if benchmark.boxes is None else "cropped to the box",
        image_size=image_size,
        resize=transforms.RESIZE_RULE,
        interpolation=transforms.INTERPOLATION.name.lower(),
        scales=tuple(scales),
        mean=tuple(network.mean),
        std=tuple(network.std),
        precision=precision,
        whitening="none",
        whitening_fitted_on="nothing",
        average_precision=AVERAGE_PRECISION[method],
        precision_cap=PRECISION_CAP,
        junk=JUNK,
        network=f"{network.settings['name']} + {network.settings['pooling']}",
        checkpoint=state_sha256(network),
    )


def _own_training_set(benchmark: str) -> str:
    name = benchmark.removesuffix("-validation")
    return name if name in WHITENING_PARTS else "retrieval-sfm-120k"


def _check_output(path: Path) -> None:
    """Raises ValueError or OSError now rather than after hours of extraction."""
    if path.is_dir():
        raise ValueError(f"The output '{path}' is a folder; name a file in it, such as '{path / 'result.json'}'.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise OSError(f"The folder '{path.parent}' cannot be written; name another --output.")
