"""A whole profile from any trace, and how near what it generates comes to that trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from ..errors import ConfigError, nearest
from ..trace import Trace
from ..transform import spread_quantum
from .fit import fit_open
from .fit_agents import fit_agents
from .fit_sessions import fit_sessions
from .generate import synth
from .measure import index_of_dispersion, ks_distance, ks_distance_2d
from .profile import PROFILE_VERSION, Profile
from .registry import build_fields

WorkloadKind = Literal["open", "sessions", "agents"]
WINDOWS_S = (1.0, 10.0, 60.0)
SEEDS = range(5)


def fit_profile(
    trace: Trace,
    *,
    name: str,
    kind: WorkloadKind | None = None,
    parts: Sequence[str] = (),
    window_s: float = 300.0,
    source: str | None = None,
    license: str | None = None,  # noqa: A002  # the field's name
) -> dict[str, Any]:
    """A profile file's content for `trace`.

    `kind`: None takes `agents` where rows have sessions and delays, else `sessions` where block ids repeat, else
    `open`. `parts`: rules that tell applications apart (`open` only, see `fit_open`). `window_s`: see `fit_arrivals`.
    `source`, `license`: default to the trace's own. A trace on a coarse clock is spread over its ticks first.
    Raises: ConfigError for an unknown kind, a wrong rule, or a trace that the kind does not fit.
    """
    chosen = kind or detected_kind(trace)
    if chosen not in get_args(WorkloadKind):
        raise ConfigError(f"kind: unknown {chosen!r}{nearest(chosen, get_args(WorkloadKind))}")
    if parts and chosen != "open":
        raise ConfigError(f"part: got rules for a workload of kind {chosen}, expected kind open")
    if len(trace) < 2:
        raise ConfigError(f"{trace.source}: got {len(trace)} rows, expected a trace")
    if trace.arrival_s[-1] <= trace.arrival_s[0]:
        raise ConfigError(
            f"{trace.source}: got one time of arrival for all rows, expected a trace with times"
        )
    even = spread_quantum(trace) if trace.meta.get("timestamp_quantum_ms") else trace
    workload = _fitted(even, chosen, parts, window_s)
    spec = {
        "version": PROFILE_VERSION,
        "name": name,
        "duration_s": float(np.ceil(trace.arrival_s[-1])) or 1.0,
        "source": f"fitted to {source or trace.meta.get('source') or trace.source} ({len(trace)} requests)",
        "license": license or str(trace.meta.get("license", "")),
        "workload": workload,
    }
    build_fields(Profile, spec, name)
    return spec


def _fitted(trace: Trace, kind: str, parts: Sequence[str], window_s: float) -> dict[str, Any]:
    if kind == "agents":
        return fit_agents(trace)
    if kind == "sessions":
        return fit_sessions(trace, window_s=window_s)
    return fit_open(trace, parts=parts, window_s=window_s)


def detected_kind(trace: Trace) -> WorkloadKind:
    """The kind of workload that uses all that the trace has."""
    if trace.columns.get("session_id") is not None and trace.columns.get("delay_s") is not None:
        return "agents"
    if trace.hash_ids is not None and len(np.unique(trace.hash_ids.values)) < len(trace.hash_ids.values):
        return "sessions"
    return "open"


def distances(trace: Trace, profile: Profile, seeds: Sequence[int] = SEEDS) -> dict[str, float]:
    """Medians over `seeds` of the distances of generated traces of the same span from `trace`.

    Kolmogorov–Smirnov distances of inputs, outputs, gaps and of (input, output); index of dispersion at 1, 10 and 60 s
    of both (`real_...`), where the trace holds at least two such windows.
    """
    rows = [
        _distances(trace, synth(profile, seed=seed, duration_s=float(trace.arrival_s[-1]) + 1e-6))
        for seed in seeds
    ]
    medians = {key: float(np.median([row[key] for row in rows])) for key in rows[0]}
    span_s = float(trace.arrival_s[-1])
    real = {f"real_dispersion_{w:g}s": index_of_dispersion(trace.arrival_s, w, span_s) for w in WINDOWS_S}
    return medians | real


def _distances(trace: Trace, made: Trace) -> dict[str, float]:
    if len(made) < 3:
        raise ConfigError(f"{made.source}: got {len(made)} generated rows, expected at least 3 to compare")
    span_s = float(trace.arrival_s[-1])
    return {
        "requests": float(len(made)),
        "ks_input": ks_distance(trace.input_tokens, made.input_tokens),
        "ks_output": ks_distance(trace.output_tokens, made.output_tokens),
        "ks_gap": ks_distance(np.diff(trace.arrival_s), np.diff(made.arrival_s)),
        "ks_input_output": ks_distance_2d(
            (trace.input_tokens, trace.output_tokens), (made.input_tokens, made.output_tokens)
        ),
    } | {f"dispersion_{w:g}s": index_of_dispersion(made.arrival_s, w, span_s) for w in WINDOWS_S}
