"""Compact codes: a database of descriptors in so many bits an image, by product quantisation or by signs.

What AutoRet is compared with are hashing and quantisation methods; here both are made of any descriptors, at equal
bits. Nothing is learned from the database or the queries, only from training descriptors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retrieval_utils.evaluation import GroundTruth, evaluate
from retrieval_utils.index import faiss  # imported there with what macOS needs
from retrieval_utils.protocol import ProtocolCard
from retrieval_utils.result_files import write_json

BITS = (16, 32, 64)
SHUFFLES = 3  # random orders of ties that a score is the mean of
WORD_BITS = 4  # of a codeword: codebooks of 16 words, as in self-supervised product quantisation (Jang and Cho 2021)


def product_codes(training: Tensor, database: Tensor, bits: int, seed: int = 0) -> tuple[np.ndarray, Tensor]:
    """Product quantisation (Jegou, Douze, Schmid, TPAMI 2011) by FAISS, bits / 4 codebooks of 16 words.

    training (n, D), database (N, D), float. Returns the codes (N, bits / 8) uint8, all that is kept of an image, and
    the descriptors (N, D) float32 that they stand for: queries, which are not compressed, are compared with those.
    Raises ValueError for bits or dimensions that do not divide, and fewer than 16 training descriptors.
    """
    _check(training, database, bits)
    dim, books = training.shape[1], bits // WORD_BITS
    if dim % books:
        raise ValueError(
            f"{bits} bits are {books} codebooks, and {dim} dimensions cannot be shared among them evenly; choose other "
            "bits, or whiten to a dimension that can."
        )
    if len(training) < 1 << WORD_BITS:
        raise ValueError(f"Codebooks of {1 << WORD_BITS} words need as many training descriptors, got {len(training)}.")
    quantizer = faiss.ProductQuantizer(dim, books, WORD_BITS)
    quantizer.cp.seed, quantizer.cp.min_points_per_centroid = seed, 1
    quantizer.train(_array(training))
    codes = quantizer.compute_codes(_array(database))  # (N, bits / 8)
    return codes, torch.from_numpy(quantizer.decode(codes))  # (N, D)


def product_scores(training: Tensor, queries: Tensor, database: Tensor, bits: int, seed: int = 0) -> Tensor:
    """Scores (Q, N), minus the squared distance of queries (Q, D) from the descriptors that the codes stand for."""
    _, stands_for = product_codes(training, database, bits, seed)
    return -torch.cdist(queries.float(), stands_for).square()  # (Q, N)


def sign_codes(training: Tensor, database: Tensor, bits: int, seed: int = 0) -> np.ndarray:
    """Sign hash (Charikar, STOC 2002): a bit for the side of each of `bits` random hyperplanes through the mean.

    training (n, D) gives the mean, database (N, D). Returns packed codes (N, bits / 8) uint8; equal arguments, equal
    planes. Raises ValueError for bits that make no whole bytes.
    """
    _check(training, database, bits)
    planes = torch.randn(training.shape[1], bits, generator=torch.Generator().manual_seed(seed))  # (D, bits)
    sides = (database.float() - training.float().mean(dim=0)) @ planes > 0  # (N, bits)
    return np.packbits(sides.numpy(), axis=1)


def sign_scores(training: Tensor, queries: Tensor, database: Tensor, bits: int, seed: int = 0) -> Tensor:
    """Scores (Q, N): how many bits of the sign hashes of queries (Q, D) and database (N, D) agree."""
    hashed = [sign_codes(training, x, bits, seed) for x in (queries, database)]
    q, d = (torch.from_numpy(np.unpackbits(codes, axis=1)).float() * 2 - 1 for codes in hashed)  # (Q, bits) (N, bits)
    return (bits + q @ d.T) / 2  # (Q, N)


def without_ties(scores: Tensor, seed: int = 0) -> Tensor:
    """Scores (Q, N) in the same order, with equal ones in a random order instead of that of the database.

    Codes of few bits make many images equal. Where the database lists its positives first, as many do, an order by
    index would book those ties as correct answers.
    """
    random = torch.randperm(scores.shape[1], generator=torch.Generator().manual_seed(seed))  # (N,)
    order = random[scores[:, random].argsort(dim=1, descending=True, stable=True)]  # (Q, N)
    ranks = torch.arange(scores.shape[1], dtype=torch.float32).expand(scores.shape)
    return -torch.empty(scores.shape).scatter_(1, order, ranks)  # (Q, N)


def at_bits(
    training: Tensor,
    queries: Tensor,
    database: Tensor,
    ground_truth: Sequence[GroundTruth],
    setups: Sequence[str],
    seed: int = 0,
) -> list[dict[str, str | int | float]]:
    """mAP of both codes at BITS bits, and of the floats themselves: one row a code, number of bits and set-up.

    training (n, D) teaches the codes; queries (Q, D), database (N, D); ground_truth and setups as `evaluate` takes
    them. mean_ap: ties in random order, the mean of SHUFFLES orders. by_index: ties in the order of the database.
    """
    scores = {("float", 32 * database.shape[1]): queries @ database.T}  # (Q, N) each
    for bits in BITS:
        scores["product", bits] = product_scores(training, queries, database, bits, seed)
        scores["sign", bits] = sign_scores(training, queries, database, bits, seed)
    rows = []
    for (code, bits), values in scores.items():
        shuffled = [evaluate(without_ties(values, s), ground_truth, setups) for s in range(SHUFFLES)]
        by_index = evaluate(values, ground_truth, setups)
        for setup in setups:
            mean_ap = float(np.mean([report[setup].mean_ap for report in shuffled]))
            where = {"code": code, "bits": bits, "setup": setup}
            rows.append(where | {"mean_ap": mean_ap, "by_index": float(by_index[setup].mean_ap)})
    return rows


def record_compact(folder: str | Path, step: str, rows: Sequence[dict], card: ProtocolCard) -> None:
    """Writes <folder>/compact/<step>.json: rows of `at_bits`, and the card of the step whose descriptors they code."""
    values = {"step": step, "codes": list(rows), "card": card.to_dict(), "card_hash": card.hash}
    write_json(Path(folder) / "compact" / f"{step}.json", values)


def _check(training: Tensor, database: Tensor, bits: int) -> None:
    if bits < 8 or bits % 8:
        raise ValueError(f"A code is of whole bytes, 8, 16, 32, 64 or so bits, not {bits}.")
    if training.ndim != 2 or database.ndim != 2 or training.shape[1] != database.shape[1]:
        shapes = f"{tuple(training.shape)} and {tuple(database.shape)}"
        raise ValueError(f"Training descriptors and descriptors are (n, D) and (N, D), got {shapes}.")


def _array(descriptors: Tensor) -> np.ndarray:
    return np.ascontiguousarray(descriptors.detach().cpu().numpy(), dtype=np.float32)
