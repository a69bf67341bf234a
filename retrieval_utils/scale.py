"""Search at scale, measured: descriptors drawn instead of downloaded, recall against exact search, milliseconds."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from retrieval_utils.evaluation import GroundTruth
from retrieval_utils.index import Index

# What a profile's time and memory allow: HNSW grows on one thread, minutes for a million.
DATABASE_SIZES = {
    "tiny": (10_000,),
    "smoke": (10_000, 30_000, 100_000),
    "laptop": (10_000, 100_000, 1_000_000),
    "gpu": (10_000, 100_000, 1_000_000),
}


def database_sizes(profile: str) -> tuple[int, ...]:
    """Numbers of descriptors on which a profile measures search, ascending. Raises ValueError for an unknown one."""
    if profile not in DATABASE_SIZES:
        raise ValueError(f"No database sizes are set for '{profile}'; choose one of {', '.join(DATABASE_SIZES)}.")
    return DATABASE_SIZES[profile]


def draw_descriptors(n: int, queries: int, dim: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A database (n, dim) and queries (queries, dim), float32, L2-normalised, clustered as descriptors of photos are.

    200 styles, n / 4 instances around them, views around the instances: normal noise of 1.0 and 0.8 times the spread
    of the styles. Views of an instance are scattered over the database; queries are further views of its instances.
    """
    generator = torch.Generator().manual_seed(seed)
    instances = max(n // 4, 1)
    styles = torch.randn(200, dim, generator=generator)  # (200, D)
    centres = styles[torch.randint(200, (instances,), generator=generator)]  # (I, D)
    centres = centres + torch.randn(instances, dim, generator=generator)
    views = torch.randn(n + queries, dim, generator=generator).mul_(0.8)  # (N + Q, D)
    views += centres[torch.randint(instances, (n + queries,), generator=generator)]
    views = torch.nn.functional.normalize(views, dim=1)
    return views[:n], views[n:]


def draw_views(noise: float, likeness: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor, list[GroundTruth]]:
    """60 instances with 12 views each in 32 dimensions: queries (60, 32), the other views (660, 32), ground truth.

    noise: of a view, with the instances' spread as unit: the larger, the weaker the descriptor. likeness, in [0, 1]:
    how much the ten instances of one style have in common; at 0 a wrong neighbour resembles nothing in particular.
    """
    generator = torch.Generator().manual_seed(seed)
    styles = torch.randn(6, 32, generator=generator).repeat_interleave(10, dim=0)  # (60, D)
    own = torch.randn(60, 32, generator=generator)  # (60, D)
    centres = likeness * styles + (1 - likeness**2) ** 0.5 * own
    views = centres[:, None] + noise * torch.randn(60, 12, 32, generator=generator)  # (60, 12, D)
    views = torch.nn.functional.normalize(views, dim=2)
    truth = [GroundTruth(easy=torch.arange(11 * i, 11 * i + 11).numpy()) for i in range(60)]
    return views[:, 0], views[:, 1:].flatten(0, 1), truth


def recall(found: Tensor, exact: Tensor) -> float:
    """Share in [0, 1] of the exact neighbours (Q, k) that are among those found (Q, any k)."""
    return float((exact[:, :, None] == found[:, None, :]).any(dim=2).double().mean())


def milliseconds(index: Index, queries: Tensor, k: int = 10, effort: int | None = None) -> float:
    """Time of a search with one query, as a visitor asks; queries (Q, D) in turn, on one thread.

    The median over queries, and of the rounds the fastest: what else runs on the machine can only add to it. There are
    three rounds, and more while they take less than a second in all.
    """
    threads, rounds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        while len(rounds) < 3 or sum(map(sum, rounds)) < 1:
            rounds.append([_seconds(index, query, k, effort) for query in queries.split(1)])
    finally:
        torch.set_num_threads(threads)
    return 1000 * min(statistics.median(times) for times in rounds)


def _seconds(index: Index, query: Tensor, k: int, effort: int | None) -> float:
    start = time.perf_counter()
    index.search(query, k, effort)
    return time.perf_counter() - start
