"""The reader of Revisited Oxford's layout: nothing in a pickle runs, and a malformed ground truth is named."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval_utils.datasets.revisited import load_pickle_safely, read_revisited


class Calls:
    """An object whose pickle calls a function with arguments when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def write(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_containers_and_arrays_come_back(tmp_path, protocol):
    content = OrderedDict(
        names=["a", "b"], box=(1.5, 2, True, None), array=np.arange(6.0).reshape(2, 3), one=np.int64(7), some={3}
    )
    read = load_pickle_safely(write(tmp_path / "gnd.pkl", content, protocol))
    assert list(read) == list(content) and read["names"] == ["a", "b"] and read["box"] == content["box"]
    np.testing.assert_array_equal(read["array"], content["array"])
    assert read["one"] == 7 and read["some"] == {3}


def test_arrays_pickled_by_numpy_1_are_read_under_their_old_module_names(tmp_path):
    old = pickle.dumps(np.array([1.0, 2.0]), protocol=2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core.multiarray" in old
    (tmp_path / "gnd.pkl").write_bytes(old)
    np.testing.assert_array_equal(load_pickle_safely(tmp_path / "gnd.pkl"), [1.0, 2.0])


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("echo run > {mark}",), "system"),
        (eval, ("open({mark!r}, 'w')",), r"builtin.*\.eval"),
        (getattr, ("text", "upper"), r"builtin.*\.getattr"),
        (np.fromfile, ("{mark}",), "fromfile"),
        (Path, ("{mark}",), "Path"),
    ],
)
def test_a_pickle_that_asks_for_code_is_refused_and_the_code_does_not_run(tmp_path, function, arguments, name):
    mark = tmp_path / "ran"
    filled = tuple(a.format(mark=str(mark)) for a in arguments)
    path = write(tmp_path / "gnd.pkl", {"imlist": [Calls(function, *filled)]})
    with pytest.raises(ValueError, match=name):
        load_pickle_safely(path)
    assert not mark.exists()


def test_only_latin1_passes_through_the_byte_encoder(tmp_path):
    import codecs

    path = write(tmp_path / "gnd.pkl", Calls(codecs.encode, "text", "rot13"))
    assert load_pickle_safely(path) == b"text"  # not 'grkg': no codec of the pickle's choice is applied


@pytest.mark.parametrize("kept", [0, 1, 10, 0.5, -1])
def test_a_truncated_pickle_is_one_clear_sentence(tmp_path, kept):
    whole = pickle.dumps({"imlist": ["name"] * 40, "array": np.arange(50)}, protocol=2)
    (tmp_path / "gnd.pkl").write_bytes(whole[: int(len(whole) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"gnd\.pkl' is truncated or not a pickle"):
        load_pickle_safely(tmp_path / "gnd.pkl")


def test_text_is_not_a_pickle_and_a_missing_file_is_missing(tmp_path):
    (tmp_path / "gnd.pkl").write_text("<html>404</html>")
    with pytest.raises(ValueError, match="truncated or not a pickle"):
        load_pickle_safely(tmp_path / "gnd.pkl")
    with pytest.raises(FileNotFoundError, match=r"none\.pkl"):
        load_pickle_safely(tmp_path / "none.pkl")


@pytest.fixture
def benchmark_folder(tmp_path):
    """Writes a benchmark of four database images and two queries of 40 x 30 pixels; `change` edits the ground truth."""

    def build(change=lambda content: None) -> Path:
        content = {
            "imlist": ["d0", "d1", "d2", "d3"],
            "qimlist": ["q0", "q1"],
            "gnd": [
                {"bbx": [1.0, 2.0, 39.0, 29.5], "easy": [2], "hard": [0], "junk": [1]},
                {"bbx": np.array([0.0, 0.0, 40.0, 30.0]), "easy": [], "hard": np.array([3]), "junk": []},
            ],
        }
        change(content)
        (tmp_path / "jpg").mkdir()
        for name in ("d0", "d1", "d2", "d3", "q0", "q1"):
            Image.new("RGB", (40, 30)).save(tmp_path / "jpg" / f"{name}.jpg")
        write(tmp_path / "gnd_four.pkl", content)
        return tmp_path

    return build


def test_a_benchmark_is_read_as_it_was_written(benchmark_folder):
    folder = benchmark_folder()
    bench = read_revisited(folder, "four")
    assert [p.name for p in bench.images] == ["d0.jpg", "d1.jpg", "d2.jpg", "d3.jpg"]
    assert [p.name for p in bench.queries] == ["q0.jpg", "q1.jpg"]
    assert bench.boxes == ((1.0, 2.0, 39.0, 29.5), (0.0, 0.0, 40.0, 30.0))
    assert bench.setups == ("easy", "medium", "hard")
    first, second = bench.ground_truth
    assert (first.easy.tolist(), first.hard.tolist(), first.junk.tolist()) == ([2], [0], [1])
    assert (second.easy.tolist(), second.hard.tolist(), second.junk.tolist()) == ([], [3], [])
    assert second.easy.dtype == np.int64


def test_the_fingerprint_follows_the_ground_truth_and_the_photos(benchmark_folder):
    folder = benchmark_folder()
    before = read_revisited(folder, "four").fingerprint
    assert before == read_revisited(folder, "four").fingerprint and len(before) == 64
    Image.effect_noise((40, 30), 80).save(folder / "jpg" / "d2.jpg")
    assert read_revisited(folder, "four").fingerprint != before


CHANGES = {
    "no box": (lambda c: c["gnd"][1].pop("bbx"), "query 'q1' has no bbx"),
    "no lists at all": (lambda c: c.pop("imlist"), "no imlist, qimlist and gnd"),
    "an entry too few": (lambda c: c["gnd"].pop(), "2 queries but 1 ground truth entries"),
    "an index too high": (lambda c: c["gnd"][0]["easy"].append(4), "query 'q0' refers to database image 4.*0 to 3"),
    "a negative index": (lambda c: c["gnd"][0]["junk"].append(-1), "query 'q0' refers to database image -1"),
    "easy and junk": (lambda c: c["gnd"][0]["junk"].append(2), "query 'q0' labels database image 2 twice"),
    "a database image twice": (lambda c: c["imlist"].__setitem__(3, "d0"), "'d0' twice"),
    "a query in the database": (lambda c: c["imlist"].__setitem__(3, "q1"), "'q1' twice"),
    "a path as a name": (lambda c: c["imlist"].__setitem__(0, "../../secret"), "secret', which is no image name"),
    "an imlist that is no list": (lambda c: c.__setitem__("imlist", 4), "imlist, qimlist or gnd that is no list"),
    "an entry that is no dict": (lambda c: c["gnd"].__setitem__(1, 5), "query 'q1' has no bbx, easy, hard, junk"),
    "a fraction as index": (
        lambda c: c["gnd"][0].__setitem__("easy", [1.5]),
        "list easy of query 'q0' .* whole numbers",
    ),
    "words as indices": (lambda c: c["gnd"][0].__setitem__("junk", ["d1"]), "list junk of query 'q0' .* whole numbers"),
    "uneven lists": (
        lambda c: c["gnd"][0].__setitem__("hard", [[0], [1, 3]]),
        "list hard of query 'q0' .* whole numbers",
    ),
    "words as a box": (
        lambda c: c["gnd"][0].__setitem__("bbx", list("abcd")),
        "box of query 'q0' .* else than numbers",
    ),
    "three numbers": (lambda c: c["gnd"][0].__setitem__("bbx", [1, 2, 3]), "box of query 'q0' has 3 numbers"),
    "a box to the right": (
        lambda c: c["gnd"][1].__setitem__("bbx", [5, 0, 42, 30]),
        r"\(5\.0, 0\.0, 42\.0, 30\.0\) of query 'q1' is not inside its image of 40 x 30",
    ),
    **{
        f"a box {where}": (lambda c, box=box: c["gnd"][1].__setitem__("bbx", box), "query 'q1' is not inside")
        for where, box in (
            ("beyond the right edge", [40, 0, 41, 30]),
            ("beneath the lower edge", [0, 30, 40, 31]),
            ("before the left edge", [-1, 0, 0, 30]),
            ("above the upper edge", [0, -1, 40, 0]),
        )
    },
    "a box upside down": (lambda c: c["gnd"][1].__setitem__("bbx", [5, 20, 30, 10]), "query 'q1' is not inside"),
    "a box of nans": (lambda c: c["gnd"][1].__setitem__("bbx", [float("nan")] * 4), "query 'q1' is not inside"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_malformed_ground_truth_is_named(benchmark_folder, case):
    change, message = CHANGES[case]
    with pytest.raises(ValueError, match="(?i)" + message):
        read_revisited(benchmark_folder(change), "four")


def test_missing_images_are_counted_and_the_first_is_named(benchmark_folder):
    folder = benchmark_folder()
    (folder / "jpg" / "d1.jpg").unlink()
    (folder / "jpg" / "q0.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 6 images of four are missing, the first is '.*d1\.jpg'"):
        read_revisited(folder, "four")
    assert len(read_revisited(folder, "four", check_images=False).images) == 4


def test_a_query_that_is_no_image_is_named(benchmark_folder, monkeypatch):
    folder = benchmark_folder()
    (folder / "jpg" / "q1.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"q1\.jpg' cannot be read as an image"):
        read_revisited(folder, "four")
    Image.new("RGB", (400, 300)).save(folder / "jpg" / "q1.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 30)
    with pytest.raises(ValueError, match=r"q1\.jpg' cannot be read as an image"):
        read_revisited(folder, "four")


def test_a_missing_ground_truth_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gnd_four\.pkl"):
        read_revisited(tmp_path, "four")


def test_the_json_beside_the_pickle_says_the_same_and_follows_it(benchmark_folder):
    folder = benchmark_folder()
    plain, cache = read_revisited(folder, "four"), folder / "gnd_four.json"
    for _ in range(2):  # written, then read
        cached = read_revisited(folder, "four", cache=True)
        assert cached == plain and cache.is_file()
    content = {
        "imlist": ["d0", "d1"],
        "qimlist": ["q0"],
        "gnd": [{"bbx": [0, 0, 9, 9], "easy": [1], "hard": [], "junk": []}],
    }
    write(folder / "gnd_four.pkl", content)
    assert len(read_revisited(folder, "four", cache=True).images) == 2


def test_a_malformed_ground_truth_is_not_cached(benchmark_folder):
    folder = benchmark_folder(lambda c: c["gnd"][0]["easy"].append(4))
    with pytest.raises(ValueError, match="refers to database image 4"):
        read_revisited(folder, "four", cache=True)
    assert not (folder / "gnd_four.json").exists()


def test_photos_may_lie_elsewhere(benchmark_folder, tmp_path):
    folder = benchmark_folder()
    (folder / "jpg").rename(tmp_path / "shared")
    assert read_revisited(folder, "four", photos=tmp_path / "shared").images[0] == tmp_path / "shared" / "d0.jpg"
