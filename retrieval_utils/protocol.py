"""The protocol card: under which conditions a mean average precision holds, and why two of them are not comparable."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from torch import nn

AVERAGE_PRECISION = {"trapezoid": "trapezoid (Oxford/Paris)", "step": "step (information retrieval)"}
PRECISION_CAP = "k capped at the rank of the last positive"
JUNK = "junk removed before ranking"
NEIGHBOURS = ("query_expansion", "database_augmentation", "reranking")
DEFAULTS = {"variant": "", "precision": "float32", **dict.fromkeys(NEIGHBOURS, "none")}
MODEL = ("network", "checkpoint")  # what is compared, so no reason against a comparison


@dataclass(frozen=True)
class ProtocolCard:
    """All that a mean average precision depends on; two numbers compare when only network and checkpoint differ."""

    benchmark: str
    benchmark_hash: str
    variant: str = field(default="", kw_only=True)  # which one, of a data set that was published more than once
    images: int
    queries: int
    query_crop: str
    image_size: int  # pixels
    resize: str
    interpolation: str
    scales: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    precision: str = field(default="float32", kw_only=True)  # of the numbers that the network computes with
    whitening: str
    whitening_fitted_on: str
    query_expansion: str = field(default="none", kw_only=True)
    database_augmentation: str = field(default="none", kw_only=True)
    reranking: str = field(default="none", kw_only=True)
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
        """Plain JSON values by field, without those in DEFAULTS: so cards keep their hash when a field is added."""
        values = json.loads(json.dumps(asdict(self)))
        return {key: value for key, value in values.items() if key not in DEFAULTS or value != DEFAULTS[key]}

    def differences(self, other: ProtocolCard) -> list[str]:
        """One line for each field of the protocol that differs: why two numbers are not comparable."""
        mine, theirs = (json.loads(json.dumps(asdict(card))) for card in (self, other))
        return [
            f"{key}: {mine[key] or 'unknown'} against {theirs[key] or 'unknown'}"
            for key in mine
            if mine[key] != theirs[key] and key not in MODEL
        ]

    def __str__(self) -> str:
        scales, mean, std = (", ".join(f"{v:.3g}" for v in values) for values in (self.scales, self.mean, self.std))
        variant = f" ({self.variant})" if self.variant else ""
        neighbours = {key: getattr(self, key) for key in NEIGHBOURS}
        used = [f"{key.replace('_', ' ')}: {how}" for key, how in neighbours.items() if how != DEFAULTS[key]]
        precision = "" if self.precision == DEFAULTS["precision"] else f"; {self.precision}"
        return "\n".join(
            [
                f"protocol {self.hash}",
                f"  data       {self.benchmark}{variant} {self.benchmark_hash[:12]}: {self.images:,} images, "
                f"{self.queries} queries, {self.query_crop}",
                f"  input      {self.image_size} px: {self.resize}; {self.interpolation}; scales {scales}; "
                f"mean {mean}; std {std}{precision}",
                f"  whitening  {self.whitening}, fitted on {self.whitening_fitted_on}",
                *([f"  neighbours {'; '.join(used)}"] if used else []),
                f"  scoring    AP {self.average_precision}; {self.precision_cap}; {self.junk}",
                f"  network    {self.network} {self.checkpoint[:12]}",
            ]
        )


def state_sha256(network: nn.Module) -> str:
    """Hex sha256 over names and values of the weights."""
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
