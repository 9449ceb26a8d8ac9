"""Distributions of steps by time: counts in a grid of time bins x value bins, of bounded size however long the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .step_log import Columns

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TIME_BINS = 256
FIRST_WIDTH_S = 1 / 16
PER_DECADE = {"batch": 20, "duration": 40, "intensity": 20, "flops": 20}
"""Value bins a factor of ten: 20 make a bin 12 % wide, 40 make it 6 %."""

LOWEST = {"batch": 0, "duration": -6, "intensity": -2, "flops": 6}
"""Power of ten at which the bins of a quantity begin (1 sequence, 1 µs, 0.01 FLOP/B, 1 MFLOP/s)."""

DECADES = {"batch": 5, "duration": 9, "intensity": 7, "flops": 11}
KINDS = ("batch", "duration", "tokens", "roofline")
TOKEN_BINS = 24  # powers of two up to 8 M tokens a step

MOST_PENDING = 1 << 16
"""Counts that `Cells` keeps before it sums them: sorting a lot at a time is cheaper than a little often."""

FRAME_COLUMNS = ("what", "t_s", "x", "y", "steps", "seconds")


class StepBins:
    """Steps and their seconds by time bin and: batch size, duration, new tokens, (intensity, FLOP/s).

    A step or leap counts in the time bin in which it begins; a leap counts all its steps at its mean duration and
    mean work.
    """

    def __init__(self) -> None:
        self.width_s = FIRST_WIDTH_S
        self.grids = {what: np.zeros((2, TIME_BINS, _size(what))) for what in ("batch", "duration", "tokens")}
        self.roofline = Cells()
        self.empty = True

    def add(self, columns: Columns, flops: Floats, hbm_bytes: Floats) -> None:
        """Take in a block of rows of the step log with FLOPs and HBM bytes of one (mean) step of each."""
        n, lasted, start = columns["n_steps"], columns["duration_s"], columns["start_s"]
        while start[-1] >= self.width_s * TIME_BINS:
            self._double()
        self.empty = False
        t = (start / self.width_s).astype(np.int64)
        running = np.maximum(columns["n_running"], 1)
        tokens = np.maximum(columns["n_decode"] + columns["prefill_tokens"], 1)
        step_s = lasted / n
        self._count("batch", t, log_bin(running, "batch"), n, lasted)
        self._count("duration", t, log_bin(step_s, "duration"), n, lasted)
        power = np.minimum(np.ceil(np.log2(tokens)), TOKEN_BINS - 1).astype(np.int64)
        self._count("tokens", t, power, n, lasted)
        work = (flops > 0) & (hbm_bytes > 0)
        if work.any():
            x = log_bin(flops[work] / hbm_bytes[work], "intensity")
            y = log_bin(flops[work] / step_s[work], "flops")
            self.roofline.add((t[work] * 1000 + x) * 1000 + y, n[work], lasted[work])

    def _count(self, what: str, t: Ints, x: Ints, steps: Floats, seconds: Floats) -> None:
        grid = self.grids[what]
        size = grid.shape[2]
        cell = t * size + x
        first = int(t[0]) * size
        length = (int(t[-1]) + 1) * size - first
        for amount, into in zip((steps, seconds), grid, strict=True):
            into.reshape(-1)[first : first + length] += np.bincount(cell - first, amount, length)

    def _double(self) -> None:
        self.width_s *= 2
        if self.empty:
            return
        for what, grid in self.grids.items():
            merged = np.zeros_like(grid)
            merged[:, : TIME_BINS // 2] = grid[:, 0::2] + grid[:, 1::2]
            self.grids[what] = merged
        cells, steps, seconds = self.roofline.table()
        self.roofline = Cells()
        self.roofline.add(cells // 2_000_000 * 1_000_000 + cells % 1_000_000, steps, seconds)

    def merged(self, other: StepBins) -> StepBins:
        """The sums of both (of two cost models' replicas)."""
        for part in (self, other):
            while part.width_s < max(self.width_s, other.width_s):
                part._double()
        out = StepBins()
        out.width_s, out.empty = self.width_s, self.empty and other.empty
        out.grids = {what: self.grids[what] + other.grids[what] for what in self.grids}
        for part in (self, other):
            out.roofline.add(*part.roofline.table())
        return out

    def frame(self) -> pd.DataFrame:
        """The cells that hold something, columns `FRAME_COLUMNS`.

        `what` is one of `KINDS`; `t_s` begin of the time bin; `x`: geometric middle of the bin of sequences in the
        step ("batch"), of seconds ("duration"), of FLOP per HBM byte ("roofline"), or the upper end of the bin of new
        tokens, a power of two ("tokens"); `y`: middle of the bin of FLOP/s on one GPU ("roofline", else NaN).
        """
        if self.empty:
            return empty_frame()
        parts = {what: self._grid_cells(what) for what in self.grids} | {"roofline": self._roofline_cells()}
        sizes = [len(cells[0]) for cells in parts.values()]
        numbers = [np.concatenate(column) for column in zip(*parts.values(), strict=True)]
        names = np.repeat(np.array(list(parts), dtype=object), sizes)
        return pd.DataFrame(dict(zip(FRAME_COLUMNS, (names, *numbers), strict=True)))

    def _grid_cells(self, what: str) -> tuple[NDArray[Any], ...]:
        steps, seconds = self.grids[what]
        t, x = np.divmod(np.flatnonzero(steps.reshape(-1) != 0), steps.shape[1])  # mostly empty: 16 x as fast
        value = 2.0**x if what == "tokens" else bin_middle(x, what)
        return t * self.width_s, value, np.full(len(t), np.nan), steps[t, x], seconds[t, x]

    def _roofline_cells(self) -> tuple[NDArray[Any], ...]:
        cells, steps, seconds = self.roofline.table()
        t, x, y = cells // 1_000_000, cells // 1000 % 1000, cells % 1000
        return t * self.width_s, bin_middle(x, "intensity"), bin_middle(y, "flops"), steps, seconds


class Cells:
    """Steps and seconds by cell of a grid that is mostly empty."""

    def __init__(self) -> None:
        self.parts: list[tuple[Ints, Floats, Floats]] = []
        self.pending = 0

    def add(self, cells: Ints, steps: Floats, seconds: Floats) -> None:
        """Count steps and seconds in cells (their numbers >= 0, in any order, repeated or not)."""
        self.parts.append((cells, steps, seconds))
        self.pending += len(cells)
        if self.pending > MOST_PENDING:
            self.table()

    def table(self) -> tuple[Ints, Floats, Floats]:
        """The cells that hold something, in order, with their steps and seconds."""
        if not self.parts:
            return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
        cells, steps, seconds = (np.concatenate(column) for column in zip(*self.parts, strict=True))
        unique, where = np.unique(cells, return_inverse=True)
        self.parts = [(unique, _summed(where, steps), _summed(where, seconds))]
        self.pending = 0
        return self.parts[0]


def _summed(where: Ints, amounts: Floats) -> Floats:
    return np.bincount(where, amounts).astype(np.float64, copy=False)


def empty_frame() -> pd.DataFrame:
    """A table of no cells, with the columns and types of others."""
    types = {name: object if name == "what" else np.float64 for name in FRAME_COLUMNS}
    return pd.DataFrame({name: np.empty(0, kind) for name, kind in types.items()})


def log_bin(values: Floats, what: str) -> Ints:
    """Number of the logarithmic bin of each value > 0; what lies outside goes into the first or last."""
    top = DECADES[what] * PER_DECADE[what] - 1
    bins = np.floor((np.log10(values) - LOWEST[what]) * PER_DECADE[what] + 1e-9)
    return np.clip(bins, 0, top).astype(np.int64)


def bin_borders(bins: Ints, what: str) -> tuple[Floats, Floats]:
    """Lower and upper border of bins; of batch sizes, halfway to the nearest whole number outside."""
    low, high = (10.0 ** (LOWEST[what] + (bins + more) / PER_DECADE[what]) for more in (0, 1))
    if what != "batch":
        return low, high
    first, last = np.ceil(low - 1e-6), np.ceil(high - 1e-6) - 1
    return first - 0.5, np.maximum(last, first) + 0.5


def bin_middle(bins: Ints, what: str) -> Floats:
    """Geometric middle of bins; of a batch size, the middle of the whole numbers in it."""
    low, high = bin_borders(bins, what)
    return np.asarray((low + high) / 2 if what == "batch" else np.sqrt(low * high))


def _size(what: str) -> int:
    return TOKEN_BINS if what == "tokens" else DECADES[what] * PER_DECADE[what]
