"""Downloads that resume, are verified, and appear under their final name only when whole; data sets by name."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from urllib3.exceptions import HTTPError

from retrieval_utils.datasets.archives import DownloadError, check_free_disk, disk_trouble, extract_archive
from retrieval_utils.datasets.base import data_root
from retrieval_utils.datasets.catalogue import (
    WAY_OUT,
    check_name,
    content_problem,
    list_datasets,
    toy_root,
    verify_dataset,
)
from retrieval_utils.datasets.grocery_store import FOLDER, URL
from retrieval_utils.datasets.toy_landmarks import generate_toy_landmarks

__all__ = ["DownloadError", "download", "extract_archive", "get_dataset", "list_datasets", "verify_dataset"]

TRIES = 4  # in a row without a new byte
PAUSE = 1.0  # seconds before the second try, doubled before each further one
TIMEOUT = (10, 60)  # seconds to connect, and without a byte
CHUNK = 1 << 16  # bytes


def get_dataset(name: str, root: str | Path | None = None, progress: bool = True, url: str | None = None) -> Path:
    """Puts data set `name` below the data root and returns its folder; one that is there is only verified.

    url: another address of the same archive, such as a mirror; what it holds is verified all the same.
    Raises ValueError for an unknown name, wrong content, a network that fails or a full disk.
    """
    check_name(name)
    if name == "toy-landmarks":
        return generate_toy_landmarks(toy_root(root), progress=progress)
    place = data_root(root)
    folder, archive, unpacked = place / FOLDER, place / f"{FOLDER}.zip", place / f"{FOLDER}.unpacked"
    if folder.exists():
        if problem := content_problem(folder):
            raise ValueError(f"'{folder}' {problem}; {WAY_OUT}")
        return folder
    download(url or URL, archive, progress=progress)
    try:
        shutil.rmtree(unpacked, ignore_errors=True)
        extract_archive(archive, unpacked)
        top = next(unpacked.glob("*/dataset"), unpacked / "dataset").parent  # the top folder is named after the branch
        if problem := content_problem(top):
            raise ValueError(
                f"What {url or URL} holds {problem}; it was deleted: get it again, unless its source has changed."
            )
        with disk_trouble(folder):
            top.rename(folder)
    except DownloadError:
        raise  # the disk, not the archive: it is kept for the next call
    except ValueError:
        archive.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    archive.unlink(missing_ok=True)
    return folder


def download(
    url: str, target: str | Path, sha256: str | None = None, size: int | None = None, progress: bool = True
) -> Path:
    """Loads `url` to the file `target` and returns it; a file that is there already, and right, is not loaded again.

    The bytes go to `<target>.part`, which outlives a broken connection or a killed process: the next call goes on from
    it, if the server can and still has the same file. sha256: 64 hex digits. size: bytes. Both are checked if given.
    Raises DownloadError (network, disk), FileNotFoundError (nothing at `url`), ValueError (wrong length or hash).
    """
    target = Path(target)
    if target.is_file() and (size is None or target.stat().st_size == size):
        if sha256 is None or _sha256(target) == sha256.lower():
            return target
    part = target.with_name(target.name + ".part")
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
        if sha256 is not None and (found := _sha256(part)) != sha256.lower():
            _discard(part)
            raise ValueError(
                f"{url} has sha256 {found}, expected {sha256.lower()}; it was deleted: get it again, and if the hash "
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
            raise FileNotFoundError(f"There is nothing at {url} (the server says {status}); has it moved?")
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
