"""The runner on notebooks of three lines: what it refuses, what it keeps, what it skips."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from rich.console import Console
from typer.testing import CliRunner

from retrieval_utils import __main__ as cli
from retrieval_utils import execution
from retrieval_utils import reproduce as runner
from retrieval_utils.progress import Progress, seconds_left

PARAMETERS = """profile: str = "smoke"  # smoke | laptop | gpu | paper
seed: int = 0  # seeds the network
data_root: str = ""  # folder with the data sets
run_dir: str = "../runs"  # results land here"""
EXTRA = PARAMETERS + "\nrate: float = 0.5  # of something\nquick: bool = False  # or not"


def write(folder: Path, name: str, *code: str, parameters: str = PARAMETERS) -> Path:
    cells = [nbformat.v4.new_markdown_cell(f"# {name}"), nbformat.v4.new_code_cell(parameters)]
    cells[1].metadata.tags = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells + [nbformat.v4.new_code_cell(c) for c in code])
    notebook.metadata.kernelspec = kernel
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture
def course(tmp_path, monkeypatch):
    """An empty project as the current folder; course(name, *code) adds a notebook, course.run(...) runs them."""
    monkeypatch.chdir(tmp_path)

    def add(name: str, *code: str, **kwargs) -> Path:
        return write(Path("notebooks"), name, *code, **kwargs)

    add.text = Path("printed.txt").open("w+")
    add.run = lambda **kwargs: runner.reproduce(console=Console(file=add.text, width=200), **kwargs)
    yield add
    add.text.close()


def printed(course) -> list[str]:
    course.text.seek(0)
    return course.text.read().splitlines()


def outputs(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(str(output.get("text", "")) for cell in cells for output in cell.get("outputs", []))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"profile": "smok"}, r"no profile 'smok'.*smoke, laptop, gpu"),
        ({"only": ["07"]}, r"no notebook '07'; there are 00_one, 01_two"),
        ({"settings": {"sede": "1"}}, r"no parameter 'sede'; they have profile, seed.*Did you mean 'seed'"),
        ({"settings": {"seed": "one"}}, r"'seed' is of type int, and 'one' is not; as in seed=1"),
        ({"settings": {"seed": 1.5}}, r"'seed' is of type int"),
        ({"settings": {"seed": True}}, r"'seed' is of type int"),
        ({"settings": {"rate": "fast"}}, r"'rate' is of type float"),
        ({"settings": {"quick": "maybe"}}, r"'quick' is of type bool.*quick=true"),
        ({"settings": {"data_root": 3}}, r"'data_root' is of type str"),
        ({"settings": {"profile": "laptop"}}, r"'profile' is set by --profile"),
        ({"settings": {"seed": "1"}, "seeds": [0]}, r"seed is set twice"),
    ],
)
def test_a_wrong_argument_is_one_sentence_before_anything_runs(course, arguments, sentence):
    course("00_one", "open('ran', 'w')")
    course("01_two", parameters=EXTRA)
    with pytest.raises(ValueError, match=sentence) as caught:
        course.run(**arguments)
    assert "\n" not in str(caught.value)
    assert not Path("runs").exists() and not Path("notebooks/ran").exists()


def test_no_notebooks_and_no_parameters_cell_are_named(course):
    with pytest.raises(FileNotFoundError, match="no notebooks in 'notebooks'.*Makefile"):
        course.run()
    course("00_one", parameters="seed: int = 0")
    with pytest.raises(ValueError, match="00_one.ipynb has no cell tagged 'parameters' with profile, seed and run_dir"):
        course.run()


def test_text_is_read_as_the_annotated_type():
    known = {"00_one": {"seed": "int", "rate": "float", "quick": "bool", "data_root": "str"}}
    text = {"seed": "-3", "rate": "1e-2", "quick": "True", "data_root": "12"}
    assert runner.check_settings(text, known) == {"seed": -3, "rate": 0.01, "quick": True, "data_root": "12"}
    assert runner.check_settings({"rate": 2}, known) == {"rate": 2.0}


def test_notebooks_are_chosen_by_number_or_name_and_run_in_reading_order():
    paths = [Path(f"notebooks/{name}.ipynb") for name in ("00_one", "01_two", "02_three")]
    assert runner.select(paths, []) == paths
    assert runner.select(paths, ["02", "00_one", "00"]) == [paths[0], paths[2]]
    assert runner.select(paths, ["notebooks/01_two.ipynb"]) == [paths[1]]


def test_a_run_in_the_kernel_of_this_python_with_its_parameters_and_a_record(course, monkeypatch):
    elsewhere = Path("elsewhere/kernels/python3")  # a kernel of that name that belongs to some other Python
    elsewhere.mkdir(parents=True)
    (elsewhere / "kernel.json").write_text('{"argv": ["/bin/false", "{connection_file}"], "display_name": "no"}')
    monkeypatch.setenv("JUPYTER_PATH", str(elsewhere.parents[1].absolute()))
    monkeypatch.setenv("RETRIEVAL_DATA", "photos")
    course("00_one", "import os, sys",
           "print(sys.executable == os.environ['EXPECTED'], seed, run_dir, data_root, rate)",
           "print(os.environ['RETRIEVAL_DATA'] == os.environ['PHOTOS'], os.path.basename(os.getcwd()))",
           "import retrieval_utils; block = bytearray(200_000_000); import time; time.sleep(0.7)",
           "import warnings; warnings.warn('of this cell')", parameters=EXTRA)  # fmt: skip
    monkeypatch.setenv("EXPECTED", sys.executable)
    monkeypatch.setenv("PHOTOS", str(Path("photos").absolute()))
    (record,) = course.run(settings={"seed": "3", "data_root": "set", "rate": 0.25})

    folder = Path("runs/smoke/seed-3")
    assert outputs(folder / "notebooks/00_one.ipynb").startswith("True 3 ../runs ../set 0.25\nTrue notebooks\n")
    assert "<cell>:1: UserWarning: of this cell" in outputs(folder / "notebooks/00_one.ipynb")
    assert str(Path.cwd()) not in (folder / "notebooks/00_one.ipynb").read_text()
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["00_one.ipynb", "run.json"]

    assert record == json.loads((folder / "run.json").read_text())
    assert record["parameters"] == {"profile": "smoke", "seed": 3, "data_root": "../set", "rate": 0.25}
    assert record["versions"]["python"] == sys.version.split()[0] and record["machine"]["cores"] >= 1
    entry = record["notebooks"]["00_one"]
    assert entry["status"] == "done" and entry["cold"] and 0.7 < entry["seconds"] < 120
    assert 200 < entry["peak_memory_mb"] < 2000
    assert ("card_mean_use" in entry) == (shutil.which("nvidia-smi") is not None)
    assert printed(course)[0].startswith("00_one (seed 3): done in ")


def test_a_failing_cell_stops_the_run_in_three_lines_and_keeps_the_notebook(course):
    course("00_one", "print('kept')", "def nine():\n    raise ValueError('nine\\nlives')", "nine()")
    course("01_two", "open('ran', 'w')")
    with pytest.raises(Exception, match="00_one") as caught:
        course.run()
    kept = Path("runs/smoke/seed-0/notebooks/00_one.failed.ipynb")
    lines = ["00_one failed at cell In [5]", "ValueError: nine", f"The notebook as far as it ran: {kept}"]
    assert str(caught.value).splitlines() == lines
    assert "kept" in outputs(kept) and os.listdir(kept.parent) == [kept.name]
    entry = json.loads(Path("runs/smoke/seed-0/run.json").read_text())["notebooks"]
    assert list(entry) == ["00_one"] and entry["00_one"]["status"] == "failed"
    assert not Path("notebooks/ran").exists()

    course("00_one", "print('mended')")
    course("01_two", "print(seed)")
    course.run(resume=True)
    assert sorted(os.listdir(kept.parent)) == ["00_one.ipynb", "01_two.ipynb"]


def test_a_run_that_fails_is_named_at_the_end_and_the_others_go_on(course, monkeypatch):
    course("00_one")
    course("01_two")
    began, bad = [], {("smoke", 1), ("laptop", 0)}

    def execute(path, output, parameters, cell):
        run = parameters["profile"], parameters["seed"]
        began.append((*run, path.stem))
        if run in bad:
            raise execution.NotebookFailed(f"{path.stem} failed at cell In [3]\nValueError: nine\nThe notebook: x")
        return execution.Executed(output, 1.0, 100.0)

    monkeypatch.setattr(execution, "execute", execute)
    result = CliRunner().invoke(cli.app, ["reproduce", "--profiles", "smoke", "laptop", "--seeds", "0-2"])
    runs = [(profile, seed) for profile in ("smoke", "laptop") for seed in range(3)]
    assert began == [(*run, stem) for run in runs for stem in (["00_one"] if run in bad else ["00_one", "01_two"])]
    assert result.exit_code == 1
    told = [line for line in result.stderr.splitlines() if "failed" in line]
    assert told == ["smoke: seed 1: 00_one failed at cell In [3]", "laptop: seed 0: 00_one failed at cell In [3]"]
    assert "00_one (seed 1): failed" in result.stdout
    for run in runs:
        record = json.loads(Path("runs/{}/seed-{}/run.json".format(*run)).read_text())["notebooks"]
        assert [entry["status"] for entry in record.values()] == (["failed"] if run in bad else ["done", "done"])


def test_a_kernel_that_dies_is_told_in_a_sentence(course):
    course("00_one", "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(Exception, match=r"(?s)00_one failed at cell number 5\nThe kernel died.*memory.*failed.ipynb"):
        course.run()
    assert os.listdir("runs/smoke/seed-0/notebooks") == ["00_one.failed.ipynb"]


def test_a_kernel_that_does_not_start_is_told_with_its_reason(course):
    course("00_one", "1")
    Path("notebooks/ipykernel_launcher.py").write_text("raise SystemExit('no kernel today')")
    with pytest.raises(Exception, match="(?s)at cell number 0\nThe kernel did not start: no kernel today\n"):
        course.run()


def test_resume_skips_what_is_done_and_unchanged_and_nothing_else(course, monkeypatch):
    executed = []

    def execute(path, output, parameters, on_cell):
        from retrieval_utils.execution import Executed

        executed.append(path.stem)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("{}")
        return Executed(output, 1.0, 2.0)

    monkeypatch.setattr("retrieval_utils.execution.execute", execute)

    def ran(**arguments) -> list[str]:
        executed.clear()
        course.run(**arguments)
        return list(executed)

    first, second = course("00_one", "1"), course("01_two", "2", parameters=EXTRA)
    assert ran(resume=True) == ["00_one", "01_two"]  # nothing to skip yet
    assert ran(resume=True) == []
    assert printed(course)[-1] == "01_two (seed 0): done before, skipped"
    notebook = nbformat.read(second, as_version=4)
    notebook.cells[0].source = "# other prose"
    nbformat.write(notebook, second)
    assert ran(resume=True) == []
    course("01_two", "3", parameters=EXTRA)
    assert ran(resume=True) == ["01_two"]
    assert ran(resume=True, settings={"rate": 0.1}) == ["00_one", "01_two"]  # other parameters, other results
    (Path("runs/smoke/seed-0/notebooks") / first.name).unlink()
    assert ran(resume=True, settings={"rate": 0.1}) == ["00_one"]
    assert ran(resume=True, seeds=[1]) == ["00_one", "01_two"]
    assert ran(only=["01"], seeds=[1]) == ["01_two"]
    assert ran() == ["00_one", "01_two"]


def test_only_a_run_that_trained_everything_counts_as_cold(course, monkeypatch):
    from retrieval_utils.execution import Executed

    monkeypatch.setattr("retrieval_utils.execution.execute", lambda path, output, *rest: Executed(output, 60.0, 2.0))
    course("00_one", "1")

    def cold(**arguments) -> bool:
        return course.run(**arguments)[0]["notebooks"]["00_one"]["cold"]

    assert cold()
    assert not cold(only=["00"]) and not cold(resume=True)
    networks = Path("runs/smoke/seed-0/networks")
    networks.mkdir()
    assert cold()
    (networks / "contrastive.safetensors").touch()
    assert not cold()


def test_a_full_disk_is_one_sentence(course, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("papermill.execute_notebook", full)
    course("00_one", "1")
    with pytest.raises(OSError, match="disk that holds runs/smoke/seed-0/notebooks is full: free some space"):
        course.run()


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_stops_the_kernel_and_leaves_nothing_half_written(course):
    course("00_one", "import os, pathlib\npathlib.Path('pid').write_text(str(os.getpid()))",
           "import time\nhalf = pathlib.Path('half')",
           "half.touch()\ntry:\n    time.sleep(60)\nfinally:\n    half.unlink()",
           "time.sleep(60)")  # fmt: skip
    command = [sys.executable, "-m", "retrieval_utils", "reproduce"]
    paths = os.pathsep.join(p for p in (str(Path(runner.__file__).parents[1]), os.environ.get("PYTHONPATH")) if p)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})
    pid, half = Path("notebooks/pid"), Path("notebooks/half")
    deadline = time.monotonic() + 300
    while not half.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=180)  # it waits for its kernel, on a busy machine for long
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("Stopped in 00_one (seed 0); what was finished is kept, --resume")
    assert "Traceback" not in errors
    assert os.listdir("runs/smoke/seed-0/notebooks") == [] and not half.exists()
    assert json.loads(Path("runs/smoke/seed-0/run.json").read_text())["notebooks"] == {}
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_minutes_left_follow_the_committed_record_and_the_pace_of_this_machine():
    assert seconds_left({}, {}, "a", 5, ["b"]) is None
    expected = {"a": 10, "b": 20, "c": 30}
    assert seconds_left(expected, {}, "a", 4, ["b", "c"]) == 6 + 20 + 30
    assert seconds_left(expected, {"a": 20}, "b", 10, ["c"]) == 30 + 60  # twice as slow as the record
    assert seconds_left(expected, {"a": 10}, "b", 25, ["c"]) == 0 + 30  # late, but never negative
    assert seconds_left({}, {"a": 10, "b": 20}, "c", 5, ["d"]) == 10 + 15  # no record: the mean so far
    assert runner.expected_seconds(Path("nowhere.json")) == {}


def test_the_live_line_says_notebook_cell_and_time():
    progress = Progress(Console(force_terminal=True), ["00_one", "01_two"], {"00_one": 60, "01_two": 200})
    progress.start("00_one", 0)
    progress.cell(3, 9)
    line = str(progress.line())
    assert line == "notebook 1/2 00_one seed 0 · cell 3/9 · 0:00 gone · about 4 min left"
