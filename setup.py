"""Compiles the core of the engine where that can be done; all else about the package is in pyproject.toml.

Where there is no C compiler, or with STEPLINE_INTERPRETED=1, the core stays Python: nothing but speed differs
(`simulate --version` says which it is, see sim/compiled.py).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
HOUSE = ROOT / "build" / "compile"
COMMANDS = {"bdist_wheel", "build", "build_ext", "editable_wheel"}
"""Those that compile; others (`egg_info`, `sdist`) need not wait for mypy."""


def _load(path: Path) -> ModuleType:
    """A module of ours that needs nothing else of ours."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compiled = _load(ROOT / "sim" / "compiled.py")


def why_not() -> str | None:
    """What keeps the core from being compiled, or None."""
    if os.environ.get(compiled.SWITCH, "0") != "0":
        return f"{compiled.SWITCH} is set"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's headers are not installed"
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    if os.name == "posix" and shutil.which(compiler.split()[0]) is None:
        return f"no C compiler ({compiler})"
    if importlib.util.find_spec("mypyc") is None:
        return "mypyc is not installed"
    return None


def core() -> list[Extension]:
    """One library that holds everything, and a small extension a module that points to it; none is indispensable."""
    from mypyc.build import mypycify

    shutil.rmtree(HOUSE, ignore_errors=True)
    for package in ("traces", "sim", "policies"):  # mypy reads a namespace as folders
        shutil.copytree(
            ROOT / package, HOUSE / "stepline" / package, ignore=shutil.ignore_patterns("*.so", "*.pyd")
        )
    os.environ["MYPYPATH"] = str(HOUSE)
    sources = [str(compiled.source(HOUSE / compiled.NAMESPACE, name)) for name in compiled.MODULES]
    options = [
        "--config-file=",
        "--namespace-packages",
        "--explicit-package-bases",
        "--ignore-missing-imports",
    ]
    library = ".".join((compiled.NAMESPACE, compiled.HOME, compiled.library(ROOT).removesuffix("__mypyc")))
    extensions = mypycify(
        [*options, "--follow-imports=silent", *sources],
        group_name=library, debug_level="0", target_dir=str(HOUSE.relative_to(ROOT)),
    )  # fmt: skip
    for extension in extensions:
        extension.optional = True
    return list(extensions)


def extensions() -> list[Extension]:
    """What is to be compiled: the core, or nothing and the reason on stderr."""
    reason = why_not()
    if reason is None:
        try:
            return core()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, the Python runs
            reason = f"mypyc: {error}"
    print(f"stepline: the core of the engine stays interpreted: {reason}", file=sys.stderr)
    return []


class BuildCore(build_ext):
    """Build in the place of what an earlier build left."""

    def run(self) -> None:
        """Remove libraries of other sources before the new one comes."""
        root = ROOT if self.inplace else Path(self.build_lib, compiled.NAMESPACE)
        for old in (root / compiled.HOME).glob("core_*__mypyc*"):
            old.unlink()
        super().run()


setup(ext_modules=extensions() if COMMANDS & set(sys.argv) else [], cmdclass={"build_ext": BuildCore})
