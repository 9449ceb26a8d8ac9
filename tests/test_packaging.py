"""The wheel: every package and data file is in it, nothing but `stepline` is at its top, and it runs."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("traces", "sim", "policies", "calibration")
DATA = {".json", ".jsonl", ".toml", ".csv", ".html", ".css", ".js"}


def _ignored(_: str, names: list[str]) -> set[str]:
    return {n for n in names if n == "__pycache__" or n.startswith(".")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the sources, so that the checkout stays clean."""
    source = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=_ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    target = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        target,
        source,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def _files(suffixes: set[str]) -> set[str]:
    """Files of the packages as the wheel should name them."""
    return {
        f"stepline/{path.relative_to(ROOT).as_posix()}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix in suffixes and "__pycache__" not in path.parts
    }


def test_the_top_level_is_stepline_alone(names):
    assert {n.split("/", 1)[0] for n in names if ".dist-info/" not in n} == {"stepline"}


def test_every_module_is_in_the_wheel(names):
    assert _files({".py"}) - names == set()


def test_every_data_file_is_in_the_wheel(names):
    assert _files(DATA) - names == set()
    assert {f"stepline/{p}/py.typed" for p in PACKAGES} <= names


def test_every_entry_point_is_in_the_wheel(names):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    targets = [*project["scripts"].values()]
    targets += [t for group in project["entry-points"].values() for t in group.values()]
    modules = {t.split(":")[0].replace(".", "/") for t in targets}
    assert {m for m in modules if f"{m}.py" not in names and f"{m}/__init__.py" not in names} == set()


def test_the_wheel_runs_the_main_job(wheel, tmp_path):
    """Unpacked beside nothing else, on the sample that it ships."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    site = tmp_path / "site"
    sample = site / "stepline" / "traces" / "samples" / "chat.jsonl"
    code = "import stepline.sim as s, sys; sys.exit(0 if s.__file__.startswith(sys.argv[1]) else f'wrong {s.__file__}')"
    env = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    check = subprocess.run(
        [sys.executable, "-c", code, str(site)], env=env, capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr
    command = [sys.executable, "-m", "stepline.sim.cli.main", "--trace", str(sample), "--policy", "chunked"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "TTFT" in done.stdout
    assert len(list((tmp_path / "results" / "runs").iterdir())) == 1


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert importlib.metadata.version("stepline") == project["version"]
