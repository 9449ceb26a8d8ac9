"""What is installed under an entry-point group."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType


@cache
def registered(group: str) -> Mapping[str, EntryPoint]:
    """Entry points of a group by name, in alphabetical order; read once a process, for that takes milliseconds."""
    return MappingProxyType({p.name: p for p in sorted(entry_points(group=group), key=lambda p: p.name)})
