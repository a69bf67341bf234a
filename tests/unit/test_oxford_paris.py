"""The ground truth text files of Oxford5k and Paris6k: read as published, and a malformed one is named."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from retrieval_utils.datasets import load_benchmark
from retrieval_utils.datasets.manifest import cached_json
from retrieval_utils.datasets.oxford_paris import read_gt_files, read_original

NAMES = ["all_souls_000000", "all_souls_000001", "oxford_000002", "paris_louvre_000136"]


@pytest.fixture
def folder(tmp_path):
    """One query over four photos of 40 x 30 pixels, one of which is known to be corrupt."""
    (tmp_path / "jpg").mkdir()
    for name in NAMES[:3]:
        Image.new("RGB", (40, 30)).save(tmp_path / "jpg" / f"{name}.jpg")
    texts = {
        "query": f"oxc1_{NAMES[0]} 1 2.5 40 30\n",
        "good": f"{NAMES[0]}\n{NAMES[0]}\n{NAMES[3]}\n",
        "ok": f"{NAMES[1]}\n",
        "junk": f"{NAMES[2]}\n",
    }
    (tmp_path / "gt_files").mkdir()
    for key, text in texts.items():
        (tmp_path / f"gt_files/all_souls_1_{key}.txt").write_text(text)
    return tmp_path


def read(folder, **settings):
    return read_original(folder / "gt_files", "oxford5k", sorted((folder / "jpg").iterdir()), **settings)


def test_the_prefix_goes_the_box_stays_and_doubles_count_once(folder):
    (query,) = read_gt_files(folder / "gt_files")
    assert query == {
        "name": "all_souls_1",
        "image": NAMES[0],
        "box": [1.0, 2.5, 40.0, 30.0],
        "good": [NAMES[0], NAMES[3]],
        "ok": [NAMES[1]],
        "junk": [NAMES[2]],
    }


def test_good_is_easy_ok_is_hard_and_known_corrupt_photos_are_left_out(folder):
    bench = read(folder)
    (truth,) = bench.ground_truth
    assert (truth.easy.tolist(), truth.hard.tolist(), truth.junk.tolist()) == ([0], [1], [2])
    assert bench.queries == bench.images[:1] and bench.boxes == ((1.0, 2.5, 40.0, 30.0),)


def test_the_fingerprint_follows_labels_and_photos(folder):
    prints = [read(folder).fingerprint, read(folder).fingerprint]
    Image.effect_noise((40, 30), 80).save(folder / f"jpg/{NAMES[1]}.jpg")
    prints.append(read(folder).fingerprint)
    (folder / "gt_files/all_souls_1_junk.txt").write_text("")
    prints.append(read(folder).fingerprint)
    assert prints[0] == prints[1] and len(set(prints)) == 3


CHANGES = {
    "a list is missing": ("ok", None, FileNotFoundError, r"all_souls_1_ok\.txt' is missing"),
    "three numbers": (
        "query",
        f"{NAMES[0]} 1 2 3\n",
        ValueError,
        r"_query\.txt' says 'all.* 1 2 3', expected a photo and",
    ),
    "words for numbers": ("query", f"{NAMES[0]} a b c d\n", ValueError, "expected a photo and x1 y1 x2 y2"),
    "an empty query": ("query", "", ValueError, "says '', expected a photo"),
    "no text": ("good", b"\xff\xfe\x00", ValueError, r"_good\.txt' is no ground truth file"),
    "good and ok": ("ok", f"{NAMES[0]}\n", ValueError, f"_ok.txt' labels '{NAMES[0]}' again"),
    "good and junk": ("junk", f"{NAMES[0]}\n", ValueError, f"_junk.txt' labels '{NAMES[0]}' again"),
    "an unknown photo": (
        "junk",
        "oxford_999999\n",
        FileNotFoundError,
        "'all_souls_1' names 'oxford_999999', which is not",
    ),
    "a path": ("junk", "../../secret\n", FileNotFoundError, "names '../../secret', which is not among the 3 photos"),
    "an unknown query": ("query", "oxc1_nowhere 1 2 3 4\n", FileNotFoundError, "names 'nowhere', which is not"),
    "a box outside": (
        "query",
        f"{NAMES[0]} 1 2 50 30\n",
        ValueError,
        r"box \(1.0, 2.0, 50.0, 30.0\) .* not inside its image",
    ),
    "a box of nans": ("query", f"{NAMES[0]} nan 2 30 30\n", ValueError, "not inside its image of 40 x 30"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_malformed_ground_truth_is_named(folder, case):
    key, text, error, match = CHANGES[case]
    path = folder / f"gt_files/all_souls_1_{key}.txt"
    path.unlink() if text is None else path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(error, match=match):
        read(folder)


def test_no_ground_truth_is_told(tmp_path):
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="no ground truth in"):
            read_gt_files(place)


def test_the_json_beside_is_used_and_never_believed_blindly(folder):
    plain, cache = read(folder), folder / "gnd_oxford5k.json"
    assert not cache.exists() and read(folder, cache=True).ground_truth == plain.ground_truth and cache.is_file()
    whole = cache.read_text()
    assert json.loads(whole)["content"]["queries"] == read_gt_files(folder / "gt_files")
    for damaged in (whole[:50], "[]", whole.replace(NAMES[1], NAMES[2]), whole.replace("good", "best"), ""):
        cache.write_text(damaged)
        assert read(folder, cache=True).fingerprint == plain.fingerprint and cache.read_text() == whole
    (folder / "gt_files/all_souls_1_junk.txt").write_text("")  # its source has changed
    assert read(folder, cache=True).ground_truth[0].junk.size == 0 and cache.read_text() != whole


def test_a_cache_is_read_without_its_reader(tmp_path):
    def never():
        raise AssertionError

    content = {"queries": [{"box": [0.1, 1e-9]}]}
    assert cached_json(tmp_path / "c.json", "abc", lambda: content) == content
    assert cached_json(tmp_path / "c.json", "abc", never) == content
    with pytest.raises(AssertionError):
        cached_json(tmp_path / "c.json", "abd", never)
    assert cached_json(tmp_path / "no folder" / "c.json", "abc", lambda: content) == content  # nowhere to keep it


@pytest.mark.parametrize("name", ["oxford5k+r2m", "roxford5k+", "toy-landmarks+r1m", "r1m", "roxford"])
def test_unknown_names(name, tmp_path):
    with pytest.raises(ValueError, match="There is no benchmark .*; choose"):
        load_benchmark(name, tmp_path)
