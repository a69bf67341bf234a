"""Toy landmarks: the same bytes everywhere, labels that follow from what is visible, a folder that can be trusted."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval_utils.datasets import toy_landmarks
from retrieval_utils.datasets.toy import styles
from retrieval_utils.datasets.toy.camera import Camera
from retrieval_utils.datasets.toy.look import Lots
from retrieval_utils.datasets.toy.photo import _coefficients, take_photo
from retrieval_utils.datasets.toy.scenes import Building, View, _measure, plan_view
from retrieval_utils.datasets.toy_landmarks import (
    SIZES,
    STYLES,
    Size,
    generate_toy_landmarks,
    load_toy_benchmark,
    load_toy_training_set,
)

FEW = ("castle", "cinema", "classical-temple", "pagoda")  # four styles are enough to test the plumbing
SMALL = "Size(categories=(1, 1), instances=(1, 2), test=(1, 3), queries=1, distractors=(1, 1), streets=1)"


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "small", eval(SMALL, {"Size": Size}))
        patch.setattr(toy_landmarks, "STYLES", {style: STYLES[style] for style in FEW})
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small) -> Path:
    return generate_toy_landmarks(tmp_path_factory.mktemp("toy"), "small", workers=1, progress=False)


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / folder.name))


@pytest.fixture(scope="module")
def building() -> Building:
    return Building.build("castle", np.random.default_rng(3))


# ---- bytes


def test_another_process_with_two_workers_draws_the_same_bytes(folder, tmp_path):
    code = f"""
from retrieval_utils.datasets import toy_landmarks
from retrieval_utils.datasets.toy_landmarks import SIZES, STYLES, Size
if __name__ == "__main__":
    SIZES["small"] = {SMALL}
    toy_landmarks.STYLES = {{style: STYLES[style] for style in {FEW}}}
    print(toy_landmarks.generate_toy_landmarks({str(tmp_path)!r}, "small", workers=2, progress=False))
"""
    (tmp_path / "draw.py").write_text(code)
    run = subprocess.run([sys.executable, str(tmp_path / "draw.py")], capture_output=True, text=True, cwd=Path.cwd())
    assert run.returncode == 0, run.stderr
    assert manifest(Path(run.stdout.strip())) == manifest(folder)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [folder.name]


def test_another_seed_draws_other_buildings_and_other_photos(tmp_path):
    jobs = [toy_landmarks._Job(seed, 0, "pagoda", "test", 1) for seed in (0, 1)]
    (tmp_path / "jpg").mkdir()
    photos = []
    for job in jobs:
        (row,) = toy_landmarks._photograph(job, tmp_path)
        photos.append((tmp_path / "jpg" / row["file"]).read_bytes())
    assert photos[0] != photos[1]


def test_every_photo_has_a_stream_of_its_own():
    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    assert len({toy_landmarks._stream(*key).integers(2**62) for key in keys}) == len(keys)


# ---- the set


def test_counts_follow_the_size(folder):
    n, bench = len(FEW), load_toy_benchmark(folder)
    assert len(bench.queries) == n and len(bench.images) == 3 * n + n + 1
    assert len(load_toy_training_set(folder, "categories").images) == n
    instances = load_toy_training_set(folder, "instances")
    assert len(instances.images) == 2 * n and np.bincount(instances.labels).tolist() == [2] * n
    counts = manifest(folder)["counts"]
    assert counts["database"] == len(bench.images) and counts["easy"] + counts["hard"] + counts["junk"] == 3 * n


def test_labels_are_styles_for_categories_and_buildings_for_instances(folder):
    categories, instances = (load_toy_training_set(folder, part) for part in ("categories", "instances"))
    assert categories.label_names == FEW
    assert len(instances.label_names) == len(FEW) and not set(instances.label_names) & set(FEW)
    for part in (categories, instances):
        assert part.labels.dtype == np.int64
        for path, label in zip(part.images, part.labels, strict=True):
            assert path.is_file() and path.name.startswith(part.label_names[label])
    assert categories.fingerprint != instances.fingerprint


def test_no_building_is_in_two_parts(folder):
    parts = defaultdict(set)
    for row in csv.DictReader((folder / "train.csv").open()):
        parts[row["part"]].add(row["building"])
        assert 0.25 <= float(row["visible"]) <= 1  # no junk to learn from
    bench = load_toy_benchmark(folder)
    parts["test"] = {path.stem[:-4] for path in bench.queries}
    parts["database"] = {path.stem[:-4] for path in bench.images}
    assert parts["test"] < parts["database"]
    names = [name for part in ("categories", "instances", "database") for name in parts[part]]
    assert len(names) == len(set(names))


def test_ground_truth_lists_all_views_of_the_query_building_and_no_other(folder):
    bench = load_toy_benchmark(folder)
    for path, truth in zip(bench.queries, bench.ground_truth, strict=True):
        labelled = {bench.images[i].stem for i in np.concatenate([truth.easy, truth.hard, truth.junk])}
        assert labelled == {image.stem for image in bench.images if image.stem[:-4] == path.stem[:-4]}
        assert len(labelled) == 3 and path.stem not in labelled
    assert [p.name for p in bench.images] != sorted(p.name for p in bench.images)  # the order says nothing


def test_photos_and_boxes(folder):
    bench = load_toy_benchmark(folder)
    for path in bench.images:
        with Image.open(path) as photo:
            assert photo.mode == "RGB" and 140 <= max(photo.size) <= 160 and min(photo.size) >= 120
    for path, (x1, y1, x2, y2) in zip(bench.queries, bench.boxes, strict=True):
        with Image.open(path) as photo:
            w, h = photo.size
        assert 0 <= x1 < x2 <= w and 0 <= y1 < y2 <= h
        assert (x2 - x1) * (y2 - y1) >= 0.09 * w * h  # queries are easy, and easy fills 9 % of the photo


def test_labels_can_be_recomputed_from_the_seed_alone(folder):
    bench, size = load_toy_benchmark(folder), SIZES["small"]
    labels = {}
    for truth in bench.ground_truth:
        for name in ("easy", "hard", "junk"):
            labels |= {bench.images[i].stem: name for i in getattr(truth, name)}
    job = next(job for job in toy_landmarks._jobs(size, 0) if job.part == "test" and job.style == "cinema")
    landmark = Building.build(job.style, toy_landmarks._stream(0, job.key, 0))
    for view in range(job.views):
        plan = plan_view(landmark, Lots(toy_landmarks._stream(0, job.key, view + 1)))
        assert labels[f"cinema_{job.key:03d}_{view:03d}"] == plan.label


# ---- drawing


@pytest.mark.parametrize("style", STYLES)
def test_every_style_stands_on_the_ground_has_windows_and_varies(style):
    drawn = [styles.draw_facade(style, np.random.default_rng(seed)) for seed in range(3)]
    for facade, panes, body, depth in drawn:
        left, top, right, bottom = facade.getchannel("A").getbbox()
        assert bottom == facade.height and right - left > 60 and bottom - top > 120
        assert np.asarray(panes).any()
        assert np.asarray(body).mean() > 10 and 0 < depth < 1
        assert not (np.asarray(panes)[np.asarray(facade)[..., 3] == 0]).any()
    outlines = {facade.getchannel("A").tobytes() for facade, *_ in drawn}
    assert len(outlines) == 3  # buildings of a style differ in form, not only in colour


def test_there_are_styles_enough():
    assert len(STYLES) >= 8


def test_looks_do_not_depend_on_the_style(monkeypatch):
    looks = []
    for style in STYLES:
        original = STYLES[style]
        monkeypatch.setitem(STYLES, style, lambda c, lots, f=original: (looks.append(c.look), f(c, lots))[1])
        styles.draw_facade(style, np.random.default_rng(5))
    assert len(looks) == len(STYLES) and len({repr(look) for look in looks}) == 1


def test_windows_are_lit_at_night_and_not_by_day(building):
    lots = Lots(np.random.default_rng(0))
    camera = frontal(building, 144)
    clear = Image.new("RGBA", (144, 144))
    photos = {}
    for hour in ("day", "night"):
        view = View((144, 144), camera, hour, "clear", 0.0, None, clear, 1.0, 0.9)
        photos[hour] = np.asarray(take_photo(building, view, lots)[0], float)
    assert photos["night"].mean() < 0.6 * photos["day"].mean()
    warm = (photos["night"][..., 0] > 180) & (photos["night"][..., 2] < 170)
    assert warm.sum() > 20


# ---- what is visible


def frontal(building: Building, side: int, shift: float = 0.0) -> Camera:
    """A camera straight before the middle of the front, which spans 80 % of a square frame, moved by shift frames."""
    focal, distance = 1000.0 * 0.8 * side / max(building.width, building.height), 1000.0
    return Camera(focal, (side * (0.5 + shift), side / 2), distance, building.height / 2, 0.0, 0.0, 0.0)


def cover(side: int, box: tuple[int, int, int, int] | None = None) -> Image.Image:
    layer = Image.new("RGBA", (side, side))
    if box:
        layer.paste((90, 90, 90, 255), box)
    return layer


def test_all_of_it_is_visible_from_the_front_and_the_size_is_its_area(building):
    visible, size = _measure(building, frontal(building, 160), (160, 160), cover(160), None)
    solid = np.asarray(building.facades[0].getchannel("A"), float).mean() / 255
    share = 0.8**2 * solid * building.width * building.height / max(building.width, building.height) ** 2
    assert visible == pytest.approx(1.0)
    assert size == pytest.approx(math.sqrt(share), rel=0.02)


@pytest.mark.parametrize(
    ("shift", "hidden"), [(0.4, None), (-0.3, None), (0.0, (0, 0, 80, 160)), (0.2, (90, 70, 160, 160))]
)
def test_visible_share_equals_the_share_of_pixels(building, shift, hidden):
    camera, layer = frontal(building, 160, shift), cover(160, hidden)
    visible, _ = _measure(building, camera, (160, 160), layer, None)
    alpha = building.facades[0].getchannel("A")
    wide = Camera(camera.focal, (camera.centre[0] + 160, camera.centre[1]), camera.distance, camera.eye, 0.0, 0.0, 0.0)
    numbers = _coefficients(building, wide, 0.0, alpha.size)
    everything = np.asarray(alpha.transform((480, 160), Image.PERSPECTIVE, numbers, Image.BILINEAR), float)
    open_part = everything[:, 160:320] * (np.asarray(layer.getchannel("A")) == 0)
    assert visible == pytest.approx(open_part.sum() / everything.sum(), abs=0.03)


def test_scaffolding_hides_what_is_behind_it(building):
    net = Image.new("RGBA", building.facades[1].size)
    net.paste((90, 90, 90, 255), (0, 0, net.width, net.height))
    assert _measure(building, frontal(building, 160), (160, 160), cover(160), net)[0] == 0


@pytest.mark.parametrize(
    ("label", "visible", "size", "yaw", "hour", "haze"),
    [
        ("easy", 0.9, 0.5, 10, "day", 0.0),
        ("easy", 0.7, 0.3, -35, "dusk", 0.2),
        ("hard", 0.69, 0.5, 0, "day", 0.0),
        ("hard", 0.9, 0.29, 0, "day", 0.0),
        ("hard", 0.9, 0.5, -36, "day", 0.0),
        ("hard", 0.9, 0.5, 0, "night", 0.0),
        ("hard", 0.9, 0.5, 0, "day", 0.41),
        ("hard", 0.25, 0.16, 0, "day", 0.0),
        ("junk", 0.24, 0.5, 0, "day", 0.0),
        ("junk", 1.0, 0.15, 0, "day", 0.0),
    ],
)
def test_the_rule_of_the_labels(label, visible, size, yaw, hour, haze):
    camera = Camera(100.0, (80, 60), 500.0, 20.0, math.radians(yaw), 0.0, 0.0)
    assert View((160, 120), camera, hour, "clear", haze, None, cover(8), visible, size).label == label


def test_labels_come_in_sensible_shares(building):
    views = [plan_view(building, Lots(np.random.default_rng([8, i]))) for i in range(200)]
    shares = {label: count / 200 for label, count in Counter(view.label for view in views).items()}
    assert 0.45 < shares["easy"] < 0.65 and 0.25 < shares["hard"] < 0.48 and 0.04 < shares["junk"] < 0.2


# ---- the folder


def test_an_intact_folder_is_reused(folder, monkeypatch):
    monkeypatch.setattr(toy_landmarks, "_draw_all", lambda *a: pytest.fail("drawn again"))
    assert generate_toy_landmarks(folder.parent, "small") == folder


def altered(copy: Path) -> Path:
    victim = sorted((copy / "jpg").iterdir())[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    return victim


def test_an_altered_photo_is_named(copy):
    victim = altered(copy)
    with pytest.raises(ValueError, match=rf"{victim.name}' is not the file that was drawn"):
        load_toy_benchmark(copy)
    with pytest.raises(ValueError, match=victim.name):
        load_toy_training_set(copy, "instances")


def test_a_missing_photo_and_a_damaged_or_missing_manifest_are_named(copy):
    victim = sorted((copy / "train").iterdir())[0]
    victim.unlink()
    with pytest.raises(ValueError, match=rf"{victim.name}' is missing"):
        load_toy_benchmark(copy)
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace(manifest(copy)["files"]["train.csv"], "0" * 64))
    with pytest.raises(ValueError, match=r"manifest\.json' is damaged"):
        load_toy_benchmark(copy)
    path.write_text(path.read_text()[:200])
    with pytest.raises(ValueError, match=r"manifest\.json' is damaged"):
        load_toy_benchmark(copy)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        load_toy_benchmark(copy)


@pytest.mark.parametrize("version", [toy_landmarks.VERSION, 0])
def test_an_altered_or_outdated_folder_is_drawn_again(folder, copy, monkeypatch, version, capsys):
    if version:
        altered(copy)
    else:
        monkeypatch.setattr(toy_landmarks, "VERSION", toy_landmarks.VERSION + 1)
    drawn = []
    monkeypatch.setattr(
        toy_landmarks, "_draw_all", lambda draft, *a: drawn.append(shutil.copytree(folder, draft, dirs_exist_ok=True))
    )
    assert generate_toy_landmarks(copy.parent, "small") == copy
    assert len(drawn) == 1 and manifest(copy) == manifest(folder)
    load_toy_benchmark(copy)
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]
    assert "again" in capsys.readouterr().err


def test_the_faster_of_two_processes_wins_and_nothing_is_left_over(folder, copy, monkeypatch, tmp_path):
    aside = copy.rename(tmp_path / "aside")

    def draw(draft, *arguments):
        shutil.copytree(folder, draft, dirs_exist_ok=True)
        aside.rename(copy)  # the other process finishes first

    monkeypatch.setattr(toy_landmarks, "_draw_all", draw)
    inode = aside.stat().st_ino
    assert generate_toy_landmarks(tmp_path, "small", progress=False).stat().st_ino == inode
    assert [p.name for p in tmp_path.iterdir()] == [copy.name]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_interrupts_the_drawing_leaves_nothing_behind(tmp_path, monkeypatch, error):
    def draw(draft, *arguments):
        (draft / "half.jpg").write_bytes(b"half")
        raise error

    monkeypatch.setattr(toy_landmarks, "_draw_all", draw)
    with pytest.raises(type(error)) as caught:
        generate_toy_landmarks(tmp_path, "small", progress=False)
    assert list(tmp_path.iterdir()) == []
    if isinstance(error, OSError):
        assert "small-seed0 could not be written" in str(caught.value) and "No space left" in str(caught.value)


def test_bad_arguments_are_named(tmp_path, folder):
    with pytest.raises(ValueError, match="no size 'huge'.*tiny, smoke"):
        generate_toy_landmarks(tmp_path, "huge")
    with pytest.raises(ValueError, match="seed is -1"):
        generate_toy_landmarks(tmp_path, "small", seed=-1)
    with pytest.raises(ValueError, match="no part 'test'"):
        load_toy_training_set(folder, "test")


def test_in_a_city_of_one_style_only_the_test_is_of_that_style():
    jobs = toy_landmarks._jobs(SIZES["smoke"], 0)
    styles = {part: {job.style for job in jobs if job.part == part} for part in ("categories", "instances", "test")}
    everything = set(toy_landmarks.STYLES)
    assert styles == {"categories": everything, "instances": everything, "test": {"timbered-house"}}
    assert {job.style for job in jobs if job.part == "distractors"} == {"timbered-house", "street"}
