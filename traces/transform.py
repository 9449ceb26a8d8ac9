"""Traces made from traces: a part of one, the same at another rate, one with its coarse clock spread out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .conversations import conversation_numbers
from .errors import ConfigError, nearest
from .joining import RowNumbers
from .random_streams import stream
from .ticks import quantum_of
from .trace import Ragged, Trace

RateScaleMode = Literal["sessions", "compress"]
MODES = ("sessions", "compress")

CLONE_SHIFT_S = 300.0
"""A clone starts at most this far from its original: far enough that bursts of a minute are not doubled, near enough
that the load of the hour stays. Bounded by a quarter of the trace."""

Ints = NDArray[np.int64]


def slice_trace(
    trace: Trace, start_s: float | None = None, end_s: float | None = None, rows: int | None = None
) -> Trace:
    """The requests that arrive in [start_s, end_s), the first `rows` of them; time 0 becomes `start_s`.

    Raises: ConfigError where nothing is left or a bound is wrong.
    """
    if rows is not None and rows < 1:
        raise ConfigError(f"--rows: got {rows}, expected an integer >= 1")
    low = 0 if start_s is None else int(np.searchsorted(trace.arrival_s, start_s))
    high = len(trace) if end_s is None else int(np.searchsorted(trace.arrival_s, end_s))
    high = high if rows is None else min(high, low + rows)
    if low >= high:
        last_s = float(trace.arrival_s[-1]) if len(trace) else 0.0
        raise ConfigError(
            f"slice: no request arrives from {start_s or 0:g} s on"
            f"{'' if end_s is None else f' and before {end_s:g} s'}; the trace ends at {last_s:g} s"
        )
    part = _named(trace).take(np.arange(low, high))
    return _changed(part, arrival_s=part.arrival_s - (start_s or 0.0))


def rate_scale(trace: Trace, factor: float, mode: RateScaleMode = "sessions", seed: int = 0) -> Trace:
    """The trace at `factor` times its arrival rate.

    mode "sessions": whole sessions are kept with probability `factor`, or cloned; so think times and reuse inside
    them stay. Rows without `session_id` belong together where their hash ids continue one another. A clone starts
    within `CLONE_SHIFT_S` of its original; the ids that only its session uses get numbers of their own, ids that
    sessions share stay shared. mode "compress": all times, delays too, are divided by `factor`.

    Raises: ConfigError for an unknown mode, a factor that is not above 0, or where no request is left.
    """
    if not 0 < factor < np.inf:
        raise ConfigError(f"--rate-scale: got {factor}, expected a number > 0")
    if mode not in MODES:
        raise ConfigError(f"--rate-scale-mode: got {mode!r}{nearest(mode, MODES)}")
    if factor == 1.0 or not len(trace):
        return trace
    return _compressed(trace, factor) if mode == "compress" else _resampled(trace, factor, seed)


def spread_quantum(trace: Trace, quantum_s: float | None = None, seed: int = 0) -> Trace:
    """Spread the requests of each tick of a coarse clock uniformly over that tick, keeping their order.

    `quantum_s` is the tick (None: what the sidecar or the arrivals say). Given how many requests a tick holds,
    uniform times are what a Poisson process has. Raises: ConfigError where no tick is given or found.
    """
    if quantum_s is None:
        stated = trace.meta.get("timestamp_quantum_ms")
        quantum_s = quantum_of(trace.arrival_s) if stated is None else float(stated) / 1e3
    if quantum_s is None:
        raise ConfigError(
            "--spread-quantum: the timestamps do not tick coarsely; --quantum gives the tick in seconds"
        )
    if not 0 < quantum_s < np.inf:
        raise ConfigError(f"--quantum: got {quantum_s}, expected a number > 0")
    ticks, number = np.unique(trace.arrival_s, return_inverse=True)
    room_s = np.minimum(quantum_s, np.diff(ticks, append=np.inf))
    draws = stream(seed, "spread-quantum").random(len(trace))
    # Sorted within each tick: number + draw sorts the ticks one behind the other.
    within = np.sort(number + draws) - number
    arrival_s = trace.arrival_s + np.clip(within, 0.0, np.nextafter(1.0, 0.0)) * room_s[number]
    warnings = tuple(w for w in trace.warnings if not w.startswith("timestamps tick"))
    meta = {k: v for k, v in trace.meta.items() if k != "timestamp_quantum_ms"}
    meta["spread_quantum"] = {"quantum_ms": quantum_s * 1e3, "seed": seed}
    return _changed(trace, arrival_s=np.maximum.accumulate(arrival_s), warnings=warnings, meta=meta)


def _named(trace: Trace) -> Trace:
    """Requests keep the ids they had before rows were left out or added."""
    if "request_id" in trace.columns:
        return trace
    return replace(trace, columns={**trace.columns, "request_id": RowNumbers(0, len(trace))})


def _changed(trace: Trace, **changes: Any) -> Trace:
    meta = {k: v for k, v in trace.meta.items() if k not in ("sha256", "rows", "span_ms")}
    return replace(trace, sha256=None, **({"meta": meta} | changes))


def _compressed(trace: Trace, factor: float) -> Trace:
    columns = dict(trace.columns)
    if "delay_s" in columns:
        columns["delay_s"] = [None if d is None else d / factor for d in columns["delay_s"]]
    meta = {**trace.meta, "rate_scale": {"factor": factor, "mode": "compress"}}
    if "timestamp_quantum_ms" in meta:
        meta["timestamp_quantum_ms"] = meta["timestamp_quantum_ms"] / factor
    return _changed(trace, arrival_s=trace.arrival_s / factor, columns=columns, meta=meta)


def _resampled(trace: Trace, factor: float, seed: int) -> Trace:
    group = conversation_numbers(trace)
    n_groups = int(group.max()) + 1
    rng = stream(seed, "rate-scale")
    copies = np.floor(factor + rng.random(n_groups)).astype(np.int64)
    if not copies.any():
        raise ConfigError(
            f"--rate-scale: {factor:g} leaves none of {len(trace)} requests, expected a larger factor"
        )
    meta = {**trace.meta, "rate_scale": {"factor": factor, "mode": "sessions", "seed": seed}}
    return _copied(trace, group, copies, rng, meta)


def resample_sessions(trace: Trace, replication: int, seed: int = 0) -> Trace:
    """A replication of the trace: as many sessions, drawn from it with replacement (bootstrap).

    A session drawn again is a clone as in `rate_scale`. Rows without `session_id` belong together where their hash
    ids continue one another. Draws come from the stream ("resample-sessions", replication) of `seed`.
    """
    group = conversation_numbers(trace)
    n_groups = int(group.max()) + 1
    rng = stream(seed, "resample-sessions", replication)
    drawn = (rng.random(n_groups) * n_groups).astype(np.int64)
    meta = {**trace.meta, "resampled": {"replication": replication, "seed": seed}}
    return _copied(trace, group, np.bincount(drawn, minlength=n_groups), rng, meta)


def _copied(trace: Trace, group: Ints, copies: Ints, rng: np.random.Generator, meta: dict[str, Any]) -> Trace:
    """The trace with each session as often as `copies` says, clones shifted and renamed."""
    row = np.repeat(np.arange(len(trace)), copies[group])
    copy = np.arange(len(row)) - np.repeat(np.cumsum(copies[group]) - copies[group], copies[group])
    shift_s = _shifts(trace, group, int(copies.max()), rng)
    arrival_s = trace.arrival_s[row] + shift_s[group[row], copy]
    order = np.argsort(arrival_s, kind="stable")
    row, copy = row[order], copy[order]
    picked = _named(trace).take(row, arrival_s=arrival_s[order])
    return _changed(_renamed(picked, copy, group[row]), meta=meta)


def _shifts(trace: Trace, group: Ints, most: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Seconds by which copy k of each session is moved, float64 (sessions, most); 0 for the first copy.

    A start that would move a session out of the trace at either end is reflected back into it.
    """
    n_groups = int(group.max()) + 1
    first_s, last_s = np.full(n_groups, np.inf), np.full(n_groups, -np.inf)
    np.minimum.at(first_s, group, trace.arrival_s)
    np.maximum.at(last_s, group, trace.arrival_s)
    before_s, after_s = first_s - trace.arrival_s[0], trace.arrival_s[-1] - last_s
    reach_s = np.minimum(CLONE_SHIFT_S, (before_s + after_s) / 2)
    shift_s = (2 * rng.random((n_groups, most)) - 1) * reach_s[:, None]
    shift_s = np.where(shift_s < -before_s[:, None], -2 * before_s[:, None] - shift_s, shift_s)
    shift_s = np.where(shift_s > after_s[:, None], 2 * after_s[:, None] - shift_s, shift_s)
    shift_s[:, 0] = 0.0
    return np.asarray(shift_s, dtype=np.float64)


def _renamed(trace: Trace, copy: Ints, group: Ints) -> Trace:
    """Clones get request, session and parent names of their own, and private hash ids."""
    if not copy.any():
        return trace
    columns = dict(trace.columns)
    for name in ("request_id", "session_id", "parent_id"):
        if name in columns:
            columns[name] = [
                n if k == 0 or n is None else f"{n}~{k}"
                for n, k in zip(columns[name], copy.tolist(), strict=True)
            ]
    ids = [r for r in (trace.hash_ids, trace.output_hash_ids) if r is not None]
    if not ids:
        return replace(trace, columns=columns)
    shared = _shared_ids(ids, group)
    top = max(int(r.values.max(initial=0)) for r in ids) + 1
    moved = [
        None if r is None else _moved(r, copy, shared, top) for r in (trace.hash_ids, trace.output_hash_ids)
    ]
    return replace(trace, columns=columns, hash_ids=moved[0], output_hash_ids=moved[1])


def _shared_ids(ragged: list[Ragged], group: Ints) -> Ints:
    """Sorted ids that more than one session uses."""
    ids = np.concatenate([r.values for r in ragged])
    owner = np.concatenate([np.repeat(group, np.diff(r.offsets)) for r in ragged])
    order = np.lexsort((owner, ids))
    ids, owner = ids[order], owner[order]
    differs = (ids[1:] == ids[:-1]) & (owner[1:] != owner[:-1])
    return np.unique(ids[1:][differs])


def _moved(ids: Ragged, copy: Ints, shared: Ints, top: int) -> Ragged:
    number = np.repeat(copy, np.diff(ids.offsets))
    if int(copy.max()) * top >= 2**62:
        raise ConfigError("--rate-scale: the hash ids are too large to be renumbered for clones")
    private = ~np.isin(ids.values, shared)
    return Ragged(np.where(private, ids.values + number * top, ids.values), ids.offsets)
