"""Figures one can move: each is a pure function of its settings, and a widget below only calls it.

A notebook shows the figure first, for readers without a kernel, and the widget after it. ipywidgets comes with the
`course` extra and is imported only when a widget is asked for.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from retrieval_utils.evaluation import KS, average_precision
from retrieval_utils.losses import QuantizedAPLoss, SmoothAPLoss
from retrieval_utils.plotting import COLOURS, LINES, MARKS, NEGATIVE, POSITIVE, _grid

STYLES = {"true AP": ("black", "-"), "Smooth-AP": LINES[0], "quantised AP": LINES[1]}


def score_lines(rankings: Mapping[str, tuple[Sequence[float], Sequence[str]]]) -> Figure:
    """Rankings as dots on the axis of scores, best on the right; name -> (scores, relevance words), a line each."""
    figure, axes = _grid(len(rankings), 1, 9.6, 1.05, layout="constrained", sharex=True)
    for ax, (name, (scores, relevance)) in zip(axes[:, 0], rankings.items(), strict=True):
        ranks = np.argsort(np.argsort(-np.asarray(scores), kind="stable"), kind="stable") + 1
        ax.axhline(0, color="#BBBBBB", linewidth=1, zorder=0)
        for score, kind, rank in zip(scores, relevance, ranks, strict=True):
            ax.plot(score, 0, "o", color=COLOURS[kind], markersize=15)
            ax.text(score, -0.05, MARKS[kind], color="white", ha="center", va="center", fontsize=10, weight="bold")
            ax.text(score, 0.62, str(rank), ha="center", va="center", fontsize=9)
        ax.set(yticks=[], ylim=(-0.8, 1))
        ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
        ax.spines[["left", "right", "top"]].set_visible(False)
    axes[-1, 0].set_xlabel("score (cosine with the query); above each item its rank")
    return figure


def step_ap(scores: Tensor, positives: Tensor) -> Tensor:
    """True step AP (R,) of rows of scores (R, N), positives (N,) bool, by counting; a tied negative counts as above."""
    own = scores[:, positives]  # (R, P)
    above = scores[:, None, :] > own[:, :, None]  # (R, P, N)
    tied = (scores[:, None, :] == own[:, :, None]) & ~positives  # (R, P, N)
    found = 1 + (above & positives).sum(2)  # (R, P)
    return (found / (1 + (above | tied).sum(2))).mean(1)  # (R,)


def sliding_score(scores: Tensor, positives: Tensor, moving: int, temperature: float, bins: int) -> dict[str, tuple]:
    """AP and its slope while the score of item `moving` slides over the range of the scores (N,), the others fixed.

    Returns "score" -> (T,) and name -> (values (T,), slopes (T,)) for true AP, Smooth-AP and quantised AP.
    """
    path = torch.linspace(float(scores.min()) - 0.1, float(scores.max()) + 0.1, 600)  # (T,)
    rows = scores.detach().float().repeat(len(path), 1)  # (T, N)
    rows[:, moving] = path
    curves = {"score": path, "true AP": (step_ap(rows, positives), torch.zeros_like(path))}
    masks = positives.expand_as(rows), ~positives.expand_as(rows)
    for name, loss in (("Smooth-AP", SmoothAPLoss(temperature)), ("quantised AP", QuantizedAPLoss(bins))):
        rows.requires_grad_(True)
        values = 1 - loss.row_losses(rows, *masks)  # (T,)
        (slopes,) = torch.autograd.grad(values.sum(), rows)  # (T, N)
        curves[name] = (values.detach(), slopes[:, moving])
        rows = rows.detach()
    return curves


def surrogate_figure(
    scores: Tensor, positives: Tensor, moving: int, temperature: float = 0.05, bins: int = 20
) -> Figure:
    """Left: true AP and both surrogates while one positive's score slides; right: the slopes that training sees."""
    curves = sliding_score(scores, positives, moving, temperature, bins)
    path = curves.pop("score")
    figure, (axes,) = _grid(1, 2, 5.0, 3.4, layout="constrained")
    for name, (values, slopes) in curves.items():
        colour, line = STYLES[name]
        setting = {"Smooth-AP": f", temperature {temperature:.3g}", "quantised AP": f", {bins} bins"}.get(name, "")
        axes[0].plot(path, values, color=colour, linestyle=line, label=name + setting)
        axes[1].plot(path, slopes, color=colour, linestyle=line, label=name)
    for i, score in enumerate(scores.tolist()):
        if i != moving:
            axes[0].plot(
                score,
                0.03,
                marker="|",
                markersize=14,
                markeredgewidth=2.5,
                color=POSITIVE if positives[i] else NEGATIVE,
            )
    axes[0].set(xlabel="score of the sliding positive", ylabel="AP", ylim=(0, 1.05))
    axes[1].set(xlabel="score of the sliding positive", ylabel="slope of AP")
    axes[0].legend(fontsize=9)
    return figure


def ranking_figure(relevance: Sequence[str], numbers: bool = True) -> Figure:
    """A ranking as tiles, before and after its junk is removed; below, if wanted, both APs and P@k as fractions.

    AP is nan without a positive. P@k stops at the last positive, as in the protocol of Revisited Oxford.
    """
    kept = [kind for kind in relevance if kind != "junk"]
    rows = [("as ranked", relevance)] + [("junk removed", kept)] * (len(kept) < len(relevance))
    width, height = len(relevance) + 2.7, 1.5 * len(rows) + 0.7 * numbers
    figure, ((ax,),) = _grid(1, 1, 0.6 * max(width, 10), 0.6 * height)
    for line, (name, row) in enumerate(rows):
        y = height - 1.4 - 1.5 * line
        ax.text(-0.2, y + 0.45, name, ha="right", va="center", fontsize=10)
        for i, kind in enumerate(row):
            ax.add_patch(Rectangle((i + 0.05, y), 0.9, 0.9, color=COLOURS[kind]))
            ax.text(i + 0.5, y + 0.45, MARKS[kind], color="white", ha="center", va="center", fontsize=13, weight="bold")
            ax.text(i + 0.5, y + 1.1, str(i + 1), ha="center", va="center", fontsize=9)
    if numbers:
        ranks = [i for i, kind in enumerate(kept) if kind == "positive"]
        words = [f"AP trapezoid {average_precision(ranks):.3f}", f"AP step {average_precision(ranks, 'step'):.3f}"]
        depths = {k: min(k, ranks[-1] + 1) for k in KS if ranks}
        words += [f"P@{k} {sum(r < depth for r in ranks)}/{depth}" for k, depth in depths.items()]
        ax.text(0.05, 0.3, "    ".join(words), fontsize=11, va="center")
    ax.set(xlim=(-2.6, max(width, 10) - 2.6), ylim=(0, height))
    ax.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 1)
    return figure


def movable(draw: Callable[..., Figure], **controls):
    """Widgets that set the arguments of `draw`, above its figure; `controls`: argument -> ipywidgets control.

    The figure is an image widget, not an Output widget: batch executors can hang on those.
    """
    import ipywidgets

    def png() -> bytes:
        buffer = io.BytesIO()
        draw(**{name: control.value for name, control in controls.items()}).savefig(buffer, bbox_inches="tight")
        return buffer.getvalue()

    image = ipywidgets.Image(value=png(), format="png")

    def redraw(_change) -> None:
        image.value = png()

    for control in controls.values():
        control.observe(redraw, names="value")
    return ipywidgets.VBox([ipywidgets.HBox(list(controls.values()), layout={"flex_flow": "row wrap"}), image])


def ap_slider(scores: Tensor, positives: Tensor, moving: int):
    """Sliders for the temperature of Smooth-AP and the bins of quantised AP over `surrogate_figure`."""
    from ipywidgets import FloatLogSlider, IntSlider

    return movable(
        lambda temperature, bins: surrogate_figure(scores, positives, moving, temperature, bins),
        temperature=FloatLogSlider(0.05, min=-3, max=0, step=0.1, description="temperature", continuous_update=False),
        bins=IntSlider(20, min=3, max=80, description="bins", continuous_update=False),
    )


def ranking_lab(relevance: Sequence[str]):
    """A menu per rank to change its relevance, over `ranking_figure`: see both APs and P@k move."""
    from ipywidgets import Dropdown

    kinds = ["positive", "negative", "junk"]
    menus = {f"rank{i}": Dropdown(options=kinds, value=k, layout={"width": "92px"}) for i, k in enumerate(relevance)}
    return movable(lambda **chosen: ranking_figure(list(chosen.values())), **menus)
