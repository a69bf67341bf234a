"""What is known of files that nobody published a hash of: trust on first use, noted beside the data; and JSON caches.

`<folder>/manifest.json` of a folder of the data root holds the sha256 of each download, by file name, and of each file
below the folder, taken when it was first verified. Both are expected from then on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

NAME = "manifest.json"


def read_manifest(folder: Path) -> dict[str, dict]:
    """{"downloads": {file: {"url", "sha256", "bytes"}}, "files": {path below folder: sha256}}; empty if there is none.

    Raises ValueError if the manifest is damaged.
    """
    path = folder / NAME
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        files, downloads = known["files"], known["downloads"]
        whole = all(isinstance(h, str) for h in files.values()) and all(d["sha256"] for d in downloads.values())
    except FileNotFoundError:
        return {"downloads": {}, "files": {}}
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"'{path}' is damaged; move it away, then hashes are noted anew on first use.")
    return {"downloads": downloads, "files": files}


def pin_download(folder: Path, url: str, file: Path) -> None:
    """Notes the hash of a file loaded from `url`, to be expected when it is loaded again."""
    known = read_manifest(folder)
    known["downloads"][file.name] = {"url": url, "sha256": file_sha256(file), "bytes": file.stat().st_size}
    write_json(folder / NAME, known)


def pin_files(folder: Path, files: dict[str, str]) -> None:
    """Notes sha256 by path below `folder`, beside those that are noted already."""
    known = read_manifest(folder)
    known["files"] |= files
    write_json(folder / NAME, known)


def cached_json(path: Path, source: str, read: Callable[[], dict]) -> dict:
    """What `read()` gives, plain JSON, or gave before for the same `source` (sha256 of what it reads): kept in `path`.

    A cache that is damaged, edited or of another source is written anew; a folder that cannot be written has none.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["source_sha256"] == source and known["sha256"] == _content_sha256(known["content"]):
            return known["content"]
    content = read()
    with suppress(OSError):
        write_json(path, {"source_sha256": source, "sha256": _content_sha256(content), "content": content})
    return content


def write_json(path: Path, content: dict) -> None:
    """Writes `path` whole or not at all."""
    draft = path.with_name(path.name + ".part")
    try:
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_sha256(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
