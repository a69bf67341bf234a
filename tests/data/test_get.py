"""Oxford, Paris, R1M and retrieval-SfM by name: small archives in the layout of the real ones, from a local server."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import re
import shutil
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from retrieval_utils.__main__ import app
from retrieval_utils.datasets import download, load_benchmark, load_training_set, manifest, oxford_paris, sources
from retrieval_utils.datasets.download import DownloadError, get_dataset, list_datasets, verify_dataset
from retrieval_utils.datasets.sources import BLURRED, Counts
from retrieval_utils.networks import load_network, save_network

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")

CORRUPT = "paris_louvre_000136"  # one of the 20 that are known
OXFORD = ["all_souls_000013", "all_souls_000026", "christ_church_000179", *(f"oxford_00{i}" for i in range(2000, 2005))]
PARIS = [f"paris_defense_00000{i}" for i in range(4)] + [f"paris_triomphe_00000{i}" for i in range(4)]
CIDS = [f"{i:026x}8f46{i:02x}" for i in range(8)]
SETS = ("oxford5k", "paris6k", "roxford5k", "rparis6k", "r1m", "retrieval-sfm-30k", "retrieval-sfm-120k")


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def tgz(files: dict[str, bytes], *members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
        for member in members:
            opened.addfile(member)
    return buffer.getvalue()


def gt_files(names: list[str], prefix: str, top: str = "") -> dict[str, bytes]:
    """Two queries, the first two names; the first is among its own good, the second among its own ok."""
    first, second, third, fourth, *_ = names
    texts = {
        "a_1_query": f"{prefix}{first} 1 2 30.5 29\n",
        "a_1_good": f"{third}\n{first}\n{third}\n",  # one twice, as in the real files
        "a_1_ok": f"{second}\n",
        "a_1_junk": f"{fourth}\n",
        "b_2_query": f"{prefix}{second} 0 0 40 30\n",
        "b_2_good": "",
        "b_2_ok": f"{second}\n",
        "b_2_junk": "",
    }
    return {f"{top}{name}.txt": text.encode() for name, text in texts.items()}


def gnd(names: list[str]) -> bytes:
    """The first two names are the queries, the others the database."""
    entry = {"bbx": [1.0, 2.0, 30.5, 29.0], "easy": [0], "hard": np.array([1, 4]), "junk": [2]}
    content = {"imlist": names[2:], "qimlist": names[:2], "gnd": [entry, {**entry, "easy": []}]}
    return pickle.dumps(content, protocol=2)


def sfm(name: str) -> dict[str, bytes]:
    part = {"cids": CIDS[:4], "cluster": [7, 7, 9, 9], "qidxs": [0, 2], "pidxs": [1, 3]}
    lists = {"train": part, "val": {**part, "cids": CIDS[2:6]}}
    whiten = {"cids": CIDS[1:], "qidxs": np.array([0, 1, 3]), "pidxs": np.array([1, 2, 4])}
    return {f"/{name}.pkl": pickle.dumps(lists, 2), f"/{name}-whiten.pkl": pickle.dumps(whiten, 2)}


def upstream_files() -> dict[str, bytes]:
    photos = {name: jpeg(seed) for seed, name in enumerate((*OXFORD, *PARIS, *CIDS))}
    halves = [{f"paris/{n.split('_')[1]}/{n}.jpg": photos[n] for n in half} for half in (PARIS[:4], PARIS[4:])]
    distractors = {f"{i:02x}/{i % 2:02x}/{i:032x}.jpg": jpeg(100 + i) for i in range(6)}
    names = list(distractors)
    return {
        "/oxbuild_images-v1.tgz": tgz({f"{name}.jpg": photos[name] for name in OXFORD}),
        "/gt_files_170407.tgz": tgz(gt_files(OXFORD, "oxc1_")),
        "/paris_1-v1.tgz": tgz(halves[0] | {f"paris/louvre/{CORRUPT}.jpg": b"no photo", "paris/._defense.jpg": b""}),
        "/paris_2-v1.tgz": tgz(halves[1]),
        "/paris_120310.tgz": tgz(gt_files(PARIS, "", "paris_120310/") | {"paris_120310/README": b"words"}),
        "/gnd_roxford5k.pkl": gnd(OXFORD),
        "/gnd_rparis6k.pkl": gnd(PARIS),
        "/revisitop1m.txt": ("\n".join(names) + "\n").encode(),
        "/revisitop1m.1.tar.gz": tgz({name: distractors[name] for name in names[::2]}),
        "/revisitop1m.2.tar.gz": tgz({name: distractors[name] for name in names[1::2]}),
        "/ims.tar.gz": tgz({f"{cid[-2:]}/{cid[-4:-2]}/{cid[-6:-4]}/{cid}": photos[cid] for cid in CIDS}),
        **sfm("retrieval-SfM-30k"),
        **sfm("retrieval-SfM-120k"),
    }


@pytest.fixture(scope="module")
def served():
    return upstream_files()


@pytest.fixture
def upstream(server, served, tmp_path, monkeypatch):
    """The small archives on the server, with counts, sizes and hashes to fit; and an empty data root."""
    server.files |= served
    for name in ("oxford5k", "paris6k"):
        monkeypatch.setitem(sources.COUNTS, name, Counts(8, 2))
        monkeypatch.setitem(sources.COUNTS, f"r{name}", Counts(6, 2))
    monkeypatch.setattr(oxford_paris, "DISTRACTORS", 6)

    def fitted(remote):
        content = served["/" + remote.url.rpartition("/")[2]]
        hashes = {kind: hashlib.new(kind, content).hexdigest() for kind in ("sha256", "md5") if getattr(remote, kind)}
        return replace(remote, size=len(content), **hashes)

    for name in SETS:
        pieces = tuple(replace(p, remotes=tuple(fitted(r) for r in p.remotes[:2])) for p in sources.PIECES[name])
        monkeypatch.setitem(sources.PIECES, name, pieces)
    root = tmp_path / "data"
    root.mkdir()

    def get(name):
        return get_dataset(name, root, progress=False, mirror=server.url)

    return SimpleNamespace(root=root, get=get, files=server.files, server=server)


def verify(upstream, name):
    return verify_dataset(name, upstream.root, progress=False)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def paths(server):
    return [request["path"][1:] for request in server.seen]


def where(root):
    return {row["name"]: row["where"] for row in list_datasets(root)}


@pytest.mark.parametrize("name", SETS)
def test_get_then_everything_is_there_right_and_not_loaded_again(upstream, name):
    with pytest.raises(FileNotFoundError, match=f"run `python -m retrieval_utils data get {name}` first"):
        verify(upstream, name)
    assert where(upstream.root)[name] == "not there"
    folder = upstream.get(name)
    files = tree(upstream.root)
    assert not any(".part" in file or file.endswith(("gz", ".gathering")) for file in files)
    assert where(upstream.root)[name] == str(folder)
    requests = len(upstream.server.seen)
    upstream.get(name)
    first, second = verify(upstream, name), verify(upstream, name)
    assert len(upstream.server.seen) == requests == len(set(paths(upstream.server)))
    (before, files_then), (compared, files_now) = (
        re.search(r"(\d+) of (\d+) files", t).groups() for t in (first, second)
    )
    assert before == "0" and compared == files_then == files_now and int(compared) >= 7
    assert {k: v for k, v in tree(upstream.root).items() if not k.endswith(".json")} == {
        k: v for k, v in files.items() if not k.endswith(".json")
    }


def test_the_original_protocol_has_its_queries_in_the_database(upstream):
    upstream.get("oxford5k")
    bench = load_benchmark("oxford5k", upstream.root)
    assert [p.stem for p in bench.images] == sorted(OXFORD) and bench.setups == ("original",)
    assert [p.stem for p in bench.queries] == OXFORD[:2] and set(bench.queries) <= set(bench.images)
    assert bench.boxes == ((1.0, 2.0, 30.5, 29.0), (0.0, 0.0, 40.0, 30.0))
    first, second = bench.ground_truth
    assert (first.easy.tolist(), first.hard.tolist(), first.junk.tolist()) == ([2, 0], [1], [3])
    assert (second.easy.tolist(), second.hard.tolist(), second.junk.tolist()) == ([], [1], [])


def test_the_revisited_protocol_does_not(upstream):
    upstream.get("roxford5k")
    bench = load_benchmark("roxford5k", upstream.root)
    assert [p.stem for p in bench.images] == OXFORD[2:] and [p.stem for p in bench.queries] == OXFORD[:2]
    assert bench.setups == ("easy", "medium", "hard") and not set(bench.queries) & set(bench.images)
    assert [p.parent for p in bench.images[:1]] == [upstream.root / "oxford5k" / "jpg"]


def test_photos_are_loaded_once_for_both_protocols(upstream):
    upstream.get("paris6k")
    assert paths(upstream.server) == ["paris_1-v1.tgz", "paris_2-v1.tgz", "paris_120310.tgz"]
    upstream.get("rparis6k")
    assert paths(upstream.server)[3:] == ["gnd_rparis6k.pkl"]


def test_loading_can_get_what_is_missing(upstream, monkeypatch):
    here = tuple(
        replace(p, remotes=tuple(replace(r, url=f"{upstream.server.url}/{r.file}") for r in p.remotes))
        for p in sources.PIECES["roxford5k"] + sources.PIECES["r1m"]
    )
    monkeypatch.setitem(sources.PIECES, "roxford5k", here[:2])
    monkeypatch.setitem(sources.PIECES, "r1m", here[2:])
    with pytest.raises(FileNotFoundError, match="photos of roxford5k are not in .*oxford5k/jpg.*data get roxford5k"):
        load_benchmark("roxford5k", upstream.root)
    bench = load_benchmark("roxford5k+r1m", upstream.root, download=True)
    assert len(bench.images) == 12


def test_distractors_are_appended_and_nothing_else_changes(upstream):
    upstream.get("roxford5k")
    with pytest.raises(FileNotFoundError, match="R1M is not in .*data get r1m"):
        load_benchmark("roxford5k+r1m", upstream.root)
    upstream.get("r1m")
    alone, more = (load_benchmark(name, upstream.root) for name in ("roxford5k", "roxford5k+r1m"))
    assert more.name == "roxford5k+r1m" and more.images[:6] == alone.images and len(more.images) == 12
    assert (more.queries, more.boxes, more.setups) == (alone.queries, alone.boxes, alone.setups)
    assert more.ground_truth == alone.ground_truth and more.fingerprint != alone.fingerprint
    listed = (upstream.root / "revisitop1m/revisitop1m.txt").read_text().split()
    assert [p.relative_to(upstream.root / "revisitop1m/jpg").as_posix() for p in more.images[6:]] == listed
    (upstream.root / "revisitop1m/jpg" / listed[3]).unlink()
    with pytest.raises(FileNotFoundError, match=f"1 of 6 photos of R1M are not in .* the first is '{listed[3]}'"):
        load_benchmark("roxford5k+r1m", upstream.root)
    (upstream.root / "revisitop1m/revisitop1m.txt").write_text("\n".join(listed[:4]))
    with pytest.raises(ValueError, match="lists 4 photos, expected 6"):
        load_benchmark("roxford5k+r1m", upstream.root)


@pytest.mark.parametrize("name", ["retrieval-sfm-30k", "retrieval-sfm-120k"])
def test_pairs_and_clusters_of_sfm(upstream, name):
    upstream.get(name)
    train, whitening = (load_training_set(name, part, upstream.root) for part in ("instances", "whitening"))
    assert [path.name for path in train.images] == CIDS[:4]
    assert train.labels.tolist() == [0, 0, 1, 1] and train.label_names == ("7", "9")
    assert list(zip(train.queries, train.positives, strict=True)) == [(0, 1), (2, 3)]
    assert whitening.labels.tolist() == [0, 0, 0, 1, 1, 2, 3]  # linked: 0-1-2 and 3-4
    assert len(load_training_set(name, "validation", upstream.root).images) == 4


# Variants: the publisher replaced the photos in 2022


def test_the_variant_is_told_and_another_one_has_another_fingerprint(upstream):
    upstream.get("roxford5k")
    loaded = load_benchmark("roxford5k", upstream.root)
    assert loaded.variant == BLURRED and "2022" in BLURRED and BLURRED in verify(upstream, "roxford5k")
    own = upstream.root / "roxford5k" / "jpg"  # one's own copy goes before
    shutil.copytree(upstream.root / "oxford5k" / "jpg", own)
    (own / f"{OXFORD[4]}.jpg").write_bytes(jpeg(99))
    bench = load_benchmark("roxford5k", upstream.root)
    assert bench.images[0].parent == own and bench.fingerprint != loaded.fingerprint
    assert bench.variant == "own copy, original or face-blurred unknown"
    rows = {row["name"]: row["variant"] for row in list_datasets(upstream.root)}
    assert rows["roxford5k"] == bench.variant and rows["paris6k"] == BLURRED


def test_an_own_copy_of_the_photos_is_not_loaded(upstream):
    own = upstream.root / "roxford5k" / "jpg"
    own.mkdir(parents=True)
    for seed, name in enumerate(OXFORD):
        (own / f"{name}.jpg").write_bytes(jpeg(seed))
    assert "lacks 'roxford5k/gnd_roxford5k.pkl'" in where(upstream.root)["roxford5k"]
    upstream.get("roxford5k")
    upstream.get("oxford5k")
    assert paths(upstream.server) == ["gnd_roxford5k.pkl", "gt_files_170407.tgz"]
    assert len(load_benchmark("oxford5k", upstream.root).images) == 8


def test_an_archive_from_elsewhere_serves_as_well(upstream):
    (upstream.root / "oxford5k").mkdir()
    (upstream.root / "oxford5k/oxbuild_images-v1.tgz").write_bytes(upstream.files["/oxbuild_images-v1.tgz"])
    upstream.get("oxford5k")
    assert paths(upstream.server) == ["gt_files_170407.tgz"]


# Trust on first use, and published hashes


def test_the_first_download_is_pinned_and_expected_from_then_on(upstream):
    upstream.get("paris6k")
    noted = manifest.read_manifest(upstream.root / "paris6k")["downloads"]
    content = upstream.files["/paris_2-v1.tgz"]
    assert noted["paris_2-v1.tgz"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert noted["paris_2-v1.tgz"]["bytes"] == len(content) and noted["paris_2-v1.tgz"]["url"].startswith("https://")
    shutil.rmtree(upstream.root / "paris6k/jpg")
    upstream.files["/paris_2-v1.tgz"] = tgz({f"{name}.jpg": jpeg(7) for name in PARIS[4:]})
    with pytest.raises(ValueError, match=f"expected {noted['paris_2-v1.tgz']['sha256']}.*the file there has changed"):
        upstream.get("paris6k")
    assert not (upstream.root / "paris6k/jpg").exists()
    upstream.files["/paris_2-v1.tgz"] = content
    upstream.get("paris6k")
    assert paths(upstream.server).count("paris_1-v1.tgz") == 2  # the first of the two was kept while the second failed


@pytest.mark.parametrize(
    ("name", "file", "kind"),
    [("oxford5k", "oxbuild_images-v1.tgz", "md5"), ("rparis6k", "gnd_rparis6k.pkl", "sha256")],
)
def test_a_published_hash_is_compared(upstream, name, file, kind):
    wrong = upstream.files["/" + file][:-9] + b"different"
    upstream.files["/" + file] = wrong
    with pytest.raises(ValueError, match=f"{file} has {kind} {hashlib.new(kind, wrong).hexdigest()}, expected"):
        upstream.get(name)
    assert not any(path.name.startswith(file) for path in upstream.root.rglob("*"))


def test_a_damaged_manifest_is_a_sentence(upstream):
    upstream.get("roxford5k")
    for text in ("{", "[]", '{"files": []}', '{"files": {"a": 1}, "downloads": {}}'):
        (upstream.root / "oxford5k/manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json' is damaged; move it away"):
            verify(upstream, "roxford5k")


# Servers, archives and disks that misbehave


def test_a_server_that_breaks_off_ignores_ranges_and_stumbles_is_survived(upstream):
    upstream.server.cuts, upstream.server.statuses = [3000, None, 5000], [500, 503]
    upstream.get("paris6k")
    upstream.server.ranges, upstream.server.cuts = False, [2000, 1000]
    upstream.get("oxford5k")
    assert len(load_benchmark("paris6k", upstream.root).images) == len(load_benchmark("oxford5k", upstream.root).images)


def test_gone_and_shortened_files_are_sentences(upstream):
    archive = upstream.files.pop("/paris_2-v1.tgz")
    with pytest.raises(
        FileNotFoundError, match="nothing at .*paris_2-v1.tgz .*404.* serves as well, as .*paris_2-v1.tgz'"
    ):
        upstream.get("paris6k")
    upstream.files["/paris_2-v1.tgz"] = archive
    upstream.server.lie = -100  # a length short of the file: what came is no archive
    with pytest.raises(ValueError, match="paris_2-v1.tgz' is truncated or corrupt"):
        upstream.get("paris6k")
    assert where(upstream.root)["paris6k"] == "not there"
    upstream.server.lie = 100  # a length beyond the file: the next request shows that there is no more
    upstream.get("paris6k")
    assert paths(upstream.server).count("paris_1-v1.tgz") == 1


def member(name, kind=tarfile.REGTYPE):
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, "../../evil"
    return made


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil.jpg"),
        member("/evil.jpg"),
        member("link.jpg", tarfile.SYMTYPE),
        member("hard.jpg", tarfile.LNKTYPE),
        member("device.jpg", tarfile.CHRTYPE),
        member("block.jpg", tarfile.BLKTYPE),
    ],
    ids=lambda evil: evil.name,
)
def test_an_archive_with_a_trap_is_refused_and_nothing_is_left(upstream, evil):
    upstream.files["/paris_1-v1.tgz"] = tgz({f"paris/{PARIS[0]}.jpg": jpeg(0)}, evil)
    with pytest.raises(ValueError, match=f"was refused: '{evil.name}'"):
        upstream.get("paris6k")
    assert tree(upstream.root) == {} and not list(upstream.root.parent.rglob("evil*"))


def test_two_photos_of_one_name_are_refused(upstream):
    upstream.files["/paris_2-v1.tgz"] = tgz({f"paris/{name}.jpg": jpeg(0) for name in PARIS[3:]})
    with pytest.raises(ValueError, match=f"hold '{PARIS[3]}.jpg' twice"):
        upstream.get("paris6k")
    assert not (upstream.root / "paris6k/jpg").exists()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda n: n[:-1], FileNotFoundError, "6 .*are missing|1 of 8 images of roxford5k are missing"),
        (lambda n: n[:3] + n[4:], FileNotFoundError, "1 of 8 images of roxford5k are missing, the first is"),
    ],
)
def test_an_archive_that_lacks_a_photo_is_told(upstream, monkeypatch, change, error, match):
    archive = tgz({f"{name}.jpg": jpeg(1) for name in change(OXFORD)})
    upstream.files["/oxbuild_images-v1.tgz"] = archive
    piece, labels = sources.PIECES["roxford5k"]
    remote = replace(piece.remotes[0], md5=hashlib.md5(archive).hexdigest())
    monkeypatch.setitem(sources.PIECES, "roxford5k", (replace(piece, remotes=(remote,)), labels))
    with pytest.raises(error, match=match):
        upstream.get("roxford5k")


def test_the_disk_is_measured_before_anything_is_asked_for(upstream, monkeypatch):
    needed = len(upstream.files["/gnd_roxford5k.pkl"]) + 2 * len(upstream.files["/oxbuild_images-v1.tgz"])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
        with pytest.raises(DownloadError, match="'roxford5k' needs .* MB and the disk of .* free some space"):
            upstream.get("roxford5k")
        assert upstream.server.seen == [] and tree(upstream.root) == {}
        (upstream.root / "oxford5k").mkdir()
        (upstream.root / "oxford5k/oxbuild_images-v1.tgz.part").write_bytes(b"1")  # what is here is not needed again
        upstream.get("roxford5k")


def test_a_disk_that_fills_up_while_unpacking_keeps_what_was_loaded(upstream, monkeypatch, fill_disk):
    size = len(upstream.files["/oxbuild_images-v1.tgz"])
    with monkeypatch.context() as patch:
        fill_disk(patch, size + 3000)
        with pytest.raises(DownloadError, match="disk is full"):
            upstream.get("oxford5k")
    assert list(tree(upstream.root)) == ["oxford5k/oxbuild_images-v1.tgz"]
    upstream.get("oxford5k")
    assert paths(upstream.server).count("oxbuild_images-v1.tgz") == 1


STEPS = ("rename", "replace", "unlink", "rmdir", "write_text", "mkdir")


def die_before(n: int) -> None:
    """Ends this process, as a kill does, before its n-th change of the file system."""
    left = [n]

    def dying(real):
        def step(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return real(*args, **kwargs)

        return step

    for name in ("rename", "replace", "unlink", "rmdir", "write_text", "mkdir"):
        setattr(Path, name, dying(getattr(Path, name)))


@needs_fork
def test_killed_before_any_step_the_next_call_goes_on_and_loads_nothing_twice(upstream):
    name, results, n, exitcode = "rparis6k", [], 0, 9  # two archives and a plain file
    while exitcode:
        root = upstream.root / str(n)
        root.mkdir()
        pid = os.fork()
        if pid == 0:
            die_before(n)
            get_dataset(name, root, progress=False, mirror=upstream.server.url)
            os._exit(0)
        exitcode = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert exitcode in (0, 9)
        begun = {re.sub(r"\.part$", "", path.name) for path in root.rglob("*") if path.is_dir() or path.stat().st_size}
        upstream.server.seen.clear()
        get_dataset(name, root, progress=False, mirror=upstream.server.url)
        anew = {request["path"][1:] for request in upstream.server.seen if "Range" not in request}
        assert not anew & begun, f"killed before step {n}"
        found = tree(root)
        assert not [path for path in root.rglob("*") if ".part" in path.name or path.suffix == ".gathering"]
        results.append({path: content for path, content in found.items() if not path.endswith("manifest.json")})
        assert results[-1] == results[0], f"killed before step {n}"
        n += 1
    assert n > 20


# What verify tells


def test_a_corrupt_photo_among_many_is_named(upstream):
    upstream.get("rparis6k")
    photo = upstream.root / "paris6k/jpg" / f"{PARIS[5]}.jpg"
    photo.write_bytes(photo.read_bytes()[:-400])
    with pytest.raises(ValueError, match=f"1 photos in .* do not decode \\({PARIS[5]}.jpg\\); move it away"):
        verify(upstream, "rparis6k")


def test_the_known_corrupt_photos_of_paris_are_named_and_left_out(upstream):
    upstream.get("paris6k")
    assert CORRUPT not in {path.stem for path in load_benchmark("paris6k", upstream.root).images}
    found = verify(upstream, "paris6k")
    assert (
        "8 images and 2 queries" in found and f"1 photos that the publisher names as corrupt .*({CORRUPT})" not in found
    )
    assert "1 photos that the publisher names as corrupt are there and left out" in found and CORRUPT in found


def test_there_are_twenty_of_them():
    assert len(sources.CORRUPT_PARIS) == 20 and CORRUPT in sources.CORRUPT_PARIS


def test_the_published_counts():
    counts = {name: (found.images, found.queries) for name, found in sources.COUNTS.items()}
    assert counts == {
        "oxford5k": (5063, 55),
        "paris6k": (6392, 55),
        "roxford5k": (4993, 70),
        "rparis6k": (6322, 70),
    }
    assert counts["oxford5k"][0] == sum(counts["roxford5k"]) and counts["paris6k"][0] == sum(counts["rparis6k"])
    assert sources.DISTRACTORS == 1_001_001


def test_a_photo_that_changed_since_is_named(upstream):
    upstream.get("roxford5k")
    verify(upstream, "roxford5k")
    (upstream.root / "oxford5k/jpg" / f"{OXFORD[6]}.jpg").write_bytes(jpeg(55))
    with pytest.raises(ValueError, match=f"1 files of .*oxford5k' are not those .*jpg/{OXFORD[6]}.jpg"):
        verify(upstream, "roxford5k")


def test_a_ground_truth_that_is_not_the_published_one_is_told(upstream):
    upstream.get("roxford5k")
    path = upstream.root / "roxford5k/gnd_roxford5k.pkl"
    content = pickle.loads(path.read_bytes())
    content["gnd"][0]["easy"] = [3]
    path.write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ValueError, match="gnd_roxford5k.pkl' has sha256 .* published is"):
        verify(upstream, "roxford5k")


def test_counts_are_the_published_ones(upstream):
    upstream.get("oxford5k")
    (upstream.root / "oxford5k/jpg/holiday.jpg").write_bytes(jpeg(3))
    with pytest.raises(ValueError, match="oxford5k has 8 images and 2 queries, but '.*oxford5k' has 9 and 2"):
        verify(upstream, "oxford5k")
    (upstream.root / "oxford5k/jpg/holiday.jpg").rename(
        upstream.root / "oxford5k/jpg/._holiday.jpg"
    )  # hidden: no photo
    verify(upstream, "oxford5k")
    (upstream.root / f"oxford5k/jpg/{OXFORD[7]}.jpg").unlink()
    with pytest.raises(ValueError, match="has 7 and 2"):
        load_benchmark("oxford5k", upstream.root)


def test_a_share_that_cannot_be_written_is_verified_all_the_same(upstream, monkeypatch):
    upstream.get("roxford5k")
    (upstream.root / "roxford5k/gnd_roxford5k.json").unlink()

    def refuse(path, content):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(manifest, "write_json", refuse)
    assert "could not be noted" in verify(upstream, "roxford5k")
    assert not (upstream.root / "roxford5k/gnd_roxford5k.json").exists()


def test_own_photos_are_verified_in_place(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    assert "5 photos decode, no queries" in verify_dataset("image-folder", tmp_path, progress=False)
    (tmp_path / "3.jpg").write_bytes(jpeg(3)[:300])
    with pytest.raises(ValueError, match=r"1 of 5 photos do not decode \(.*3\.jpg\); take them away"):
        verify_dataset("image-folder", tmp_path, progress=False)
    with pytest.raises(ValueError, match="nothing to get"):
        get_dataset("image-folder", tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_the_command_line_says_one_sentence_and_ends_with_1(upstream):
    upstream.get("roxford5k")
    (upstream.root / "oxford5k/jpg" / f"{OXFORD[3]}.jpg").write_bytes(b"")
    result = CliRunner().invoke(app, ["data", "verify", "roxford5k", "--data-root", str(upstream.root)])
    assert result.exit_code == 1 and "1 photos in" in result.stderr and "Traceback" not in result.stderr
    result = CliRunner().invoke(app, ["data", "list", "--data-root", str(upstream.root)])
    assert result.exit_code == 0 and all(name in result.output for name in (*SETS, "image-folder", BLURRED))


# Everything that can be wrong, on the command line


class Hostile:
    """Its pickle makes a file when it is loaded blindly."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def hostile(up, of: bytes) -> bytes:
    return pickle.dumps({**pickle.loads(of), "more": Hostile(up.root.parent / "ran")}, 2)


def cut(up, of: bytes) -> bytes:
    return of[: len(of) // 2]


def climbing(up, of: bytes) -> bytes:
    return tgz({f"paris/{PARIS[0]}.jpg": jpeg(0)}, member("../evil.jpg"))


def other(up, of: bytes) -> bytes:
    return of + b"0"


def served_as(file: str, change):
    def spoil(up):
        up.files["/" + file] = change(up, up.files["/" + file])

    return spoil


def on_disk(file: str, change):
    def spoil(up):
        up.get("roxford5k")
        path = up.root / file
        path.write_bytes(change(up, path.read_bytes()))

    return spoil


def closing_early(up):
    up.server.always_cut = 1000


def nan_weights(up):
    up.get("roxford5k")
    network = load_network("resnet18-thin")
    with torch.no_grad():
        network.trunk.conv1.weight.fill_(torch.nan)
    save_network(network, up.root / "weights.safetensors")


GND = "roxford5k/gnd_roxford5k.pkl"
WRONG = {
    "get: hostile pickle": (
        "get retrieval-sfm-30k",
        served_as("retrieval-SfM-30k.pkl", hostile),
        "code that could run",
    ),
    "get: cut pickle": ("get retrieval-sfm-30k", served_as("retrieval-SfM-30k.pkl", cut), "truncated or not a pickle"),
    "get: ../ in an archive": (
        "get paris6k",
        served_as("paris_1-v1.tgz", climbing),
        "refused: '../evil.jpg' lies outs",
    ),
    "get: cut archive": ("get paris6k", served_as("paris_1-v1.tgz", cut), "is truncated or corrupt"),
    "get: wrong hash": ("get oxford5k", served_as("oxbuild_images-v1.tgz", other), "has md5 .*, expected"),
    "get: closed early": ("get paris6k", closing_early, "broke off 4 times at 1,000 bytes"),
    "verify: hostile pickle": ("verify roxford5k", on_disk(GND, hostile), "code that could run"),
    "verify: cut pickle": ("verify roxford5k", on_disk(GND, cut), "truncated or not a pickle"),
    "verify: wrong hash": ("verify roxford5k", on_disk(GND, other), "has sha256 .*, published is"),
    "verify: cut photo": (
        "verify roxford5k",
        on_disk(f"oxford5k/jpg/{OXFORD[3]}.jpg", cut),
        "1 photos in .* do not dec",
    ),
    "evaluate: hostile pickle": ("evaluate", on_disk(GND, hostile), "code that could run"),
    "evaluate: cut pickle": ("evaluate", on_disk(GND, cut), "truncated or not a pickle"),
    "evaluate: cut photo": (
        "evaluate",
        on_disk(f"oxford5k/jpg/{OXFORD[3]}.jpg", cut),
        f"{OXFORD[3]}.jpg' cannot be read",
    ),
    "evaluate: nan": ("evaluate", nan_weights, "gives no finite descriptor for .*; check its weights"),
}


@pytest.mark.parametrize("case", WRONG)
def test_whatever_is_wrong_is_one_sentence_on_the_command_line(upstream, monkeypatch, case):
    command, spoil, sentence = WRONG[case]
    spoil(upstream)
    monkeypatch.setattr(download, "get_dataset", partial(get_dataset, mirror=upstream.server.url))
    weights = upstream.root / "weights.safetensors"
    network = ("--network", "resnet18-thin", "--weights", weights if weights.is_file() else "none")
    words = (command, "--benchmark", "roxford5k", *network) if command == "evaluate" else ("data", *command.split())
    result = CliRunner().invoke(app, [*map(str, words), "--data-root", str(upstream.root)])
    *_, line = result.stderr.strip().splitlines()
    assert result.exit_code == 1 and re.search(sentence, line), result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr and isinstance(result.exception, SystemExit)
    assert not (upstream.root.parent / "ran").exists() and not list(upstream.root.parent.rglob("evil*"))
