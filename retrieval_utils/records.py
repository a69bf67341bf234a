"""What a run leaves behind: trained networks that can be reused, and scores that say under which protocol they hold."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import torch

from retrieval_utils import transforms
from retrieval_utils.datasets import Benchmark, TrainingSet, load_benchmark, load_training_set
from retrieval_utils.evaluation import Report, evaluate
from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.networks import DescriptorNetwork, load_weights, save_network
from retrieval_utils.profiles import Profile, get_profile
from retrieval_utils.ranking import cosine_scores
from retrieval_utils.training import History
from retrieval_utils.whitening import PCAWhitening


@dataclass(frozen=True)
class ProtocolCard:
    """All that a mean average precision depends on; two numbers compare when only network and checkpoint differ."""

    benchmark: str
    benchmark_hash: str
    images: int
    queries: int
    query_crop: str
    image_size: int
    resize: str
    interpolation: str
    scales: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    whitening: str
    whitening_fitted_on: str
    average_precision: str
    precision_cap: str
    junk: str
    network: str
    checkpoint: str  # sha256 of the weights

    @property
    def hash(self) -> str:
        """12 hexadecimal digits over every field."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict:
        return json.loads(json.dumps(asdict(self)))

    def differences(self, other: ProtocolCard) -> list[str]:
        """One line for each field of the protocol that differs: why two numbers are not comparable."""
        return [
            f"{key}: {mine} against {theirs}"
            for (key, mine), theirs in zip(self.to_dict().items(), other.to_dict().values(), strict=True)
            if mine != theirs and key not in ("network", "checkpoint")
        ]

    def __str__(self) -> str:
        scales = ", ".join(f"{scale:.3g}" for scale in self.scales)
        return (
            f"protocol {self.hash}: {self.benchmark} {self.benchmark_hash[:8]}, {self.queries} queries "
            f"({self.query_crop}), {self.images:,} images; {self.image_size} px ({self.resize}; {self.interpolation}), "
            f"scales {scales}; whitening {self.whitening}, fitted on {self.whitening_fitted_on}; "
            f"AP {self.average_precision}, {self.precision_cap}, {self.junk}; {self.network} {self.checkpoint[:8]}"
        )


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

    def train(
        self,
        name: str,
        network: DescriptorNetwork,
        procedure: Callable[[DescriptorNetwork, TrainingSet, object], History],
        training_set: TrainingSet,
        settings: object,
        start: Trained | None = None,
    ) -> Trained:
        """`procedure(network, training_set, settings)`, or the network it gave before under the same conditions.

        Conditions are the settings, the data, the weights it starts from and the code of the package; when one of them
        changed, it trains again. start: the training `network` comes from, whose minutes are added.
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
        began = time.perf_counter()
        history = procedure(network, training_set, settings)
        minutes = (time.perf_counter() - began) / 60
        save_network(network, weights)
        write_json(record, {"conditions": conditions, "minutes": minutes, "history": history})
        return Trained(network, history, before + minutes)

    def score(self, step: str, network: DescriptorNetwork, minutes: float = 0.0) -> Scored:
        """Describes the benchmark, ranks by cosine without and with whitening, evaluates, and records both.

        The whitening is fitted on the training images of both parts, never on the benchmark. minutes: of training.
        Writes steps/<step>.json and steps/<step>+whitening.json in the run's folder.
        """
        profile, benchmark = self.profile, self.benchmark
        describe = {"scales": profile.scales, "image_size": profile.image_size}
        queries = extract_descriptors(network, benchmark.queries, benchmark.boxes, **describe)  # (Q, D)
        database = extract_descriptors(network, benchmark.images, **describe)  # (N, D)
        parts = [self.training_set("categories"), self.training_set("instances")]
        whitening = PCAWhitening.fit(
            extract_descriptors(network, [path for part in parts for path in part.images], **describe),
            dim=profile.whitening_dim,
        )
        scores = cosine_scores(queries, database)  # (Q, N)
        whitened_scores = cosine_scores(whitening(queries), whitening(database))  # (Q, N)
        card = self._card(network)
        whitened_card = replace(
            card, whitening=str(whitening), whitening_fitted_on=" and ".join(part.name for part in parts)
        )
        report = self._record(step, scores, card, minutes)
        whitened = self._record(f"{step}+whitening", whitened_scores, whitened_card, minutes)
        return Scored(step, report, whitened, card, whitened_card, queries, database, scores, whitened_scores)

    def _card(self, network: DescriptorNetwork) -> ProtocolCard:
        return ProtocolCard(
            benchmark=self.benchmark.name,
            benchmark_hash=self.benchmark.fingerprint,
            images=len(self.benchmark.images),
            queries=len(self.benchmark.queries),
            query_crop="whole image" if self.benchmark.boxes is None else "cropped to the box",
            image_size=self.profile.image_size,
            resize=transforms.RESIZE_RULE,
            interpolation=transforms.INTERPOLATION.name.lower(),
            scales=self.profile.scales,
            mean=transforms.MEAN,
            std=transforms.STD,
            whitening="none",
            whitening_fitted_on="nothing",
            average_precision="trapezoid (Oxford/Paris)",
            precision_cap="k capped at the rank of the last positive",
            junk="junk removed before ranking",
            network=f"{network.settings['name']} + {network.settings['pooling']}",
            checkpoint=state_sha256(network),
        )

    def _record(self, step: str, scores: torch.Tensor, card: ProtocolCard, minutes: float) -> Report:
        report = evaluate(scores, self.benchmark.ground_truth, setups=self.benchmark.setups)
        setups = {}
        for setup in self.benchmark.setups:
            result = report[setup]
            setups[setup] = {
                "mean_ap": float(result.mean_ap),
                "interval": [float(bound) for bound in result.interval()],
                "ap": [None if value != value else float(value) for value in result.ap],
                "precision_at": {str(k): float(value) for k, value in result.precision_at.items()},
            }
        record = {
            "step": step,
            "benchmark": self.benchmark.name,
            "profile": self.profile.name,
            "seed": self.seed,
            "minutes": minutes,
            "setups": setups,
            "card": card.to_dict(),
            "card_hash": card.hash,
        }
        write_json(self.folder / "steps" / f"{step}.json", record)
        return report


def load_steps(folder: str | Path) -> dict[str, dict]:
    """The records of a run's folder by step, in the order they were written."""
    files = sorted(Path(folder, "steps").glob("*.json"), key=lambda file: file.stat().st_mtime)
    return {record["step"]: record for record in (json.loads(file.read_text()) for file in files)}


def write_json(path: Path, value: object) -> None:
    """Under the final name only when whole, so that a killed run leaves no half record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)


def state_sha256(network: torch.nn.Module) -> str:
    """Hex sha256 over names and values of the weights."""
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


TRAINING_CODE = ("pooling", "losses", "transforms", "networks", "training", "contrastive", "multistage", "finetuning")


@cache
def code_sha256() -> str:
    """Hex sha256 over the modules a trained network depends on: after an edit there, nothing old is reused."""
    digest = hashlib.sha256()
    for module in TRAINING_CODE:
        for file in sorted(Path(__file__).parent.glob(f"{module}.py")) or sorted(
            Path(__file__).parent.glob(f"{module}/*.py")
        ):
            digest.update(file.read_bytes())
    return digest.hexdigest()
