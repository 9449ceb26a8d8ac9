"""Which form of the core runs: C, compiled at installation from these very sources, or the Python itself.

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
    "policies.eviction.lazy_heap",
    "sim.cost.step_seconds",
    "sim.engine.adapters", "sim.engine.capped_decode_set", "sim.engine.decode_set", "sim.engine.kv_cache",
    "sim.engine.lane", "sim.engine.offloading_replica", "sim.engine.replica", "sim.engine.seats", "sim.engine.segment",
    "sim.engine.sequence", "sim.engine.speculative_decode_set", "sim.engine.swap", "sim.engine.tier", "sim.engine.view",
)  # fmt: skip
"""What holds the state of a replica, what prices its steps, and what most eviction policies are made of."""

HERE = Path(__file__).parents[1]
HOME = "sim"
"""Where in the namespace the library is."""
NAMESPACE = "stepline"
SWITCH = "STEPLINE_INTERPRETED"


def source(folder: Path, name: str) -> Path:
    """The Python of a module, in a folder that holds the namespace."""
    return folder.joinpath(*name.split(".")).with_suffix(".py")


def digest(folder: Path) -> str:
    """Of the sources in a folder; the library that they are compiled to carries it in its name."""
    total = hashlib.sha256()
    for name in MODULES:
        total.update(source(folder, name).read_bytes())
    return total.hexdigest()[:12]


def library(folder: Path) -> str:
    """Name of the library of a folder's sources, without the suffix that says for which Python it is."""
    return f"core_{digest(folder)}__mypyc"


def is_compiled(folder: Path = HERE) -> bool:
    """Whether the core runs as C."""
    if os.environ.get(SWITCH, "0") != "0":
        return False
    name = library(folder)
    return any((folder / HOME / (name + suffix)).exists() for suffix in EXTENSION_SUFFIXES)


def form() -> str:
    """`compiled` or `interpreted`."""
    return "compiled" if is_compiled() else "interpreted"


class _SourceFinder:
    """Finds the Python of the core's modules, whatever else lies beside it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        module = name.removeprefix(NAMESPACE + ".")
        return spec_from_file_location(name, source(HERE, module)) if module in MODULES else None


def choose() -> None:
    """Settle which form the core's modules are imported in; before any of them is."""
    if not is_compiled():
        sys.meta_path.insert(0, _SourceFinder())
