"""Requests and traces: what was asked of a service, read from any format, described, changed, written, generated."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .reading import iter_trace, read_trace
    from .request import Request
    from .trace import Ragged, Trace
    from .transform import rate_scale, slice_trace, spread_quantum
    from .writing import write_trace

__all__ = [
    "Ragged",
    "Request",
    "Trace",
    "iter_trace",
    "rate_scale",
    "read_trace",
    "slice_trace",
    "spread_quantum",
    "write_trace",
]

_HOMES = {
    "Ragged": "trace",
    "Request": "request",
    "Trace": "trace",
    "iter_trace": "reading",
    "rate_scale": "transform",
    "read_trace": "reading",
    "slice_trace": "transform",
    "spread_quantum": "transform",
    "write_trace": "writing",
}


def __getattr__(name: str) -> Any:
    """Import on first use: the errors of this package are needed by commands that never touch a trace."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
