"""The command line: what it understands, and one sentence with an exit code for everything a user can mend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from retrieval_utils import __main__ as cli

HEAVY = ("torch", "papermill", "matplotlib", "pandas", "pytorch_lightning")


def invoke(*words: str):
    return CliRunner().invoke(cli.app, list(words))


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The arguments with which the runner is called; it runs nothing."""
    made = []

    def reproduce(*args, **kwargs):
        kwargs.pop("console")
        made.append((*args, kwargs))

    monkeypatch.setattr("retrieval_utils.reproduce.reproduce", reproduce)
    monkeypatch.chdir(tmp_path)
    return made


def test_help_loads_nothing_heavy():
    code = f"import sys, retrieval_utils.__main__; print([name for name in {HEAVY} if name in sys.modules])"
    project = Path(cli.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=project)
    assert done.stdout.strip() == "[]"


def test_every_command_explains_itself():
    assert all(word in invoke("--help").output for word in ("reproduce", "report", "data", "profiles"))
    for words in (["reproduce"], ["report"], ["profiles"], ["data"], ["data", "get"], ["data", "list"]):
        assert invoke(*words, "--help").exit_code == 0


@pytest.mark.parametrize("words", [["--only", "02", "03"], ["--only", "02", "--only", "03"], ["--only", "02,03"]])
def test_only_takes_several_notebooks(calls, words):
    assert invoke("reproduce", *words).exit_code == 0
    assert calls == [("smoke", ["02", "03"], {}, False, Path("runs"), {"seeds": None})]


def test_everything_else_reaches_the_runner(calls):
    words = ["--profile", "laptop", "--set", "data_root=a=b", "--set", "rate=0.5", "--seeds", "0-2,5", "--resume"]
    assert invoke("reproduce", *words, "--run-dir", "elsewhere").exit_code == 0
    settings = {"data_root": "a=b", "rate": "0.5"}
    assert calls == [("laptop", [], settings, True, Path("elsewhere"), {"seeds": [0, 1, 2, 5]})]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "seed"], "--set takes name=value, as in --set seed=1; 'seed' is not that."),
        (["--set", "=1"], "--set takes name=value, as in --set seed=1; '=1' is not that."),
        (["--seeds", "one"], "--seeds takes whole numbers and ranges, as in 0-2 or 0,3; 'one' is not that."),
        (["--seeds", "-1"], "--seeds takes whole numbers and ranges, as in 0-2 or 0,3; '-1' is not that."),
    ],
)
def test_what_cannot_be_read_is_a_sentence(calls, words, sentence):
    result = invoke("reproduce", *words)
    assert (result.exit_code, result.stderr.strip(), calls) == (1, sentence, [])


def test_a_misplaced_word_and_an_unknown_option_are_usage_errors(calls):
    result = invoke("reproduce", "02")
    assert result.exit_code == 2 and "--only 02" in result.stderr.replace("\n", " ")
    assert invoke("reproduce", "--sede", "1").exit_code == 2


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["reproduce", "--profile", "smok"], "no profile 'smok'"),
        (["reproduce"], "no notebooks in 'notebooks'"),
        (["report", "--profile", "smoke"], "No step of the profile 'smoke' is recorded"),
        (["data", "get", "oxford"], "oxford"),
        (["data", "verify", "grocery-store", "--data-root", "nowhere"], "nowhere"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_1(tmp_path, monkeypatch, words, part):
    monkeypatch.chdir(tmp_path)
    result = invoke(*words)
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert part in line and "Traceback" not in line


def test_other_errors_keep_their_traceback():
    with pytest.raises(KeyError), cli.one_sentence():
        raise KeyError("a bug")


def test_ctrl_c_ends_with_130():
    with pytest.raises(typer.Exit) as stop, cli.one_sentence():
        raise KeyboardInterrupt
    assert stop.value.exit_code == 130


def test_a_failed_notebook_ends_with_its_three_lines(monkeypatch):
    from retrieval_utils.execution import NotebookFailed

    def fail(*args, **kwargs):
        raise NotebookFailed("one\ntwo\nthree")

    monkeypatch.setattr("retrieval_utils.reproduce.reproduce", fail)
    result = invoke("reproduce")
    assert (result.exit_code, result.stderr) == (1, "one\ntwo\nthree\n")


def test_report_check_names_each_disagreement(monkeypatch):
    monkeypatch.setattr("retrieval_utils.report.disagreements", lambda: ["README.md: no.", "02: no."])
    result = invoke("report", "--check")
    assert (result.exit_code, result.stderr) == (1, "README.md: no.\n02: no.\n")
    monkeypatch.setattr("retrieval_utils.report.disagreements", list)
    assert invoke("report", "--check").exit_code == 0


def test_profiles_shows_every_value():
    from retrieval_utils.profiles import PROFILES

    output = invoke("profiles").output
    assert all(name in output for name in PROFILES)
    assert cli.flat({"a": 1, "b": {"c": (1, 2), "d": {"e": None}}}) == {"a": 1, "b.c": (1, 2), "b.d.e": None}


def test_data_list_shows_every_data_set(tmp_path):
    result = invoke("data", "list", "--data-root", str(tmp_path))
    assert result.exit_code == 0 and "toy-landmarks" in result.output and "not there" in result.output
