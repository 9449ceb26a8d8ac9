"""Paired comparison of runs on the same arrivals: differences against a baseline, with confidence intervals.

Method. All runs serve the same requests, so each request has its own difference (common random numbers). Requests
that arrive together share queues and batches; they are therefore resampled in blocks of neighbouring arrivals, the
same blocks in both runs: a paired block bootstrap (Künsch 1989; Efron & Tibshirani 1993, ch. 8) of `N_BLOCKS`
blocks and `N_RESAMPLES` resamples, percentile intervals at 95 %. ITL gaps belong to no row of the request table;
they are cut, in order of emission, into as many blocks of equal token count. Throughput has one value a run and no
interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from stepline.sim.engine.result import Gaps, RunResult
from stepline.traces.errors import InvariantError
from stepline.traces.random_streams import stream

from . import metrics
from .summary import summary

Floats = NDArray[np.float64]

N_BLOCKS = 50
"""Blocks of neighbouring arrivals. Each must be longer than the memory of a queue; 50 leave the interval stable."""

MIN_PER_BLOCK = 4
"""Fewer requests than this a block: fewer blocks are cut; below 5 blocks no interval is stated."""

MIN_BLOCKS = 5
N_RESAMPLES = 1000
CONFIDENCE = 0.95
METHOD = (
    f"paired block bootstrap over {N_BLOCKS} blocks of neighbouring arrivals, {N_RESAMPLES} resamples, "
    f"{CONFIDENCE:.0%} percentile interval"
)

STATS = ("mean", "p50", "p99")

_MAX_LEVELS = 4096  # distinct values kept for resampled quantiles; beyond that values are grouped by rank


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of one run beside the baseline's: `value - baseline`, interval `low`..`high` (None: no interval).

    `n` requests (for ITL: gaps) finished in both runs and enter the difference. Values are over those.
    """

    run: str
    metric: str
    stat: str
    unit: str
    baseline: float | None
    value: float | None
    difference: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def is_clear(self) -> bool:
        """True when the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Runs by label in the order given (the first is the baseline), their summaries, and all paired differences."""

    results: Mapping[str, RunResult]
    summaries: Mapping[str, dict[str, Any]]
    differences: tuple[Difference, ...]
    method: str = METHOD

    @property
    def baseline(self) -> str:
        """Label of the run that the others are compared with."""
        return next(iter(self.results))

    def find(self, run: str, metric: str, stat: str) -> Difference:
        """The difference of one run, metric and statistic."""
        return next(d for d in self.differences if (d.run, d.metric, d.stat) == (run, metric, stat))

    def frame(self) -> pd.DataFrame:
        """The content of `comparison.csv`: one row a run, metric and statistic; the baseline's rows have no interval."""
        names = list(Difference.__dataclass_fields__)
        return pd.DataFrame([[getattr(d, n) for n in names] for d in self.differences], columns=names)


def compare_results(results: Mapping[str, RunResult], seed: int = 0) -> Comparison:
    """Compare runs of the same trace with the first of them.

    Raises:
        InvariantError: runs do not hold the same requests.
    """
    labels = list(results)
    base = _Paired(results[labels[0]])
    summaries = {label: summary(result) for label, result in results.items()}
    rows: list[Difference] = []
    for label in labels:
        other = base if label == labels[0] else _Paired(results[label])
        rng = stream(seed, "paired bootstrap")
        rows += _throughput(label, summaries[labels[0]], summaries[label])
        rows += _latencies(label, base, other, rng)
        rows += _gap_rows(label, base.gaps, other.gaps, rng, is_baseline=label == labels[0])
    return Comparison(dict(results), summaries, tuple(rows))


def not_separated(first: RunResult, second: RunResult, seed: int = 0) -> bool:
    """True when the interval of the mean end-to-end difference of two runs holds 0, or cannot be stated."""
    a, b = _Paired(first).seconds["e2e"], _Paired(second).seconds["e2e"]
    both = ~(np.isnan(a) | np.isnan(b))
    if not both.any():
        return True
    low, high = _interval(a[both], b[both], stream(seed, "paired bootstrap"))
    return low is None or high is None or bool(low[0] <= 0 <= high[0])


class _Paired:
    """Latencies of a run by row of the trace; NaN where a request did not finish."""

    def __init__(self, result: RunResult) -> None:
        requests = result.requests.sort_values("request_index", kind="stable")
        self.index = requests["request_index"].to_numpy()
        self.arrival_s = requests["arrival_s"].to_numpy()
        done = (requests["status"] == metrics.FINISHED).to_numpy()
        self.done = done
        self.seconds = {k: np.where(done, v, np.nan) for k, v in metrics.latencies(requests).items()}
        self.gaps = result.gaps


def _throughput(label: str, base: Mapping[str, Any], own: Mapping[str, Any]) -> list[Difference]:
    rows = []
    for key, unit in (
        ("requests_per_s", "1/s"),
        ("output_tokens_per_s", "1/s"),
        ("goodput_requests_per_s", "1/s"),
    ):
        before, after = base["throughput"][key], own["throughput"][key]
        if before is not None and after is not None:
            n = own["requests"]["completed"]
            rows.append(Difference(label, key, "rate", unit, before, after, after - before, None, None, n))
    return rows


def _latencies(label: str, base: _Paired, other: _Paired, rng: np.random.Generator) -> list[Difference]:
    if not np.array_equal(base.index, other.index):
        raise InvariantError(f"compare {label}: the runs hold different requests")
    rows = []
    for metric in ("ttft", "tpot", "e2e", "queue"):
        before, after = base.seconds[metric], other.seconds[metric]
        both = ~(np.isnan(before) | np.isnan(after))
        rows += _compare(label, metric, before[both], after[both], rng, is_baseline=base is other)
    return rows


def _compare(
    label: str, metric: str, before: Floats, after: Floats, rng: np.random.Generator, *, is_baseline: bool
) -> list[Difference]:
    n = len(before)
    if n == 0:
        return [Difference(label, metric, s, "s", None, None, None, None, None, 0) for s in STATS]
    point_before, point_after = _points(before), _points(after)
    low, high = (None, None) if is_baseline else _interval(before, after, rng)
    return [
        Difference(
            label, metric, stat, "s", point_before[i], point_after[i], point_after[i] - point_before[i],
            None if low is None else float(low[i]), None if high is None else float(high[i]), n,
        )
        for i, stat in enumerate(STATS)
    ]  # fmt: skip


def _points(values: Floats) -> list[float]:
    return [float(values.mean()), *np.quantile(values, [0.5, 0.99]).tolist()]


def _interval(before: Floats, after: Floats, rng: np.random.Generator) -> tuple[Floats | None, Floats | None]:
    """Interval of the difference of (mean, p50, p99), rows in order of arrival."""
    n_blocks = max(1, min(N_BLOCKS, len(before) // MIN_PER_BLOCK))
    block = np.arange(len(before)) * n_blocks // len(before)
    ones = np.ones(len(before))
    return _resampled(_Blocks.of(before, ones, block), _Blocks.of(after, ones, block), rng)


def _resampled(
    before: _Blocks, after: _Blocks, rng: np.random.Generator
) -> tuple[Floats | None, Floats | None]:
    n_blocks = len(before.sums)
    if n_blocks < MIN_BLOCKS or len(after.sums) != n_blocks:
        return None, None
    drawn = (rng.random((N_RESAMPLES, n_blocks)) * n_blocks).astype(np.int64)
    drawn += n_blocks * np.arange(N_RESAMPLES)[:, None]
    picks = (
        np.bincount(drawn.ravel(), minlength=n_blocks * N_RESAMPLES).astype(np.float64).reshape(-1, n_blocks)
    )
    spread = after.statistics(picks) - before.statistics(picks)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(spread, [tail, 1 - tail], axis=0)
    return low, high


@dataclass(frozen=True, slots=True, eq=False)
class _Blocks:
    """A sample cut into blocks: sums and counts a block, and how many values up to each level a block holds."""

    sums: Floats
    counts: Floats
    levels: Floats
    up_to: Floats  # (levels, blocks)

    @classmethod
    def of(cls, values: Floats, weight: Floats, block: NDArray[np.int64]) -> _Blocks:
        n_blocks = int(block.max()) + 1
        levels, code = _levels(values)
        cells = block * len(levels) + code
        per_level = np.bincount(cells, weights=weight, minlength=n_blocks * len(levels)).astype(np.float64)
        sums = np.bincount(block, weights=weight * values, minlength=n_blocks)
        counts = np.bincount(block, weights=weight, minlength=n_blocks)
        up_to = np.ascontiguousarray(per_level.reshape(n_blocks, len(levels)).cumsum(axis=1).T)
        return cls(sums.astype(np.float64), counts.astype(np.float64), levels, up_to)

    def statistics(self, picks: Floats) -> Floats:
        """Mean, p50, p99 of each resample; `picks` (resamples, blocks) says how often each block is drawn."""
        counts = picks @ self.counts
        quantiles = [self.levels[self._reaching(fraction * counts, picks)] for fraction in (0.5, 0.99)]
        return np.stack([(picks @ self.sums) / counts, *quantiles], axis=1)

    def _reaching(self, targets: Floats, picks: Floats) -> NDArray[np.int64]:
        """The first level up to which a resample holds its target number of values, by bisection."""
        low = np.zeros(len(picks), dtype=np.int64)
        high = np.full(len(picks), len(self.levels) - 1)
        while (low < high).any():
            middle = (low + high) // 2
            short = np.einsum("ij,ij->i", picks, self.up_to[middle]) < targets
            low, high = np.where(short, middle + 1, low), np.where(short, high, middle)
        return low


def _levels(values: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Distinct values and each value's index; above `_MAX_LEVELS` of them, values are grouped by rank."""
    levels, code = np.unique(values, return_inverse=True)
    if len(levels) <= _MAX_LEVELS:
        return levels, code
    group = code * _MAX_LEVELS // len(levels)
    tops = levels[np.append(np.flatnonzero(np.diff(np.arange(len(levels)) * _MAX_LEVELS // len(levels))), -1)]
    return tops, group


def _gap_rows(
    label: str, before: Gaps, after: Gaps, rng: np.random.Generator, *, is_baseline: bool
) -> list[Difference]:
    n = int((after.n * after.weight).sum())
    if n == 0 or not (before.n * before.weight).sum():
        return [Difference(label, "itl", s, "s", None, None, None, None, None, 0) for s in STATS]
    low, high = (None, None) if is_baseline else _resampled(_gap_blocks(before), _gap_blocks(after), rng)
    points = [_gap_points(gaps) for gaps in (before, after)]
    return [
        Difference(
            label, "itl", stat, "s", points[0][i], points[1][i], points[1][i] - points[0][i],
            None if low is None else float(low[i]), None if high is None else float(high[i]), n,
        )
        for i, stat in enumerate(STATS)
    ]  # fmt: skip


def _gap_points(gaps: Gaps) -> list[float]:
    mean = metrics.gap_distribution(gaps)["mean"]
    return [float(mean or 0.0), *metrics.gap_quantiles(gaps, [0.5, 0.99]).tolist()]


def _gap_blocks(gaps: Gaps) -> _Blocks:
    """Each row of gaps enters with its mean value: within a leap gaps differ by microseconds only."""
    mass = (gaps.n * gaps.weight).astype(np.float64)
    values = gaps.first_s + gaps.delta_s * (gaps.n - 1) / 2
    middle = np.cumsum(mass) - mass / 2
    block = np.minimum((middle / mass.sum() * N_BLOCKS).astype(np.int64), N_BLOCKS - 1)
    return _Blocks.of(values, mass, np.unique(block, return_inverse=True)[1])
