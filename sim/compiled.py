"""Which form of the engine's core runs: C, compiled at installation from these very sources, or the Python itself.

Both are the same code and give the same results to the byte (held by a test); the C is about twice as fast. It is left
alone where a source has changed since it was built, so that an edit in a checkout counts at once, and with
`STEPLINE_INTERPRETED=1`. This module is all that `setup.py` and the package have in common; it imports nothing of ours.
"""

from __future__ import annotations

import hashlib
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

MODULES = (
    "adapters", "capped_decode_set", "decode_set", "kv_cache", "lane", "offloading_replica", "replica", "seats",
    "segment", "sequence", "speculative_decode_set", "swap", "tier", "view",
)  # fmt: skip
"""What holds the state of a replica: names in `sim/engine`."""

HERE = Path(__file__).parent / "engine"
PACKAGE = "stepline.sim.engine"
SWITCH = "STEPLINE_INTERPRETED"


def digest(folder: Path) -> str:
    """Of the sources in a folder; the library that they are compiled to carries it in its name."""
    total = hashlib.sha256()
    for name in MODULES:
        total.update((folder / f"{name}.py").read_bytes())
    return total.hexdigest()[:12]


def library(folder: Path) -> str:
    """Name of the library of a folder's sources, without the suffix that says for which Python it is."""
    return f"core_{digest(folder)}__mypyc"


def is_compiled(folder: Path = HERE) -> bool:
    """Whether the core runs as C."""
    if os.environ.get(SWITCH, "0") != "0":
        return False
    name = library(folder)
    return any((folder / (name + suffix)).exists() for suffix in EXTENSION_SUFFIXES)


def form() -> str:
    """`compiled` or `interpreted`."""
    return "compiled" if is_compiled() else "interpreted"


class _SourceFinder:
    """Finds the Python of the core's modules, whatever else lies beside it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, module = name.rpartition(".")
        if package != PACKAGE or module not in MODULES:
            return None
        return spec_from_file_location(name, HERE / f"{module}.py")


def choose() -> None:
    """Settle which form the core's modules are imported in; before any of them is."""
    if not is_compiled():
        sys.meta_path.insert(0, _SourceFinder())
