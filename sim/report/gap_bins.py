"""Inter-token gaps by time and size, counted exactly without expanding them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from stepline.sim.engine.result import Gaps

from ..engine.step_bins import (
    FIRST_WIDTH_S,
    FRAME_COLUMNS,
    LOWEST,
    PER_DECADE,
    TIME_BINS,
    bin_middle,
    empty_frame,
    log_bin,
)
from .metrics import GapRows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ROWS_AT_ONCE = 1 << 18


def gap_bins(gaps: Gaps) -> pd.DataFrame:
    """Gaps by time bin (of the step or leap that ends the first) and logarithmic bin of their seconds.

    Columns as `StepBins.frame`: what ("itl"), t_s, x (geometric middle of the bin, s), y (NaN), steps (the number of
    gaps), seconds (their sum at the bins' middles).
    """
    kept = (gaps.n > 0) & (gaps.weight > 0)
    if not kept.any():
        return empty_frame()
    at_s = gaps.at_s[kept]
    width = _width_s(float(at_s.max()))
    rows = GapRows.of(gaps)
    t = (at_s / width).astype(np.int64)
    size = int(log_bin(np.array([np.inf]), "duration")[0]) + 1
    counts = np.zeros(TIME_BINS * size)
    for lo in range(0, len(t), ROWS_AT_ONCE):
        part = slice(lo, lo + ROWS_AT_ONCE)
        few = GapRows(rows.low[part], rows.delta[part], rows.n[part], rows.weight[part])
        cell, count = _spread(few, t[part], size)
        counts += np.bincount(cell, count, len(counts))
    return _frame(counts.reshape(TIME_BINS, size), width)


def _width_s(last_s: float) -> float:
    width = FIRST_WIDTH_S
    while last_s >= width * TIME_BINS:
        width *= 2
    return width


def _spread(rows: GapRows, t: Ints, size: int) -> tuple[Ints, Floats]:
    """Cells (time · size + value bin) and how many gaps of each row fall into them."""
    first = log_bin(np.maximum(rows.low, 1e-12), "duration")
    last = log_bin(np.maximum(rows.high, 1e-12), "duration")
    n_cells = last - first + 1
    row = np.repeat(np.arange(len(t)), n_cells)
    value_bin = first[row] + np.arange(len(row)) - np.repeat(np.cumsum(n_cells) - n_cells, n_cells)
    below = np.where(value_bin == last[row], rows.n[row], _elements_below(rows, row, value_bin + 1))
    start = np.where(value_bin == first[row], 0, np.concatenate([[0], below[:-1]]))
    return t[row] * size + value_bin, ((below - start) * rows.weight[row]).astype(np.float64)


def _elements_below(rows: GapRows, row: Ints, edge_bin: Ints) -> Ints:
    """How many gaps of each row lie below the lower edge of a bin."""
    edge = 10.0 ** (edge_bin / PER_DECADE["duration"] + LOWEST["duration"])
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.ceil((edge - rows.low[row]) / rows.delta[row])
    return np.clip(np.where(np.isfinite(n), n, 0), 0, rows.n[row]).astype(np.int64)


def _frame(counts: Floats, width_s: float) -> pd.DataFrame:
    t, x = np.nonzero(counts)
    value, n = bin_middle(x, "duration"), counts[t, x]
    data = dict(zip(FRAME_COLUMNS, ("itl", t * width_s, value, np.nan, n, n * value), strict=True))
    return pd.DataFrame(data, index=range(len(t)))
