"""Grocery Store by name: its archive is packed anew at will by its host, so its content is what is pinned."""

from __future__ import annotations

import io
import shutil
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import pytest

from retrieval_utils.datasets import sources, toy_landmarks, verification
from retrieval_utils.datasets.download import DownloadError, get_dataset, list_datasets, verify_dataset


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def grocery(server, tmp_path, draw_grocery_store, monkeypatch):
    """A small archive as the host packs it, on the server at /master.zip; and an empty data root."""
    folder = draw_grocery_store(tmp_path / "upstream")
    photos = sorted(path.relative_to(folder / "dataset").as_posix() for path in folder.rglob("*.jpg"))
    monkeypatch.setattr(sources, "SPLITS", {"train": 6, "val": 6, "test": 6})
    hashed = verification.content_hash(folder / "dataset", [*photos, "train.txt", "val.txt", "test.txt"])
    monkeypatch.setattr(sources, "CONTENT", hashed)

    def pack():
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as opened:
            opened.mkdir("GroceryStoreDataset-master")
            for path in sorted(folder.rglob("*")):
                opened.write(path, "GroceryStoreDataset-master/" + path.relative_to(folder).as_posix())
        server.files["/master.zip"] = buffer.getvalue()

    pack()
    root = tmp_path / "data"
    root.mkdir()
    return SimpleNamespace(folder=folder, pack=pack, root=root, url=server.url, photos=photos)


def get(grocery):
    return get_dataset("grocery-store", grocery.root, progress=False, mirror=grocery.url)


def test_get_verify_list(grocery, server):
    assert {row["where"] for row in list_datasets(grocery.root)} == {"not there"}
    with pytest.raises(FileNotFoundError, match="data get grocery-store"):
        verify_dataset("grocery-store", grocery.root)
    assert get(grocery) == grocery.root / "GroceryStoreDataset"
    assert names(grocery.root) == ["GroceryStoreDataset"]
    assert contents(grocery.root / "GroceryStoreDataset") == contents(grocery.folder)
    assert "18 photos decode" in verify_dataset("grocery-store", grocery.root, progress=False)
    row = next(row for row in list_datasets(grocery.root) if row["name"] == "grocery-store")
    assert row["where"] == str(grocery.root / "GroceryStoreDataset") and row["licence"] == "MIT"
    get(grocery)
    assert len(server.seen) == 1


def test_get_uses_the_public_address(grocery, monkeypatch):
    piece = sources.PIECES["grocery-store"][0]
    here = replace(piece, remotes=(replace(piece.remotes[0], url=grocery.url + "/master.zip"),))
    monkeypatch.setitem(sources.PIECES, "grocery-store", (here,))
    assert contents(get_dataset("grocery-store", grocery.root, progress=False)) == contents(grocery.folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda folder, photo: photo.write_bytes(photo.read_bytes() + b"0"), "content sha256"),
        (lambda folder, photo: photo.unlink(), "lacks 1 files, the first of them 'dataset/test/"),
        (lambda folder, photo: (folder / "dataset/val.txt").unlink(), "lacks 'dataset/val.txt'"),
        (lambda folder, photo: (folder / "dataset/val.txt").write_text(""), "names 0 photos in 'val.txt', expected 6"),
        (lambda folder, photo: shutil.rmtree(folder / "dataset"), "lacks 'dataset/train.txt'"),
    ],
)
def test_content_that_is_not_the_pinned_one_never_gets_its_name(grocery, change, match):
    change(grocery.folder, grocery.folder / "dataset" / grocery.photos[0])
    grocery.pack()
    with pytest.raises(ValueError, match=match):
        get(grocery)
    assert names(grocery.root) == []


def test_truncated_archive_is_loaded_anew(grocery, server):
    whole = server.files["/master.zip"]
    server.files["/master.zip"] = whole[:-100]
    with pytest.raises(ValueError, match="truncated or corrupt"):
        get(grocery)
    assert names(grocery.root) == []
    server.files["/master.zip"] = whole
    assert get(grocery).is_dir()


def test_full_disk_while_unpacking_keeps_the_archive(grocery, server, monkeypatch, fill_disk):
    size = len(server.files["/master.zip"])
    with monkeypatch.context() as patch:
        fill_disk(patch, size + 1000)
        with pytest.raises(DownloadError, match="disk is full"):
            get(grocery)
    assert names(grocery.root) == ["GroceryStoreDataset.zip"]
    (grocery.root / "GroceryStoreDataset.parts/GroceryStoreDataset.zip.unpacking").mkdir(
        parents=True
    )  # of a call that was killed
    assert get(grocery).is_dir() and len(server.seen) == 1


def test_verify_names_corrupt_and_missing_photos(grocery):
    dataset = get(grocery) / "dataset"
    first, second, third, *_ = grocery.photos
    (dataset / first).write_bytes((dataset / first).read_bytes()[:-200])
    (dataset / second).write_bytes(b"")
    (dataset / third).unlink()
    with pytest.raises(ValueError, match="has 3 missing or corrupt files") as error:
        verify_dataset("grocery-store", grocery.root, progress=False)
    assert all(name in str(error.value) for name in (first, second, third))
    with pytest.raises(ValueError, match="lacks 1 files.*move it away"):
        get(grocery)


def test_verify_tells_a_photo_that_decodes_but_is_another(grocery):
    dataset = get(grocery) / "dataset"
    shutil.copy(dataset / grocery.photos[0], dataset / grocery.photos[1])
    with pytest.raises(ValueError, match=f"content sha256 .*, expected {sources.CONTENT}"):
        verify_dataset("grocery-store", grocery.root, progress=False)


def test_toy_landmarks_are_drawn_and_verified(tmp_path, monkeypatch):
    monkeypatch.setitem(toy_landmarks.SIZES, "smoke", toy_landmarks.Size((1, 1), (1, 1), (1, 1), 1, (0, 0), 0))
    folder = get_dataset("toy-landmarks", tmp_path, progress=False)
    assert str(folder) in verify_dataset("toy-landmarks", tmp_path)
    assert {row["name"]: row["where"] for row in list_datasets(tmp_path)}["toy-landmarks"] == str(folder)
    photo = next((folder / "jpg").iterdir())
    photo.write_bytes(photo.read_bytes() + b"0")
    with pytest.raises(ValueError, match=photo.name):
        verify_dataset("toy-landmarks", tmp_path)


def test_unknown_names_and_roots(tmp_path):
    for call in (get_dataset, verify_dataset):
        with pytest.raises(ValueError, match="no data set 'groceries'; choose one of toy-landmarks, grocery-store"):
            call("groceries", tmp_path)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            call("grocery-store", tmp_path / "nowhere")


@pytest.mark.real_data
def test_the_real_photos_are_the_pinned_ones(photos):
    assert sum(sources.SPLITS.values()) == 5421
    assert "5,421 photos decode" in verify_dataset("grocery-store", photos, progress=False)
