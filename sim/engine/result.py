"""What a run leaves behind: columns, never objects per step or per request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

STATUSES = ("finished", "rejected", "timed_out", "unfinished")
"""How a request ended; `requests.status` holds the index. `unfinished` only when a run is cut by a horizon."""

REQUEST_COLUMNS: dict[str, type] = {
    "request_index": np.int64,  # row of the trace
    "replica": np.int32,  # -1: never reached one
    "arrival_s": np.float64,  # when the client sent it (closed loop: simulated)
    "scheduled_s": np.float64,  # first step that computed something for it; NaN: never, or after its client gave up
    "first_token_s": np.float64,  # at the client; NaN: never, or after it gave up
    "finish_s": np.float64,  # last token at the client; abort or rejection time otherwise
    "input_tokens": np.int64,
    "output_tokens": np.int64,  # tokens really emitted, those of a step that a client gave up in included
    "cached_tokens": np.int64,  # prompt tokens served from the prefix cache at first admission
    "preemptions": np.int32,
    "status": np.int8,
}

STEP_COLUMNS: dict[str, type] = {
    "replica": np.int32,
    "start_s": np.float64,
    "duration_s": np.float64,  # of all n_steps together
    "n_steps": np.int64,  # 1, or the steps of a leap (pure decode)
    "first_s": np.float64,  # duration of the first step; step j lasts first_s + j * delta_s
    "delta_s": np.float64,
    "prefill_tokens": np.int64,  # StepWork of the first step from here on
    "prefill_seqs": np.int64,
    "attention_pairs": np.int64,
    "prefill_kv_tokens": np.int64,
    "n_decode": np.int64,
    "context_tokens": np.int64,  # of the first attention window
    "logits_rows": np.int64,
    "generated_tokens": np.int64,  # emitted by the decodes before this step
    "n_running": np.int64,  # sequences computed
    "n_waiting": np.int64,  # in the queue at its end, new arrivals aside
    "kv_used_blocks": np.int64,
    "emitted_tokens": np.int64,  # over all n_steps
}
"""One row a step or leap. Within a leap, context grows by n_decode a step (windows aside)."""


PREEMPTION_COLUMNS: dict[str, type] = {
    "request_index": np.int64,
    "replica": np.int32,
    "preempted_s": np.float64,
    "resumed_s": np.float64,  # when it was admitted again; NaN: never (the client gave up)
}

CHUNK_COLUMNS: dict[str, type] = {
    "request_index": np.int64,
    "replica": np.int32,
    "start_s": np.float64,  # of the step
    "duration_s": np.float64,
    "tokens": np.int64,
}


def empty_table(columns: dict[str, type]) -> pd.DataFrame:
    """A table of no rows with these columns and types."""
    return pd.DataFrame({name: np.empty(0, kind) for name, kind in columns.items()})


@dataclass(frozen=True, slots=True, eq=False)
class Gaps:
    """Inter-token gaps without tokens: row i stands for weight[i] times first + delta*[0 .. n-1] seconds.

    `at_s`: when the step (or leap) began that ends the first of them.
    """

    first_s: NDArray[np.float64]
    delta_s: NDArray[np.float64]
    n: NDArray[np.int64]
    weight: NDArray[np.int64]
    at_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class BlockTimes:
    """Residency of evicted KV blocks: rows (seconds, blocks), float64 (n, 2); definitions: `block_watch`."""

    lifetime: NDArray[np.float64]
    idle: NDArray[np.float64]
    reuse_gap: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class StepTotals:
    """Step log folded while the run goes on; what reports and summaries need when steps are not recorded.

    `seconds` {kernel: {bound: s}} summed over all steps and replicas; `busy_s`, `idle_s` summed over replicas (idle:
    from the first arrival to the last step or request); `flops`, `hbm_bytes` per GPU of a TP group, summed.
    `series`: one row a time bin (equal widths, at most 2048): `t_s` bin start, `width_s`, and time-weighted means
    running, waiting (of requests, see `presence`), kv_used_frac, busy_frac, plus sums per bin prefill_tokens,
    emitted_tokens, steps, seconds by kernel (columns `kernel_<name>_s`).
    `step_histogram`: columns n_decode_bin, prefill_bin, steps, seconds, for batch-size and step-time pictures.
    `step_bins`: steps and seconds by time and batch size, duration, tokens, place on the roofline (see `StepBins`).
    """

    seconds: dict[str, dict[str, float]]
    busy_s: float
    idle_s: float
    flops: float
    hbm_bytes: float
    steps: int
    series: pd.DataFrame
    step_histogram: pd.DataFrame
    step_bins: pd.DataFrame


@dataclass(frozen=True, slots=True, eq=False)
class RunResult:
    """One simulated run.

    `requests`: one row a request in order of completion, columns `REQUEST_COLUMNS`. `gaps`: every inter-token gap.
    `kv` {blocks_total, block_size, peak_used_blocks, hit_tokens, query_tokens, evicted_blocks} summed over replicas.
    `config`: the resolved configuration, JSON-able. `n_gpus`: GPUs in all replicas. `peaks` {flops_per_s, bytes_per_s}
    of one GPU. `steps`: columns `STEP_COLUMNS` when recorded. `simulator` {wall_s, events, steps}.
    `preemptions`: one row each time a sequence gave way, columns `PREEMPTION_COLUMNS`, in order of time.
    `chunks`: every chunk of a prompt, columns `CHUNK_COLUMNS`, when steps are recorded.
    `fleet`: what only a fleet has (transfers, outages, scaling) by part, JSON-able; empty for plain replicas.
    `mechanisms`: what drafts and adapters did, by part (`cluster.mechanisms`); empty where there are none.
    `tiers`: of KV behind the GPUs' pools, nearest first {name: {capacity_blocks, peak_used_blocks, hit_tokens,
    loaded_blocks, stored_blocks, evicted_blocks, refused_blocks, read_busy_s, write_busy_s}}, summed over replicas.
    `block_times`: how long evicted KV blocks had lived, when blocks are recorded.
    """

    requests: pd.DataFrame
    gaps: Gaps
    totals: StepTotals
    kv: Mapping[str, float]
    config: Mapping[str, Any]
    n_gpus: int
    peaks: Mapping[str, float]
    simulator: Mapping[str, float]
    steps: pd.DataFrame | None = None
    warnings: tuple[str, ...] = ()
    fleet: Mapping[str, Any] = field(default_factory=dict)
    mechanisms: Mapping[str, Any] = field(default_factory=dict)
    preemptions: pd.DataFrame = field(default_factory=lambda: empty_table(PREEMPTION_COLUMNS))
    chunks: pd.DataFrame | None = None
    block_times: BlockTimes | None = None
    tiers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    trace_columns: Mapping[str, Any] = field(
        default_factory=dict
    )  # request_id, session_id, tenant ... by request_index
