"""Losses under the lamp: what each costs, whom it pushes, how far it is from AP, and the three passes in a picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor
from torch.nn.functional import normalize

from retrieval_utils import losses
from retrieval_utils.losses.tuples import NEGATIVES
from retrieval_utils.plotting import LINES, NEGATIVE, POSITIVE, QUERY, _grid

Criterion = Callable[[Tensor, Tensor], Tensor]  # (descriptors (B, D), labels (B,)) -> scalar


def drawn_descriptors(
    instances: int, images: int, noise: float, generator: torch.Generator, dim: int = 32
) -> tuple[Tensor, Tensor]:
    """Unit vectors (B, dim), `images` around each of `instances` random directions, and labels (B,)."""
    centres = normalize(torch.randn(instances, dim, generator=generator), dim=1).repeat_interleave(images, 0)  # (B, D)
    vectors = centres + noise / dim**0.5 * torch.randn(instances * images, dim, generator=generator)  # (B, D)
    return normalize(vectors, dim=1), torch.arange(instances).repeat_interleave(images)


def exact_ap(descriptors: Tensor, labels: Tensor) -> Tensor:
    """Step AP (B,) of each image as the query among the others; ties count by index; nan without a positive."""
    scores = (descriptors @ descriptors.T).fill_diagonal_(-torch.inf)  # (B, B) the query itself goes last
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :-1]  # (B, B - 1)
    hits = (labels[order] == labels[:, None]).float()  # (B, B - 1)
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)  # (B, B - 1)
    return (precision * hits).sum(1) / hits.sum(1)


class KeptForBackward(torch.autograd.graph.saved_tensors_hooks):
    """Context manager that counts what autograd keeps: `mb`, the most that waited for backward at the same time.

    A tensor kept by several operations counts once for each: an upper bound, and the same on every machine.
    """

    def __init__(self) -> None:
        self.alive = self.most = 0
        lab = self

        class Kept:
            def __init__(self, tensor: Tensor) -> None:
                # Detached: an output that its own operation keeps would hold itself alive.
                self.tensor, self.size = tensor.detach(), tensor.numel() * tensor.element_size()
                lab.alive += self.size
                lab.most = max(lab.most, lab.alive)

            def __del__(self) -> None:
                lab.alive -= self.size

        super().__init__(Kept, lambda kept: kept.tensor)

    def __enter__(self) -> KeptForBackward:
        super().__enter__()
        return self

    @property
    def mb(self) -> float:
        return self.most / 1e6


def zoo() -> dict[str, Criterion]:
    """Every loss of the package as a function of (descriptors, labels), by name."""
    lrml, quadruplet = losses.LRMLLoss(), losses.QuadrupletLoss()
    autoret = losses.AutoEmbedderLoss(alpha=1.4)  # about the distance of unrelated vectors
    return {
        "contrastive": losses.ContrastiveLoss(),
        "triplet": losses.TripletLoss(),
        "NT-Xent": losses.NTXentLoss(),
        "quantised AP": losses.QuantizedAPLoss(),
        "quantised AP, ties": losses.QuantizedAPLoss(tie_aware=True),
        "FastAP": losses.FastAPLoss(),
        "Smooth-AP": losses.SmoothAPLoss(0.05),
        "SupAP": losses.SupAPLoss(),
        "recall@k": losses.RecallLoss(rank_temperature=0.05),
        "lifted structure": losses.LiftedStructureLoss(),
        "margin sample mining": losses.MarginSampleMiningLoss(),
        "quadruplet (tuples)": lambda x, labels: quadruplet(*tuples(x, labels)),
        "LRML (tuples)": lambda x, labels: lrml(*tuples(x, labels)),
        "AutoRet (pairs)": lambda x, labels: autoret(*pairs(x, labels)),
    }


def tuples(descriptors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each image as a query (B, D), its farthest positive (B, D) and its hardest negatives (B, 5, D), hardest first."""
    scores = (descriptors @ descriptors.T).detach()  # (B, B)
    same = labels[:, None] == labels  # (B, B)
    itself = torch.eye(len(labels), dtype=torch.bool)
    positive = scores.masked_fill(~same | itself, torch.inf).argmin(1)  # (B,)
    negatives = scores.masked_fill(same, -torch.inf).topk(NEGATIVES, dim=1).indices  # (B, 5)
    return descriptors, descriptors[positive], descriptors[negatives]


def pairs(descriptors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs of different images, (P, D) and (P, D), and whether both show the same instance, (P,) bool."""
    first, second = torch.triu_indices(len(labels), len(labels), offset=1)  # (P,) (P,)
    return descriptors[first], descriptors[second], labels[first] == labels[second]


def examine(criterion: Criterion, descriptors: Tensor, labels: Tensor, step: float = 0.05) -> dict[str, object]:
    """One loss on one batch: value, gradient (B, D) along the sphere, its norm, milliseconds, MB kept for backward.

    "AP after": mean exact AP when the whole batch moves by `step` a descriptor, root mean square, down the gradient.
    """
    points = descriptors.detach().clone().requires_grad_()  # (B, D)
    with KeptForBackward() as kept:
        value = criterion(points, labels)
    (gradient,) = torch.autograd.grad(value, points)  # (B, D)
    gradient = gradient - (gradient * descriptors).sum(1, keepdim=True) * descriptors  # moves on the sphere only
    started = time.perf_counter()
    torch.autograd.grad(criterion(points, labels), points)
    milliseconds = 1000 * (time.perf_counter() - started)
    scale = step * len(labels) ** 0.5 / gradient.norm().clamp(min=1e-12)
    moved = normalize(descriptors - scale * gradient, dim=1)  # (B, D)
    return {
        "value": float(value.detach()),
        "gradient": gradient,
        "gradient norm": float(gradient.norm()),
        "ms": milliseconds,
        "MB kept": kept.mb,
        "AP after": float(exact_ap(moved, labels).nanmean()),
    }


def zoo_table(found: Mapping[str, Mapping]) -> pd.DataFrame:
    """A row a loss, of what `examine` found, without the gradients themselves."""
    return pd.DataFrame({name: {k: v for k, v in one.items() if k != "gradient"} for name, one in found.items()}).T


def zoo_figure(found: Mapping[str, Mapping], ap) -> Figure:
    """A panel a loss: each image's share of the gradient against its own AP (B,); a dot an image."""
    ap, columns = np.asarray(ap), 4
    rows = -(-len(found) // columns)
    figure, axes = _grid(rows, columns, 2.4, 1.9, layout="constrained", sharex=True, sharey=True)
    for ax in axes.flat[len(found) :]:
        ax.set_axis_off()
    for ax, (name, one) in zip(axes.flat, found.items(), strict=False):
        force = np.asarray(one["gradient"].norm(dim=1))  # (B,)
        ax.plot(ap, force / max(force.mean(), 1e-12), "o", color=QUERY, markersize=2.5, alpha=0.5)
        ax.axhline(1, color="black", linewidth=0.6)
        ax.set_yscale("symlog", linthresh=4)  # margin sample mining moves four images of the batch, thirty times as far
        ax.set_title(name, fontsize=10)
    figure.supxlabel("AP of the image as a query", fontsize=10)
    figure.supylabel("gradient, as a multiple of the mean", fontsize=10)
    return figure


def batch_estimates(descriptors: Tensor, labels: Tensor, instances: int, repeats: int, generator) -> Tensor:
    """Mean exact AP (repeats,) of batches of all images of `instances` instances, drawn from a database (N, D)."""
    names = labels.unique()
    found = []
    for _ in range(repeats):
        chosen = names[torch.randperm(len(names), generator=generator)[:instances]]
        batch = torch.isin(labels, chosen)  # (N,)
        found.append(exact_ap(descriptors[batch], labels[batch]).nanmean())
    return torch.stack(found)


def estimate_figure(estimates: Mapping[int, Tensor], truth: float) -> Figure:
    """Batch AP, a dot a batch, against batch size, with mean; dashed: the AP of the whole database."""
    figure, ((left, right),) = _grid(1, 2, 4.8, 3.1, layout="constrained", sharex=True)
    sizes = list(estimates)
    for size, values in estimates.items():
        left.plot([size] * len(values), values, "o", color=QUERY, markersize=3, alpha=0.3)
    left.plot(sizes, [float(v.mean()) for v in estimates.values()], "-", color=QUERY, label="batches, mean")
    left.axhline(truth, color="black", linestyle="--", label="whole database")
    bias = [float(v.mean()) - truth for v in estimates.values()]
    right.plot(sizes, np.abs(bias), *LINES[1][1:], color=LINES[1][0], marker="o", label="bias")
    right.plot(sizes, [float(v.std()) for v in estimates.values()], color=LINES[2][0], marker="s", label="spread")
    left.set(xscale="log", xlabel="images in the batch", ylabel="AP", ylim=(0, 1.05))
    right.set(yscale="log", xlabel="images in the batch", ylabel="AP")
    left.legend(fontsize=9)
    right.legend(fontsize=9)
    return figure


def setting_figure(curves: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]], ap: float) -> Figure:
    """A column a surrogate: x -> (settings, its value of AP, exact AP after a step down it); ap: before."""
    figure, axes = _grid(2, len(curves), 4.8, 2.2, layout="constrained", sharex="col", sharey="row")
    for column, (name, (settings, values, after)) in zip(axes.T, curves.items(), strict=True):
        column[0].semilogx(settings, np.asarray(values) - ap, color=QUERY, marker="o", markersize=3)
        column[1].semilogx(settings, np.asarray(after) - ap, color=POSITIVE, marker="o", markersize=3)
        column[1].set_xlabel(name)
        for ax in column:
            ax.axhline(0, color="black", linewidth=0.8)
    axes[0, 0].set_ylabel("surrogate − AP")
    axes[1, 0].set_ylabel("AP gained by a step")
    return figure


def multistage_figure(chunks: int = 4) -> Figure:
    """Multi-stage back-propagation as three passes over the chunks of a batch; filled: what is kept for backward."""
    figure, axes = _grid(1, 3, 3.5, 3.0)
    figure.subplots_adjust(0.01, 0.02, 0.99, 0.86, 0.06)
    titles = ("1  describe, keep no graph", "2  loss on all descriptors", "3  describe again, chunk by chunk")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set(xlim=(0, 10), ylim=(0, chunks + 0.6))
        ax.set_title(title, fontsize=11)
        ax.set_axis_off()

    def box(ax, x, y, width, height, text, colour="white"):
        ax.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="black"))
        ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)

    def arrow(ax, start, end, colour="black"):
        ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=colour))

    for i in range(chunks):
        y, last = chunks - 0.4 - i, i == 1  # the chunk that the third pass is drawn at
        for ax, colour in ((axes[0, 0], "white"), (axes[0, 2], "#F0C808" if last else "white")):
            box(ax, 0.1, y, 2.3, 0.75, f"images {i + 1}")
            box(ax, 3.6, y, 2.6, 0.75, "network", colour)
            arrow(ax, (2.4, y + 0.37), (3.6, y + 0.37))
        box(axes[0, 0], 7.4, y, 2.4, 0.75, f"descr. {i + 1}")
        arrow(axes[0, 0], (6.2, y + 0.37), (7.4, y + 0.37))
        box(axes[0, 1], 0.1, y, 2.4, 0.75, f"descr. {i + 1}", "#F0C808")
        arrow(axes[0, 1], (2.5, y + 0.5), (4.0, chunks / 2 + 0.4))
        arrow(axes[0, 1], (4.0, chunks / 2 + 0.1), (2.5, y + 0.2), NEGATIVE)
        box(axes[0, 2], 7.4, y, 2.4, 0.75, f"gradient {i + 1}")
        arrow(axes[0, 2], (7.4, y + 0.37), (6.2, y + 0.37), NEGATIVE if last else "#BBBBBB")
    box(axes[0, 1], 4.0, chunks / 2 - 0.35, 4.9, 1.2, "all scores (B, B)\nand the loss", "#F0C808")
    return figure
