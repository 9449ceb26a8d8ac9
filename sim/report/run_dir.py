"""The run directory: written beside its place and renamed into it, so that it is whole or absent."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from stepline.sim.engine.result import RunResult
from stepline.traces.errors import ConfigError

from .result_tables import chunk_table, histogram_table, preemption_table, request_table
from .summary import summary

MANIFEST = "manifest.json"
_MARK = ".stepline-unfinished-"


@contextmanager
def atomic_dir(target: Path, where: str = "--out") -> Iterator[Path]:
    """Yield an empty directory beside `target`; on success it becomes `target`, on any error it is removed.

    An older run directory at `target` is replaced. Anything else there is left alone.

    Raises:
        ConfigError: `target` exists and is not a run directory, or nothing can be written there.
    """
    check_target(target, where)
    work = target.parent / f"{_MARK}{target.name}-{os.getpid()}"
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{where} {target}: cannot be written ({error.strerror})") from None
    try:
        yield work
        _swap(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_target(target: Path, where: str = "--out") -> None:
    """Refuse a target that is a file, or a directory with something other than a run in it.

    Worth calling before a long run. Raises `ConfigError`.
    """
    if target.is_dir() and not is_run_dir(target) and any(target.iterdir()):
        raise ConfigError(f"{where} {target}: exists and is no run directory; name another, or remove it")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{where} {target}: is a file, expected a directory to write")
    for parent in target.parents:
        if parent.exists():
            if not parent.is_dir() or not os.access(parent, os.W_OK):
                raise ConfigError(f"{where} {target}: {parent} cannot be written to")
            return


def is_run_dir(path: Path) -> bool:
    """True for the directory of a run or of a comparison."""
    return (path / MANIFEST).is_file()


def _swap(work: Path, target: Path) -> None:
    if not target.exists():
        work.rename(target)
        return
    old = target.parent / f"{_MARK}{target.name}-{os.getpid()}-old"
    target.rename(old)
    try:
        work.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_run(
    result: RunResult,
    directory: Path,
    *,
    command: str | None = None,
    figures: Mapping[str, Any] | None = None,
) -> None:
    """Write a run into `directory`; use inside `atomic_dir`.

    manifest.json, summary.json, requests.parquet; what reports are made of: series.parquet, histograms.parquet,
    preemptions.parquet; when recorded also steps.parquet and chunks.parquet.

    `figures`: the summary if it is at hand already.
    """
    write_json(directory / "summary.json", figures or summary(result))
    tables = {
        "requests": request_table(result),
        "series": result.totals.series,
        "histograms": histogram_table(result),
        "preemptions": preemption_table(result),
        "steps": result.steps,
        "chunks": chunk_table(result),
    }
    for name, table in tables.items():
        if table is not None:
            write_table(table, directory / f"{name}.parquet")
    write_json(directory / MANIFEST, manifest(result, command))


def manifest(result: RunResult, command: str | None = None) -> dict[str, Any]:
    """What made the run: resolved configuration, trace, versions, wall time."""
    return {
        "schema_version": 1,
        "kind": "run",
        "command": command,
        "config": dict(result.config),
        "n_gpus": result.n_gpus,
        "peaks": dict(result.peaks),
        "versions": versions(),
        "wall_s": result.simulator["wall_s"],
        "warnings": list(result.warnings),
    }


def versions() -> dict[str, str]:
    """Versions of the program, of Python and of the libraries that could change a number."""
    names = ("stepline", "numpy", "scipy", "pandas", "simpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a Parquet file; equal frames give equal bytes (NaN becomes null)."""
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    pq.write_table(table, path, compression="zstd")


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON; NaN and infinities become null."""
    path.write_bytes(json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """Indented JSON with a final newline. NumPy numbers and arrays are plain, NaN is null."""
    options = (
        orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
    )
    return orjson.dumps(content, option=options, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"not JSON: {type(value).__name__}")
