"""Result files: what an evaluation found as JSON, query by query with its protocol card, and two of them compared."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from retrieval_utils.evaluation import SETUPS, Report, SetupResult, compare
from retrieval_utils.protocol import AVERAGE_PRECISION, ProtocolCard


def report_record(report: Report) -> dict:
    """A report with its card as plain JSON values, AP and number of positives of every query included."""
    setups = {}
    for setup in report:
        result = report[setup]
        setups[setup] = {
            "mean_ap": float(result.mean_ap),
            "interval": [float(bound) for bound in result.interval()],
            "ap": [None if value != value else float(value) for value in result.ap],
            "positives": [int(count) for count in result.positives],
            "precision_at": {str(k): float(value) for k, value in result.precision_at.items()},
            "recall_at": {str(k): float(value) for k, value in result.recall_at.items()},
        }
    card = report.card
    return {"benchmark": card.benchmark, "setups": setups, "card": card.to_dict(), "card_hash": card.hash}


def read_result(path: str | Path) -> Report:
    """The report in a file of `evaluate --output`, or in the record of a step of a run.

    Raises FileNotFoundError, or ValueError for a file that is none of these, is not whole, or was altered.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no result file '{path}'; write one with `evaluate --output {path}`.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        card, card_hash = ProtocolCard(**record["card"]), record["card_hash"]
        results = {setup: _setup_result(setup, values) for setup, values in record["setups"].items()}
        method = next(name for name, words in AVERAGE_PRECISION.items() if words == card.average_precision)
        if not results or {result.ap.size for result in results.values()} != {card.queries}:
            raise ValueError("the queries are not those of the card")
        altered = bool(str(card)) and card.hash != card_hash  # what cannot be printed is no card
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
        raise ValueError(
            f"'{path}' is no whole result file; write one with `evaluate --output`, or name a run's steps/*.json."
        ) from None
    if altered:
        raise ValueError(f"The protocol card in '{path}' does not have the hash {card_hash} beside it; evaluate again.")
    return Report(results, method, card)


def _setup_result(setup: str, values: dict) -> SetupResult:
    ap = np.array([np.nan if value is None else value for value in values["ap"]], np.float64)  # (Q,)
    positives = np.array(values["positives"])  # (Q,)
    counted = positives > 0  # (Q,)
    whole = setup in SETUPS and positives.dtype == np.int64 and ap.shape == positives.shape and counted.any()
    if not whole or not np.array_equal(np.isnan(ap), ~counted) or not ((ap[counted] >= 0) & (ap[counted] <= 1)).all():
        raise ValueError("an AP in [0, 1] for every query with positives, and for no other")
    result = SetupResult(setup, ap, positives, *(_by_k(values[key]) for key in ("precision_at", "recall_at")))
    if not abs(result.mean_ap - values["mean_ap"]) < 1e-9:
        raise ValueError("the mean of the APs")
    return result


def _by_k(values: dict) -> dict[int, float]:
    return {int(k): float(value) for k, value in values.items()}


def compare_results(path_a: str | Path, path_b: str | Path) -> str:
    """Two result files compared query by query, a line a set-up, with the protocol that both share.

    Raises ValueError with a line for each reason why they are not comparable, and as `read_result`.
    """
    a, b = read_result(path_a), read_result(path_b)
    if reasons := a.card.differences(b.card):
        lines = [f"  {_short(reason)}" for reason in reasons]
        raise ValueError("\n".join([f"'{path_a}' and '{path_b}' are not comparable:", *lines]))
    shared = [setup for setup in a if setup in b.results]
    if not shared:
        raise ValueError(f"'{path_a}' has the set-ups {', '.join(a)} and '{path_b}' {', '.join(b)}: none in common.")
    lines = [f"A  {path_a}", f"B  {path_b}"]
    for setup in shared:
        gain = compare(a, b, setup)
        lines.append(
            f"{setup}: mAP {a[setup].mean_ap:.3f} against {b[setup].mean_ap:.3f}, A - B {gain.mean_difference:+.3f} "
            f"(95 % interval {gain.low:+.3f} to {gain.high:+.3f}); A is better on {gain.wins} queries, B on "
            f"{gain.losses}, equal on {gain.ties}"
        )
    networks = [f"  network {name}  {r.card.network} {r.card.checkpoint[:12]}" for name, r in (("A", a), ("B", b))]
    return "\n".join([*lines, "protocol of both", *str(a.card).splitlines()[1:-1], *networks])


def _short(reason: str) -> str:
    """A card's difference without underscores, and its sha256s as the card prints them."""
    key, _, values = reason.partition(": ")
    return f"{key.replace('_', ' ')}: {re.sub('([0-9a-f]{12})[0-9a-f]{52}', lambda found: found[1], values)}"


def write_json(path: Path, value: object) -> None:
    """Under the final name only when whole, so that a killed run leaves no half record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)


def write_text(path: Path, text: str) -> None:
    """Under the final name only when whole."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8", newline="\n")
    partial.replace(path)
