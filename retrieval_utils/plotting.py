"""Figures of the course: each is a pure function of arrays, paths and (where it makes sense) matplotlib axes.

Every function returns the `Figure`, already closed for pyplot, so a notebook shows it once, as the value of its cell.
No function touches rcParams. Colours are safe for colour-blind readers and each one has a mark as second cue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from retrieval_utils import evaluation
from retrieval_utils.evaluation import SETUPS, GroundTruth

if TYPE_CHECKING:
    import pandas as pd

POSITIVE, NEGATIVE, JUNK, QUERY = "#009E73", "#CC3311", "#8C8C8C", "#0072B2"  # green, red, grey, blue
COLOURS = {"positive": POSITIVE, "negative": NEGATIVE, "junk": JUNK, "query": QUERY}
MARKS = {"positive": "✓", "negative": "✗", "junk": "–", "query": "?"}
LINES = (
    *(("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":")),
    *(("#000000", "-"), ("#56B4E9", "--"), ("#E69F00", "-.")),
)
DPI = 80
LADDER = ("random", "classifier", "contrastive", "ap-finetuned")
CONTROLS = ("classifier-ap", "scratch-ap")


def _grid(rows: int, columns: int, width: float, height: float, **kwargs) -> tuple[Figure, np.ndarray]:
    """Figure with rows x columns axes of width x height inches each, closed for pyplot (shown once, never twice)."""
    size = (columns * width, rows * height)
    figure, axes = plt.subplots(rows, columns, figsize=size, dpi=DPI, squeeze=False, **kwargs)
    plt.close(figure)
    return figure, axes


def _picture(image) -> Image.Image:
    """Path, PIL image or (H, W, 3) array (uint8, or float in [0, 1]) -> RGB PIL image."""
    if isinstance(image, (str, Path)):
        # Imported late: it brings Lightly, whose seconds the figures without photos can save.
        from retrieval_utils.transforms import load_image

        return load_image(image)
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    return Image.fromarray(array if array.dtype == np.uint8 else (array.clip(0, 1) * 255).round().astype(np.uint8))


def _show(ax, image, kind: str | None = None, title: str | None = None, box=None, side: int = 80) -> None:
    """Draws a thumbnail in the photo's own pixel coordinates; `kind` adds the coloured border and its mark."""
    picture = _picture(image)
    width, height = picture.size
    picture.thumbnail((side, side))
    # 32 colours a thumbnail look the same and halve the size of the notebook.
    picture = picture.quantize(32, dither=Image.Dither.NONE).convert("RGB")
    ax.imshow(picture, extent=(0, width, height, 0), interpolation="nearest")
    ax.set(xticks=[], yticks=[], anchor="N")
    if title:
        ax.set_title(title, fontsize=9, pad=3)
    ax.spines[:].set_visible(kind is not None)
    if kind is not None:
        ax.spines[:].set(color=COLOURS[kind], linewidth=3.5)
        ax.text(0.03, 0.96, MARKS[kind], transform=ax.transAxes, va="top", color="white", fontsize=9, weight="bold",
                bbox={"facecolor": COLOURS[kind], "edgecolor": "none", "pad": 1.5})  # fmt: skip
    if box is not None:
        x1, y1, x2, y2 = box
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="#FFD400", linewidth=2))


def contact_sheet(images: Sequence, titles: Sequence[str] | None = None, columns: int = 8, boxes=None,
                  kinds: Sequence[str | None] | None = None) -> Figure:  # fmt: skip
    """Images (paths, PIL or arrays) in reading order, `columns` a row, with optional titles, boxes and border kinds."""
    if len(images) == 0:
        raise ValueError("A contact sheet needs at least one image: the list of images is empty.")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell = min(1.1, 10.4 / columns)
    title = 0.0 if titles is None else 0.2
    figure, axes = _grid(rows, columns, cell, cell + title)
    gap = 0.08 + title / cell
    figure.subplots_adjust(0.005, 0.01, 0.995, 1 - (title + 0.02) / (rows * (cell + title)), 0.08, gap)
    for ax in axes.flat[len(images) :]:
        ax.set_axis_off()
    for i, image in enumerate(images):
        _show(axes.flat[i], image, kinds[i] if kinds is not None else None, titles[i] if titles is not None else None,
              boxes[i] if boxes is not None else None)  # fmt: skip
    return figure


def relevance_of(ranking: Sequence[int], ground_truth: GroundTruth, setup: str) -> list[str]:
    """Database indices in ranked order -> "positive", "negative" or "junk" for each, in this set-up of the protocol.

    In "hard" the easy views are ignored, in "easy" the hard ones: they too come out as "junk".
    """
    if setup not in SETUPS:
        raise ValueError(f"Unknown set-up {setup!r}: choose one of {', '.join(SETUPS)}.")
    positive, ignored = SETUPS[setup]
    words = {int(i): "positive" for name in positive for i in getattr(ground_truth, name)}
    words |= {int(i): "junk" for name in ignored for i in getattr(ground_truth, name)}
    return [words.get(int(i), "negative") for i in ranking]


def ranking_grid(query, rankings: Mapping[str, tuple], box=None,
                 average_precision: Mapping[str, float] | None = None) -> Figure:  # fmt: skip
    """One query, several systems: rows = systems, columns = their top results (layout of figure 3, Wu et al. 2022).

    rankings: name -> (images, relevance) or (images, relevance, scores), best first; relevance in the words of
    `relevance_of`. box: the query's (x1, y1, x2, y2) in pixels, drawn in yellow. average_precision: name -> AP.
    """
    columns = 1 + max(len(row[0]) for row in rankings.values())
    label = 0.9 if any(rankings) or average_precision else 0.1
    cell = min(1.1, (10.8 - label) / columns)
    figure, axes = _grid(len(rankings), columns, cell, cell + 0.18)
    width, height = columns * cell + label, len(rankings) * (cell + 0.18)
    figure.set_figwidth(width)
    figure.subplots_adjust(label / width, 0.03, 0.995, 1 - 0.2 / height, 0.1, 0.22)
    for row, (name, (images, relevance, *scores)) in zip(axes, rankings.items(), strict=True):
        if len(images) != len(relevance):
            raise ValueError(f"{name or 'The ranking'}: {len(images)} images but {len(relevance)} relevance words.")
        _show(row[0], query, "query", "query", box)
        ap = "" if average_precision is None else f"AP {average_precision[name]:.2f}"
        row[0].set_ylabel("\n".join(filter(None, (name, ap))), fontsize=10)
        for ax in row[1 + len(images) :]:
            ax.set_axis_off()
        for i, (image, kind) in enumerate(zip(images, relevance, strict=True)):
            score = f"  {float(scores[0][i]):.2f}" if scores and scores[0] is not None else ""
            _show(row[1 + i], image, kind, f"{i + 1}{score}")
    return figure


def ranking_strip(query, images: Sequence, relevance: Sequence[str], scores=None, box=None,
                  average_precision: float | None = None) -> Figure:  # fmt: skip
    """One query and its top results, best first: ✓ green positive, ✗ red negative, – grey junk (see `ranking_grid`)."""
    ap = None if average_precision is None else {"": average_precision}
    return ranking_grid(query, {"": (images, relevance, scores)}, box, ap)


def precision_recall_plot(positive_ranks) -> Figure:
    """Precision over recall with the area that each AP adds up; ranks from 0, or a dict name -> ranks, a panel each.

    Filled blue: the trapezoids of Oxford/Paris. Hatched orange outline: the steps of information retrieval.
    """
    rankings = positive_ranks if isinstance(positive_ranks, Mapping) else {"": positive_ranks}
    figure, axes = _grid(1, len(rankings), 3.6, 3.3, layout="constrained")
    for ax, (name, ranks) in zip(axes[0], rankings.items(), strict=True):
        precision, recall = evaluation.precision_recall(ranks)  # (2P,) (2P,) just before and just after each positive
        areas = {method: evaluation.average_precision(ranks, method) for method in ("trapezoid", "step")}
        ax.fill_between(recall, precision, color=QUERY, alpha=0.3, label=f"trapezoid {areas['trapezoid']:.3f}")
        ax.fill_between(recall, np.repeat(precision[1::2], 2), facecolor="none", edgecolor="#D55E00", hatch="//",
                        linewidth=1.5, label=f"step {areas['step']:.3f}")  # fmt: skip
        ax.plot(recall[1::2], precision[1::2], "o", color="black", markersize=4)
        ax.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.05), title=name)
        ax.legend(loc="lower left", fontsize=9)
    return figure


def match_map(image_a, image_b, map_a, map_b) -> Figure:
    """Where two images match: heat = each location's best cosine in the other image, from `pooling.similarity_maps`."""
    maps = [np.asarray(values, dtype=float) for values in (map_a, map_b)]
    low, high = min(m.min() for m in maps), max(m.max() for m in maps)
    figure, axes = _grid(1, 4, 2.5, 2.6, layout="constrained")
    for image, values, plain, heated in zip((image_a, image_b), maps, axes[0, ::2], axes[0, 1::2], strict=True):
        picture = _picture(image)
        extent = (0, picture.width, picture.height, 0)
        _show(plain, image, side=200)
        _show(heated, picture.convert("L"), side=200)
        look = {"cmap": "inferno", "alpha": 0.6, "vmin": low, "vmax": high, "interpolation": "bilinear"}
        heat = heated.imshow(values, extent=extent, **look)
    figure.colorbar(heat, ax=axes[0, -1], shrink=0.8, label="best cosine in the other image")
    return figure


def embedding_plane(descriptors, labels, names: Sequence[str] | None = None, highlight: Sequence[int] | None = None,
                    ax=None) -> Figure:  # fmt: skip
    """Descriptors (N, D) on their two main directions (PCA); a look for each label; `highlight`: starred rows."""
    points = np.asarray(descriptors, dtype=np.float64)
    labels = np.asarray(labels)
    _, values, directions = np.linalg.svd(points - points.mean(0), full_matrices=False)
    plane = (points - points.mean(0)) @ directions[:2].T  # (N, 2)
    share = 100 * values**2 / (values**2).sum()
    if ax is None:
        figure, axes = _grid(1, 1, 6.4 if names is not None else 4.6, 4.2, layout="constrained")
        ax = axes[0, 0]
    for i, label in enumerate(np.unique(labels)):
        members = plane[labels == label]
        look = {"color": plt.colormaps["tab10"](i % 10), "marker": "os^DvPX"[i // 10 % 7], "edgecolors": "white"}
        ax.scatter(*members.T, s=26, linewidths=0.4, label=None if names is None else names[int(label)], **look)
    if highlight is not None:
        stars = plane[np.asarray(highlight)]
        ax.scatter(*stars.T, s=170, marker="*", color=QUERY, edgecolors="black", label="highlighted")
    if names is not None:
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    ax.set(xticks=[], yticks=[])
    ax.set(xlabel=f"1st direction ({share[0]:.0f} % of variance)", ylabel=f"2nd ({share[1]:.0f} %)")
    return ax.figure


def training_curves(histories: Mapping[str, Mapping[str, Sequence[float]]], key: str = "loss", ax=None) -> Figure:
    """One curve a training run, value of `key` against epoch (from 1); runs that did not record `key` are left out."""
    kept = {name: history[key] for name, history in histories.items() if key in history}
    if not kept:
        known = sorted({k for history in histories.values() for k in history})
        raise ValueError(f"No history has the key {key!r}: choose one of {', '.join(known)}.")
    if ax is None:
        figure, axes = _grid(1, 1, 5.6, 3.4, layout="constrained")
        ax = axes[0, 0]
    for i, (name, values) in enumerate(kept.items()):
        colour, line = LINES[i % len(LINES)]
        epochs = np.arange(1, len(values) + 1)
        ax.plot(epochs, values, color=colour, linestyle=line, marker="o", markersize=3, label=name)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="epoch", ylabel=key)
    ax.legend(fontsize=9)
    return ax.figure


def gradient_plot(gradients: Mapping[str, Sequence[float]], relevance: Sequence[str]) -> Figure:
    """How each loss moves the scores of one ranking: a panel a loss, a bar an item, best rank first.

    gradients: name -> dLoss/dscore in ranked order; the bar is its negative, the way gradient descent moves the score.
    """
    figure, axes = _grid(1, len(gradients), max(2.6, min(3.6, 10.8 / len(gradients))), 3.0, layout="constrained")
    ranks = np.arange(1, len(relevance) + 1)
    for ax, (name, gradient) in zip(axes[0], gradients.items(), strict=True):
        push = -np.asarray(gradient, dtype=float)
        for kind in dict.fromkeys(relevance):
            here = np.array([word == kind for word in relevance])
            ax.bar(ranks[here], push[here], color=COLOURS[kind], label=f"{MARKS[kind]} {kind}")
        ax.axhline(0, color="black", linewidth=0.8)
        limit = max(1.15 * np.abs(push).max(), 1e-6)
        ax.set(title=name, xlabel="rank", ylim=(-limit, limit))
    axes[0, 0].set_ylabel("push on the score  (up = rises)")
    axes[0, -1].legend(fontsize=9)
    return figure


def ablation_dots(
    rows: pd.DataFrame, questions: Mapping[str, tuple[str, Sequence[str]]], setup: str = "medium"
) -> Figure:
    """One panel a question, one line an arm, one dot a seed: mAP plain (filled) and whitened (open).

    rows: the columns name, seed, <setup> and <setup>_whitened. questions: title -> (reference, arms); the reference is
    the top line, and its bands, from its lowest to its highest seed, run down the panel. Raises ValueError for no rows.
    """
    if rows.empty:
        raise ValueError("There are no rows to draw; read results/ablation/finetuning.csv of the project first.")
    heights = [1.4 + len(arms) for _, arms in questions.values()]
    height = 0.3 + 0.26 * sum(heights) / len(heights)
    layout = {"layout": "constrained", "sharex": True, "gridspec_kw": {"height_ratios": heights}}
    figure, axes = _grid(len(heights), 1, 7.2, height, **layout)
    for ax, (question, (reference, arms)) in zip(axes[:, 0], questions.items(), strict=True):
        names = [reference, *arms]
        looks = ((setup, QUERY, QUERY, -0.14, "plain"), (f"{setup}_whitened", "#D55E00", "white", 0.14, "whitened"))
        for column, colour, face, offset, label in looks:
            for line, name in enumerate(names):
                seeds = rows.loc[rows["name"] == name, column].to_numpy()
                ax.scatter(seeds, np.full(len(seeds), line + offset), s=22, facecolor=face, edgecolor=colour, zorder=3,
                           label=label if line == 0 else None)  # fmt: skip
                if name == reference and len(seeds):
                    ax.axvspan(seeds.min(), seeds.max(), color=colour, alpha=0.13, linewidth=0)
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_title(question, fontsize=9, loc="left")
        ax.tick_params(axis="x", labelsize=8)
    axes[0, 0].legend(fontsize=8)
    axes[-1, 0].set_xlabel(f"mAP, {setup}; bands: the seeds of the top line")
    return figure


def plot_ladder(rows: pd.DataFrame, setup: str | None = None) -> Figure:
    """The ladder: mAP of each step, one panel a set-up; rows as in results/<profile>.csv, of one benchmark.

    Bar: mean over seeds, plain (filled) above whitened (hatched); what was done to whitened descriptors afterwards, as
    in ap-finetuned+whitening+qe, is a rung of its own. Dot and whisker: one seed and its bootstrap interval
    over queries. From the top: the road, other papers a group each, and the controls below the dashed line.
    """
    benchmarks = sorted(rows["benchmark"].unique())
    if len(benchmarks) != 1:
        raise ValueError(
            f"The ladder shows one benchmark at a time, these rows hold {', '.join(benchmarks) or 'none'}."
        )
    setups = list(rows["setup"].unique()) if setup is None else [setup]
    plain = rows["step"].str.removesuffix("+whitening")
    steps = [step for step in (*LADDER, *sorted(set(plain) - {*LADDER, *CONTROLS}), *CONTROLS) if step in set(plain)]
    groups = [_group(step) for step in steps]
    places = np.cumsum([0, *(1 + 0.8 * (a != b) for a, b in pairwise(groups))])
    right = min(1.05, 1.15 * rows.loc[rows["setup"].isin(setups), "ap_high"].max())
    width = 7.5 if len(setups) == 1 else 3.6
    figure, axes = _grid(1, len(setups), width, 1.3 + 0.33 * places[-1], layout="constrained", sharey=True)
    for ax, name in zip(axes[0], setups, strict=True):
        for offset, suffix in ((-0.2, ""), (0.2, "+whitening")):
            for step, group, place in zip(steps, groups, places, strict=True):
                seeds = rows[(rows["setup"] == name) & (rows["step"] == step + suffix)].sort_values("seed")
                if seeds.empty:
                    continue
                mean, y = seeds["mean_ap"].mean(), place + offset
                colour = "#BBBBBB" if group == "controls" else "#56B4E9"
                hatch = "///" if "+whitening" in step + suffix else None
                ax.barh(y, mean, 0.38, color=colour, edgecolor="white", hatch=hatch)
                dots = y + np.linspace(-0.1, 0.1, len(seeds)) * (len(seeds) > 1)
                whiskers = np.abs(seeds[["ap_low", "ap_high"]].to_numpy().T - seeds["mean_ap"].to_numpy())
                ax.errorbar(seeds["mean_ap"], dots, xerr=whiskers, fmt="o", color="black", markersize=2, linewidth=0.6)
                ax.text(seeds["ap_high"].max() + 0.01 * right, y, f"{mean:.3f}", va="center", fontsize=7)
        if "controls" in groups[1:]:
            line = places[groups.index("controls")] - 0.9
            ax.axhline(line, color="black", linestyle="--", linewidth=0.8)
            ax.text(right, line + 0.05, "controls", ha="right", va="top", fontsize=9)
        ax.set(title=f"{benchmarks[0]}, {name}", xlim=(0, right), ylim=(places[-1] + 0.5, -0.5), xlabel="mAP")
        names = [step.replace("+whitening+", " +") for step in steps]  # their bar is hatched as it is
        ax.set_yticks(places, names, fontsize=8)
    handles = [Rectangle((0, 0), 1, 1, facecolor="#56B4E9", edgecolor="white", hatch=h) for h in (None, "///")]
    figure.legend(handles, ["plain", "whitened"], fontsize=9, loc="outside upper left", ncols=2)
    return figure


def _group(step: str) -> str:
    """What a step belongs to: the road (with what is done to its descriptors), another paper, or the controls."""
    return "controls" if step in CONTROLS else "road" if step.split("+")[0] in LADDER else step.split("-")[0]
