"""Small run results written by hand, for tests of metrics, summaries and files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from stepline.sim.engine.result import REQUEST_COLUMNS, Gaps, RunResult, StepTotals
from stepline.sim.engine.step_bins import StepBins

NAN = float("nan")


def gaps(*rows: tuple[float, float, int, int]) -> Gaps:
    """Gaps from (first_s, delta_s, n, weight) rows."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    at_s = np.arange(len(table), dtype=np.float64)
    return Gaps(table[:, 0], table[:, 1], table[:, 2].astype(np.int64), table[:, 3].astype(np.int64), at_s)


def expanded(g: Gaps) -> np.ndarray:
    """Every gap of the population, one by one."""
    parts = [
        np.repeat(f + d * np.arange(n), w)
        for f, d, n, w in zip(g.first_s, g.delta_s, g.n, g.weight, strict=True)
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def requests(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Request rows; what is not given is a finished request of 10 + 3 tokens on replica 0."""
    full = []
    for i, row in enumerate(rows):
        base = {
            "request_index": i, "replica": 0, "arrival_s": float(i), "scheduled_s": i + 0.1, "first_token_s": i + 0.5,
            "finish_s": i + 0.9, "input_tokens": 10, "output_tokens": 3, "cached_tokens": 0, "preemptions": 0,
            "status": 0,
        }  # fmt: skip
        full.append({**base, **row})
    frame = pd.DataFrame(full, columns=list(REQUEST_COLUMNS))
    return frame.astype(REQUEST_COLUMNS)


def totals(seconds: dict[str, dict[str, float]] | None = None, **changes: Any) -> StepTotals:
    """Step totals: 4 s busy (weight bandwidth 2, compute 1, host 1) and 6 s idle unless told otherwise."""
    seconds = seconds or {
        "gemm": {"compute": 1.0, "weight_bandwidth": 2.0},
        "host": {"host": 1.0},
    }
    busy = sum(s for row in seconds.values() for s in row.values())
    series = pd.DataFrame({"t_s": np.arange(8.0), "width_s": 1.0, "running": 1.0, "waiting": 0.0})
    base: dict[str, Any] = {
        "seconds": seconds, "busy_s": busy, "idle_s": 6.0, "flops": 4e14, "hbm_bytes": 1e12, "steps": 40,
        "series": series, "step_histogram": pd.DataFrame(), "step_bins": StepBins().frame(),
    }  # fmt: skip
    return StepTotals(**{**base, **changes})


def run_result(rows: list[dict[str, Any]] | None = None, **changes: Any) -> RunResult:
    """A run of three requests on one H100 unless told otherwise."""
    base = RunResult(
        requests=requests(rows if rows is not None else [{}, {}, {}]),
        gaps=gaps((0.2, 0.0, 2, 3)),
        totals=totals(),
        kv={
            "blocks_total": 100,
            "block_size": 16,
            "peak_used_blocks": 40,
            "hit_tokens": 5,
            "query_tokens": 30,
            "evicted_blocks": 2,
        },
        config={
            "model": "llama-3.1-8b",
            "gpu": "h100-sxm",
            "tensor_parallel_size": 1,
            "replicas": 1,
            "engine": "vllm-v1",
            "slo": None,
            "usd_per_gpu_hour": 3.6,
            "label": "chunked",
            "trace": {"source": "chat.jsonl", "sha256": "ab", "requests": 3},
        },
        n_gpus=1,
        peaks={"flops_per_s": 1e15, "bytes_per_s": 2.5e12},
        simulator={"wall_s": 0.5, "events": 10, "steps": 40},
    )
    return replace(base, **changes)
