"""The page of a search: one self-contained HTML file with the query, its box, and the photos found."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw

from retrieval_utils.datasets.archives import disk_trouble
from retrieval_utils.search import Hit, printable
from retrieval_utils.transforms import upright, upright_size

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5a6472; --line: #d9dee5; --paper: #fff; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #a0a9b5; --line: #3a424d; --paper: #15181c; --link: #7db8f5; }
}
body { font: 17px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; color: var(--ink);
  background: var(--paper); max-width: 76rem; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.soft, summary { color: var(--soft); } a { color: var(--link); } figure { margin: 0; }
figcaption { font-size: .88rem; overflow-wrap: anywhere; margin-top: .3rem; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; border-radius: 4px; border: 1px solid var(--line); }
ol { list-style: none; padding: 0; display: grid; gap: 1.2rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }
"""
BOX = "#FFD400"


def write_page(
    page: str | Path,
    folder: str | Path,
    query: str | Path,
    box: Sequence[float] | None,
    hits: Sequence[Hit],
    about: Sequence[str] = (),
    unreadable: Sequence[str] = (),
) -> Path:
    """Writes `page` and returns its path. about: lines on network and index; unreadable: photos that were left out.

    Raises ValueError (disk).
    """
    query, folder, name = Path(query), Path(folder), printable(Path(query).name)
    part_of = "" if box is None else f", the part in the box {', '.join(f'{value:g}' for value in box)}"
    title = f"Photos like {name}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        "<h2>Query</h2>",
        _figure(thumbnail(query, 480, box), f"Query: {name}{part_of}", escape(f"{name}{part_of}")),
        f"<h2>{len(hits)} photos found, most similar first</h2>",
        "<ol>",
        *[f"<li>{_hit(folder, place, hit)}</li>" for place, hit in enumerate(hits, 1)],
        "</ol>",
        *[f'<p class="soft">{escape(line)}</p>' for line in about],
    ]
    if unreadable:
        names = "".join(f"<li>{escape(name)}</li>" for name in unreadable)
        count = f"{len(unreadable)} {'photo was' if len(unreadable) == 1 else 'photos were'} left out: not readable"
        parts.append(f"<details><summary>{count}</summary><ul>{names}</ul></details>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    lines = ["<!doctype html>", '<html lang="en"><head>', head, f"<style>{STYLE}</style></head><body>", *parts]
    page = Path(page)
    part = page.with_name(page.name + ".part")
    with disk_trouble(page, leftovers=(part,)):
        page.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes("\n".join([*lines, "</body></html>", ""]).encode())
        part.replace(page)
    return page


def thumbnail(path: str | Path, side: int, box: Sequence[float] | None = None) -> str:
    """A photo as a data URI: JPEG, longer side at most `side` pixels, upright, with the box drawn if there is one."""
    with Image.open(path) as image:
        width, height = upright_size(image)
        image.draft("RGB", (side, side))
        small = upright(image).convert("RGB")
        small.thumbnail((side, side))
        if box is not None:
            scale = (small.width / width, small.height / height)
            corners = [value * scale[i % 2] for i, value in enumerate(box)]
            ImageDraw.Draw(small).rectangle(corners, outline=BOX, width=3)
    data = io.BytesIO()
    small.save(data, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _figure(source: str, alt: str, caption: str) -> str:
    return f'<figure><img src="{source}" alt="{escape(alt)}"><figcaption>{caption}</figcaption></figure>'


def _hit(folder: Path, place: int, hit: Hit) -> str:
    path, name = folder / hit.name, printable(hit.name)
    link = f'<a href="{escape(path.absolute().as_uri())}">{escape(name)}</a>'
    alt = f"Result {place}: {name}, score {hit.score:.3f}"
    return _figure(thumbnail(path, 240), alt, f"{place}. {link}<br>score {hit.score:.3f}")
