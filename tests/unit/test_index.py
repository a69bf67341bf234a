"""Three indexes behind `Index`: exact where they promise it, the same bytes twice, refused where they do not fit."""

from __future__ import annotations

import errno
import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from retrieval_utils.index import KINDS, TRAINING_POINTS, Index, read_manifest
from retrieval_utils.ranking import nearest, top_k


def drawn(n, dim=16, seed=0):
    """Descriptors (n, dim) float32 in 50 loose clusters, L2-normalised."""
    centres = torch.randn(50, dim, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    points = centres[torch.randint(50, (n,), generator=generator)]
    return normalize(points + 0.5 * torch.randn(n, dim, generator=generator), dim=1)


@pytest.fixture(scope="module")
def database():
    return drawn(TRAINING_POINTS)


@pytest.fixture(scope="module")
def indexes(database):
    return {kind: Index.build(database, kind, network="net-1", images="photos-1") for kind in KINDS}


QUERIES = drawn(40, seed=1)


def recall(index, database, k=10, **effort):
    _, exact = nearest(QUERIES, database, k)
    _, found = index.search(QUERIES, k, **effort)
    return sum(len(set(a) & set(b)) for a, b in zip(exact.tolist(), found.tolist(), strict=True)) / exact.numel()


def test_flat_equals_brute_force(indexes, database):
    values, indices = nearest(QUERIES, database, 25)
    scores, found = indexes["flat"].search(QUERIES, 25)
    assert torch.equal(found, indices) and found.dtype == torch.int64
    torch.testing.assert_close(scores, values)


def test_hnsw_finds_nearly_everything_and_scores_it_exactly(indexes, database):
    assert recall(indexes["hnsw"], database) > 0.97
    scores, found = indexes["hnsw"].search(QUERIES, 10)
    torch.testing.assert_close(scores, torch.einsum("qd,qkd->qk", QUERIES, database[found]))


def test_ivf_pq_finds_most_and_scores_it_roughly(indexes, database):
    assert recall(indexes["ivf-pq"], database) > 0.3
    scores, found = indexes["ivf-pq"].search(QUERIES, 10)
    exact = torch.einsum("qd,qkd->qk", QUERIES, database[found])
    assert 1e-4 < (scores - exact).abs().mean() < 0.1
    assert (scores.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("kind", ["ivf-pq", "hnsw"])
def test_more_effort_misses_less(indexes, database, kind):
    low, high = recall(indexes[kind], database, effort=1), recall(indexes[kind], database, effort=256)
    assert low < high - 0.02


def test_ivf_pq_in_all_lists_finds_the_nearest_of_its_own_approximation(indexes):
    """With every list looked into, nothing is missed but what the code blurs: brute force over the decoded vectors."""
    index = indexes["ivf-pq"]
    values, _ = nearest(QUERIES, index.descriptors(), 10)
    scores, _ = index.search(QUERIES, 10, effort=index.settings["lists"])
    torch.testing.assert_close(scores, values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_the_descriptors_come_back(indexes, database, kind):
    torch.testing.assert_close(indexes[kind].descriptors(), database, rtol=0, atol=0)


def test_size_on_disk_is_counted(indexes, tmp_path):
    for kind, index in indexes.items():
        folder = index.save(tmp_path / kind)
        (file,) = folder.glob("*.faiss")
        assert index.nbytes == file.stat().st_size
    vectors = TRAINING_POINTS * 16 * 4
    assert indexes["ivf-pq"].nbytes < vectors <= indexes["flat"].nbytes < vectors + 1000 < indexes["hnsw"].nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_descriptors_give_the_same_bytes(indexes, database, tmp_path, kind):
    again = Index.build(database, kind, network="net-1", images="photos-1")
    for name, index in (("one", indexes[kind]), ("two", again)):
        index.save(tmp_path / name)
    assert read_manifest(tmp_path / "one") == read_manifest(tmp_path / "two")  # with the sha256 of the index


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(indexes, tmp_path, kind):
    index = indexes[kind]
    index.save(tmp_path)
    again = Index.load(tmp_path, network="net-1", dim=16)
    for key in ("kind", "dim", "size", "settings", "network", "images"):
        assert getattr(again, key) == getattr(index, key), key
    for one, two in zip(index.search(QUERIES, 7), again.search(QUERIES, 7), strict=True):
        assert torch.equal(one, two)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".faiss", ".json"]


def test_saving_again_replaces_the_old_index(tmp_path):
    Index.build(drawn(20), images="a").save(tmp_path)
    Index.build(drawn(30), images="b").save(tmp_path)
    assert (Index.load(tmp_path).size, Index.load(tmp_path).images) == (30, "b")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_kill_before_the_manifest_leaves_the_old_index(tmp_path, monkeypatch):
    Index.build(drawn(20)).save(tmp_path)
    monkeypatch.setattr(json, "dumps", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Index.build(drawn(30)).save(tmp_path)
    assert Index.load(tmp_path).size == 20


def test_ties_stand_in_the_order_of_the_database():
    database = normalize(torch.tensor([[1.0, 1], [1, 0], [1, 1], [1, 0], [0, 1]]), dim=1)
    for kind in ("flat", "hnsw"):
        scores, found = Index.build(database, kind).search(torch.tensor([[1.0, 0]]), 5)
        assert found.tolist() == [[1, 3, 0, 2, 4]]


@pytest.mark.parametrize("writes", [0, 1], ids=["index", "manifest"])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_index(tmp_path, monkeypatch, writes):
    Index.build(drawn(20)).save(tmp_path)
    before, left, write = sorted(tmp_path.iterdir()), [writes], Path.write_bytes

    def full(path, content):
        left[0] -= 1
        write(path, content if left[0] >= 0 else content[: len(content) // 2])
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match="^The disk is full, '.*' was not made; free some space and run this again.$"):
        Index.build(drawn(30)).save(tmp_path)
    assert sorted(tmp_path.iterdir()) == before and Index.load(tmp_path).size == 20


@pytest.mark.skipif(sys.platform == "win32", reason="resource")
@pytest.mark.parametrize("room", [0, 1000])
def test_a_file_that_cannot_grow_is_one_sentence_and_publishes_nothing(tmp_path, room):
    """The system itself refuses what goes beyond `room` bytes, whoever writes it."""
    import resource

    index, limits = Index.build(drawn(200)), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(ValueError, match="^'.*' cannot be written .*; choose another folder.$"):
            index.save(tmp_path / "index")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.rglob("*.faiss")) and not list(tmp_path.rglob("index.json"))


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="'.*file/index' cannot be written .*choose another folder"):
        Index.build(drawn(20)).save(tmp_path / "file/index")


@pytest.mark.parametrize("content", [b"", b"IxFI", b"no index at all"])
def test_what_faiss_cannot_read_is_the_same_sentence_as_other_damage(tmp_path, content):
    Index.build(drawn(20)).save(tmp_path)
    values, digest = json.loads((tmp_path / "index.json").read_text()), hashlib.sha256(content).hexdigest()
    (tmp_path / "index.json").write_text(json.dumps(values | {"sha256": digest}))
    (tmp_path / f"{digest}.faiss").write_bytes(content)
    with pytest.raises(ValueError, match="^The index in '.*' is damaged or not whole; delete the folder .*again.$"):
        Index.load(tmp_path)


@pytest.mark.parametrize("queries", [1, 19, 20, 64])  # FAISS multiplies 20 and more in another way
@pytest.mark.parametrize("k", [1, 2, 3, 10, 150, 299])
def test_of_what_ties_at_the_last_place_the_first_of_the_database_are_found(queries, k):
    few = torch.tensor([[0.5], [0.5], [0.9], [0.5]])
    assert Index.build(few).search(torch.tensor([[1.0]]), 2)[1].tolist() == [[2, 0]]
    generator = torch.Generator().manual_seed(0)
    database = torch.randint(-2, 3, (300, 4), generator=generator).float()  # small whole numbers: exact, and many ties
    asked = torch.randint(-2, 3, (queries, 4), generator=generator).float()
    asked[0] = 0  # to which all are equal
    values, indices = top_k(asked @ database.T, k)
    scores, found = Index.build(database).search(asked, k)
    assert torch.equal(found, indices) and torch.equal(scores, values)


def test_without_ties_faiss_is_asked_once(indexes, monkeypatch):
    calls, ordered = [], Index._ordered
    monkeypatch.setattr(Index, "_ordered", lambda index, *words: calls.append(words[1]) or ordered(index, *words))
    indexes["flat"].search(QUERIES, 10)
    assert calls == [11]


def test_fewer_images_than_asked_for(indexes):
    scores, found = Index.build(drawn(3)).search(QUERIES, 10)
    assert scores.shape == found.shape == (40, 3)
    # One list of many may hold fewer than k: the rest is named as missing.
    scores, found = indexes["ivf-pq"].search(QUERIES, 2000, effort=1)
    assert ((found == -1) == torch.isinf(scores)).all() and (found == -1).any() and (found[:, 0] >= 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, i: Index.build(x, "lsh"), "no index 'lsh'; choose one of flat, ivf-pq, hnsw"),
        (lambda x, i: Index.build(x[:100], "ivf-pq"), "at least 9,984 descriptors, got 100: take flat or hnsw"),
        (lambda x, i: Index.build(x[:0]), "nothing to index"),
        (lambda x, i: Index.build(x[0]), r"floats \(N, D\), got \(16,\)"),
        (lambda x, i: Index.build(x.int()), "torch.int32"),
        (lambda x, i: Index.build(x * float("nan")), "Descriptor 0 holds nan"),
        (lambda x, i: i.search(x[:2, :8]), "holds descriptors of 16 dimensions, the queries have 8"),
        (lambda x, i: i.search(x[:2], 0), "got k=0"),
        (lambda x, i: i.search(x[:2] / 0), "Descriptor 0 holds nan or infinite"),
        (lambda x, i: i.search(x[:2], effort=5), "effort of 5 does not fit a flat index"),
        (lambda x, i: Index.build(x, "hnsw").search(x[:2], effort=0), "effort of 0 does not fit a hnsw index"),
    ],
)
def test_bad_input_is_named(call, message):
    x = drawn(200)
    with pytest.raises(ValueError, match=message):
        call(x, Index.build(x))


def damage(folder, how):
    (file,) = folder.glob("*.faiss")
    manifest = folder / "index.json"
    values = json.loads(manifest.read_text())
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-50])
    elif how == "bit":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif how == "lost":
        file.unlink()
    elif how == "manifest":
        manifest.write_text(manifest.read_text()[:40])
    elif how == "path":
        manifest.write_text(json.dumps(values | {"sha256": "../../elsewhere"}))
    elif how == "keys":
        manifest.write_text(json.dumps({"format": 1, "kind": "flat"}))
    elif how == "size":
        manifest.write_text(json.dumps(values | {"size": 5}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "damaged or not whole"),
        ("bit", "damaged or not whole"),
        ("lost", "damaged or not whole"),
        ("manifest", "manifest .* cannot be read"),
        ("path", "manifest .* cannot be read"),
        ("keys", "manifest .* cannot be read"),
        ("size", "not the one its index.json describes"),
    ],
)
def test_a_damaged_index_is_refused_before_faiss_reads_it(tmp_path, monkeypatch, how, message):
    Index.build(drawn(20), network="net-1").save(tmp_path)
    damage(tmp_path, how)
    if how != "size":
        monkeypatch.setattr("faiss.read_index", lambda *args: pytest.fail("FAISS was given a damaged file"))
    with pytest.raises(ValueError, match=message):
        Index.load(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"network": "net-2"}, "was built for net-1, not for net-2; name another folder, or delete this one"),
        ({"dim": 32}, "holds descriptors of 16 dimensions, not 32"),
    ],
)
def test_an_index_of_another_network_is_refused(tmp_path, wanted, message):
    Index.build(drawn(20), network="net-1").save(tmp_path)
    with pytest.raises(ValueError, match=message):
        Index.load(tmp_path, **wanted)


def test_no_index_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no index in .*nowhere"):
        Index.load(tmp_path / "nowhere")
