"""Downloads against a local server that misbehaves on purpose, and archives that do."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import tarfile
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval_utils.datasets import download
from retrieval_utils.datasets.download import DownloadError, extract_archive

BODY = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")


def fetch(server, target, **kwargs):
    return download.download(server.url + "/file", target, progress=False, **kwargs)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def ranges(server):
    return [headers.get("Range") for headers in server.seen]


def test_whole_file_alone_and_not_loaded_twice(server, tmp_path):
    target = tmp_path / "new" / "file"
    assert fetch(server, target, sha256=SHA256.upper(), size=len(BODY)) == target
    assert target.read_bytes() == BODY and names(target.parent) == ["file"]
    fetch(server, target, sha256=SHA256, size=len(BODY))
    assert len(server.seen) == 1


@pytest.mark.parametrize("expected", [{"sha256": SHA256}, {"size": len(BODY)}])
def test_a_file_that_is_another_is_replaced(server, tmp_path, expected):
    (tmp_path / "file").write_bytes(b"older")
    fetch(server, tmp_path / "file", **expected)
    assert (tmp_path / "file").read_bytes() == BODY


def test_closed_early_once_is_resumed(server, tmp_path):
    server.cuts = [100_000]
    fetch(server, tmp_path / "file", sha256=SHA256)
    assert ranges(server) == [None, "bytes=100000-"] and server.seen[1]["If-Range"] == '"v1"'
    assert (tmp_path / "file").read_bytes() == BODY
    assert all(headers["Accept-Encoding"] == "identity" for headers in server.seen)  # else lengths are not the file's


def test_weak_etags_promise_no_bytes(server, tmp_path):
    server.cuts, server.etag = [100_000], 'W/"v1"'
    assert fetch(server, tmp_path / "file", sha256=SHA256).read_bytes() == BODY
    assert ranges(server) == [None, "bytes=100000-"] and "If-Range" not in server.seen[1]


@pytest.mark.parametrize("length", [True, False])
def test_server_without_ranges_starts_again(server, tmp_path, length):
    server.ranges, server.cuts = False, [100_000]
    if length:
        assert fetch(server, tmp_path / "file").read_bytes() == BODY
        assert len(server.seen) == 2
    else:  # nobody can tell that the first answer was cut, but for the length that was asked for
        server.length = False
        with pytest.raises(ValueError, match="gave 100,000 bytes, expected 300,000"):
            fetch(server, tmp_path / "file", size=len(BODY))
        assert names(tmp_path) == []


def test_no_content_length(server, tmp_path):
    server.length = False
    assert fetch(server, tmp_path / "file", sha256=SHA256, size=len(BODY)).read_bytes() == BODY


def test_always_closed_keeps_the_part_and_the_next_call_goes_on(server, tmp_path):
    server.always_cut = 70_000
    with pytest.raises(DownloadError, match="broke off 4 times at 70,000 bytes .* run this again"):
        fetch(server, tmp_path / "file")
    assert names(tmp_path) == ["file.part", "file.part.from"] and (tmp_path / "file.part").read_bytes() == BODY[:70_000]
    server.always_cut = None
    fetch(server, tmp_path / "file")
    assert ranges(server)[-1] == "bytes=70000-"
    assert (tmp_path / "file").read_bytes() == BODY and names(tmp_path) == ["file"]


def test_any_number_of_breaks_is_survived_while_bytes_come(server, tmp_path):
    server.cuts = list(range(10_000, 300_000, 10_000))
    assert fetch(server, tmp_path / "file").read_bytes() == BODY
    assert len(server.seen) == 30


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(0, len(BODY)), max_size=6),
    ranges=st.booleans(),
    etag=st.sampled_from(['"v1"', 'W/"v1"', ""]),
)
def test_however_the_line_breaks_the_bytes_are_right_or_not_there(server, tmp_path, cuts, ranges, etag):
    server.behave()
    server.cuts, server.ranges, server.etag = cuts, ranges, etag
    target = tmp_path / "file"
    target.unlink(missing_ok=True)
    try:
        fetch(server, target)
    except DownloadError:
        assert not target.exists()
        server.cuts = []
        fetch(server, target)
    assert target.read_bytes() == BODY and names(tmp_path) == ["file"]


@pytest.mark.parametrize("etag", ['"v2"', None])
def test_a_file_changed_meanwhile_is_never_mixed(server, tmp_path, etag):
    server.always_cut = 70_000
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "file")
    server.behave()
    server.files["/file"], server.etag = BODY[::-1] + b"longer", etag
    if etag is None:  # the full length, noted with the part, gives it away
        note = tmp_path / "file.part.from"
        note.write_text(note.read_text().replace('"v1"', ""))
    assert fetch(server, tmp_path / "file").read_bytes() == BODY[::-1] + b"longer"
    assert ranges(server)[0] == "bytes=70000-"


def test_a_part_of_another_address_is_not_continued(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"something else")
    (tmp_path / "file.part.from").write_text("https://elsewhere.example/file\n\n300000\n")
    assert fetch(server, tmp_path / "file").read_bytes() == BODY
    assert ranges(server) == [None]


@pytest.mark.parametrize("content", [BODY, BODY + b"too long"])
def test_killed_before_the_rename(server, tmp_path, content):
    (tmp_path / "file.part").write_bytes(content)
    (tmp_path / "file.part.from").write_text(f'{server.url}/file\n"v1"\n{len(BODY)}\n')
    assert fetch(server, tmp_path / "file").read_bytes() == BODY
    assert len(server.seen) == (1 if content == BODY else 2)


def test_wrong_hash_names_both_and_is_deleted(server, tmp_path):
    server.files["/file"] = wrong = BODY[:-1] + b"?"
    with pytest.raises(ValueError) as error:
        fetch(server, tmp_path / "file", sha256=SHA256)
    assert SHA256 in str(error.value) and hashlib.sha256(wrong).hexdigest() in str(error.value)
    assert names(tmp_path) == []


def test_wrong_length_is_told_before_it_is_loaded(server, tmp_path):
    with pytest.raises(ValueError, match="has 300,000 bytes, expected 7"):
        fetch(server, tmp_path / "file", size=7)
    assert names(tmp_path) == []


def test_statuses(server, tmp_path):
    server.statuses = [503, 429]
    assert fetch(server, tmp_path / "file").read_bytes() == BODY
    for status, error, match, requests in [
        (404, FileNotFoundError, "nothing at .*/file", 1),
        (403, DownloadError, "403 Forbidden", 1),
        (500, DownloadError, "500 Internal", 4),
    ]:
        server.seen, server.statuses = [], [status] * requests
        with pytest.raises(error, match=match):
            fetch(server, tmp_path / "other")
        assert len(server.seen) == requests
    assert names(tmp_path) == ["file"]


def test_nobody_there_and_no_address(server, tmp_path):
    with pytest.raises(DownloadError, match="check the connection"):
        download.download("http://127.0.0.1:9/file", tmp_path / "file", progress=False)
    with pytest.raises(ValueError, match="'file' is not an address"):
        download.download("file", tmp_path / "file", progress=False)
    assert names(tmp_path) == []


def test_an_archive_announced_as_encoded_is_not_unpacked_on_the_way(server, tmp_path):
    server.files["/file"], server.encoding = gzip.compress(BODY), "x-gzip"
    assert gzip.decompress(fetch(server, tmp_path / "file").read_bytes()) == BODY


def test_disk_too_small_is_told_before_a_byte_is_written(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=299_999))
    with pytest.raises(DownloadError, match="needs 0.3 MB and the disk of .* has 0.3 MB"):
        fetch(server, tmp_path / "file")
    assert names(tmp_path) == []
    (tmp_path / "file.part").write_bytes(BODY[:1])  # one byte is here already: the rest just fits
    (tmp_path / "file.part.from").write_text(f'{server.url}/file\n"v1"\n{len(BODY)}\n')
    assert fetch(server, tmp_path / "file").read_bytes() == BODY


def test_disk_that_fills_up_leaves_nothing(server, tmp_path, monkeypatch, fill_disk):
    fill_disk(monkeypatch, 200_000)
    with pytest.raises(DownloadError, match="disk is full, .*/file' was not made"):
        fetch(server, tmp_path / "file")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(DownloadError, match="cannot be written"):
        fetch(server, tmp_path / "folder" / "file")


@needs_fork
def test_killed_process_is_continued(server, tmp_path, kill):
    server.cuts = [150_000]
    server.stall.clear()
    part = tmp_path / "file.part"
    kill(lambda: part.is_file() and part.stat().st_size, lambda: fetch(server, tmp_path / "file"))
    server.stall.set()
    here = part.stat().st_size
    assert 0 < here <= 150_000 and not (tmp_path / "file").exists()
    fetch(server, tmp_path / "file", sha256=SHA256)
    assert ranges(server) == [None, f"bytes={here}-"] and names(tmp_path) == ["file"]


# Archives

FILES = {"top/a.txt": b"a" * 700, "top/below/b.bin": BODY[:1500], "top/empty": b""}


def make_archive(path, extra=None):
    """A zip, tar or tar.gz of FILES; `extra` adds to the opened archive."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.mkdir("top")
            for name, content in FILES.items():
                opened.writestr(name, content)
            if extra:
                extra(opened)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as opened:
            for name, content in FILES.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                opened.addfile(member, io.BytesIO(content))
            if extra:
                extra(opened)
    return path


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_unpacked_whole_and_never_onto_something(tmp_path, suffix):
    archive = make_archive(tmp_path / f"archive.{suffix}")
    assert contents(extract_archive(archive, tmp_path / "out" / "folder")) == FILES
    assert names(tmp_path / "out") == ["folder"]
    with pytest.raises(ValueError, match="there already; move it away"):
        extract_archive(archive, tmp_path / "out" / "folder")
    with pytest.raises(FileNotFoundError, match="no archive .*none.zip"):
        extract_archive(tmp_path / "none.zip", tmp_path / "other")


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_cut_anywhere_is_told(tmp_path, suffix):
    archive = make_archive(tmp_path / f"archive.{suffix}")
    whole = archive.read_bytes()
    # A tar is whole with its first block of zeros: after three headers, and 1,024 + 1,536 bytes of content.
    end = 3 * 512 + 1024 + 1536 + 512 if suffix == "tar" else len(whole)
    for length in {*range(0, end, 61 if suffix == "zip" else 128), *range(0, end, 512), end - 1}:
        archive.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated or corrupt"):
            extract_archive(archive, tmp_path / "folder")
        assert names(tmp_path) == [archive.name]
    archive.write_bytes(whole[:end])
    assert contents(extract_archive(archive, tmp_path / "folder")) == FILES


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_flipped_bit_in_the_content_is_told(tmp_path, suffix):
    archive = make_archive(tmp_path / f"archive.{suffix}")
    whole = archive.read_bytes()
    places = [*range(30, len(whole), 37)]  # after gzip's header, which may name the file as it likes
    if suffix == "zip":  # only the content: of a changed name nobody can tell
        with zipfile.ZipFile(archive) as opened:
            infos = [(opened.getinfo(name), step) for name, step in (("top/a.txt", 1), ("top/below/b.bin", 37))]
        begins = [(info.header_offset + 30 + len(info.filename), info.compress_size, step) for info, step in infos]
        places = [place for begin, size, step in begins for place in range(begin, begin + size, step)]
    told = 0
    for place in places:
        archive.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert contents(extract_archive(archive, tmp_path / "folder")) == FILES  # a padding bit
            shutil.rmtree(tmp_path / "folder")
        except ValueError as error:
            assert "truncated or corrupt" in str(error)
            told += 1
        assert names(tmp_path) == [archive.name]
    assert told >= 0.9 * len(places)


OUTSIDE = ["../evil", "top/../../evil", "/evil", "..\\evil", "C:\\evil", "C:evil", "\\evil"]


def zip_member(name, mode):
    info = zipfile.ZipInfo("x")
    info.filename, info.external_attr, info.create_system = name, mode << 16, 3
    return lambda opened: opened.writestr(info, b"../../evil")


def tar_member(name, kind=tarfile.REGTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "../../evil"
    return lambda opened: opened.addfile(member)


@pytest.mark.parametrize(
    ("suffix", "extra", "match"),
    [("zip", zip_member(name, 0o100644), "lies outside") for name in OUTSIDE]
    + [("tar", tar_member(name), "lies outside") for name in OUTSIDE]
    + [("zip", zip_member("top/link", mode), "link or a device") for mode in (0o120777, 0o020644, 0o010644)]
    + [
        ("tar.gz", tar_member("top/link", kind), "link or a device")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    ],
)
def test_what_would_leave_the_folder_refuses_the_archive(tmp_path, suffix, extra, match):
    archive = make_archive(tmp_path / f"archive.{suffix}", extra)
    with pytest.raises(ValueError, match=f"was refused: .*{match}"):
        extract_archive(archive, tmp_path / "deep" / "folder")
    assert names(tmp_path) == [archive.name, "deep"] and names(tmp_path / "deep") == []


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_full_disk_while_unpacking_leaves_nothing(tmp_path, monkeypatch, suffix, fill_disk):
    archive = make_archive(tmp_path / f"archive.{suffix}")
    with monkeypatch.context() as patch:
        fill_disk(patch, 1000)
        with pytest.raises(DownloadError, match="disk is full, .*/folder' was not made"):
            extract_archive(archive, tmp_path / "folder")
    assert names(tmp_path) == [archive.name]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2199))  # 700 + 1,500 bytes to unpack
    with pytest.raises(DownloadError, match="free some space"):
        extract_archive(archive, tmp_path / "folder")
    assert names(tmp_path) == [archive.name]


@needs_fork
def test_killed_while_unpacking_starts_clean(tmp_path, monkeypatch, kill):
    archive = make_archive(tmp_path / "archive.zip")

    def stall(source, target, length):
        target.write(source.read(10))
        target.flush()
        time.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", stall)
        begun = tmp_path / "folder.unpacking" / "top" / "a.txt"
        kill(lambda: begun.is_file() and begun.stat().st_size, lambda: extract_archive(archive, tmp_path / "folder"))
    assert names(tmp_path) == ["archive.zip", "folder.unpacking"]
    (tmp_path / "folder.unpacking" / "stale").write_text("from the killed call")
    assert contents(extract_archive(archive, tmp_path / "folder")) == FILES
    assert names(tmp_path) == ["archive.zip", "folder"]
