"""The split of Grocery Store for retrieval: on 18 drawn photos by hand, on the real ones by their folders."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from retrieval_utils.datasets import load_benchmark, load_training_set
from retrieval_utils.datasets.grocery_store import load_grocery_classes


def below(benchmark_or_set, paths=None):
    """Paths below dataset/, in order."""
    return [path.as_posix().split("/dataset/")[1] for path in (benchmark_or_set.images if paths is None else paths)]


@pytest.fixture
def root(tmp_path, draw_grocery_store):
    draw_grocery_store(tmp_path)
    return tmp_path


def test_training_parts_by_hand(root):
    categories = load_training_set("grocery-store", "categories", root)
    assert below(categories) == ["train/Fruit/Apple/Apple_001.jpg", "train/Vegetables/Leek/Leek_001.jpg"]
    assert categories.label_names == ("Apple", "Leek") and categories.labels.tolist() == [0, 1]
    instances = load_training_set("grocery-store", "instances", root)
    assert below(instances) == ["train/Packages/Milk/Oat/Oat_001.jpg", "train/Packages/Milk/Soy/Soy_001.jpg"]
    assert instances.label_names == ("Oat", "Soy") and instances.labels.dtype == np.int64


def test_benchmarks_by_hand(root):
    test = load_benchmark("grocery-store", root)
    plum, pear = "Packages/Juice/Plum/Plum_001.jpg", "Packages/Juice/Pear/Pear_001.jpg"
    produce = ["Fruit/Apple/Apple_001.jpg", "Vegetables/Leek/Leek_001.jpg"]
    assert below(test, test.queries) == [f"test/{plum}", f"test/{pear}"]
    assert below(test) == [f"{split}/{path}" for split in ("train", "val") for path in (plum, pear)] + [
        f"{split}/{path}" for split in ("val", "test") for path in produce
    ]
    assert [truth.easy.tolist() for truth in test.ground_truth] == [[0, 2], [1, 3]]
    assert all(truth.hard.size == truth.junk.size == 0 for truth in test.ground_truth)
    assert test.boxes is None and test.setups == ("original",)

    validation = load_benchmark("grocery-store-validation", root)
    oat, soy = "Packages/Milk/Oat/Oat_001.jpg", "Packages/Milk/Soy/Soy_001.jpg"
    assert below(validation, validation.queries) == [f"val/{oat}", f"val/{soy}"]
    assert below(validation) == [f"test/{oat}", f"test/{soy}", *(f"val/{path}" for path in produce)]
    assert [truth.easy.tolist() for truth in validation.ground_truth] == [[0], [1]]


def test_fingerprint_follows_names_classes_and_photos_but_not_the_place(root, tmp_path):
    before = load_benchmark("grocery-store", root).fingerprint
    moved = tmp_path / "elsewhere"
    shutil.copytree(root / "GroceryStoreDataset", moved / "GroceryStoreDataset")
    assert load_benchmark("grocery-store", moved).fingerprint == before
    dataset = moved / "GroceryStoreDataset" / "dataset"
    photo = dataset / "test/Packages/Juice/Plum/Plum_001.jpg"
    whole = photo.read_bytes()
    photo.write_bytes(whole + b"0")
    changed = load_benchmark("grocery-store", moved).fingerprint
    photo.write_bytes(whole)
    listing = dataset / "test.txt"
    listing.write_text(listing.read_text().replace("Plum_001.jpg, 3,", "Plum_001.jpg, 5,"))
    assert len({before, changed, load_benchmark("grocery-store", moved).fingerprint}) == 3


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="not in .*data get grocery-store"):
        load_benchmark("grocery-store", tmp_path / "GroceryStoreDataset")
    (root / "GroceryStoreDataset/dataset/val/Fruit/Apple/Apple_001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"val/Fruit/Apple/Apple_001.jpg' named in val.txt"):
        load_training_set("grocery-store", "categories", root)
    (root / "GroceryStoreDataset/dataset/val.txt").unlink()
    with pytest.raises(FileNotFoundError, match="val.txt' is missing"):
        load_training_set("grocery-store", "categories", root)


def test_unknown_names(root):
    with pytest.raises(ValueError, match="no benchmark 'grocery-shop'"):
        load_benchmark("grocery-shop", root)
    with pytest.raises(ValueError, match="no benchmark 'grocery-store-tests'; choose"):
        load_benchmark("grocery-store-tests", root)
    with pytest.raises(ValueError, match="no part 'packages'; choose 'categories' or 'instances'"):
        load_training_set("grocery-store", "packages", root)


def test_download_fetches_what_is_missing(root, tmp_path, monkeypatch):
    from retrieval_utils.datasets import download

    empty = tmp_path / "empty"
    empty.mkdir()

    def get(name, place):
        assert (name, place) == ("grocery-store", empty)
        shutil.copytree(root / "GroceryStoreDataset", place / "GroceryStoreDataset")

    monkeypatch.setattr(download, "get_dataset", get)
    assert len(load_benchmark("grocery-store", empty, download=True).queries) == 2


# The real photos. The class numbers decide the split, so the folders, one a product, are an independent witness.


def product(path):
    return re.search(r"/dataset/(?:train|val|test)/(.+)/[^/]+$", path.as_posix()).group(1)


@pytest.fixture(scope="module")
def real(photos):
    names = ("grocery-store", "grocery-store-validation")
    parts = ("categories", "instances")
    return {name: load_benchmark(name, photos) for name in names} | {
        part: load_training_set("grocery-store", part, photos) for part in parts
    }


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "queries", "images", "products"),
    [("grocery-store", 377, 2372, 15), ("grocery-store-validation", 50, 600, 10)],
)
def test_real_ground_truth_is_the_folders(real, name, queries, images, products):
    bench = real[name]
    assert (len(bench.queries), len(bench.images)) == (queries, images)
    assert len({product(path) for path in bench.queries}) == products
    folders = np.array([product(path) for path in bench.images])
    for query, truth in zip(bench.queries, bench.ground_truth, strict=True):
        assert len(truth.easy) and np.array_equal(truth.easy, np.flatnonzero(folders == product(query)))
    assert len({*bench.images, *bench.queries}) == queries + images


@pytest.mark.real_data
def test_real_training_labels_are_the_folders(real):
    for part, images, kinds in (("categories", 1776, 50), ("instances", 442, 16)):
        training = real[part]
        assert (len(training.images), len(training.label_names), len(set(training.labels))) == (images, kinds, kinds)
        pairs = {(label, product(path)) for label, path in zip(training.labels, training.images, strict=True)}
        assert len(pairs) == kinds  # one folder a label, and one label a folder
        assert all(folder.split("/")[-1] == training.label_names[label] for label, folder in pairs)


@pytest.mark.real_data
def test_no_real_photo_or_test_product_is_trained_on(real):
    trained = {path for part in ("categories", "instances") for path in real[part].images}
    test_products = {product(path) for path in real["grocery-store"].queries}
    assert not trained & {*real["grocery-store"].images, *real["grocery-store"].queries}
    assert not test_products & {product(path) for path in trained}
    validation = real["grocery-store-validation"]
    assert not trained & {*validation.images, *validation.queries}
    assert not test_products & {product(path) for path in (*validation.images, *validation.queries)}


def test_classes_are_numbered_alike_in_every_list(root):
    listing = root / "GroceryStoreDataset/dataset/test.txt"
    listing.write_text("\n".join(listing.read_text().splitlines()[1:]))  # the test list lacks its first class
    train, test = (load_grocery_classes(root, split) for split in ("train", "test"))
    assert train.label_names == test.label_names and len(set(test.labels)) < len(test.label_names)
    for part in (train, test):
        assert [part.label_names[label] for label in part.labels] == [path.parent.name for path in part.images]
    assert train.name == "grocery-store/classes, train list" and train.fingerprint != test.fingerprint
