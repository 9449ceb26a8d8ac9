"""A run in the fields of `vllm bench serve --save-result`, so that existing plot scripts read it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stepline.sim.engine.result import RunResult

from . import metrics
from .summary import request_counts, slo_of, span_s

Floats = NDArray[np.float64]


def vllm_bench(result: RunResult) -> dict[str, Any]:
    """Fields of `vllm bench serve --save-result` (milliseconds, requests and tokens per second).

    `date` is absent: it would make equal runs differ. ITL figures are over every gap; `std_itl_ms` is exact.
    `request_rate` is requests over the span of their arrivals ("inf" when all arrive at once), as vLLM's own flag
    states the intended rate; `max_concurrency` is the client's limit: none. `max_concurrent_requests` is the most
    requests in flight at once.
    """
    done = metrics.finished(result)
    seconds = metrics.latencies(done)
    counts = request_counts(result)
    duration_s = span_s(result)
    output = int(done["output_tokens"].sum())
    prompts = int(done["input_tokens"].sum())
    slo = slo_of(result)
    good = int(slo.good(seconds).sum()) if slo else None
    fields: dict[str, Any] = {
        "endpoint_type": "stepline",
        "backend": "stepline",
        "label": result.config.get("label"),
        "model_id": result.config.get("model"),
        "tokenizer_id": result.config.get("model"),
        "num_prompts": counts["submitted"],
        "request_rate": _request_rate(result),
        "max_concurrency": None,
        "duration": duration_s,
        "completed": counts["completed"],
        "failed": counts["submitted"] - counts["completed"],
        "total_input_tokens": prompts,
        "total_output_tokens": output,
        "request_throughput": _per(len(done), duration_s),
        "request_goodput": None if good is None else _per(good, duration_s),
        "output_throughput": _per(output, duration_s),
        "total_token_throughput": _per(prompts + output, duration_s),
        "max_concurrent_requests": _max_in_flight(result),
    }
    for name, values in (("ttft", seconds["ttft"]), ("tpot", seconds["tpot"]), ("e2el", seconds["e2e"])):
        fields |= _sample_ms(name, values)
    return fields | _gaps_ms(result)


def _request_rate(result: RunResult) -> float | str:
    arrivals = result.requests["arrival_s"]
    span = float(arrivals.max() - arrivals.min()) if len(arrivals) else 0.0
    return (len(arrivals) - 1) / span if span > 0 else "inf"


def _max_in_flight(result: RunResult) -> int:
    """Largest number of requests between arrival and end; one that ends when another arrives does not overlap it."""
    arrival = result.requests["arrival_s"].to_numpy()
    finish = result.requests["finish_s"].to_numpy()
    finish = finish[~np.isnan(finish)]
    times = np.concatenate([finish, arrival])
    change = np.concatenate([np.full(len(finish), -1), np.ones(len(arrival), dtype=np.int64)])
    order = np.lexsort((change, times))
    return int(np.cumsum(change[order]).max(initial=0))


def _sample_ms(name: str, values_s: Floats) -> dict[str, float]:
    kept = values_s[~np.isnan(values_s)] * 1000
    if not len(kept):  # vLLM writes 0 for an empty sample
        return {f"{stat}_{name}_ms": 0.0 for stat in ("mean", "median", "std", "p99")}
    return {
        f"mean_{name}_ms": float(kept.mean()),
        f"median_{name}_ms": float(np.median(kept)),
        f"std_{name}_ms": float(kept.std()),
        f"p99_{name}_ms": float(np.percentile(kept, 99)),
    }


def _gaps_ms(result: RunResult) -> dict[str, float]:
    gaps = result.gaps
    mean = metrics.gap_distribution(gaps)["mean"]
    if mean is None:
        return {f"{stat}_itl_ms": 0.0 for stat in ("mean", "median", "std", "p99")}
    median, p99 = metrics.gap_quantiles(gaps, [0.5, 0.99])
    return {
        "mean_itl_ms": mean * 1000,
        "median_itl_ms": float(median) * 1000,
        "std_itl_ms": metrics.gap_std(gaps) * 1000,
        "p99_itl_ms": float(p99) * 1000,
    }


def _per(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
