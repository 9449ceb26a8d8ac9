"""`summary.json`: the figures of a run under fixed names."""

from __future__ import annotations

from typing import Any

import numpy as np
from stepline.sim.cost.work import BOUNDS
from stepline.sim.engine.result import STATUSES, RunResult

from . import metrics
from .observed import before_after
from .slo import Slo, parse_slo
from .verdict import verdict

SCHEMA_VERSION = 1
"""Raised whenever a key of the summary is renamed, removed or changes meaning; new keys do not raise it."""

_TIME_KEYS = {
    "compute": "compute_bound",
    "weight_bandwidth": "weight_bandwidth_bound",
    "kv_bandwidth": "kv_bandwidth_bound",
    "comm": "comm",
    "latency": "latency",
    "host": "host_overhead",
    "bubble": "pipeline_bubble",
}


def summary(result: RunResult) -> dict[str, Any]:
    """The content of `summary.json`: seconds, fractions of 1, tokens; None where a figure does not apply.

    Keys: schema_version, percentile_method, duration_s, n_gpus, requests, ttft_s, tpot_s, itl_s, e2e_s, queue_s,
    throughput, kv, time_frac, mfu_frac, mbu_frac, kernel_s, cost, slo (with objectives), observed (where the trace has
    measured values), verdict, simulator, warnings.
    Latencies are of finished requests (definitions: `stepline.sim.report.metrics`); rates are over `duration_s`, first
    arrival to last event; `time_frac` divides the GPU time of that span (busy + idle, all replicas) and sums to 1;
    `kernel_s` {kernel: {bound: s}} is the busy part of it; `mfu_frac` and `mbu_frac` are FLOPs and HBM bytes of the
    work over the datasheet peak while steps run.
    """
    done = metrics.finished(result)
    seconds = metrics.latencies(done)
    requests = request_counts(result)
    duration_s = span_s(result)
    slo = slo_of(result)
    good = int(slo.good(seconds).sum()) if slo else None
    figures: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "percentile_method": metrics.PERCENTILE_METHOD,
        "duration_s": duration_s,
        "n_gpus": result.n_gpus,
        "requests": requests,
        "ttft_s": metrics.distribution(seconds["ttft"]),
        "tpot_s": metrics.distribution(seconds["tpot"]),
        "itl_s": metrics.gap_distribution(result.gaps),
        "e2e_s": metrics.distribution(seconds["e2e"]),
        "queue_s": metrics.distribution(seconds["queue"]),
        "throughput": _throughput(result, duration_s, good),
        "kv": _kv(result),
        "time_frac": time_frac(result),
        "kernel_s": {kernel: dict(bounds) for kernel, bounds in result.totals.seconds.items()},
        "mfu_frac": _share(result.totals.flops, result.totals.busy_s * result.peaks["flops_per_s"]),
        "mbu_frac": _share(result.totals.hbm_bytes, result.totals.busy_s * result.peaks["bytes_per_s"]),
        "cost": _cost(result, duration_s),
    }
    if slo and good is not None:
        figures["slo"] = slo.judge(figures, good, requests["submitted"])
    if (observed := before_after(result)) is not None:
        figures["observed"] = observed
    figures["verdict"] = verdict(result, figures).as_dict()
    if result.fleet:
        figures["fleet"] = dict(result.fleet)
    figures |= result.mechanisms
    figures["simulator"] = _simulator(result)
    figures["warnings"] = list(result.warnings)
    return figures


def slo_of(result: RunResult) -> Slo | None:
    """The objectives in a run's configuration, or None."""
    text = result.config.get("slo")
    return parse_slo(text) if text else None


def request_counts(result: RunResult) -> dict[str, int]:
    """Requests by how they ended. `completed` + rejected + timed_out + unfinished = submitted."""
    status = result.requests["status"].to_numpy()
    by_status = {name: int((status == code).sum()) for code, name in enumerate(STATUSES)}
    return {
        "submitted": len(status),
        "completed": by_status["finished"],
        "rejected": by_status["rejected"],
        "timed_out": by_status["timed_out"],
        "unfinished": by_status["unfinished"],
        "preemptions": int(result.requests["preemptions"].sum()),
    }


def span_s(result: RunResult) -> float:
    """Seconds from the first arrival to the last completion, abort or rejection (0 for an empty run)."""
    if not len(result.requests):
        return 0.0
    return float(np.nanmax(result.requests["finish_s"]) - result.requests["arrival_s"].min())


def time_frac(result: RunResult) -> dict[str, float]:
    """Shares of GPU time, busy and idle, by what bounds it; they sum to 1 (all 0 for an empty run).

    `pipeline_bubble` is there for pipelines only.
    """
    totals = result.totals
    by_bound = dict.fromkeys(BOUNDS, 0.0)
    for row in totals.seconds.values():
        for bound, seconds in row.items():
            by_bound[bound] = by_bound.get(bound, 0.0) + seconds
    whole = sum(by_bound.values()) + totals.idle_s
    shares = {_TIME_KEYS[bound]: _share(seconds, whole) or 0.0 for bound, seconds in by_bound.items()}
    return {**shares, "idle": _share(totals.idle_s, whole) or 0.0}


def _throughput(result: RunResult, duration_s: float, good: int | None) -> dict[str, float | None]:
    done = metrics.finished(result)
    output = int(result.requests["output_tokens"].sum())
    prompts = int(done["input_tokens"].sum())
    return {
        "requests_per_s": _share(len(done), duration_s),
        "output_tokens_per_s": _share(output, duration_s),
        "total_tokens_per_s": _share(prompts + output, duration_s),
        "goodput_requests_per_s": None if good is None else _share(good, duration_s),
    }


def _kv(result: RunResult) -> dict[str, Any]:
    kv = result.kv
    figures: dict[str, Any] = {
        "blocks_total": int(kv["blocks_total"]),
        "peak_used_frac": _share(kv["peak_used_blocks"], kv["blocks_total"]),
        "prefix_hit_token_frac": _share(kv["hit_tokens"], kv["query_tokens"]) or 0.0,
        "evicted_blocks": int(kv["evicted_blocks"]),
    }
    if result.tiers:
        figures |= _tiers(result)
    return figures


def _tiers(result: RunResult) -> dict[str, Any]:
    """Hits by where they came from (their shares add up to `prefix_hit_token_frac`), and what each tier did."""
    kv = result.kv
    below = sum([tier["hit_tokens"] for tier in result.tiers.values()])
    return {
        "gpu_hit_token_frac": _share(kv["hit_tokens"] - below, kv["query_tokens"]) or 0.0,
        "loads": int(kv["loads"]),
        "mean_load_s": _share(kv["load_s"], kv["loads"]),
        "tiers": {
            name: {
                "hit_token_frac": _share(tier["hit_tokens"], kv["query_tokens"]) or 0.0,
                "blocks_total": int(tier["capacity_blocks"]),
                "peak_used_frac": _share(tier["peak_used_blocks"], tier["capacity_blocks"]) or 0.0,
                **{
                    k: int(tier[k])
                    for k in ("loaded_blocks", "stored_blocks", "evicted_blocks", "refused_blocks")
                },
                "read_busy_s": tier["read_busy_s"],
                "write_busy_s": tier["write_busy_s"],
            }
            for name, tier in result.tiers.items()
        },
    }


def _cost(result: RunResult, duration_s: float) -> dict[str, float | None]:
    output = int(result.requests["output_tokens"].sum())
    hardware = result.fleet.get("hardware")
    if hardware is not None:  # replicas differ, or come and go
        gpu_hours, usd = hardware["gpu_hours"], hardware["usd"]
    else:
        gpu_hours = result.n_gpus * duration_s / 3600
        price = result.config.get("usd_per_gpu_hour")
        usd = None if price is None else gpu_hours * price
    return {
        "gpu_hours": gpu_hours,
        "usd_per_million_output_tokens": None if usd is None else _share(usd * 1e6, output),
    }


def _simulator(result: RunResult) -> dict[str, float | int | None]:
    wall_s = result.simulator["wall_s"]
    return {
        "wall_s": wall_s,
        "steps": int(result.simulator["steps"]),
        "requests_per_wall_s": _share(len(result.requests), wall_s),
    }


def _share(part: float, whole: float) -> float | None:
    return float(part) / float(whole) if whole > 0 else None
