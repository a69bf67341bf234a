"""pyproject.toml, the lock, environment.yml and the Makefile say the same, and nothing of any one machine."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = (
    ("linux", "Linux", "posix", "x86_64"),
    ("darwin", "Darwin", "posix", "arm64"),
    ("win32", "Windows", "nt", "AMD64"),
)
NAMED = r"https?:|index-url|find-links|trusted-host|pypi|pythonhosted|/home|/root|/tmp|/opt|/usr/(?!bin/env)"


@pytest.fixture(scope="module")
def declared(project):
    return tomllib.loads((project / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wanted(declared) -> list[Requirement]:
    extras = declared["optional-dependencies"].values()
    return [Requirement(text) for text in [*declared["dependencies"], *(text for extra in extras for text in extra)]]


@pytest.fixture(scope="module")
def locked(project) -> list[tuple[Requirement, int]]:
    """Every pin of the lock with the number of its hashes."""
    text = re.sub(r"#.*", "", (project / "requirements.lock").read_text()).replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line.strip()]
    pins = []
    for words in lines:
        hashes = [word for word in words if word.startswith("--hash=sha256:")]
        pins.append((Requirement(" ".join(w for w in words if not w.startswith("--hash"))), len(hashes)))
    return pins


def environment(python: str, platform: tuple[str, str, str, str]) -> dict[str, str]:
    names = dict(zip(("sys_platform", "platform_system", "os_name", "platform_machine"), platform, strict=True))
    implementation = {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    return {"python_version": python, "python_full_version": f"{python}.5", "extra": "", **names, **implementation}


def test_every_pin_is_exact_and_hashed(locked):
    assert len(locked) > 100
    for pin, hashes in locked:
        assert [s.operator for s in pin.specifier] == ["=="] and hashes >= 1 and pin.url is None, pin


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform[0])
def test_the_lock_satisfies_every_requirement_on_every_platform(locked, wanted, python, platform):
    here = environment(python, platform)
    pins = [pin for pin, _ in locked if pin.marker is None or pin.marker.evaluate(here)]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    assert len(versions) == len(pins), "a package is pinned twice"
    for requirement in wanted:
        if requirement.marker is None or requirement.marker.evaluate(here):
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_torch_and_torchvision_are_the_matching_pair_with_cuda_builds(locked):
    versions = {pin.name: next(iter(pin.specifier)).version for pin, _ in locked}
    assert (versions["torch"], versions["torchvision"]) == ("2.15.0", "0.29.2")
    assert any(name.startswith("nvidia-cudnn") for name in versions)  # a CPU-only torch would not ask for it
    assert "setuptools" in versions  # for the editable install without build isolation


def test_the_ranges_admit_torch_2_11_with_torchvision_0_26_and_python_3_12(declared, wanted):
    ranges = {requirement.name: requirement.specifier for requirement in wanted}
    assert ranges["torch"].contains("2.11.0") and ranges["torchvision"].contains("0.26.0")
    assert Requirement(f"python{declared['requires-python']}").specifier.contains("3.12.0")


def test_environment_yml_is_conda_python_and_pip_plus_the_lock(project, declared):
    recipe = yaml.safe_load((project / "environment.yml").read_text())
    python, pip, requirements = recipe["dependencies"]
    assert Requirement(python).specifier == Requirement(f"python{declared['requires-python']}").specifier
    assert pip == "pip" and requirements == {"pip": ["-r requirements.lock"]}


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml", "environment.yml", "Makefile", ".ci/run"])
def test_no_index_and_no_machine_is_named(project, name):
    text = (project / name).read_text()
    assert re.findall(NAMED, text.replace("--no-emit-index-url", "")) == []


def test_every_import_is_declared_and_every_dependency_imported(project, declared):
    imported = set()
    for file in (project / "retrieval_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    packages = metadata.packages_distributions()
    outside = imported - set(sys.stdlib_module_names) - {"retrieval_utils"}
    used = {canonicalize_name(name) for module in outside for name in packages[module]}
    core = {canonicalize_name(Requirement(text).name) for text in declared["dependencies"]}
    extras = [*declared["optional-dependencies"]["course"], *declared["optional-dependencies"]["cluster"]]
    assert used <= core | {canonicalize_name(Requirement(text).name) for text in extras}
    assert core <= used | {"ipywidgets"}


def test_version_and_licence_agree(project, declared):
    import retrieval_utils

    assert retrieval_utils.__version__ == declared["version"]
    assert declared["license"] == "MIT" and (project / "LICENSE").read_text().startswith("MIT License")


@pytest.mark.skipif(sys.platform == "win32", reason="make")
class TestMakefile:
    def make(self, project, *words: str) -> subprocess.CompletedProcess:
        # not the flags of the make that runs these tests: below one, make would name the folders it enters
        own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        return subprocess.run(["make", *words], cwd=project, env=own, capture_output=True, text=True)

    def test_help_names_every_target(self, project):
        shown = self.make(project).stdout
        for target in ("setup", "reproduce", "test", "gpu", "lab", "report", "bench", "lock"):
            assert f"make {target}  " in shown

    def test_reproduce_passes_profile_and_seeds_on(self, project):
        shown = self.make(project, "-n", "-o", ".venv/ready", "reproduce", "PROFILE=laptop", "SEEDS=0-2").stdout
        assert shown.strip() == ".venv/bin/python -m retrieval_utils reproduce --profile laptop --seeds 0-2"
        shown = self.make(project, "-n", "-o", ".venv/ready", "reproduce", "ARGS=--resume").stdout
        assert shown.strip() == ".venv/bin/python -m retrieval_utils reproduce --profile smoke  --resume"

    def test_without_a_card_the_gpu_run_is_refused_before_anything_runs(self, project):
        lines = self.make(project, "-n", "-o", ".venv/ready", "gpu").stdout.splitlines()
        assert "torch.cuda.is_available() or sys.exit" in lines[0]
        assert [line.removeprefix(".venv/bin/python ") for line in lines[1:]] == [
            "-m pytest -m gpu", "-m retrieval_utils reproduce --profile gpu ", "-m retrieval_utils report",
            "benchmarks/extraction_speed.py",
        ]  # fmt: skip

    def test_setup_installs_the_lock_with_hashes_then_the_package_without_its_dependencies(self, project):
        lines = self.make(project, "-n", "-B", "setup").stdout
        assert "pip install --require-hashes -r requirements.lock" in lines
        assert "pip install --no-deps --no-build-isolation -e ." in lines

    @pytest.mark.parametrize(
        ("python", "sentence"),
        [("no-such-python", "There is no no-such-python here"), ("./python3.9", "3.11 or newer is needed and ./")],
    )
    def test_a_missing_or_old_python_is_a_sentence(self, project, tmp_path, python, sentence):
        old = tmp_path / "python3.9"  # this Python, pretending
        code = "import sys; sys.version_info = (3, 9, 1); sys.version = '3.9.1 (main)'; exec(sys.argv[2])"
        old.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
        old.chmod(0o755)
        for name in ("Makefile", "requirements.lock", "pyproject.toml"):
            (tmp_path / name).write_bytes((project / name).read_bytes())
        done = self.make(tmp_path, "setup", f"PYTHON={python}")
        assert done.returncode != 0 and sentence in done.stdout + done.stderr
        assert not (tmp_path / ".venv").exists()


def test_ci_runs_the_tests_on_real_photos_where_they_are(project, tmp_path):
    (tmp_path / "project/.ci").mkdir(parents=True)
    script = tmp_path / "project/.ci/run"
    script.write_bytes((project / ".ci/run").read_bytes())
    (tmp_path / "project/Makefile").write_text('test:\n\t@echo "data=$$RETRIEVAL_DATA"\n')

    def run() -> str:
        clean = {"PATH": "/usr/bin:/bin"}
        return subprocess.run(["bash", script], capture_output=True, text=True, check=True, cwd="/", env=clean).stdout

    assert run() == "data=\n"
    (tmp_path / "shared/data").mkdir(parents=True)
    assert run() == f"data={tmp_path / 'shared/data'}\n"


def test_the_data_readme_has_every_data_set_as_the_catalogue_has_it(project):
    from retrieval_utils.datasets.catalogue import TABLE

    text = (project / "data/README.md").read_text()
    for name, (what, licence, size, _) in TABLE.items():
        assert f"| `{name}` | {what} | {licence} | {size} |" in text
