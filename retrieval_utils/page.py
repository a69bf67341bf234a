"""The page of a run: one self-contained HTML file with the ladder, its numbers, and links to the executed notebooks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from retrieval_utils.plotting import plot_ladder
from retrieval_utils.profiles import get_profile
from retrieval_utils.report import LEGEND, collect, ladder, write_text

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5a6472; --line: #d9dee5; --paper: #fff; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #a0a9b5; --line: #3a424d; --paper: #15181c; --link: #7db8f5; }
}
body { font: 17px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; color: var(--ink);
  background: var(--paper); max-width: 62rem; margin: 3rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p { margin: .5rem 0; max-width: 46rem; } .soft, caption, th { color: var(--soft); } a { color: var(--link); }
figure { margin: 1rem 0; background: #fff; padding: .75rem; border: 1px solid var(--line); border-radius: 6px; }
figure svg { width: 100%; height: auto; display: block; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem 1.1rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } td:first-child { white-space: nowrap; } code { font-size: .92em; }
"""


def write_page(profile: str, run_dir: str | Path = "runs") -> Path:
    """Write <run_dir>/<profile>/index.html from the records there, and return its path."""
    frame, cards, runs = collect(profile, run_dir)
    table, protocols = ladder(frame, cards)
    title = f"The ladder on {', '.join(frame['benchmark'].unique())}"
    seeds = ", ".join(str(seed) for seed in sorted(frame["seed"].unique()))
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">Profile <code>{profile}</code>: {escape(get_profile(profile).about)}. Seeds: {seeds}.</p>',
        f"<figure>{svg(plot_ladder(frame))}</figure>",
        "<h2>Numbers</h2>",
        html_table(table),
        *[f'<p class="soft">{escape(line)}</p>' for line in (LEGEND, *protocols)],
        "<h2>Executed notebooks</h2>",
        html_table(notebook_table(runs), raw=True),
        "<h2>Record</h2>",
        *[record_line(run) for run in runs],
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    lines = ["<!doctype html>", '<html lang="en"><head>', head, f"<style>{STYLE}</style></head><body>", *parts]
    page = Path(run_dir, profile, "index.html")
    write_text(page, "\n".join([*lines, "</body></html>", ""]))
    return page


def svg(figure: Figure) -> str:
    """`figure` as an SVG element, without the XML prologue that HTML does not take."""
    text = io.StringIO()
    unnamed = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", bbox_inches="tight", metadata=unnamed)
    return text.getvalue()[text.getvalue().index("<svg") :]


def html_table(table: pd.DataFrame, raw: bool = False) -> str:
    """`table` as HTML in a box that scrolls sideways; its cells are text, or HTML where `raw`."""
    return f'<div class="wide">{table.to_html(index=False, border=0, escape=not raw)}</div>'


def notebook_table(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row a notebook and seed: a relative link to the executed file, minutes, peak memory, and of a card if any."""
    rows = []
    for run in runs:
        for stem, entry in sorted(run["notebooks"].items()):
            name = f"{stem}.ipynb" if entry["status"] == "done" else f"{stem}.failed.ipynb"
            card = {}
            if "card_mean_use" in entry:
                memory = f"{entry['card_peak_memory_mb'] / 1000:.1f} GB"
                card = {"card, mean use": f"{entry['card_mean_use']:.0%}", "card, peak memory": memory}
            rows.append(
                {
                    "notebook": f'<a href="seed-{run["seed"]}/notebooks/{escape(name)}">{escape(stem)}</a>',
                    "seed": run["seed"],
                    "status": entry["status"],
                    "minutes": f"{entry['seconds'] / 60:.1f}",
                    "peak memory": f"{entry['peak_memory_mb'] / 1000:.1f} GB" if "peak_memory_mb" in entry else "",
                    **card,
                }
            )
    return pd.DataFrame(rows).fillna("")


def record_line(run: dict[str, Any]) -> str:
    """One paragraph: where the record is, and the code, machine and packages it was made with."""
    commit = (run["git"]["commit"] or "outside git")[:12] + (" with local changes" if run["git"]["dirty"] else "")
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    machine = run["machine"]
    return (
        f'<p><a href="seed-{run["seed"]}/run.json">seed {run["seed"]}</a> '
        f'<span class="soft">commit {escape(commit)}; {escape(machine["system"])}, {machine["cores"]} cores, '
        f"{machine['memory_gb']} GB, {escape(machine['device'])}; {escape(versions)}</span></p>"
    )
