"""Distances between two traces, and the figures a generator must reproduce."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..trace import Trace


def ks_distance(a: Any, b: Any) -> float:
    """Two-sample Kolmogorov–Smirnov distance: the largest gap between the two distribution functions.

    >>> ks_distance([1, 2, 3, 4], [3, 4, 5, 6])
    0.5
    """
    a, b = np.sort(np.asarray(a)), np.sort(np.asarray(b))
    points = np.union1d(a, b)
    below_a = np.searchsorted(a, points, side="right") / len(a)
    below_b = np.searchsorted(b, points, side="right") / len(b)
    return float(np.max(np.abs(below_a - below_b)))


def ks_distance_2d(a: tuple[Any, Any], b: tuple[Any, Any], cells: int = 200) -> float:
    """Two-dimensional Kolmogorov–Smirnov distance: over all corners of a grid, the largest difference in the share
    of points in any of the four quadrants (Peacock 1983), on a grid of `cells` quantiles of `a` per axis.
    """
    steps = np.linspace(0.0, 1.0, cells)
    grid = [np.unique(np.quantile(np.asarray(axis), steps)) for axis in a]
    diff = _cumulative(a, grid) - _cumulative(b, grid)
    right, top = diff[-1:, :], diff[:, -1:]
    return float(max(np.abs(part).max() for part in (diff, right - diff, top - diff, diff - right - top)))


def _cumulative(points: tuple[Any, Any], grid: list[NDArray[Any]]) -> NDArray[np.float64]:
    """Share of points at or below each grid corner; the last row and column hold everything."""
    at = tuple(np.searchsorted(g, np.asarray(p), side="left") for g, p in zip(grid, points, strict=True))
    counts = np.zeros(tuple(len(g) + 1 for g in grid))
    np.add.at(counts, at, 1.0)
    return counts.cumsum(axis=0).cumsum(axis=1) / len(points[0])


def counts_per(arrival_s: Any, window_s: float, span_s: float | None = None) -> NDArray[np.int64]:
    """Arrivals in each whole window of `window_s` seconds within `span_s` (default: the last arrival)."""
    times = np.asarray(arrival_s)
    windows = int((times[-1] if span_s is None else span_s) // window_s)
    which = (times // window_s).astype(np.int64)
    return np.bincount(which[which < windows], minlength=windows)[:windows]


def index_of_dispersion(arrival_s: Any, window_s: float, span_s: float | None = None) -> float:
    """Variance over mean of the number of arrivals per window (Poisson: 1); NaN with fewer than two windows."""
    counts = counts_per(arrival_s, window_s, span_s)
    if len(counts) < 2 or counts.sum() == 0:
        return float("nan")
    return float(counts.var() / counts.mean())


def lru_hit_rates(
    trace: Trace, capacities_blocks: Sequence[int], *, measured_frac: float = 0.5
) -> list[float]:
    """Share of prompt tokens found in a cache of so many blocks, replayed without time: rows in order, least recently
    used block out, over the last `measured_frac` of the rows (the earlier ones warm it).

    A hit is a prefix: leading known blocks, whole ones. Within a row the
    first block is the most recent, so that a prefix goes last.
    Raises: ConfigError where the trace has no ids.
    """
    if trace.hash_ids is None or trace.block_size is None:
        raise ConfigError(f"{trace.source}: got no hash_ids, expected them for a hit rate")
    rows = [trace.hash_ids.row(i) or () for i in range(len(trace))]
    tokens, sizes = trace.input_tokens.tolist(), trace.block_size.tolist()
    first = len(rows) - int(len(rows) * measured_frac)
    return [_lru_hit_rate(rows, tokens, sizes, first, capacity) for capacity in capacities_blocks]


def _lru_hit_rate(
    rows: list[tuple[int, ...]], tokens: list[int], sizes: list[int], first: int, capacity: int
) -> float:
    cache: OrderedDict[int, None] = OrderedDict()
    hit = total = 0
    for i, ids in enumerate(rows):
        known = next((k for k, block in enumerate(ids) if block not in cache), len(ids))
        if i >= first:
            hit += min(known, tokens[i] // sizes[i]) * sizes[i]
            total += tokens[i]
        for block in reversed(ids):
            cache[block] = None
            cache.move_to_end(block)
        while len(cache) > capacity:
            cache.popitem(last=False)
    return hit / total if total else 0.0
