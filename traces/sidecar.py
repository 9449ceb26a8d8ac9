"""`NAME.meta.json`, the file beside a trace that says where it comes from and how to read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from .errors import TraceError

_SUFFIXES = (".gz", ".zst", ".jsonl", ".json", ".csv")
TIME_UNITS = ("ms", "s")


def sidecar_path(path: str | Path) -> Path:
    """Where the sidecar of the trace at `path` lies.

    >>> sidecar_path("logs/chat.jsonl.gz").name
    'chat.meta.json'
    """
    path = Path(path)
    name = path.name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix) or name
    return path.with_name(f"{name}.meta.json")


def read_sidecar(path: str | Path) -> dict[str, Any]:
    """The content of the sidecar of the trace at `path` ({}: there is none).

    Raises: TraceError where it is not a JSON object or one of its fields that matter is wrong.
    """
    place = sidecar_path(path)
    try:
        text = place.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as problem:
        raise TraceError(f"{place}: cannot be read ({problem})") from None
    try:
        meta = orjson.loads(text)
    except orjson.JSONDecodeError as problem:
        raise TraceError(f"{place}:{problem.lineno}: not valid JSON: {problem.msg}") from None
    if not isinstance(meta, dict):
        raise TraceError(f"{place}:1: got {type(meta).__name__}, expected a JSON object")
    _check(meta, place)
    return meta


def _check(meta: dict[str, Any], place: Path) -> None:
    size = meta.get("block_size")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise TraceError(f"{place}: block_size: got {size!r}, expected an integer >= 1")
    if meta.get("time_unit", "ms") not in TIME_UNITS:
        raise TraceError(
            f"{place}: time_unit: got {meta['time_unit']!r}, expected one of {', '.join(TIME_UNITS)}"
        )
    quantum = meta.get("timestamp_quantum_ms")
    if quantum is not None and (
        isinstance(quantum, bool) or not isinstance(quantum, int | float) or quantum <= 0
    ):
        raise TraceError(f"{place}: timestamp_quantum_ms: got {quantum!r}, expected a number > 0")
    if meta.get("version", 1) != 1:
        raise TraceError(f"{place}: version: got {meta['version']!r}, expected 1")
