"""The committed notebooks: their outputs come from a recorded run of the runner, never from a hand at work."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nbformat
from PIL import Image

from retrieval_utils.report import write_text

WIDGET = "application/vnd.jupyter.widget-view+json"  # dead without the kernel's state, which is not committed


def refresh_outputs(executed: str | Path, notebooks: str | Path = "notebooks") -> list[str]:
    """Copy outputs from the folder of executed notebooks into those of the same name; return the names that changed.

    Cells meet by their id, so the parameters that papermill injected stay out, and the counts run 1 .. n again.
    Raises ValueError if a notebook's code is not the code that was executed.
    """
    changed = []
    for path in sorted(Path(notebooks).glob("*.ipynb")):
        source = Path(executed) / path.name
        if not source.is_file():
            continue
        master, count = nbformat.read(path, as_version=4), 0
        cells = {cell.id: cell for cell in nbformat.read(source, as_version=4).cells}
        for cell in master.cells:
            if cell.cell_type != "code":
                continue
            if cell.id not in cells or cells[cell.id].source != cell.source:
                raise ValueError(f"{path.name} was edited since '{source}' was executed: run reproduce again.")
            count += bool(cell.source.strip())
            cell.execution_count = count if cell.source.strip() else None
            cell.outputs = [out for out in cells[cell.id].outputs if WIDGET not in out.get("data", {})]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = light_png(output.data["image/png"])
                if "execution_count" in output:
                    output.execution_count = count
        master.metadata.pop("widgets", None)
        text = nbformat.writes(master) + "\n"
        if text != path.read_text(encoding="utf-8"):
            write_text(path, text)
            changed.append(path.name)
    return changed


def light_png(encoded: str) -> str:
    """A figure, base64 in and out, in 128 colours: a third of the bytes, and no eye sees it in these plots."""
    figure = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    light = io.BytesIO()
    figure.quantize(128, dither=Image.Dither.NONE).save(light, "PNG", optimize=True)
    return base64.b64encode(light.getvalue()).decode()
