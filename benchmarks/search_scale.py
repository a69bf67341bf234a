"""Flat, HNSW and IVF-PQ as the database grows to a million drawn descriptors: time to build, to ask, memory, recall.

What notebook 08 measures at the sizes of its profile, with a dial turned on the largest. Everything on one thread;
HNSW takes minutes there to grow. Times depend on what else runs: run it alone. Writes results/search_scale.csv.

    .venv/bin/python benchmarks/search_scale.py
"""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import torch
from common import machine

from retrieval_utils import scale
from retrieval_utils.index import KINDS, Index
from retrieval_utils.ranking import nearest

RESULTS = Path(__file__).resolve().parents[1] / "results" / "search_scale.csv"
USUAL = {"flat": (None,), "ivf-pq": (16,), "hnsw": (64,)}
DIALS = {"flat": (None,), "ivf-pq": (1, 4, 16, 64, 256), "hnsw": (16, 64, 128, 256, 512)}  # on the largest


def main() -> None:
    torch.set_num_threads(1)
    sizes, rows = scale.database_sizes("laptop"), []
    for size in sizes:
        database, queries = scale.draw_descriptors(size, 200)  # (N, D) (Q, D)
        truth = nearest(queries, database, 10)[1]  # (Q, 10)
        for kind in KINDS:
            began = time.perf_counter()
            index = Index.build(database, kind)
            built = time.perf_counter() - began
            for effort in DIALS[kind] if size == sizes[-1] else USUAL[kind]:
                found = index.search(queries, 10, effort)[1]  # (Q, 10)
                asked = {"effort": effort, "ms_a_query": scale.milliseconds(index, queries, effort=effort)}
                row = {"kind": kind, "images": size, "seconds_to_build": built, "mb": index.nbytes / 1e6}
                rows.append(row | asked | {"recall_at_10": scale.recall(found, truth), "machine": machine()})
                print({key: value for key, value in rows[-1].items() if key != "machine"}, flush=True)
    frame = pd.DataFrame(rows).astype({"effort": "Int64"})
    frame.to_csv(RESULTS, index=False, float_format="%.4g", lineterminator="\n")


if __name__ == "__main__":
    main()
