"""Latency figures of a run: per-request metrics, and exact percentiles over all inter-token gaps without tokens.

Definitions (those of `vllm bench serve`): TTFT = first token - arrival; E2E = last token - arrival; TPOT = (E2E - TTFT)
/ (output_tokens - 1), one value a request with at least two tokens; ITL = every gap between two tokens of a request,
pooled; queue = first scheduled - arrival. Latencies are of finished requests; the others are counted, not timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from stepline.sim.engine.result import STATUSES, Gaps, RunResult

Floats = NDArray[np.float64]

PERCENTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}
"""Percentiles of every distribution, by their key in `summary.json`."""

PERCENTILE_METHOD = (
    "linear interpolation of order statistics (Hyndman-Fan 7, the default of numpy.percentile)"
)

FINISHED = STATUSES.index("finished")

_EXPAND_AT_MOST = 1 << 16  # gaps sorted outright; more are narrowed first, so memory stays small


def finished(result: RunResult) -> pd.DataFrame:
    """The rows of `result.requests` that finished, in order of completion."""
    return result.requests[result.requests["status"] == FINISHED]


def latencies(requests: pd.DataFrame) -> dict[str, Floats]:
    """Seconds by metric for finished requests: ttft, tpot, e2e, queue.

    `tpot` is NaN for a request of one token (it has no gap), so that rows stay aligned with `requests`.
    """
    arrival = requests["arrival_s"].to_numpy(np.float64)
    first = requests["first_token_s"].to_numpy(np.float64)
    finish = requests["finish_s"].to_numpy(np.float64)
    gaps = requests["output_tokens"].to_numpy(np.float64) - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(gaps > 0, (finish - first) / gaps, np.nan)
    scheduled = requests["scheduled_s"].to_numpy(np.float64)
    return {"ttft": first - arrival, "tpot": tpot, "e2e": finish - arrival, "queue": scheduled - arrival}


def distribution(values_s: Floats) -> dict[str, float | None]:
    """Mean, percentiles and maximum of a sample, NaN left out; all None when nothing is left."""
    kept = values_s[~np.isnan(values_s)]
    if not len(kept):
        return dict.fromkeys(["mean", *PERCENTILES, "max"])
    points = np.quantile(kept, list(PERCENTILES.values()))
    named = dict(zip(PERCENTILES, points.tolist(), strict=True))
    return {"mean": float(kept.mean()), **named, "max": float(kept.max())}


def gap_distribution(gaps: Gaps) -> dict[str, float | None]:
    """The same figures over every inter-token gap, exact as if each gap were stored."""
    rows = GapRows.of(gaps)
    if rows.total == 0:
        return dict.fromkeys(["mean", *PERCENTILES, "max"])
    points = gap_quantiles(gaps, list(PERCENTILES.values()))
    named = dict(zip(PERCENTILES, points.tolist(), strict=True))
    sums = rows.n * (rows.low + rows.delta * (rows.n - 1) / 2)
    return {"mean": float((rows.weight * sums).sum() / rows.total), **named, "max": float(rows.high.max())}


def gap_quantiles(gaps: Gaps, fractions: Sequence[float]) -> Floats:
    """Quantiles of the pooled gaps at `fractions` (0..1), float64 (len(fractions),), NaN when there are no gaps.

    The population is weight[i] copies of first[i] + delta[i]·j, j < n[i]. Order statistics are found by bisection on
    the value, keeping only the rows that still straddle the interval, then by sorting what is left: O(rows) time
    and memory however many tokens the rows stand for. Interpolation as `PERCENTILE_METHOD`.
    """
    rows = GapRows.of(gaps)
    if rows.total == 0:
        return np.full(len(fractions), np.nan)
    position = (rows.total - 1) * np.asarray(fractions, dtype=np.float64)
    below = np.floor(position).astype(np.int64)
    ranks = np.unique(np.concatenate([below, np.minimum(below + 1, rows.total - 1)]))
    value = dict(zip(ranks.tolist(), _order_statistics(rows, ranks).tolist(), strict=True))
    low = np.array([value[r] for r in below.tolist()])
    high = np.array([value[min(r + 1, rows.total - 1)] for r in below.tolist()])
    quantiles: Floats = low + (high - low) * (position - below)
    return quantiles


def gap_std(gaps: Gaps) -> float:
    """Population standard deviation of the pooled gaps in seconds (0 when there are none).

    Each row contributes n·(mean - m)² plus the spread delta²·n(n² - 1)/12 of its own progression.
    """
    rows = GapRows.of(gaps)
    if rows.total == 0:
        return 0.0
    means = rows.low + rows.delta * (rows.n - 1) / 2
    mass = (rows.weight * rows.n).astype(np.float64)
    mean = float((mass * means).sum()) / rows.total
    own = rows.weight * rows.delta**2 * (rows.n * (rows.n.astype(np.float64) ** 2 - 1) / 12)
    return float(np.sqrt(((mass * (means - mean) ** 2).sum() + own.sum()) / rows.total))


class GapRows(NamedTuple):
    """Rising progressions low, low + delta, ... with their multiplicity; constant rows are one element."""

    low: Floats
    delta: Floats
    n: NDArray[np.int64]
    weight: NDArray[np.int64]

    @classmethod
    def of(cls, gaps: Gaps) -> GapRows:
        """The rows of `gaps` that hold any."""
        kept = (gaps.n > 0) & (gaps.weight > 0)
        first, delta, n, weight = gaps.first_s[kept], gaps.delta_s[kept], gaps.n[kept], gaps.weight[kept]
        falling = delta < 0
        low = np.where(falling, first + delta * (n - 1), first)
        constant = delta == 0
        return cls(low, np.abs(delta), np.where(constant, 1, n), np.where(constant, weight * n, weight))

    @property
    def total(self) -> int:
        """Number of gaps."""
        return int((self.n * self.weight).sum())

    @property
    def high(self) -> Floats:
        """The largest element of each row."""
        return self.low + self.delta * (self.n - 1)

    def up_to(self, x: float) -> NDArray[np.int64]:
        """How many elements of each row are <= x, as evaluated in floating point."""
        with np.errstate(divide="ignore", invalid="ignore"):
            guess = np.floor(np.where(self.delta > 0, (x - self.low) / self.delta, np.inf)) + 1
        below = np.clip(np.where(np.isnan(guess), 0, guess), 0, self.n).astype(np.int64)
        below -= (below > 0) & (self.low + self.delta * (below - 1) > x)
        below += (below < self.n) & (self.low + self.delta * below <= x)
        return np.where(self.low <= x, below, 0)

    def part(self, start: NDArray[np.int64], stop: NDArray[np.int64]) -> GapRows:
        """Elements start..stop-1 of each row; rows left without any are dropped.

        Offsets are folded into `low`, in the same floating-point form `low + delta * start` that a full row has.
        """
        kept = stop > start
        low = self.low[kept] + self.delta[kept] * start[kept]
        return GapRows(low, self.delta[kept], (stop - start)[kept], self.weight[kept])


def _order_statistics(rows: GapRows, ranks: NDArray[np.int64]) -> Floats:
    """Values at sorted 0-based `ranks` of the pooled elements."""
    if not len(ranks):
        return np.empty(0)
    low, high = float(rows.low.min()), float(rows.high.max())
    middle = low + (high - low) / 2
    if rows.n.sum() <= _EXPAND_AT_MOST or not low <= middle < high:
        return _sorted_pick(rows, ranks)
    cut = rows.up_to(middle)
    n_below = int((cut * rows.weight).sum())
    left, right = ranks[ranks < n_below], ranks[ranks >= n_below] - n_below
    picked = []
    if len(left):
        picked.append(_order_statistics(rows.part(np.zeros_like(cut), cut), left))
    if len(right):
        picked.append(_order_statistics(rows.part(cut, rows.n), right))
    return np.concatenate(picked)


def _sorted_pick(rows: GapRows, ranks: NDArray[np.int64]) -> Floats:
    row = np.repeat(np.arange(len(rows.n)), rows.n)
    step = np.arange(len(row)) - np.repeat(np.cumsum(rows.n) - rows.n, rows.n)
    values = rows.low[row] + rows.delta[row] * step
    order = np.argsort(values, kind="stable")
    seen = np.cumsum(rows.weight[row][order])
    return values[order][np.searchsorted(seen, ranks, side="right")]
