"""Time series in a bounded number of equal bins: when time outgrows them, neighbours merge and the width doubles."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MAX_BINS = 2048
FIRST_WIDTH_S = 1 / 16


class SeriesBins:
    """Amounts spread over time intervals, summed into bins (powers of two wide, from t = 0)."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.width_s = FIRST_WIDTH_S
        self.names = names
        self.sums = {name: np.zeros(MAX_BINS) for name in names}

    def add(self, start_s: Floats, duration_s: Floats, amounts: Mapping[str, Floats]) -> None:
        """Spread `amounts[name][i]` evenly over [start_i, start_i + duration_i); intervals in order, not overlapping."""
        end_s = start_s + duration_s
        self._fit(float(end_s[-1]))
        lo = int(start_s[0] / self.width_s)
        hi = min(MAX_BINS, int(end_s[-1] / self.width_s) + 1)
        edges = np.arange(lo, hi + 1) * self.width_s
        times = np.empty(2 * len(start_s))
        times[0::2], times[1::2] = start_s, np.maximum(end_s, start_s)
        np.maximum.accumulate(times, out=times)
        running = np.zeros(len(times))
        for name, amount in amounts.items():
            total = np.cumsum(amount)
            running[1::2] = total
            running[2::2] = total[:-1]
            self.sums[name][lo:hi] += np.diff(np.interp(edges, times, running))

    def _fit(self, end_s: float) -> None:
        while end_s >= self.width_s * MAX_BINS:
            self._double()

    def _double(self) -> None:
        self.width_s *= 2
        for name, old in self.sums.items():
            self.sums[name] = np.concatenate([old[0::2] + old[1::2], np.zeros(MAX_BINS // 2)])

    def merged(self, other: SeriesBins) -> SeriesBins:
        """The sums of both."""
        out = SeriesBins(self.names)
        width = max(self.width_s, other.width_s)
        for part in (self, other):
            while part.width_s < width:
                part._double()
        out.width_s = width
        out.sums = {name: self.sums[name] + other.sums[name] for name in self.names}
        return out

    def columns(self, averaged: tuple[str, ...], end_s: float) -> dict[str, Floats]:
        """Bins up to `end_s`; `averaged` names are divided by the width (of the last bin: what is left of it)."""
        self._fit(end_s)
        n = min(MAX_BINS, int(np.ceil(end_s / self.width_s))) or 1
        t = np.arange(n) * self.width_s
        width = np.full(n, self.width_s)
        if end_s > t[-1]:
            width[-1] = min(self.width_s, end_s - t[-1])
        data: dict[str, Floats] = {"t_s": t.astype(np.float64), "width_s": width}
        for name, total in self.sums.items():
            data[name] = total[:n] / width if name in averaged else total[:n].copy()
        return data
