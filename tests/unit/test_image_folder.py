"""A person's own photos, as a benchmark and as a folder to search."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval_utils.datasets import load_benchmark
from retrieval_utils.evaluation import evaluate


@pytest.fixture
def photos(tmp_path):
    """Touches files; `load_image_folder` opens none of them."""

    def write(*paths):
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(path.encode())
        return tmp_path

    return write


def test_a_folder_for_each_instance_is_a_benchmark(photos):
    root = photos("mug/b.JPG", "mug/a.jpg", "mug/c.png", "pot/1.webp", "pot/2.jpeg", "lone/x.jpg", "beside.jpg")
    bench = load_benchmark("image-folder", root)
    below = [path.relative_to(root).as_posix() for path in bench.images]
    assert below == ["beside.jpg", "lone/x.jpg", "mug/a.jpg", "mug/b.JPG", "mug/c.png", "pot/1.webp", "pot/2.jpeg"]
    assert [path.relative_to(root).as_posix() for path in bench.queries] == below[2:]
    truth = bench.ground_truth
    assert [t.easy.tolist() for t in truth] == [[3, 4], [2, 4], [2, 3], [6], [5]]
    assert [t.junk.tolist() for t in truth] == [[2], [3], [4], [5], [6]]
    assert bench.setups == ("original",) and bench.boxes is None


def test_finding_oneself_is_worth_nothing(photos):
    bench = load_benchmark("image-folder", photos("mug/a.jpg", "mug/b.jpg", "pot/a.jpg", "pot/b.jpg"))
    itself = np.eye(4)  # rows: a query each, in the order of the database
    partners = np.array([[9, 5, 0, 0], [5, 9, 0, 0], [0, 0, 9, 5], [0, 0, 5, 9]], float)
    scored = [evaluate(scores, bench.ground_truth, bench.setups)["original"].mean_ap for scores in (itself, partners)]
    assert scored[1] == 1.0 and scored[0] < 0.8


@pytest.mark.parametrize("paths", [("b.jpg", "a.png"), ("mug/a.jpg", "pot/a.jpg")])
def test_without_instances_of_two_photos_it_is_a_folder_to_search(photos, paths):
    bench = load_benchmark("image-folder", photos(*paths))
    assert len(bench.images) == 2 and bench.queries == () and bench.setups == ()


def test_hidden_files_other_files_and_deeper_folders_are_left_out(photos):
    root = photos("a.jpg", "._a.jpg", ".thumbs/a.jpg", "a.txt", "mug/notes.md", "mug/deep/a.jpg")
    assert [path.name for path in load_benchmark("image-folder", root).images] == ["a.jpg"]


def test_the_fingerprint_follows_photos_and_folders_but_not_the_place(photos, tmp_path):
    root = photos("mug/a.jpg", "mug/b.jpg")
    before = load_benchmark("image-folder", root).fingerprint
    (root / "mug").rename(root / "cup")
    renamed = load_benchmark("image-folder", root).fingerprint
    (root / "cup/a.jpg").write_bytes(b"another photo")
    assert len({before, renamed, load_benchmark("image-folder", root).fingerprint}) == 3


def test_no_folder_and_no_photos_are_sentences(photos, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="There is no folder '.*nowhere'"):
        load_benchmark("image-folder", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no photos"):
        load_benchmark("image-folder", photos("a.txt"))
    monkeypatch.setenv("RETRIEVAL_DATA", str(tmp_path))
    photos("image-folder/a.jpg")
    assert len(load_benchmark("image-folder").images) == 1
