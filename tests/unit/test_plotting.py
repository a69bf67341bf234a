"""Figures: how many axes, which border colour, which order; and small enough to commit."""

from __future__ import annotations

import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex

from retrieval_utils import plotting, widgets
from retrieval_utils.evaluation import SETUPS, GroundTruth, average_precision

RNG = np.random.default_rng(0)
PHOTOS = [RNG.integers(0, 256, (30 + 10 * i, 60, 3), dtype=np.uint8) for i in range(6)]
KINDS = ["positive", "negative", "junk", "positive"]


def indices(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def saved_kilobytes(figure) -> float:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return len(buffer.getvalue()) / 1000


def border(ax) -> str:
    return to_hex(ax.spines["left"].get_edgecolor()).upper()


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def ladder_rows(steps, setups=("medium", "hard"), seeds=(0, 1, 2), benchmark="toy-landmarks") -> pd.DataFrame:
    rows = [
        dict(step=step, benchmark=benchmark, setup=setup, seed=seed, mean_ap=0.1 * (i + 1) + 0.01 * seed,
             ap_low=0.1 * i, ap_high=0.1 * (i + 2), minutes=1.0, card="0" * 12)
        for i, step in enumerate(steps) for setup in setups for seed in seeds
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_no_figure_stays_open_and_no_style_changes():
    before, open_before = dict(matplotlib.rcParams), plt.get_fignums()
    plotting.contact_sheet(PHOTOS)
    plotting.ranking_strip(PHOTOS[0], PHOTOS[:4], KINDS)
    plotting.precision_recall_plot([0, 3])
    plotting.plot_ladder(ladder_rows(["random"]))
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == open_before


def test_contact_sheet_shows_every_image_once_and_hides_the_rest():
    figure = plotting.contact_sheet(PHOTOS, titles=list("abcdef"), columns=4)
    shown = [ax for ax in figure.axes if ax.images]
    assert len(figure.axes) == 8 and [ax.get_title() for ax in shown] == list("abcdef")
    assert not any(ax.axison for ax in figure.axes if not ax.images)


def test_contact_sheet_of_nothing_says_so():
    with pytest.raises(ValueError, match="empty"):
        plotting.contact_sheet([])


def test_images_may_be_paths_arrays_or_pil(tmp_path):
    from PIL import Image

    array = np.full((8, 12, 3), 200, np.uint8)
    Image.fromarray(array).save(tmp_path / "photo.png")
    figure = plotting.contact_sheet([tmp_path / "photo.png", array, Image.fromarray(array), array / 255])
    drawn = [np.asarray(ax.images[0].get_array()) for ax in figure.axes]
    assert all(np.array_equal(pixels, array) for pixels in drawn)


def test_colours_and_marks_differ_for_every_kind():
    assert len(set(plotting.COLOURS.values())) == len(set(plotting.MARKS.values())) == 4


def test_strip_borders_follow_the_relevance():
    figure = plotting.ranking_strip(PHOTOS[0], PHOTOS[1:5], KINDS, scores=[0.9, 0.8, 0.7, 0.6], average_precision=0.5)
    kinds = ["query", *KINDS]
    assert [border(ax) for ax in figure.axes] == [plotting.COLOURS[kind] for kind in kinds]
    assert [texts(ax) for ax in figure.axes] == [[plotting.MARKS[kind]] for kind in kinds]
    assert figure.axes[0].get_ylabel() == "AP 0.50" and figure.axes[2].get_title().split() == ["2", "0.80"]


def test_query_box_is_drawn_in_the_photo_s_own_pixels():
    big = np.zeros((400, 300, 3), np.uint8)
    ax = plotting.ranking_strip(big, PHOTOS[:1], ["positive"], box=(30, 40, 130, 240)).axes[0]
    assert ax.patches[0].get_bbox().bounds == (30, 40, 100, 200)
    assert ax.get_xlim() == (0, 300) and ax.get_ylim() == (400, 0)


def test_grid_has_a_row_per_system_and_the_query_in_each():
    rankings = {"classifier": (PHOTOS[:4], KINDS), "contrastive": (PHOTOS[:2], KINDS[:2])}
    figure = plotting.ranking_grid(PHOTOS[5], rankings, average_precision={"classifier": 0.25, "contrastive": 1.0})
    rows = np.array(figure.axes).reshape(2, 5)
    assert [ax.get_ylabel() for ax in rows[:, 0]] == ["classifier\nAP 0.25", "contrastive\nAP 1.00"]
    assert {border(ax) for ax in rows[:, 0]} == {plotting.QUERY}
    assert [bool(ax.images) for ax in rows[1]] == [True, True, True, False, False]


def test_grid_rejects_lists_of_unequal_length():
    with pytest.raises(ValueError, match="classifier: 2 images but 4"):
        plotting.ranking_grid(PHOTOS[0], {"classifier": (PHOTOS[:2], KINDS)})


@pytest.mark.parametrize(
    ("setup", "expected"),
    [
        ("easy", ["positive", "junk", "junk", "negative"]),
        ("medium", ["positive", "positive", "junk", "negative"]),
        ("hard", ["junk", "positive", "junk", "negative"]),
    ],
)
def test_relevance_words_of_each_setup(setup, expected):
    truth = GroundTruth(easy=indices(4), hard=indices(2), junk=indices(7))
    assert plotting.relevance_of([4, 2, 7, 0], truth, setup) == expected


def test_relevance_knows_every_setup_and_names_them_for_an_unknown_one():
    truth = GroundTruth(easy=indices(0), hard=indices(), junk=indices())
    for setup in SETUPS:
        assert len(plotting.relevance_of([0, 1], truth, setup)) == 2
    with pytest.raises(ValueError, match="'esay'.*easy, medium, hard"):
        plotting.relevance_of([0], truth, "esay")


def test_precision_recall_areas_are_the_two_average_precisions():
    ranks = [0, 3, 4, 5]
    ax = plotting.precision_recall_plot(ranks).axes[0]
    for area, method in zip(ax.collections, ("trapezoid", "step"), strict=True):
        x, y = area.get_paths()[0].vertices[:-1].T
        shoelace = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
        assert shoelace == pytest.approx(average_precision(ranks, method=method), abs=1e-9)


def test_precision_recall_has_a_panel_per_ranking():
    figure = plotting.precision_recall_plot({"one": [1], "two": [0, 1]})
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"]


def test_match_map_shares_one_heat_scale():
    figure = plotting.match_map(PHOTOS[0], PHOTOS[1], torch.rand(4, 6) * 0.5, torch.rand(4, 6))
    limits = {ax.images[1].get_clim() for ax in figure.axes if len(ax.images) == 2}
    assert len(limits) == 1 and len(figure.axes) == 5


def test_embedding_plane_keeps_distances_of_planar_points():
    plane = RNG.normal(size=(12, 2))
    rotation = np.linalg.qr(RNG.normal(size=(5, 5)))[0][:2]
    ax = plotting.embedding_plane(torch.as_tensor(plane @ rotation), np.zeros(12, int), highlight=[3]).axes[0]
    drawn = np.asarray(ax.collections[0].get_offsets())
    gaps = np.linalg.norm(drawn[:, None] - drawn, axis=-1)
    assert np.allclose(gaps, np.linalg.norm(plane[:, None] - plane, axis=-1))
    assert np.allclose(ax.collections[1].get_offsets(), drawn[3:4])


def test_embedding_plane_names_every_label_and_draws_where_it_is_told():
    _, ax = plt.subplots()
    figure = plotting.embedding_plane(RNG.normal(size=(9, 4)), np.repeat([0, 2, 5], 3), names="abcdef", ax=ax)
    plt.close(figure)
    assert figure is ax.figure and [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "c", "f"]


def test_training_curves_start_at_epoch_one_and_skip_runs_without_the_key():
    histories = {"simclr": {"loss": [3.0, 2.0, 1.0]}, "classifier": {"loss": [2.0], "accuracy": [0.5]}}
    lines = plotting.training_curves(histories).axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[1, 2, 3], [1]]
    assert len(plotting.training_curves(histories, "accuracy").axes[0].lines) == 1
    with pytest.raises(ValueError, match="accuracy, loss"):
        plotting.training_curves(histories, "los")


def test_gradient_bars_point_where_descent_moves_the_score():
    figure = plotting.gradient_plot({"a": [-1.0, 2.0], "b": [0.0, 0.0]}, ["positive", "negative"])
    bars = {to_hex(bar.get_facecolor()).upper(): bar.get_height() for bar in figure.axes[0].patches}
    assert bars == {plotting.POSITIVE: 1.0, plotting.NEGATIVE: -2.0}
    assert [ax.get_title() for ax in figure.axes] == ["a", "b"]


def test_ladder_order_controls_last_and_a_panel_per_setup():
    steps = ["scratch-ap", "ap-finetuned", "classifier-ap", "contrastive", "random", "classifier"]
    figure = plotting.plot_ladder(ladder_rows(steps + [f"{step}+whitening" for step in steps]))
    assert [ax.get_title().split(", ")[1] for ax in figure.axes] == ["medium", "hard"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["random", "classifier", "contrastive", "ap-finetuned", "classifier-ap", "scratch-ap"]
    places = figure.axes[0].get_yticks()
    dashed = figure.axes[0].lines[-1].get_ydata()[0]
    assert places[3] < dashed < places[4] and len(figure.axes[0].patches) == 12


def test_what_is_done_to_whitened_descriptors_is_a_hatched_rung_of_its_own():
    steps = ["ap-finetuned", "ap-finetuned+whitening", "ap-finetuned+whitening+qe", "scratch-ap"]
    ax = plotting.plot_ladder(ladder_rows(steps), setup="hard").axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["ap-finetuned", "ap-finetuned +qe", "scratch-ap"]
    lengths = {round(bar.get_width(), 2): bar.get_hatch() for bar in ax.patches}
    assert lengths == {0.11: None, 0.21: "///", 0.31: "///", 0.41: None}


def test_ladder_bar_is_the_mean_over_seeds_and_whiskers_are_the_intervals():
    ax = plotting.plot_ladder(ladder_rows(["classifier"]), setup="hard").axes[0]
    assert ax.patches[0].get_width() == pytest.approx(0.11)
    dots, _, (bars,) = ax.containers[-1]
    assert np.allclose(dots.get_xdata(), [0.1, 0.11, 0.12])
    assert all(np.allclose(segment[:, 0], [0.0, 0.2]) for segment in bars.get_segments())


def test_other_papers_stand_apart_from_the_road():
    steps = ["lrml-ap", "contrastive", "autoret", "lrml", "ap-finetuned", "scratch-ap"]
    ax = plotting.plot_ladder(ladder_rows(steps), setup="hard").axes[0]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["contrastive", "ap-finetuned", "autoret", "lrml", "lrml-ap", "scratch-ap"]
    assert np.allclose(np.diff(ax.get_yticks()), [1, 1.8, 1.8, 1, 1.8]) and ax.get_ylim()[0] > ax.get_ylim()[1]


def test_ladder_refuses_to_mix_benchmarks():
    rows = pd.concat([ladder_rows(["random"]), ladder_rows(["random"], benchmark="grocery-store")])
    with pytest.raises(ValueError, match="grocery-store, toy-landmarks"):
        plotting.plot_ladder(rows)


def test_ablation_shows_every_seed_beside_the_band_of_the_reference():
    rows = [
        {"name": name, "seed": seed, "medium": low + 0.01 * seed, "medium_whitened": low + 0.2}
        for name, low in (("base", 0.1), ("mac", 0.3))
        for seed in range(3)
    ]
    (ax,) = plotting.ablation_dots(pd.DataFrame(rows), {"which pooling": ("base", ("mac",))}).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["base", "mac"]
    plain_base, plain_mac, *_ = ax.collections
    assert np.allclose(plain_base.get_offsets()[:, 0], [0.10, 0.11, 0.12])
    assert np.allclose(plain_mac.get_offsets()[:, 0], [0.30, 0.31, 0.32])
    band = ax.patches[0]
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((0.10, 0.12))
    with pytest.raises(ValueError, match="no rows to draw"):
        plotting.ablation_dots(pd.DataFrame(), {})


def test_figures_are_small_enough_to_commit():
    # Smooth pictures with a little noise: pure noise cannot be compressed and no photo looks like it.
    ramp = np.linspace(0, 200, 160)[:, None, None] + np.linspace(0, 50, 120)[None, :, None]
    photos = [(ramp + RNG.normal(0, 3, (160, 120, 3))).clip(0, 255).astype(np.uint8) for _ in range(24)]
    assert saved_kilobytes(plotting.contact_sheet(photos)) < 150
    assert saved_kilobytes(plotting.ranking_strip(photos[0], photos[:10], ["positive"] * 10)) < 150
    assert saved_kilobytes(plotting.match_map(*photos[:2], *RNG.random((2, 5, 4)))) < 150
    assert saved_kilobytes(plotting.plot_ladder(ladder_rows(plotting.LADDER))) < 150


def test_curves_are_drawn_over_whole_epochs():
    ticks = plotting.training_curves({"a": {"loss": [2.0, 1.0]}}).axes[0].get_xticks()
    assert all(tick == round(tick) for tick in ticks)


def test_score_lines_show_the_rank_above_each_item():
    ax = widgets.score_lines({"A": ([0.1, 0.9, 0.5], ["negative", "positive", "junk"])}).axes[0]
    assert texts(ax) == ["✗", "3", "✓", "1", "–", "2"]


def test_step_ap_by_counting_is_the_evaluator_s_and_a_tie_counts_against_the_positive():
    scores = torch.rand(20, 9, generator=torch.Generator().manual_seed(0))
    positives = torch.arange(9) < 3
    for row, ap in zip(scores, widgets.step_ap(scores, positives), strict=True):
        ranks = positives[row.argsort(descending=True)].nonzero().flatten().numpy()
        assert float(ap) == pytest.approx(average_precision(ranks, "step"))
    assert widgets.step_ap(torch.tensor([[0.5, 0.5]]), torch.tensor([True, False])).item() == 0.5


def test_slopes_of_the_sliding_score_are_those_of_its_curve():
    scores, positives = torch.tensor([0.5, 0.8, 0.6, 0.3]), torch.tensor([True, True, False, False])
    curves = widgets.sliding_score(scores, positives, moving=0, temperature=0.1, bins=5)
    values, slopes = (curve.double() for curve in curves["Smooth-AP"])
    measured = torch.diff(values) / torch.diff(curves["score"].double())
    assert torch.allclose(measured, (slopes[1:] + slopes[:-1]) / 2, atol=5e-3)
    assert curves["true AP"][0].unique().numel() == 3  # below both negatives, between them, above both


def test_ranking_figure_counts_after_the_junk_is_gone():
    ax = widgets.ranking_figure(["junk", "negative", "positive", "negative"]).axes[0]
    assert texts(ax)[-1].split("    ") == ["AP trapezoid 0.250", "AP step 0.500", "P@1 0/1", "P@5 1/2", "P@10 1/2"]
    assert len(ax.patches) == 4 + 3
    assert "nan" in texts(widgets.ranking_figure(["junk", "negative"]).axes[0])[-1]


def test_ranking_figure_without_junk_has_one_row_and_keeps_the_answers_to_itself_when_asked():
    ax = widgets.ranking_figure(["positive", "negative"], numbers=False).axes[0]
    assert len(ax.patches) == 2 and not any("AP" in text for text in texts(ax))


def test_a_moved_control_redraws_the_figure():
    pytest.importorskip("ipywidgets")
    menus, image = widgets.ranking_lab(["positive", "negative"]).children
    before = bytes(image.value)
    menus.children[1].value = "positive"
    assert before.startswith(b"\x89PNG") and bytes(image.value) != before
    scores, positives = torch.tensor([0.5, 0.8, 0.6]), torch.tensor([True, True, False])
    assert len(widgets.ap_slider(scores, positives, 0).children[0].children) == 2
