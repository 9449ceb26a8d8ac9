"""What bounds a run, and what to try first.

The regimes are those of the roofline and of the diagnosis table in inference texts: compute, weight bandwidth, KV
bandwidth, communication, latency (launches and serial chains), host (scheduler), plus two that only a queueing model
sees: an idle GPU and a KV cache that is full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from stepline.sim.engine.result import RunResult

_NAMES = {
    "compute_bound": "compute",
    "weight_bandwidth_bound": "weight bandwidth",
    "kv_bandwidth_bound": "KV bandwidth",
    "comm": "communication",
    "latency": "kernel latency",
    "host_overhead": "host and scheduler",
}

_TRY = {
    "compute_bound": (
        "fp8 weights (--dtype fp8) where the GPU has fp8 tensor cores",
        "more GPUs: --tp for shorter prompts' TTFT, --replicas for throughput",
    ),
    "weight_bandwidth_bound": (
        "larger batches: more load per replica costs little until compute or KV reads take over",
        "fewer weight bytes: --dtype fp8 or int4, or spread them with --tp",
    ),
    "kv_bandwidth_bound": (
        "fewer KV bytes: --kv-cache-dtype fp8",
        "a model with fewer KV heads, or --tp to spread the KV reads",
    ),
    "comm": ("a smaller --tp with more --replicas", "a GPU with faster links"),
    "latency": (
        "larger batches (more load per replica) to share each kernel's fixed time",
        "a smaller --tp: per-GPU kernels are too small to fill the GPU",
    ),
    "host_overhead": (
        "an engine that plans ahead (--engine vllm-v1 overlaps host and GPU)",
        "larger batches: the host's cost is mostly per step",
    ),
}

IDLE_FRAC = 0.5
"""Above this share of idle GPU time the load, not the hardware, is the limit."""

FULL_FRAC = 0.98
"""From this peak share of KV blocks in use the cache counts as full."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`bound` holds most of the GPU time (`frac` of it); `busy_bound` most of the busy time (`busy_frac` of that).

    `overloaded`: work arrives faster than it is served, so latencies grow with the length of the trace.
    `because`: the facts; `try_first`: what to change, most promising first.
    """

    bound: str
    frac: float
    busy_bound: str
    busy_frac: float
    overloaded: bool
    headline: str
    because: tuple[str, ...]
    try_first: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form, tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def verdict(result: RunResult, summary: Mapping[str, Any]) -> Verdict:
    """Judge a run by its summary (`stepline.sim.report.summary`) and its time series."""
    shares: dict[str, float] = summary["time_frac"]
    busy = {key: shares[key] for key in _NAMES}
    top = max(busy, key=lambda key: busy[key])
    busy_total = sum(busy.values())
    busy_frac = busy[top] / busy_total if busy_total else 0.0
    overloaded = is_overloaded(result)
    idle = shares["idle"] > IDLE_FRAC and not overloaded
    full = _kv_is_short(summary)
    return Verdict(
        bound="idle" if idle else _NAMES[top],
        frac=shares["idle"] if idle else busy[top],
        busy_bound=_NAMES[top],
        busy_frac=busy_frac,
        overloaded=overloaded,
        headline=_headline(shares, top, busy_frac, idle=idle, overloaded=overloaded, full=full),
        because=_facts(summary, overloaded=overloaded, full=full),
        try_first=_advice(top, idle=idle, overloaded=overloaded, full=full),
    )


def is_overloaded(result: RunResult) -> bool:
    """True when the waiting queue grew while requests arrived: twice as long in the last quarter of the arrivals as
    in the second, and longer there than what runs.

    A run too short for four bins of its time series is never called overloaded.
    """
    series = result.totals.series
    if not len(series) or not len(result.requests):
        return False
    last = result.requests["arrival_s"].max()
    begin = result.requests["arrival_s"].min()
    times = series["t_s"].to_numpy()
    arriving = (times >= begin) & (times <= last)
    quarters = np.array_split(np.flatnonzero(arriving), 4)
    if any(len(q) == 0 for q in quarters):
        return False
    waiting = series["waiting"].to_numpy()
    running = series["running"].to_numpy()
    early, late = waiting[quarters[1]].mean(), waiting[quarters[3]].mean()
    return bool(late > 2 * early and late > running[quarters[3]].mean() and late >= 1)


def _kv_is_short(summary: Mapping[str, Any]) -> bool:
    peak = summary["kv"]["peak_used_frac"]
    return peak is not None and peak >= FULL_FRAC and summary["requests"]["preemptions"] > 0


def _headline(
    shares: Mapping[str, float], top: str, busy_frac: float, *, idle: bool, overloaded: bool, full: bool
) -> str:
    steps = f"{_NAMES[top]} bounds {busy_frac:.0%} of the busy GPU time"
    if overloaded:
        cause = "the KV cache is full" if full else steps
        return f"Overloaded: requests queue faster than they are served; {cause}."
    if idle:
        return f"The GPU idles {shares['idle']:.0%} of the time: the load is small; {steps}."
    if full:
        return f"The KV cache is full and sequences are preempted; {steps}."
    return f"{steps[0].upper()}{steps[1:]}; the GPU idles {shares['idle']:.0%} of the time."


def _facts(summary: Mapping[str, Any], *, overloaded: bool, full: bool) -> tuple[str, ...]:
    facts = []
    mfu, mbu = summary["mfu_frac"], summary["mbu_frac"]
    if mfu is not None and mbu is not None:
        facts.append(f"while steps run, {mfu:.0%} of peak FLOP/s and {mbu:.0%} of HBM bandwidth are used")
    if overloaded:
        facts.append("the waiting queue was still growing when the last request arrived")
    if full:
        facts.append(
            f"KV blocks peak at {summary['kv']['peak_used_frac']:.0%} with "
            f"{summary['requests']['preemptions']} preemptions"
        )
    queue, e2e = summary["queue_s"]["mean"], summary["e2e_s"]["mean"]
    if queue is not None and e2e and queue > 0.1 * e2e:
        facts.append(f"requests wait {queue:.3g} s of {e2e:.3g} s in the queue")
    lost = summary["requests"]["rejected"] + summary["requests"]["timed_out"]
    if lost:
        facts.append(f"{lost} of {summary['requests']['submitted']} requests were rejected or timed out")
    return tuple(facts)


def _advice(top: str, *, idle: bool, overloaded: bool, full: bool) -> tuple[str, ...]:
    advice: tuple[str, ...] = ()
    if full:
        advice += ("more room for KV: --kv-cache-dtype fp8, a larger --tp, or a GPU with more memory",)
    if idle:
        return (*advice, "fewer or cheaper GPUs, or more load per replica; latency is already near its floor")
    if overloaded:
        advice += ("more --replicas, or less load per replica",)
    return advice + _TRY[top]
