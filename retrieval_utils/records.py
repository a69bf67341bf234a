"""What a run leaves behind: trained networks that can be reused, and scores that say under which protocol they hold."""

from __future__ import annotations

import inspect
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import torch

from retrieval_utils.datasets import Benchmark, TrainingSet, load_benchmark, load_training_set
from retrieval_utils.evaluation import Report, evaluate
from retrieval_utils.extraction import extract_descriptors, precision
from retrieval_utils.networks import DescriptorNetwork, load_weights, save_network
from retrieval_utils.profiles import Profile, get_profile
from retrieval_utils.protocol import ProtocolCard, state_sha256
from retrieval_utils.ranking import cosine_scores
from retrieval_utils.result_files import report_record, write_json
from retrieval_utils.resume import code_sha256, seconds_spent
from retrieval_utils.scoring import protocol_card
from retrieval_utils.training import History
from retrieval_utils.whitening import PCAWhitening

PARTS = ("categories", "instances")  # of the training images: the general domain, and that of the benchmark


@dataclass(frozen=True)
class Trained:
    """A network, the history of its training, the minutes all of its training took, and whether it was reused."""

    network: DescriptorNetwork
    history: History
    minutes: float
    reused: bool = False


@dataclass(frozen=True)
class Scored:
    """One step of the ladder: reports and cards without and with whitening, and the arrays to draw pictures from."""

    step: str
    report: Report
    whitened: Report
    card: ProtocolCard
    whitened_card: ProtocolCard
    queries: torch.Tensor  # (Q, D) descriptors
    database: torch.Tensor  # (N, D) descriptors
    scores: torch.Tensor  # (Q, N)
    whitened_scores: torch.Tensor  # (Q, N)

    def __str__(self) -> str:
        return f"{self.step}\n{self.report}\n\n{self.step}+whitening\n{self.whitened}"

    def _repr_html_(self) -> str:
        plain, whitened = self.report._repr_html_(), self.whitened._repr_html_()
        return f"<p>{self.step}</p>{plain}<p>{self.step}+whitening</p>{whitened}"


@dataclass(frozen=True)
class Run:
    """One pass through the road with one profile and one seed; its folder is <run_dir>/<profile>/seed-<seed>/."""

    folder: Path
    profile: Profile
    seed: int
    data_root: str = ""

    @classmethod
    def open(cls, run_dir: str | Path, profile: str, seed: int = 0, data_root: str = "") -> Run:
        """Makes the folder if it is not there. Raises ValueError for an unknown profile."""
        chosen = get_profile(profile)
        folder = Path(run_dir) / chosen.name / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, chosen, seed, data_root)

    @cached_property
    def benchmark(self) -> Benchmark:
        return load_benchmark(self.profile.data, self.data_root or None, size=self.profile.toy_size)

    @cache  # noqa: B019 - a run lives as long as its notebook
    def training_set(self, part: str) -> TrainingSet:
        return load_training_set(self.profile.data, part, self.data_root or None, size=self.profile.toy_size)

    @cached_property
    def whitening_images(self) -> list[Path]:
        """The training images of both parts, or as many of them, evenly spread, as the profile takes."""
        images = [path for part in PARTS for path in self.training_set(part).images]
        most = self.profile.whitening_images or len(images)
        return images[:: math.ceil(len(images) / most)]

    def train(
        self,
        name: str,
        network: DescriptorNetwork,
        procedure: Callable[..., History],
        training_set: TrainingSet,
        settings: object,
        start: Trained | None = None,
    ) -> Trained:
        """`procedure(network, training_set, settings)`, or the network it gave before under the same conditions.

        Conditions are the settings, the data, the weights it starts from and the code of the package; when one of them
        changed, it trains again. start: the training `network` comes from, whose minutes are added.
        A procedure that takes `checkpoint` keeps one beside the network until that is saved, and goes on from it when
        the run was killed; raises ValueError for one that belongs to other conditions.
        """
        weights, record = self.folder / "networks" / f"{name}.safetensors", self.folder / "networks" / f"{name}.json"
        conditions = {
            "procedure": procedure.__name__,
            "settings": asdict(settings),
            "data": training_set.fingerprint,
            "start": state_sha256(network),
            "code": code_sha256(),
        }
        before = start.minutes if start else 0.0
        if weights.is_file() and record.is_file():
            known = json.loads(record.read_text())
            if known["conditions"] == conditions:
                load_weights(network, weights).eval()
                return Trained(network, known["history"], before + known["minutes"], reused=True)
        checkpoint, keeps = weights.with_suffix(".checkpoint"), {}
        if "checkpoint" in inspect.signature(procedure).parameters:
            keeps = {"checkpoint": checkpoint}
        began = time.perf_counter() - seconds_spent(checkpoint)
        history = procedure(network, training_set, settings, **keeps)
        minutes = (time.perf_counter() - began) / 60
        save_network(network, weights)
        write_json(record, {"conditions": conditions, "minutes": minutes, "history": history})
        checkpoint.unlink(missing_ok=True)
        return Trained(network, history, before + minutes)

    def score(self, step: str, network: DescriptorNetwork, minutes: float = 0.0) -> Scored:
        """Describes the benchmark, ranks by cosine without and with whitening, evaluates, and records both.

        The whitening is fitted on `whitening_images`, never on the benchmark. minutes: of training.
        Writes steps/<step>.json and steps/<step>+whitening.json in the run's folder.
        """
        profile, benchmark = self.profile, self.benchmark
        describe = {"scales": profile.scales, "image_size": profile.image_size}
        queries = extract_descriptors(network, benchmark.queries, benchmark.boxes, **describe)  # (Q, D)
        database = extract_descriptors(network, benchmark.images, **describe)  # (N, D)
        training = extract_descriptors(network, self.whitening_images, **describe)  # (M, D)
        whitening = PCAWhitening.fit(training, dim=profile.whitening_dim)
        scores = cosine_scores(queries, database)  # (Q, N)
        whitened_scores = cosine_scores(whitening(queries), whitening(database))  # (Q, N)
        card = protocol_card(self.benchmark, network, profile.image_size, profile.scales, precision())
        parts = " and ".join(self.training_set(part).name for part in PARTS)
        fitted_on = f"{len(training):,} images of {parts}" if profile.whitening_images else parts
        whitened_card = replace(card, whitening=str(whitening), whitening_fitted_on=fitted_on)
        report = self.record(step, scores, card, minutes)
        whitened = self.record(f"{step}+whitening", whitened_scores, whitened_card, minutes)
        return Scored(step, report, whitened, card, whitened_card, queries, database, scores, whitened_scores)

    def record(
        self, step: str, scores: torch.Tensor | Iterable[torch.Tensor], card: ProtocolCard, minutes: float = 0.0
    ) -> Report:
        """The report of scores (Q, N), or blocks (Q, n) of them, on the benchmark; writes steps/<step>.json.

        card: the protocol under which the scores were made. minutes: of all the training that the step builds on.
        """
        report = evaluate(scores, self.benchmark.ground_truth, setups=self.benchmark.setups)
        report = replace(report, card=card)
        run = {"step": step, "profile": self.profile.name, "seed": self.seed, "minutes": minutes}
        record = run | report_record(report)
        write_json(self.folder / "steps" / f"{step}.json", record)
        return report


def load_steps(folder: str | Path) -> dict[str, dict]:
    """The records of a run's folder by step, in the order they were written."""
    files = sorted(Path(folder, "steps").glob("*.json"), key=lambda file: file.stat().st_mtime)
    return {record["step"]: record for record in (json.loads(file.read_text()) for file in files)}
