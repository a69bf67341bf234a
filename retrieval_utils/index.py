"""Search without comparing everything: FAISS behind one `Index`, saved with what it was built from."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retrieval_utils.datasets.archives import disk_trouble
from retrieval_utils.networks import file_sha256

if sys.platform == "darwin":  # torch and faiss bring an OpenMP each, and there the second one stops the process
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
import faiss

KINDS = ("flat", "ivf-pq", "hnsw")
EFFORT = {"ivf-pq": "lists looked into", "hnsw": "candidates kept"}
TRAINING_POINTS = 39 * 256  # below 39 a centroid, FAISS itself calls the 256 centroids of a PQ badly trained
MANIFEST = "index.json"
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Index:
    """N descriptors that can be searched: `build`, `search`, `save`, `load`.

    kind: "flat" compares with all of them, exactly; "hnsw" walks a graph of neighbours (Malkov and Yashunin, TPAMI
    2020); "ivf-pq" looks into the nearest of many lists, and keeps one byte for every few dimensions (Jegou, Douze and
    Schmid, TPAMI 2011). settings: what it was built with. network, images: fingerprints of the network that described
    the images, and of the images; empty if nobody named them.
    """

    kind: str
    dim: int
    size: int
    settings: dict[str, int]
    network: str
    images: str
    faiss_index: Any

    @classmethod
    def build(
        cls, descriptors: Tensor, kind: str = "flat", network: str = "", images: str = "", seed: int = 0
    ) -> Index:
        """An index over descriptors (N, D), float, L2-normalised if the scores are to be cosines.

        Built on one thread: the same descriptors and seed give the same index, byte by byte.
        Raises ValueError for another kind or shape, nan, and too few descriptors for ivf-pq to learn its code from.
        """
        if kind not in KINDS:
            raise ValueError(f"There is no index '{kind}'; choose one of {', '.join(KINDS)}.")
        array = _array(descriptors)  # (N, D)
        n, dim = array.shape
        if n == 0:
            raise ValueError("There is nothing to index: give at least one descriptor.")
        if kind == "ivf-pq" and n < TRAINING_POINTS:
            raise ValueError(
                f"IVF-PQ learns its code from at least {TRAINING_POINTS:,} descriptors, got {n:,}: take flat or hnsw, "
                "which are fast at that size."
            )
        settings = _settings(kind, n, dim, seed)
        with _threads(1):  # more of them would grow another graph each time
            index = _empty(kind, dim, settings)
            if not index.is_trained:
                index.train(array)
            index.add(array)
        return cls(kind, dim, n, settings, network, images, index)

    def search(self, queries: Tensor, k: int = 10, effort: int | None = None) -> tuple[Tensor, Tensor]:
        """Scores (Q, k) float32 and indices (Q, k) int64 of the images found for queries (Q, D), best first.

        Scores are inner products; ivf-pq knows them only roughly. Equal scores stand in the order of the database;
        which of those equal to the k-th are among the k goes by that order in flat, and is FAISS's in hnsw and ivf-pq.
        effort: lists that ivf-pq looks into (default 16), candidates that hnsw keeps (default 64): more is slower and
        misses less; flat has none. Where fewer than k are found, the rest is -inf and index -1.
        Raises ValueError for another dimension, nan, k < 1, and an effort for flat or below 1.
        """
        array = _array(queries)
        if array.shape[1] != self.dim:
            raise ValueError(
                f"The index holds descriptors of {self.dim} dimensions, the queries have {array.shape[1]}; "
                "describe both with the same network and whitening."
            )
        if k < 1:
            raise ValueError(f"A search needs k >= 1, got k={k}.")
        k, parameters = min(k, self.size), self._parameters(effort)
        with _threads(torch.get_num_threads()):
            if self.kind == "flat":
                return self._exact(array, k, min(k + 1, self.size))
            return self._ordered(array, k, parameters)

    def _exact(self, array, k: int, fetched: int) -> tuple[Tensor, Tensor]:
        """The first k of `fetched` > k; more are fetched where the last one ties with the k-th.

        Of equal scores FAISS drops the lowest index first, so that only a lower score behind them shows that all of
        them are there.
        """
        scores, indices = self._ordered(array, fetched)  # (Q, fetched) (Q, fetched)
        cut = (scores[:, -1] == scores[:, k - 1]).nonzero()[:, 0]  # (Q',) queries
        scores, indices = scores[:, :k].contiguous(), indices[:, :k].contiguous()  # (Q, k) (Q, k)
        if fetched < self.size and len(cut):
            scores[cut], indices[cut] = self._exact(array[cut.numpy()], k, min(4 * fetched, self.size))
        return scores, indices

    def _ordered(self, array, k: int, parameters=None) -> tuple[Tensor, Tensor]:
        """What FAISS finds, (Q, k) and (Q, k): highest score first, of equal ones the lowest index first."""
        values, found = self.faiss_index.search(array, k, params=parameters)
        scores, indices = torch.from_numpy(values), torch.from_numpy(found)
        scores[indices < 0] = -torch.inf
        order = indices.sort(dim=1, stable=True).indices
        scores, indices = scores.gather(1, order), indices.gather(1, order)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return scores, indices.gather(1, order)

    def _parameters(self, effort: int | None):
        if effort is not None and (self.kind == "flat" or effort < 1):
            raise ValueError(
                f"An effort of {effort} does not fit a {self.kind} index: it is at least 1, flat has none."
            )
        if self.kind == "ivf-pq":
            return faiss.SearchParametersIVF(nprobe=effort or 16)
        return faiss.SearchParametersHNSW(efSearch=effort or 64) if self.kind == "hnsw" else None

    def descriptors(self) -> Tensor:
        """The descriptors (N, D) float32 as the index keeps them: exact in flat and hnsw, decoded in ivf-pq."""
        return torch.from_numpy(self.faiss_index.reconstruct_n(0, self.size))

    @property
    def nbytes(self) -> int:
        """Bytes of the index on disk, which are those it takes in memory but for its bookkeeping."""
        counted = [0]

        def count(chunk: bytes) -> int:
            counted[0] += len(chunk)
            return len(chunk)

        writer = faiss.BufferedIOWriter(faiss.PyCallbackIOWriter(count), 1 << 20)
        faiss.write_index(self.faiss_index, writer)
        del writer  # writes what is left
        return counted[0]

    def save(self, folder: str | Path) -> Path:
        """Writes the index and its manifest to `folder`; a kill in the middle leaves the index that was there.

        Raises ValueError (disk). In memory the index is held twice meanwhile: FAISS's own writer may take a full disk
        for success.
        """
        folder = Path(folder)
        content = faiss.serialize_index(self.faiss_index)  # (bytes,) uint8
        digest = hashlib.sha256(content).hexdigest()
        values = {key: getattr(self, key) for key in ("kind", "dim", "size", "settings", "network", "images")}
        manifest = json.dumps({"format": FORMAT, **values, "sha256": digest}, indent=1) + "\n"
        parts = folder / "index.part", folder / f"{MANIFEST}.part"
        with disk_trouble(folder, leftovers=parts):
            folder.mkdir(parents=True, exist_ok=True)
            parts[0].write_bytes(content)
            parts[1].write_bytes(manifest.encode())
            parts[0].replace(folder / f"{digest}.faiss")
            parts[1].replace(folder / MANIFEST)
        for old in folder.glob("*.faiss"):
            if old.stem != digest:
                old.unlink()
        return folder

    @classmethod
    def load(cls, folder: str | Path, network: str | None = None, dim: int | None = None) -> Index:
        """The index that `save` wrote to `folder`, read only after its bytes gave the manifest's sha256.

        The hash tells a damaged or mixed-up index, not a forged one: load what you built. network: fingerprint of the
        network that will describe the queries; dim: their dimension. Raises FileNotFoundError where there is no index,
        ValueError when it is damaged or belongs to another network or dimension.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if network is not None and manifest["network"] != network:
            raise ValueError(
                f"The index in '{folder}' was built for {manifest['network'] or 'an unnamed network'}, not for "
                f"{network}; name another folder, or delete this one to build it again."
            )
        if dim is not None and manifest["dim"] != dim:
            raise ValueError(
                f"The index in '{folder}' holds descriptors of {manifest['dim']} dimensions, not {dim}; "
                "name another folder, or delete this one to build it again."
            )
        file = folder / f"{manifest['sha256']}.faiss"
        damaged = f"The index in '{folder}' is damaged or not whole; delete the folder to build it again."
        if not file.is_file() or file_sha256(file) != manifest["sha256"]:
            raise ValueError(damaged)
        try:
            index = faiss.read_index(str(file))
        except RuntimeError:  # what FAISS cannot read, in many lines of its own code
            raise ValueError(damaged) from None
        if (index.d, index.ntotal) != (manifest["dim"], manifest["size"]):
            raise ValueError(f"The index in '{folder}' is not the one its {MANIFEST} describes; build it again.")
        values = {key: manifest[key] for key in ("kind", "dim", "size", "settings", "network", "images")}
        return cls(**values, faiss_index=index)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What the index in `folder` says of itself. Raises FileNotFoundError, or ValueError where it cannot be read."""
    file = Path(folder) / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"There is no index in '{folder}'; build one first.")
    broken = f"The manifest '{file}' cannot be read; delete the folder to build the index again."
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        known = manifest["format"] == FORMAT and manifest["kind"] in KINDS
        whole = known and {"dim", "size", "settings", "network", "images"} <= manifest.keys()
        if not (whole and re.fullmatch("[0-9a-f]{64}", manifest["sha256"])):
            raise ValueError(broken)
    except (ValueError, KeyError, TypeError):
        raise ValueError(broken) from None
    return manifest


def _settings(kind: str, n: int, dim: int, seed: int) -> dict[str, int]:
    """Usual values for n descriptors: FAISS's own guidelines, kept small enough for one thread."""
    if kind == "hnsw":
        return {"links": 16, "candidates": 40}
    if kind == "ivf-pq":
        lists = 1 << max(4, round(4 * n**0.5).bit_length() - 1)  # 2 to 4 sqrt(n)
        subvectors = max(m for m in range(1, dim + 1) if dim % m == 0 and m <= max(1, dim // 4))
        return {"lists": min(lists, n // 39), "subvectors": subvectors, "bits": 8, "seed": seed}
    return {}


def _empty(kind: str, dim: int, settings: dict[str, int]):
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, settings["links"], faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = settings["candidates"]
        return index
    lists, subvectors, bits = (settings[key] for key in ("lists", "subvectors", "bits"))
    coarse = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFPQ(coarse, dim, lists, subvectors, bits, faiss.METRIC_INNER_PRODUCT)
    for training in (index.cp, index.pq.cp):  # k-means of the lists and of the code: enough, and minutes faster
        training.seed, training.max_points_per_centroid, training.niter = settings["seed"] + 1, 64, 10
    return index


def _array(descriptors: Tensor):
    """(N, D) float32 in rows, on the CPU, as FAISS takes them."""
    if descriptors.ndim != 2 or not descriptors.is_floating_point():
        raise ValueError(f"Descriptors must be floats (N, D), got {tuple(descriptors.shape)} {descriptors.dtype}.")
    if not torch.isfinite(descriptors).all():
        row = int((~torch.isfinite(descriptors).all(dim=1)).nonzero()[0])
        raise ValueError(f"Descriptor {row} holds nan or infinite values: look at its image.")
    return descriptors.detach().float().cpu().contiguous().numpy()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """FAISS on `count` threads; always on one on macOS, where two OpenMP runtimes in one process crash on more."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1 if sys.platform == "darwin" else count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
