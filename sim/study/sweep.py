"""Many runs from a table of points: each a pure function of its configuration, kept under its address, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError, InvariantError

from .executors import Executor, InProcess
from .sweep_spec import Point, SweepSpec, read_sweep
from .sweep_store import Store, write_atomic

if TYPE_CHECKING:
    import pandas as pd
    from stepline.traces.trace import Trace

TABLE = "sweep.csv"


@dataclass(frozen=True, slots=True)
class SweepProgress:
    """How far a sweep is. `kept`: points whose result was there already; `losses`: workers that died."""

    total: int
    kept: int
    done: int
    failed: int
    losses: int
    wall_s: float


@dataclass(frozen=True, slots=True)
class SweepResult:
    """`table`: one row a point, in the order of the spec: what varies, the figures, `error` where a point failed.

    `failures`: settings and error of each failed point. `directory`: where `sweep.csv` and the points are.
    """

    table: pd.DataFrame
    failures: tuple[tuple[Mapping[str, Any], str], ...]
    directory: Path
    progress: SweepProgress


def sweep(
    spec: SweepSpec | str | Path,
    out: str | Path,
    *,
    executor: Executor | None = None,
    again: bool = False,
    on_progress: Callable[[SweepProgress], None] | None = None,
) -> SweepResult:
    """Run the points of a spec that have no result in `out` yet (`again`: all) and write the table of all.

    A point that fails is in the table with its error, and is tried again by the next call. The table does not depend
    on executor, number of workers, interruptions or what was there before.

    Raises:
        ConfigError: a wrong spec or directory.
    """
    spec = spec if isinstance(spec, SweepSpec) else read_sweep(spec)
    store = Store(Path(out))
    executor = executor or InProcess()
    results = {} if again else {p.address: r for p in spec.points if (r := store.get(p.address)) is not None}
    errors: dict[str, str] = {}
    began, kept = time.perf_counter(), len(results)

    def progress() -> SweepProgress:
        wall_s = time.perf_counter() - began
        return SweepProgress(len(spec.points), kept, len(results), len(errors), executor.losses, wall_s)

    tasks = [(p.address, p) for p in spec.points if p.address not in results]
    for outcome in executor.run(run_point, tasks):
        if outcome.error is None:
            store.put(outcome.key, outcome.value)
            kept_value = store.get(outcome.key)  # as a later call will read it
            if kept_value is None:
                raise InvariantError(f"{outcome.key}: written to the store, but not in it")
            results[outcome.key] = kept_value
        else:
            errors[outcome.key] = outcome.error
        if on_progress is not None:
            on_progress(progress())
    table = _table(spec, results, errors)
    write_atomic(store.directory / TABLE, table.to_csv(index=False).encode())
    failures = tuple((_shown(spec, p), errors[p.address]) for p in spec.points if p.address in errors)
    return SweepResult(table, failures, store.directory, progress())


def run_point(point: Point) -> dict[str, Any]:
    """Simulate one point; the result depends on the point alone.

    Raises:
        InputError: a trace that has changed since the sweep was read, or cannot be had here; wrong settings.
    """
    from ..report.summary import summary
    from .config import RunConfig
    from .run import loaded, simulate_resolved
    from .setup import resolve

    config = RunConfig(**point.settings)
    setup = resolve(config)
    trace = loaded(_trace(point.trace, point.trace_sha256, tuple(point.reading.items())), config)
    figures = summary(simulate_resolved(trace, setup))
    del figures["simulator"]  # wall time is no result
    return {
        "address": point.address,
        "settings": dict(point.settings),
        "trace": point.trace_sha256,
        "summary": figures,
    }


@lru_cache(maxsize=2)
def _trace(path: str, sha256: str, reading: tuple[tuple[str, Any], ...]) -> Trace:
    from stepline.traces.reading import read_trace

    from .sweep_spec import _digest

    if not Path(path).is_file():
        raise ConfigError(f"trace: no file {path!r} on this worker")
    if _digest(Path(path)) != sha256:
        raise ConfigError(f"trace: {path!r} is not the file that the sweep began with")
    return read_trace(path, **dict(reading))


def _shown(spec: SweepSpec, point: Point) -> dict[str, Any]:
    row: dict[str, Any] = {"trace": Path(point.trace).name} if "trace" in spec.varied else {}
    return row | {name: point.settings.get(name) for name in spec.varied if name != "trace"}


def _table(spec: SweepSpec, results: Mapping[str, Any], errors: Mapping[str, str]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for point in spec.points:
        found = results.get(point.address)
        figures = flattened(found["summary"]) if found else {"error": errors.get(point.address, "not run")}
        rows.append({**_shown(spec, point), **figures, "address": point.address})
    columns = [k for row in rows for k in row if k != "error"]
    return pd.DataFrame(rows, columns=[*dict.fromkeys(columns), "error"])


_LEFT_OUT = ("schema_version", "percentile_method", "verdict", "warnings", "limits")


def flattened(figures: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The numbers of a summary by dotted name, e.g. `ttft_s.p99`; texts and lists are left out."""
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        if name in _LEFT_OUT:
            continue
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, int | float):
            flat[f"{prefix}{name}"] = value
    return flat
