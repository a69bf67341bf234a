"""One notebook executed by papermill in a kernel of this very Python, with its peak memory measured."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import papermill
import psutil
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from traitlets import default

from retrieval_utils.card import CardUse

ENGINE = "retrieval"
PACKAGE_PARENT = Path(__file__).resolve().parents[1]


class NotebookFailed(RuntimeError):
    """A notebook stopped; the message has three lines: notebook and cell, error, where the notebook is kept."""


@dataclass(frozen=True)
class Executed:
    """The executed notebook's path, its wall time in seconds, and the largest resident memory of its kernel in MB.

    card: what `CardUse` saw of an NVIDIA card meanwhile.
    """

    path: Path
    seconds: float
    peak_memory_mb: float
    card: Mapping[str, float] = field(default_factory=dict)


class PeakMemory(threading.Thread):
    """Samples the resident memory of a process and its children; `mb` is the largest sum seen."""

    def __init__(self, pid: int, every: float = 0.2) -> None:
        super().__init__(daemon=True)
        self.process, self.every, self.mb = psutil.Process(pid), every, 0.0
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.is_set():
            try:
                family = [self.process, *self.process.children(recursive=True)]
                self.mb = max(self.mb, sum(p.memory_info().rss for p in family) / 1e6)
            except psutil.Error:  # a process that ended between two looks
                pass
            self.stopped.wait(self.every)

    def __enter__(self) -> PeakMemory:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stopped.set()
        self.join()


class OwnKernelManager(AsyncKernelManager):
    """Starts the kernel with sys.executable, whatever kernel "python3" means elsewhere on the machine."""

    @default("kernel_spec_manager")
    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])

    @default("transport_encryption")
    def _transport_encryption_default(self) -> str:  # or the kernel warns about every connection
        return "auto"


class _Client(PapermillNotebookClient):
    def papermill_execute_cells(self) -> None:
        with PeakMemory(self.km.provisioner.pid) as memory, CardUse() as card:
            try:
                super().papermill_execute_cells()
            finally:
                self.nb.metadata.papermill["peak_memory_mb"] = round(memory.mb, 1)
        self.nb.metadata.papermill["card"] = card.record


class _Engine(NBClientEngine):
    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, on_cell, environment, errors, **ignored) -> NotebookNode:
        client = _Client(
            nb_man,
            kernel_name=kernel_name,
            kernel_manager_class=OwnKernelManager,
            timeout=None,
            startup_timeout=120,
            on_cell_start=lambda cell, cell_index: on_cell(cell_index + 1, len(nb_man.nb.cells)),
        )
        return client.execute(env=environment, stderr=errors)


papermill_engines.register(ENGINE, _Engine)


def kernel_environment() -> dict[str, str]:
    """Environment of the kernel: this package importable, and RETRIEVAL_DATA meant from where the user stands."""
    environment = dict(os.environ)
    paths = [str(PACKAGE_PARENT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if environment.get("RETRIEVAL_DATA"):
        environment["RETRIEVAL_DATA"] = str(Path(environment["RETRIEVAL_DATA"]).expanduser().absolute())
    return environment


def execute(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, object],
    on_cell: Callable[[int, int], None] = lambda cell, cells: None,
) -> Executed:
    """Execute `notebook` in its own folder and keep the result under `output`, which appears only when whole.

    on_cell(cell, cells) is called before each cell, counted from 1. A cell that raises, or a kernel that dies, raises
    `NotebookFailed`; the notebook as far as it ran is then kept as `<stem>.failed.ipynb` beside `output`.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.stem}.partial.ipynb")
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    at = {"cell": 0}
    errors = tempfile.TemporaryFile("w+")  # what the kernel process says outside its cells would tear the live line

    def count(cell: int, cells: int) -> None:
        at["cell"] = cell
        on_cell(cell, cells)

    try:
        try:
            papermill.execute_notebook(
                str(notebook.absolute()),
                str(partial.absolute()),
                parameters=dict(parameters),
                engine_name=ENGINE,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                cwd=str(notebook.parent.absolute()),
                on_cell=count,
                environment=kernel_environment(),  # taken here: papermill changes folder before it calls the engine
                errors=errors,
            )
        except PapermillExecutionError as error:
            _rewrite(partial, failed)
            what = f"{error.ename}: {error.evalue}".strip().splitlines()[0][:400]
            raise _failure(notebook, f"In [{error.exec_count}]", what, failed) from None
        except RuntimeError as error:  # of nbclient and jupyter_client, when there is no kernel to talk to
            _rewrite(partial, failed)
            if isinstance(error, DeadKernelError):
                what = "The kernel died; most often the machine ran out of memory (a smaller profile needs less)."
            else:
                errors.seek(0)
                what = f"The kernel did not start: {(errors.read().strip() or str(error)).splitlines()[-1]}"
            raise _failure(notebook, f"number {at['cell']}", what, failed) from None
        metadata = _rewrite(partial, output).metadata.papermill
        failed.unlink(missing_ok=True)
        return Executed(output, metadata.duration, metadata.get("peak_memory_mb", 0.0), metadata.get("card", {}))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(f"The disk that holds {output.parent} is full: free some space, then --resume.") from None
        raise
    finally:
        errors.close()
        partial.unlink(missing_ok=True)


def _failure(notebook: Path, cell: str, what: str, kept: Path) -> NotebookFailed:
    return NotebookFailed(f"{notebook.stem} failed at cell {cell}\n{what}\nThe notebook as far as it ran: {kept}")


def _rewrite(partial: Path, final: Path) -> NotebookNode:
    """Write the tidied notebook under its final name in one step."""
    notebook = tidy(nbformat.read(partial, as_version=4))
    nbformat.write(notebook, partial)
    os.replace(partial, final)
    return notebook


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Drop what differs from machine to machine: widget state, papermill's paths, process numbers and home folders."""
    notebook.metadata.pop("widgets", None)
    for key in ("input_path", "output_path"):
        if key in notebook.metadata.get("papermill", {}):
            notebook.metadata.papermill[key] = Path(notebook.metadata.papermill[key]).name
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "text" in output:
                output.text = plain_paths(output.text)
            if "traceback" in output:
                output.traceback = [plain_paths(line) for line in output.traceback]
            for kind, data in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output.data[kind] = plain_paths(data)
    return notebook


def plain_paths(text: str) -> str:
    """`text` without what names this machine: temporary cell files; the folders of Python, project and user."""
    text = re.sub(r"\S*ipykernel_\d+[/\\]\d+\.py", "<cell>", text)
    for folder, name in ((sys.prefix, "<python>"), (PACKAGE_PARENT, "."), (Path.cwd(), "."), (Path.home(), "~")):
        if len(str(folder)) > 1:  # a home of "/" is no name
            text = text.replace(str(folder), name)
    return text
