"""The load of a run: the trace it replays, thinned, multiplied or squeezed to another rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stepline.traces.errors import ConfigError
from stepline.traces.random_streams import stream
from stepline.traces.reading import read_trace
from stepline.traces.trace import Ragged, Trace

from .config import RunConfig

Indices = NDArray[np.int64]

CLONE_SHIFT_S = 30.0
"""A clone starts up to this much before or after its original: bursts are not doubled, slow waves of load are kept."""


def load(path: str | Path, trace_format: str | None, config: RunConfig) -> Trace:
    """Read a trace and bring it to `config.rate_scale`. Raises `TraceError`, `ConfigError`."""
    if not Path(path).exists():
        raise ConfigError(f"--trace: no file {str(path)!r}")
    trace = read_trace(path, trace_format=trace_format)
    return scaled(trace, config.rate_scale, config.rate_scale_mode, config.seed)


def scaled(trace: Trace, rate: float, mode: str = "sessions", seed: int = 0) -> Trace:
    """The trace at `rate` times its arrival rate.

    mode "sessions": whole sessions (rows without one stand alone) are kept with probability `rate`, or cloned; think
    times and reuse inside a session stay. A clone starts within `CLONE_SHIFT_S` of its original; hash ids that only
    one session uses get numbers of their own, ids shared by several stay shared.
    mode "compress": times and delays are divided by `rate`; all requests stay.
    """
    if rate == 1.0:
        return trace
    changed = _compressed(trace, rate) if mode == "compress" else _resampled(trace, rate, seed)
    return replace(changed, sha256=trace.sha256, source=trace.source)


def _compressed(trace: Trace, rate: float) -> Trace:
    columns = dict(trace.columns)
    if "delay_s" in columns:
        columns["delay_s"] = [None if d is None else d / rate for d in columns["delay_s"]]
    return replace(trace, arrival_s=trace.arrival_s / rate, columns=columns)


def _resampled(trace: Trace, rate: float, seed: int) -> Trace:
    group = _groups(trace)
    n_groups = int(group.max()) + 1 if len(group) else 0
    rng = stream(seed, "rate-scale")
    copies = np.floor(rate + rng.random(n_groups)).astype(np.int64)
    shift_s = (2 * rng.random((n_groups, max(1, int(copies.max(initial=0))))) - 1) * CLONE_SHIFT_S
    shift_s[:, 0] = 0.0
    row = np.repeat(np.arange(len(trace)), copies[group])
    if not len(row):
        raise ConfigError(f"--rate-scale: {rate} leaves no request of {len(trace)}, expected a larger factor")
    copy = np.arange(len(row)) - np.repeat(np.cumsum(copies[group]) - copies[group], copies[group])
    first_s = _first_arrivals(trace, group, n_groups)
    # a session moves as a whole, and never before the start of the trace
    moved_s = np.maximum(shift_s, -first_s[:, None])
    arrival_s = trace.arrival_s[row] + moved_s[group[row], copy]
    order = np.argsort(arrival_s, kind="stable")
    picked = trace.take(row[order], arrival_s=arrival_s[order])
    return _renamed(picked, copy[order], group[row[order]])


def _groups(trace: Trace) -> Indices:
    """Session number of each row; a row without a session is one of its own."""
    sessions = trace.columns.get("session_id")
    if sessions is None:
        return np.arange(len(trace))
    numbers: dict[Any, int] = {}
    keys = (("row", i) if s is None else ("session", s) for i, s in enumerate(sessions))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _first_arrivals(trace: Trace, group: Indices, n_groups: int) -> NDArray[np.float64]:
    first = np.full(n_groups, np.inf)
    np.minimum.at(first, group, trace.arrival_s)
    return first


def _renamed(trace: Trace, copy: Indices, group: Indices) -> Trace:
    """Clones get request, session and parent names of their own, and private hash ids."""
    if not copy.any():
        return trace
    columns = dict(trace.columns)
    columns.setdefault("request_id", [str(i) for i in range(len(trace))])
    for name in ("request_id", "session_id", "parent_id"):
        if name in columns:
            columns[name] = _with_suffix(columns[name], copy)
    if trace.hash_ids is None:
        return replace(trace, columns=columns)
    shared = _shared_ids([trace.hash_ids, trace.output_hash_ids], group)
    top = (
        max(int(r.values.max(initial=0)) for r in (trace.hash_ids, trace.output_hash_ids) if r is not None)
        + 1
    )
    return replace(
        trace,
        columns=columns,
        hash_ids=_moved(trace.hash_ids, copy, shared, top),
        output_hash_ids=_moved(trace.output_hash_ids, copy, shared, top),
    )


def _with_suffix(names: Sequence[Any], copy: Indices) -> list[Any]:
    return [n if c == 0 or n is None else f"{n}~{c}" for n, c in zip(names, copy.tolist(), strict=True)]


def _shared_ids(ragged: list[Ragged | None], group: Indices) -> Indices:
    """Sorted ids that more than one session uses."""
    pairs = [
        np.stack([r.values, np.repeat(group, np.diff(r.offsets))], axis=1) for r in ragged if r is not None
    ]
    unique = np.unique(np.concatenate(pairs), axis=0)
    ids, uses = np.unique(unique[:, 0], return_counts=True)
    return np.asarray(ids[uses > 1], dtype=np.int64)


def _moved(ids: Ragged | None, copy: Indices, shared: Indices, top: int) -> Ragged | None:
    if ids is None:
        return None
    number = np.repeat(copy, np.diff(ids.offsets))
    private = ~np.isin(ids.values, shared)
    return Ragged(np.where(private, ids.values + number * top, ids.values), ids.offsets)
