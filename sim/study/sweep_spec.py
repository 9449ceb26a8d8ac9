"""The table of points of a sweep, from a TOML file, and the address of each point's result."""

from __future__ import annotations

import hashlib
import itertools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
from stepline.traces.errors import ConfigError, nearest

from .config import FLEET_TEXTS, NONE, RunConfig, setting_names

SCHEMA_VERSION = 1
"""Part of every address: raised when the content of a result changes meaning."""

SPEC_KEYS = ("name", "trace", "trace_format", "hash_block_size", "request_rate", "base", "grid", "point")
READING = ("trace_format", "hash_block_size", "request_rate")
FILES = (
    "model",
    "gpu",
    "engine",
    "calibration",
    "policy",
    "kv_eviction",
    "preemption",
    "routing",
    "cost_model",
)
"""Settings that may name a file, whose content is then part of the address."""


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep. `settings` are those of `RunConfig` that the spec gives, all of them as they stand.

    `trace` is the file, `trace_sha256` its content, `reading` what the reader is told.
    """

    trace: str
    trace_sha256: str
    settings: Mapping[str, Any]
    reading: Mapping[str, Any]
    files: Mapping[str, str]

    @property
    def address(self) -> str:
        """SHA-256 of all that the result depends on: settings, trace, files named, stepline's version."""
        content = {
            "schema": SCHEMA_VERSION,
            "version": version("stepline"),
            "trace": self.trace_sha256,
            "settings": dict(self.settings),
            "reading": dict(self.reading),
            "files": dict(self.files),
        }
        return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """A study: its points in order, and the settings that differ between them (`varied`)."""

    name: str
    points: tuple[Point, ...]
    varied: tuple[str, ...]


def read_sweep(path: str | Path) -> SweepSpec:
    """Read a spec; relative paths of traces are relative to it. Layout:

    name = "study"; trace = "chat.jsonl" (or a list); [base] settings of all points; [grid] lists of values, every
    combination of them is a point; [[point]] further points, one by one.

    Raises:
        ConfigError: `file: field: got, expected`, for anything that is wrong, before anything runs.
    """
    path = Path(path)
    table = _parsed(path)
    for key in table:
        if key not in SPEC_KEYS:
            raise ConfigError(f"{path}: unknown key {key!r}{nearest(key, SPEC_KEYS)}")
    base = _section(path, table, "base")
    grid = {k: v if isinstance(v, list) else [v] for k, v in _section(path, table, "grid").items()}
    traces = table.get("trace")
    traces = traces if isinstance(traces, list) else [traces]
    if not traces or not all(isinstance(t, str) for t in traces):
        raise ConfigError(f"{path}: trace: got {table.get('trace')!r}, expected a file or a list of files")
    reading = {k: table[k] for k in READING if k in table}
    rows = list(_rows(path, base, grid, table.get("point", [])))
    points = tuple(_point(path, trace, row, reading) for trace in traces for row in rows)
    _check_distinct(path, points)
    varied = [k for k in _ordered(rows) if len({repr(row.get(k)) for row in rows}) > 1]
    return SweepSpec(
        str(table.get("name", path.stem)), points, (*(["trace"] if len(traces) > 1 else []), *varied)
    )


def _parsed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"sweep: no file {str(path)!r}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _section(path: Path, table: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = table.get(name, {})
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: {name}: got {section!r}, expected a table [{name}]")
    return _known(path, name, section)


SHORT = {"tp": "tensor_parallel_size", "pp": "pipeline_parallel_size", "dp": "data_parallel_size"}
"""Short names of settings, as on the command line."""


def _known(path: Path, where: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under their own names (`tp` and `max-num-seqs` are understood)."""
    known = setting_names()
    named = {SHORT.get(k, k.replace("-", "_")): v for k, v in section.items()}
    for key in named:
        if key not in known:
            raise ConfigError(f"{path}: {where}: unknown setting {key!r}{nearest(key, known)}")
    return named


def _rows(
    path: Path, base: dict[str, Any], grid: dict[str, list[Any]], points: Any
) -> Iterator[dict[str, Any]]:
    if not isinstance(points, list) or not all(isinstance(p, dict) for p in points):
        raise ConfigError(f"{path}: point: got {points!r}, expected tables [[point]]")
    for name, values in grid.items():
        if not values:
            raise ConfigError(f"{path}: grid: {name}: got no values, expected at least one")
    if grid or not points:
        for picked in itertools.product(*grid.values()):
            yield _plain({**base, **dict(zip(grid, picked, strict=True))})
    for i, extra in enumerate(points, 1):
        yield _plain({**base, **_known(path, f"point {i}", extra)})


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: of a fleet's texts "none" stands for it."""
    return {k: None if k in FLEET_TEXTS and v == NONE else v for k, v in settings.items()}


def _point(path: Path, trace: str, settings: dict[str, Any], reading: dict[str, Any]) -> Point:
    try:
        RunConfig(**settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    file = Path(trace) if Path(trace).is_absolute() else path.parent / trace
    if not file.is_file():
        raise ConfigError(f"{path}: trace: no file {str(file)!r}")
    files = {name: _digest(Path(value)) for name, value in _named_files(settings)}
    return Point(str(file), _digest(file), settings, reading, files)


def _named_files(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in FILES:
        value = settings.get(name)
        if isinstance(value, str):
            candidates = [value, value.split(":", 1)[0]]  # a file, or file.py:Class
            found = next((c for c in candidates if Path(c).is_file()), None)
            if found is not None:
                yield name, found


_DIGESTS: dict[tuple[str, int, int], str] = {}


def _digest(path: Path) -> str:
    """SHA-256 of a file; read once for each state of it."""
    stat = path.stat()
    key = (str(path), stat.st_mtime_ns, stat.st_size)
    if key not in _DIGESTS:
        _DIGESTS[key] = hashlib.sha256(path.read_bytes()).hexdigest()
    return _DIGESTS[key]


def _check_distinct(path: Path, points: tuple[Point, ...]) -> None:
    seen: dict[str, Point] = {}
    for point in points:
        twin = seen.setdefault(point.address, point)
        if twin is not point:
            raise ConfigError(f"{path}: the same point twice: {dict(point.settings)}")


def _ordered(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))
