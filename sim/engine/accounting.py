"""Folds step rows, a block of columns at a time, into what summaries and reports need."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..cost.work import KERNELS
from .presence import presence
from .result import StepTotals
from .series import SeriesBins
from .step_bins import StepBins

if TYPE_CHECKING:
    from .step_log import Columns

Floats = NDArray[np.float64]

SUMMED = ("prefill_tokens", "emitted_tokens", "steps", *(f"kernel_{name}_s" for name in KERNELS))
HISTOGRAM_BINS = 64  # powers of two, more than there will be
AVERAGED = ("kv_used_frac", "busy_frac")
ADDITIVE_WORK = (
    "prefill_tokens", "prefill_seqs", "attention_pairs", "prefill_kv_tokens", "n_decode", "logits_rows",
)  # fmt: skip

STALL = 1e-6
"""Relative difference of a step's duration and its priced work beyond which it is a stall and not rounding."""


class StepAccounting:
    """A sink of the step log for the replicas that share one cost model.

    A leap is priced at its mean context: every form is affine in context within a leap, so sums are exact.
    `kv_blocks`: usable blocks by replica.
    """

    def __init__(self, cost_model: Any, n_windows: int, kv_blocks: dict[int, int]) -> None:
        self.cost = cost_model
        self.n_windows = n_windows
        self.kv_blocks = kv_blocks
        self.seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.busy_s = self.flops = self.hbm_bytes = 0.0
        self.steps = 0
        self.bins = SeriesBins(SUMMED + AVERAGED)
        self.step_bins = StepBins()
        self.histogram: dict[tuple[int, int], list[float]] = {}

    def __call__(self, columns: Columns) -> None:
        """Take in a block of rows."""
        n_steps = columns["n_steps"]
        seconds, flops, hbm_bytes = self.cost.explain_many(self._mean_work(columns))
        by_kernel: dict[str, Floats] = {}
        for kernel, bounds in seconds.items():
            total = np.zeros(len(n_steps))
            for bound, per_step in bounds.items():
                spent = per_step * n_steps
                self.seconds[kernel][bound] += float(spent.sum())
                total += spent
            by_kernel[kernel] = total
        self._book_stalls(columns["duration_s"], by_kernel)
        self.busy_s += float(columns["duration_s"].sum())
        self.flops += float((flops * n_steps).sum())
        self.hbm_bytes += float((hbm_bytes * n_steps).sum())
        self.steps += int(n_steps.sum())
        self._series(columns, n_steps, by_kernel)
        self.step_bins.add(columns, flops, hbm_bytes)
        self._bin_steps(columns, n_steps)

    def _book_stalls(self, duration_s: Floats, by_kernel: dict[str, Floats]) -> None:
        """What a step lasted beyond its work (KV moving over the host link) is communication."""
        extra = duration_s - sum(by_kernel.values())
        extra = np.where(extra > STALL * duration_s, extra, 0.0)
        if extra.any():
            self.seconds["comm"]["comm"] += float(extra.sum())
            by_kernel["comm"] = by_kernel.get("comm", 0.0) + extra

    def _mean_work(self, columns: Columns) -> dict[str, Any]:
        half = (columns["n_steps"] - 1) / 2
        work: dict[str, Any] = {name: columns[name] for name in ADDITIVE_WORK}
        work["generated_tokens"] = columns["generated_tokens"] + columns["generated_growth"] * half
        for i in range(self.n_windows):
            name = "context_tokens" if i == 0 else f"context_tokens_{i}"
            work[name] = columns[name] + columns[f"context_growth_{i}"] * half
        return work

    def _series(self, columns: Columns, n_steps: Floats, by_kernel: dict[str, Floats]) -> None:
        replicas = columns["replica"]
        duration = columns["duration_s"]
        present = np.flatnonzero(np.bincount(replicas.astype(np.int64))).tolist()
        for replica in present:
            rows = replicas == replica if len(present) > 1 else slice(None)
            amounts = {f"kernel_{k}_s": v[rows] for k, v in by_kernel.items()}
            lasted = duration[rows]
            amounts["prefill_tokens"] = columns["prefill_tokens"][rows]
            amounts["emitted_tokens"] = columns["emitted_tokens"][rows]
            amounts["steps"] = n_steps[rows]
            amounts["kv_used_frac"] = columns["kv_used_blocks"][rows] / self.kv_blocks[replica] * lasted
            amounts["busy_frac"] = lasted
            self.bins.add(columns["start_s"][rows], lasted, amounts)

    def _bin_steps(self, columns: Columns, n_steps: Floats) -> None:
        """Add to the histogram over powers of two of decodes and of prompt tokens."""
        decode_bin = np.ceil(np.log2(np.maximum(columns["n_decode"], 0.5))).astype(np.int64)
        prefill_bin = np.ceil(np.log2(np.maximum(columns["prefill_tokens"], 0.5))).astype(np.int64)
        where = (decode_bin + 1) * HISTOGRAM_BINS + prefill_bin + 1  # bins begin at -1
        steps = np.bincount(where, n_steps)
        seconds = np.bincount(where, columns["duration_s"])
        for code in np.flatnonzero(steps).tolist():
            decode, prefill = divmod(code, HISTOGRAM_BINS)
            cell = self.histogram.setdefault((decode - 1, prefill - 1), [0.0, 0.0])
            cell[0] += steps[code]
            cell[1] += seconds[code]


def combine(
    parts: list[StepAccounting],
    n_replicas: int,
    end_s: float,
    requests: pd.DataFrame,
    preemptions: pd.DataFrame,
) -> StepTotals:
    """One `StepTotals` of the accountings of all cost models; `end_s`: of the last step or request."""
    first_s = float(requests["arrival_s"].min()) if len(requests) else end_s
    seconds: dict[str, dict[str, float]] = {}
    for part in parts:
        for kernel, bounds in part.seconds.items():
            mine = seconds.setdefault(kernel, {})
            for bound, spent in bounds.items():
                mine[bound] = mine.get(bound, 0.0) + spent
    busy = sum(part.busy_s for part in parts)
    series, step_bins = parts[0].bins, parts[0].step_bins
    for part in parts[1:]:
        series, step_bins = series.merged(part.bins), step_bins.merged(part.step_bins)
    cells: dict[tuple[int, int], list[float]] = {}
    for part in parts:
        for key, (n, s) in part.histogram.items():
            cell = cells.setdefault(key, [0.0, 0.0])
            cell[0] += n
            cell[1] += s
    rows = [(_bin_top(d), _bin_top(p), n, s) for (d, p), (n, s) in sorted(cells.items())]
    return StepTotals(
        seconds=seconds,
        busy_s=busy,
        idle_s=max(0.0, (end_s - first_s) * n_replicas - busy),
        flops=sum(part.flops for part in parts),
        hbm_bytes=sum(part.hbm_bytes for part in parts),
        steps=sum(part.steps for part in parts),
        series=pd.DataFrame(_with_presence(series.columns(AVERAGED, end_s), requests, preemptions)),
        step_histogram=pd.DataFrame(rows, columns=["n_decode_bin", "prefill_bin", "steps", "seconds"]),
        step_bins=step_bins.frame(),
    )


def _with_presence(
    series: dict[str, Floats], requests: pd.DataFrame, preemptions: pd.DataFrame
) -> dict[str, Floats]:
    """The series with the mean numbers of running and waiting requests."""
    begin, width = series["t_s"], series["width_s"]
    waiting, running = presence(requests, preemptions, np.append(begin, begin[-1] + width[-1]))
    return {**series, "running": running / width, "waiting": waiting / width}


def _bin_top(exponent: int) -> int:
    """Upper end of a power-of-two bin (0: none)."""
    return 0 if exponent < 0 else 2**exponent
