"""Archives from outside, unpacked: nothing lands outside the folder, and the folder appears only when whole."""

from __future__ import annotations

import errno
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

Member = tuple[str, str, Callable[[], IO[bytes]]]  # name, "file" | "folder" | "special", opener

BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError)


class DownloadError(ValueError):
    """The network or the disk failed, not the content: the same call may succeed later."""


def extract_archive(archive: str | Path, folder: str | Path) -> Path:
    """Unpacks a zip or tar (plain or compressed) to the new folder `folder` and returns it.

    Only plain files and folders below `folder` are admitted; absolute paths, `..`, links and devices refuse the whole
    archive. A killed process leaves at most `<folder>.unpacking`, which the next call clears.
    Raises ValueError (refused, truncated, corrupt), DownloadError (disk), FileNotFoundError (no such archive).
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise FileNotFoundError(f"There is no archive '{archive}' to unpack; get it first.")
    if folder.exists():
        raise ValueError(f"'{folder}' is there already; move it away before '{archive.name}' is unpacked to it.")
    staging = folder.with_name(folder.name + ".unpacking")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with disk_trouble(folder), _corruption(archive):
            staging.mkdir(parents=True)
            for name, kind, opener in _members(archive, folder):
                path = staging / _safe(name, kind, archive)
                if kind == "folder":
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                with opener() as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
            staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def gather(parts: list[Path], target: Path, flat: str = "", strip: bool = False) -> Path:
    """Moves what the folders `parts` hold into the one folder `<target>.gathering`, and returns that.

    flat: the suffix of the files to be moved, out of whatever folders they are in; "" moves all, folders and all.
    strip: leave out the only folder at the top of a part. A killed call is gone on with by the next.
    Raises ValueError if two files would have one name.
    """
    staging = target.with_name(target.name + ".gathering")
    with disk_trouble(target):
        for part in parts:
            tops = list(part.iterdir()) if strip else []
            base = tops[0] if len(tops) == 1 and tops[0].is_dir() else part
            for source in sorted(path for path in base.rglob("*") if path.is_file()):
                if flat and (source.suffix.lower() != flat or source.name.startswith(".")):
                    continue
                destination = staging / (source.name if flat else source.relative_to(base))
                if destination.exists():
                    message = f"The archives of '{target}' hold '{destination.relative_to(staging)}' twice"
                    raise ValueError(f"{message}; their publisher has changed them: get a copy from elsewhere.")
                destination.parent.mkdir(parents=True, exist_ok=True)
                source.rename(destination)
        staging.mkdir(parents=True, exist_ok=True)
    return staging


def check_free_disk(path: Path, needed: int) -> None:
    """Raises DownloadError if the disk that holds `path` has less than `needed` bytes free."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise DownloadError(
            f"'{path.name}' needs {needed / 1e6:,.1f} MB and the disk of '{path.parent}' has {free / 1e6:,.1f} MB; "
            "free some space and run this again."
        )


@contextmanager
def disk_trouble(path: Path, leftovers: tuple[Path, ...] = ()) -> Iterator[None]:
    """Turns what the file system raises while `path` is made into one sentence; a full disk is freed of `leftovers`."""
    try:
        yield
    except FileNotFoundError as error:
        if error.errno is None:  # already a sentence
            raise
        raise DownloadError(f"'{error.filename}' vanished while '{path}' was made; run this again.") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"'{path}' cannot be written ({error.strerror or error}); choose another folder."
            ) from None
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        raise DownloadError(f"The disk is full, '{path}' was not made; free some space and run this again.") from None


@contextmanager
def _corruption(archive: Path) -> Iterator[None]:
    sentence = f"The archive '{archive}' is truncated or corrupt"
    try:
        yield
    except BROKEN as error:
        raise ValueError(f"{sentence} ({error}); delete it and get it again.") from None
    except OSError as error:
        if error.errno is not None:  # the file system's; decompressors raise theirs without a number
            raise
        raise ValueError(f"{sentence} ({error}); delete it and get it again.") from None


def _safe(name: str, kind: str, archive: Path) -> PurePosixPath:
    path, windows = PurePosixPath(name.replace("\\", "/")), PureWindowsPath(name)
    if kind == "special":
        raise ValueError(f"The archive '{archive}' was refused: '{name}' is a link or a device, not a file.")
    if path.is_absolute() or windows.drive or ".." in path.parts:
        raise ValueError(f"The archive '{archive}' was refused: '{name}' lies outside the folder it is unpacked to.")
    return path


def _members(archive: Path, folder: Path) -> Iterator[Member]:
    with archive.open("rb") as file:
        is_zip = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    return _zip_members(archive, folder) if is_zip else _tar_members(archive, folder)


def _zip_members(archive: Path, folder: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        check_free_disk(folder, sum(info.file_size for info in opened.infolist()))
        for info in opened.infolist():
            unix_type = stat.S_IFMT(info.external_attr >> 16)  # 0 where none is stored
            kind = "folder" if info.is_dir() else "file" if unix_type in (0, stat.S_IFREG) else "special"
            yield info.filename, kind, partial(opened.open, info)


def _tar_members(archive: Path, folder: Path) -> Iterator[Member]:
    check_free_disk(folder, archive.stat().st_size)  # at least; the sum would take a first pass over the whole archive
    with tarfile.open(archive) as opened:
        for member in opened:
            kind = "folder" if member.isdir() else "file" if member.isreg() else "special"
            yield member.name, kind, partial(opened.extractfile, member)
        # tarfile takes a cut between two members for the end; a whole archive ends in a block of zeros.
        opened.fileobj.seek(opened.offset)
        if opened.fileobj.read(512) != bytes(512):
            raise EOFError("the end is missing")
        while opened.fileobj.read(1 << 20):  # to the end, where gzip compares its checksum
            pass
