"""A network scored on a benchmark: described, whitened if wanted, ranked by cosine, evaluated, with its card."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from retrieval_utils import transforms
from retrieval_utils.datasets import Benchmark, load_benchmark, load_training_set
from retrieval_utils.evaluation import Report, evaluate
from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.networks import DescriptorNetwork, load_network
from retrieval_utils.protocol import AVERAGE_PRECISION, JUNK, PRECISION_CAP, ProtocolCard, state_sha256
from retrieval_utils.ranking import cosine_scores
from retrieval_utils.result_files import report_record, write_json
from retrieval_utils.whitening import PCAWhitening

BLOCK = 50_000  # database images described at a time: of a million distractors no more are ever in memory
WHITENING_PARTS = {
    "toy-landmarks": ("categories", "instances"),
    "grocery-store": ("categories", "instances"),
    "retrieval-sfm-30k": ("whitening",),
    "retrieval-sfm-120k": ("whitening",),
}


def run_evaluation(
    benchmark: str,
    network: str,
    weights: str = "imagenet",
    pooling: str = "gem",
    image_size: int = 1024,
    scales: Sequence[float] = (1.0,),
    whitening_dim: int | None = None,
    whiten_on: str = "",
    root: str | Path | None = None,
    output: Path | None = None,
    progress: bool = False,
) -> Report:
    """Loads benchmark and network by name, scores the one with the other, and writes `output` if it is named.

    whitening_dim: dimensions kept by a PCA whitening; None is no whitening. whiten_on: the training set it is fitted
    on, one of WHITENING_PARTS; "" is the benchmark's own, and retrieval-sfm-120k for one that has none.
    Raises ValueError or OSError, one sentence, before the long work where that is possible.
    """
    if image_size < 1:
        raise ValueError(f"The image size is a number of pixels, such as 1024; {image_size} is not.")
    if output is not None:
        _check_output(output)
    bench = load_benchmark(benchmark, root)
    net = load_network(network, weights, pooling)
    describe = {"image_size": image_size, "scales": tuple(scales), "progress": progress}
    whitening, fitted_on = None, "nothing"
    if whitening_dim is not None:
        name = whiten_on or _own_training_set(benchmark)
        whitening, fitted_on = fit_whitening(net, name, whitening_dim, root, **describe)
    report = score_benchmark(bench, net, whitening=whitening, fitted_on=fitted_on, **describe)
    if output is not None:
        write_json(output, report_record(report))
    return report


def score_benchmark(
    benchmark: Benchmark,
    network: DescriptorNetwork,
    image_size: int = 1024,
    scales: Sequence[float] = (1.0,),
    whitening: PCAWhitening | None = None,
    fitted_on: str = "nothing",
    progress: bool = False,
) -> Report:
    """The report of `network` on `benchmark`, with its card; the database is described and scored block by block.

    fitted_on: names of the images that `whitening` was fitted on, for the card.
    """

    def describe(images: Sequence[Path], boxes: Sequence | None = None) -> torch.Tensor:
        found = extract_descriptors(
            network, images, boxes, scales=scales, image_size=image_size, progress=progress
        )  # (n, D)
        return found if whitening is None else whitening(found)

    def blocks() -> Iterator[torch.Tensor]:
        for start in range(0, len(benchmark.images), BLOCK):
            yield cosine_scores(queries, describe(benchmark.images[start : start + BLOCK]))  # (Q, n)

    queries = describe(benchmark.queries, benchmark.boxes)  # (Q, D)
    report = evaluate(blocks(), benchmark.ground_truth, benchmark.setups)
    card = protocol_card(benchmark, network, image_size, scales)
    if whitening is not None:
        card = replace(card, whitening=str(whitening), whitening_fitted_on=fitted_on)
    return replace(report, card=card)


def fit_whitening(
    network: DescriptorNetwork, name: str, dim: int, root: str | Path | None = None, **describe
) -> tuple[PCAWhitening, str]:
    """A PCA whitening to `dim` dimensions fitted on training set `name`, and the words for it on a card.

    describe: settings of `extract_descriptors`, those of the benchmark. Raises ValueError for an unknown name, and for
    more dimensions than the network or the number of images gives.
    """
    if name not in WHITENING_PARTS:
        raise ValueError(f"There is no training set '{name}' to whiten on; choose one of {', '.join(WHITENING_PARTS)}.")
    parts = [load_training_set(name, part, root) for part in WHITENING_PARTS[name]]
    images = [path for part in parts for path in part.images]
    most = min(network.dim, len(images) - 1)
    if not 1 <= dim <= most:
        raise ValueError(
            f"Whitening on {len(images):,} images of {name} keeps 1 to {most} of {network.dim} dimensions, not {dim}."
        )
    fitted = PCAWhitening.fit(extract_descriptors(network, images, **describe), dim=dim)
    return fitted, " and ".join(part.name for part in parts)


def protocol_card(
    benchmark: Benchmark,
    network: DescriptorNetwork,
    image_size: int,
    scales: Sequence[float],
    method: str = "trapezoid",
) -> ProtocolCard:
    """The card of an evaluation without whitening by `extract_descriptors`, `cosine_scores` and `evaluate`."""
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
