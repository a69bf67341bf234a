"""Downloads that resume, are verified, and appear under their final name only when whole; data sets by name."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from urllib3.exceptions import HTTPError

from retrieval_utils.datasets.archives import DownloadError, check_free_disk, disk_trouble, extract_archive, gather
from retrieval_utils.datasets.base import data_root
from retrieval_utils.datasets.catalogue import check_name, dataset_folder, list_datasets, missing_pieces, toy_root
from retrieval_utils.datasets.manifest import NAME as MANIFEST
from retrieval_utils.datasets.manifest import pin_download, read_manifest
from retrieval_utils.datasets.sources import PIECES, Piece, Remote
from retrieval_utils.datasets.toy_landmarks import generate_toy_landmarks
from retrieval_utils.datasets.verification import check_contents, grocery_problem, verify_dataset

__all__ = ["DownloadError", "download", "extract_archive", "get_dataset", "list_datasets", "verify_dataset"]

TRIES = 4  # in a row without a new byte
PAUSE = 1.0  # seconds before the second try, doubled before each further one
TIMEOUT = (10, 60)  # seconds to connect, and without a byte
CHUNK = 1 << 16  # bytes


def get_dataset(name: str, root: str | Path | None = None, progress: bool = True, mirror: str = "") -> Path:
    """Puts data set `name` below the data root and returns its folder; what is there is kept, what lacks is fetched.

    mirror: another address under which the same files lie; what they hold is verified all the same.
    Raises ValueError for an unknown name, wrong content, a network that fails or a disk too small or full.
    """
    check_name(name)
    if name == "toy-landmarks":
        return generate_toy_landmarks(toy_root(root), progress=progress)
    if name == "image-folder":
        raise ValueError("An image-folder is made of your own photos: there is nothing to get; name it as --data-root.")
    place = data_root(root)
    wanted = missing_pieces(name, place)
    check_free_disk(place / name, sum(_room(place, piece) for piece in wanted))
    for piece in wanted:
        _get_piece(place, piece, progress, mirror)
    for target in (place / piece.target for piece in PIECES[name]):  # of a call killed after its last rename
        shutil.rmtree(_parts(target), ignore_errors=True)
        for file in (target.name, MANIFEST):
            _discard(target.with_name(file + ".part"))
    check_contents(name, place)
    return dataset_folder(name, place)


def _room(place: Path, piece: Piece) -> int:
    """Bytes that making the piece takes beside what is here: photos unpack to about the size of their archive, and
    beside what is unpacked lies one archive at a time."""
    target = place / piece.target
    left = [remote for remote in piece.remotes if not ((_parts(target) / remote.file).is_dir() and piece.archived)]
    paths = [target.with_name(remote.file if piece.archived else target.name) for remote in left]
    here = [path if path.is_file() else path.with_name(path.name + ".part") for path in paths]
    largest = max((remote.size for remote in left), default=0) if piece.archived else 0
    return sum(remote.size for remote in left) + largest - sum(path.stat().st_size for path in here if path.is_file())


def _get_piece(place: Path, piece: Piece, progress: bool, mirror: str) -> None:
    """Every step is either done under its final name or done again by the next call: load, unpack, gather, rename."""
    target, folder = place / piece.target, place / Path(piece.target).parts[0]
    if not piece.archived:
        _fetch(folder, piece.remotes[0], target, progress, mirror)
        with disk_trouble(target):
            pin_download(folder, piece.remotes[0].url, target)
        return
    parts = [_parts(target) / remote.file for remote in piece.remotes]
    for remote, part in zip(piece.remotes, parts, strict=True):
        archive = target.with_name(remote.file)
        if not part.is_dir():
            _fetch(folder, remote, archive, progress, mirror)
            _unpack(archive, part)
        if archive.is_file():
            with disk_trouble(target):
                if not piece.content:
                    pin_download(folder, remote.url, archive)  # only now: nobody shall expect the hash of a broken one
                archive.unlink()
    staging = gather(parts, target, piece.flat, piece.strip)
    if piece.content and (problem := grocery_problem(staging)):
        shutil.rmtree(staging)
        shutil.rmtree(_parts(target))
        message = f"What {piece.remotes[0].url} holds {problem}; it was deleted"
        raise ValueError(f"{message}: get it again, unless its source has changed.")
    with disk_trouble(target):
        staging.rename(target)


def _unpack(archive: Path, part: Path) -> None:
    try:
        extract_archive(archive, part)
    except DownloadError:
        raise  # the disk, not the archive: it is kept for the next call
    except ValueError:
        archive.unlink(missing_ok=True)
        raise
    finally:
        with suppress(OSError):
            part.parent.rmdir()  # only if nothing is in it


def _parts(target: Path) -> Path:
    """Folder of the unpacked archives that are not yet gathered."""
    return target.with_name(target.name + ".parts")


def _fetch(folder: Path, remote: Remote, path: Path, progress: bool, mirror: str) -> None:
    """Loads one file, with the hash that was published, else the one it had when it was loaded first."""
    url = f"{mirror.rstrip('/')}/{remote.url.rpartition('/')[2]}" if mirror else remote.url
    sha256 = remote.sha256 or read_manifest(folder)["downloads"].get(path.name, {}).get("sha256", "")
    download(url, path, sha256=sha256, md5=remote.md5, progress=progress)


def download(
    url: str, target: str | Path, sha256: str = "", size: int | None = None, progress: bool = True, md5: str = ""
) -> Path:
    """Loads `url` to the file `target` and returns it; a file that is there already, and right, is not loaded again.

    The bytes go to `<target>.part`, which outlives a broken connection or a killed process: the next call goes on from
    it, if the server can and still has the same file. sha256, md5: hex digits. size: bytes. Each is checked if given.
    Raises DownloadError (network, disk), FileNotFoundError (nothing at `url`), ValueError (wrong length or hash).
    """
    target = Path(target)
    hashes = {kind: digest.lower() for kind, digest in (("sha256", sha256), ("md5", md5)) if digest}
    part = target.with_name(target.name + ".part")
    if target.is_file() and (size is None or target.stat().st_size == size):
        if all(_hash(target, kind) == digest for kind, digest in hashes.items()):
            _discard(part)  # of a call killed after the rename
            return target
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with (
        disk_trouble(target, leftovers=(part, _note(part))),
        Progress(*columns, console=Console(stderr=True), disable=not progress) as bar,
    ):
        task = bar.add_task(target.name, total=size)
        target.parent.mkdir(parents=True, exist_ok=True)
        _receive_with_patience(url, part, size, lambda done, total: bar.update(task, completed=done, total=total))
        length = part.stat().st_size
        if size is not None and length != size:
            _discard(part)
            raise ValueError(f"{url} gave {length:,} bytes, expected {size:,}; the file there is not the one meant.")
        for kind, digest in hashes.items():
            if (found := _hash(part, kind)) != digest:
                _discard(part)
                raise ValueError(
                    f"{url} has {kind} {found}, expected {digest}; it was deleted: get it again, and if the hash "
                    "stays, the file there has changed."
                )
        part.replace(target)
        _discard(part)
    return target


def _receive_with_patience(url: str, part: Path, size: int | None, show: Callable[[int, int | None], None]) -> None:
    tries, longest = 0, 0
    while True:
        try:
            return _receive(url, part, size, show)
        except (requests.RequestException, HTTPError) as error:
            if isinstance(error, ValueError):  # how requests marks an address it cannot read
                raise ValueError(f"'{url}' is not an address to load from; it begins with https://.") from None
            here = part.stat().st_size if part.is_file() else 0
            # Counted from the last new byte: a large file over a bad line breaks more often than any fixed number.
            tries, longest = (1 if here > longest else tries + 1), max(here, longest)
            if tries >= TRIES:
                reason = str(error) if isinstance(error, requests.HTTPError) else type(error).__name__
                raise DownloadError(
                    f"{url} broke off {TRIES} times at {here:,} bytes ({reason}); what came is kept: check the "
                    "connection and run this again."
                ) from None
            time.sleep(PAUSE * 2 ** (tries - 1))


def _receive(url: str, part: Path, size: int | None, show: Callable[[int, int | None], None]) -> None:
    """One request that begins or continues `part`; raises what requests or urllib3 raise when the connection breaks."""
    note = _note(part)
    known_url, etag, known_total, *_ = [*(note.read_text().split("\n") if note.is_file() else ()), "", "", ""]
    if known_url != url:
        _discard(part)
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": etag} if etag else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        status, length = response.status_code, response.headers.get("Content-Length", "")
        first, _, total = response.headers.get("Content-Range", "").partition("/")
        if status == 416 and total == str(have):
            return  # killed between the last byte and the final name
        if status in (206, 416) and not (first.startswith(f"bytes {have}-") and total in (known_total or total, "*")):
            _discard(part)
            raise requests.HTTPError("the file there has changed")
        if status in (404, 410):
            raise FileNotFoundError(
                f"There is nothing at {url} (the server says {status}); has it moved? A copy of it from elsewhere "
                f"serves as well, as '{part.with_suffix('')}'."
            )
        if status not in (200, 206):
            answer = f"the server says {status} {response.reason}"
            if status >= 500 or status in (408, 429):
                raise requests.HTTPError(answer)
            raise DownloadError(f"{url} cannot be loaded: {answer}; try it in a browser, or name another address.")
        start = have if status == 206 else 0  # 200: a server that does not resume, or a file that has changed
        expected = start + int(length) if length.isdecimal() else None
        if size is not None and expected not in (size, None):
            _discard(part)
            raise ValueError(f"{url} has {expected:,} bytes, expected {size:,}; the file there is not the one meant.")
        check_free_disk(part, (expected or size or 0) - have)
        etag = response.headers.get("ETag", "")
        with part.open("ab" if start else "wb") as file:
            # After the old part is emptied: the note must never speak for bytes of another version.
            strong = "" if etag.startswith("W/") else etag
            note.write_text(f"{url}\n{strong}\n{'' if expected is None else expected}\n")
            done = start
            # Undecoded: old servers call a .tar.gz "Content-Encoding: x-gzip", and requests would unpack it.
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                file.write(chunk)
                show(done := done + len(chunk), expected or size)


def _note(part: Path) -> Path:
    """Sidecar of a part: its address, ETag and full length, a line each."""
    return part.with_name(part.name + ".from")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _hash(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
