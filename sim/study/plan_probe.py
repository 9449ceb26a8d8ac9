"""One look at a configuration under one load: are the objectives met, do requests pile up?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from stepline.traces.transform import rate_scale
from stepline.traces.wording import counted

from ..report import metrics
from ..report.slo import Slo
from .run import simulate_resolved

if TYPE_CHECKING:
    from stepline.traces.trace import Trace

    from ..engine.result import RunResult
    from .setup import Setup

PILE_UP_FRAC = 0.05
"""A load is beyond capacity where, over the second half of the arrivals, more than this share of them stays behind."""

GRID = 64


@dataclass(frozen=True, slots=True)
class Probe:
    """`ok`: objectives met and no pile-up; `why_not`: what failed first. Figures of the run by name."""

    ok: bool
    why_not: str | None
    figures: dict[str, float]


def probe(setup: Setup, trace: Trace, slo: Slo | None) -> Probe:
    """Simulate and judge."""
    result = simulate_resolved(trace, setup)
    figures = figures_of(result, slo)
    return Probe(*_verdict(result, figures, slo), figures)


def pile_up_frac(result: RunResult) -> float:
    """Share of the arrivals of the second half by which the queue grows meanwhile (least squares).

    The queue: requests that have arrived and were not yet scheduled. It is how far service stays behind arrivals, whatever
    clients would have put up with; about 0 for a load that is carried, since a growing batch is no queue.
    """
    arrival = np.sort(result.requests["arrival_s"].to_numpy())
    scheduled = np.sort(result.requests["scheduled_s"].to_numpy())  # NaN, never, comes last
    begin, end = arrival[len(arrival) // 2], arrival[-1]
    if not end > begin:
        return 0.0
    at = np.linspace(begin, end, GRID)
    queue = np.searchsorted(arrival, at, "right") - np.searchsorted(scheduled, at, "right")
    slope = float(np.polyfit(at - begin, queue.astype(np.float64), 1)[0])
    return slope * float(end - begin) / (len(arrival) - len(arrival) // 2)


def _verdict(result: RunResult, figures: dict[str, float], slo: Slo | None) -> tuple[bool, str | None]:
    lost = int((result.requests["status"] != metrics.FINISHED).sum())
    if lost:
        return False, f"{counted(lost, 'request')} rejected or given up"
    if figures["pile_up_frac"] > PILE_UP_FRAC:
        return False, "the queue grows"
    if slo is None:
        return True, None
    summary = {f"{m}_s": _stats(figures, m) for m in {limit.metric for limit in slo.limits}}
    submitted = len(result.requests)
    verdict = slo.judge(summary, round(figures["good_frac"] * submitted), submitted)
    missed = [term["limit"] for term in verdict["limits"] if not term["met"]]
    return verdict["met"], None if verdict["met"] else (missed[0] if missed else "attainment")


def _stats(figures: dict[str, float], metric: str) -> dict[str, float]:
    prefix = f"{metric}_"
    return {k.removeprefix(prefix): v for k, v in figures.items() if k.startswith(prefix)}


def figures_of(result: RunResult, slo: Slo | None) -> dict[str, float]:
    """Latency statistics the SLO names and the usual ones, rates, the busy share of GPU time."""
    done = metrics.finished(result)
    latencies = metrics.latencies(done)
    wanted: dict[str, Any] = {name: latencies[name] for name in ("ttft", "tpot", "e2e", "queue")}
    figures: dict[str, float] = {}
    for name, values in wanted.items():
        figures |= {f"{name}_{stat}": v for stat, v in metrics.distribution(values).items() if v is not None}
    if slo is not None and any(limit.metric == "itl" for limit in slo.limits):
        gaps = metrics.gap_distribution(result.gaps)
        figures |= {f"itl_{stat}": v for stat, v in gaps.items() if v is not None}
    submitted = len(result.requests)
    arrival = result.requests["arrival_s"]
    window_s = float(arrival.max() - arrival.min()) or 1.0
    good = int(slo.good(latencies).sum()) if slo else len(done)
    busy, idle = result.totals.busy_s, result.totals.idle_s
    return figures | {
        "good_frac": good / submitted,
        "rate_per_s": submitted / window_s,
        "busy_frac": busy / (busy + idle) if busy + idle else 0.0,
        "pile_up_frac": pile_up_frac(result),
        "preemptions": float(result.requests["preemptions"].sum()),
    }


def at_rate(trace: Trace, rate_per_s: float, requests: int, seed: int) -> Trace:
    """A load of this mean rate that looks like the trace.

    Sessions and shared prefixes live in real time, so a trace that has them is thinned or cloned by whole sessions and
    cut after `requests` rows. Of others a random half (at most `requests` rows) is taken and its clock squeezed: the
    shape of the load stays, and the spread between seeds is that of samples as large as the trace.
    """
    native = mean_rate(trace)
    if trace.hash_ids is not None or "session_id" in trace.columns:
        scaled = rate_scale(trace, rate_per_s / native, "sessions", seed)
        scaled = scaled.take(np.arange(min(requests, len(scaled)))) if len(scaled) > requests else scaled
    else:
        share = min(0.5, requests / len(trace))
        scaled = rate_scale(trace, share, "sessions", seed)
    return squeezed(scaled, rate_per_s)


def squeezed(trace: Trace, rate_per_s: float) -> Trace:
    """The trace with its clock squeezed or stretched to a mean rate; what clients wait between turns goes with it."""
    return rate_scale(trace, rate_per_s / mean_rate(trace), "compress")


def mean_rate(trace: Trace) -> float:
    """Requests per second between the first arrival and the last."""
    span = float(trace.arrival_s[-1] - trace.arrival_s[0])
    return len(trace) / span if span > 0 else float("inf")
