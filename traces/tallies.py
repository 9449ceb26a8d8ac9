"""Running tallies of a stream: exact counts of integers, log-binned times, counts in windows, a curve over time."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

PERCENTS = (1, 10, 25, 50, 75, 90, 95, 99)
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class IntegerTally:
    """How often each integer occurred: every quantile is exact, memory grows with distinct values only."""

    def __init__(self) -> None:
        self._values = np.zeros(0, dtype=np.int64)
        self._counts = np.zeros(0, dtype=np.int64)

    def add(self, values: Ints) -> None:
        """Count `values`, int64 (n,)."""
        fresh, counts = np.unique(values, return_counts=True)
        both, place = np.unique(np.concatenate([self._values, fresh]), return_inverse=True)
        total = np.zeros(len(both), dtype=np.int64)
        np.add.at(total, place, np.concatenate([self._counts, counts]))
        self._values, self._counts = both, total

    def table(self) -> tuple[Ints, Ints]:
        """The distinct values, ascending, and how often each occurred."""
        return self._values, self._counts

    def curve(self, steps: int = 100) -> list[dict[str, float]]:
        """The cumulative distribution as `steps` + 1 points {tokens, share}: share of the values <= tokens."""
        below = np.cumsum(self._counts)
        ranks = np.maximum(np.ceil(np.linspace(0, 1, steps + 1) * below[-1]), 1)
        at = np.unique(np.searchsorted(below, ranks))
        return [{"tokens": int(self._values[i]), "share": float(below[i] / below[-1])} for i in at.tolist()]

    def figures(self) -> dict[str, float]:
        """Mean, standard deviation, extremes and percentiles (the smallest value that covers the share)."""
        n = int(self._counts.sum())
        weights = self._counts / n
        mean = float(self._values @ weights)
        below = np.cumsum(self._counts)
        quantile = {
            f"p{p}": int(self._values[np.searchsorted(below, math.ceil(n * p / 100))]) for p in PERCENTS
        }
        spread = float(np.sqrt(((self._values - mean) ** 2) @ weights))
        return (
            {"mean": mean, "std": spread, "min": int(self._values[0])}
            | quantile
            | {"max": int(self._values[-1])}
        )


class TimeTally:
    """Times in seconds in bins 0.1 % wide, zeros apart: percentiles are good to 0.1 %, mean and extremes exact."""

    _FLOOR_S = 1e-9
    _STEP = math.log(1.001)
    _BINS = int(math.log(1e21) / _STEP) + 2

    def __init__(self) -> None:
        self.count = 0
        self._zeros = 0
        self._bins = np.zeros(self._BINS, dtype=np.int64)
        self._sum = self._squares = 0.0
        self._min, self._max = math.inf, -math.inf

    def add(self, seconds: Floats) -> None:
        """Count `seconds`, float64 (n,), each >= 0."""
        if not len(seconds):
            return
        self.count += len(seconds)
        self._sum += float(seconds.sum())
        self._squares += float(seconds @ seconds)
        self._min, self._max = min(self._min, float(seconds.min())), max(self._max, float(seconds.max()))
        positive = seconds[seconds > 0]
        self._zeros += len(seconds) - len(positive)
        place = np.log(np.maximum(positive, self._FLOOR_S) / self._FLOOR_S) / self._STEP
        np.add.at(self._bins, np.minimum(place.astype(np.int64), self._BINS - 1), 1)

    def figures(self) -> dict[str, float] | None:
        """Mean, coefficient of variation, percentiles, maximum (None: nothing was counted)."""
        if not self.count:
            return None
        mean = self._sum / self.count
        variance = max(0.0, self._squares / self.count - mean * mean)
        below = self._zeros + np.cumsum(self._bins)
        out = {"mean": mean, "cv": math.sqrt(variance) / mean if mean else 0.0}
        for p in PERCENTS:
            rank = math.ceil(self.count * p / 100)
            at = int(np.searchsorted(below, rank))
            value = self._FLOOR_S * math.exp((at + 0.5) * self._STEP) if rank > self._zeros else 0.0
            out[f"p{p}"] = min(max(value, self._min), self._max)
        return out | {"max": self._max}


class WindowTally:
    """Arrivals in consecutive windows of `width_s` seconds: index of dispersion (variance over mean) of the counts.

    Only whole windows count, the first one starting at the first arrival; empty ones count too. 1 is Poisson
    (Cox and Lewis, The Statistical Analysis of Series of Events, 1966, section 4.5).
    """

    def __init__(self, width_s: float) -> None:
        self.width_s = width_s
        self._current, self._held = 0, 0
        self._sum = self._squares = self._occupied = self._peak = 0

    def add(self, since_first_s: Floats) -> None:
        """Take in the next arrivals, ascending, in seconds since the first one."""
        windows, counts = np.unique((since_first_s / self.width_s).astype(np.int64), return_counts=True)
        if windows[0] == self._current:
            counts[0] += self._held
        else:
            self._close(np.array([self._held]))
        self._close(counts[:-1])
        self._current, self._held = int(windows[-1]), int(counts[-1])

    def _close(self, counts: Ints) -> None:
        if len(counts):
            self._sum += int(counts.sum())
            self._squares += int(counts @ counts)
            self._occupied += int((counts > 0).sum())
            self._peak = max(self._peak, int(counts.max()))

    def figures(self) -> dict[str, float] | None:
        """Index of dispersion, share of empty windows, most arrivals in one (None: fewer than two whole windows)."""
        windows = self._current
        if windows < 2 or not self._sum:
            return None
        mean = self._sum / windows
        variance = self._squares / windows - mean * mean
        return {
            "width_s": self.width_s,
            "windows": windows,
            "dispersion": variance / mean,
            "empty_frac": 1 - self._occupied / windows,
            "peak": self._peak,
        }


class Curve:
    """Requests and tokens over time in at most `_BINS` equal bins; the bins double in width as the trace grows."""

    _BINS = 240

    def __init__(self) -> None:
        self.width_s = 1.0
        self._bins = np.zeros((3, self._BINS))

    def add(self, since_first_s: Floats, input_tokens: Ints, output_tokens: Ints) -> None:
        """Take in arrivals in seconds since the first one, with their tokens."""
        while since_first_s[-1] >= self.width_s * self._BINS:
            pairs = self._bins.reshape(3, -1, 2).sum(axis=2)
            self._bins = np.concatenate([pairs, np.zeros_like(pairs)], axis=1)
            self.width_s *= 2
        place = (since_first_s / self.width_s).astype(np.int64)
        for row, weight in zip(self._bins, (None, input_tokens, output_tokens), strict=True):
            row += np.bincount(place, weights=weight, minlength=self._BINS)

    def table(self, span_s: float) -> list[dict[str, float]]:
        """One row a bin up to `span_s`: its start and the rates in it; the last bin is as long as it was seen."""
        last = int(span_s / self.width_s)
        out = []
        for i in range(last + 1):
            width = self.width_s if i < last else max(span_s - last * self.width_s, 0.25 * self.width_s)
            requests, n_in, n_out = (float(v) / width for v in self._bins[:, i])
            out.append(
                {
                    "start_s": i * self.width_s,
                    "requests_per_s": requests,
                    "input_tokens_per_s": n_in,
                    "output_tokens_per_s": n_out,
                }
            )
        return out


class JointTally:
    """Input and output lengths together, in bins of a sixteenth of an octave."""

    _PER_OCTAVE = 16
    _BINS = 31 * _PER_OCTAVE + 1

    def __init__(self) -> None:
        self._cells = np.zeros((self._BINS, self._BINS), dtype=np.int64)

    def add(self, input_tokens: Ints, output_tokens: Ints) -> None:
        """Count pairs of lengths, each >= 1."""
        rows, columns = (
            (np.log2(n) * self._PER_OCTAVE + 1e-9).astype(np.int64) for n in (input_tokens, output_tokens)
        )
        np.add.at(self._cells, (rows, columns), 1)

    def rank_correlation(self) -> float | None:
        """Spearman's rho over the bins (equal bins tie); None where one of the two never varies."""
        n = self._cells.sum()
        ranks = [_mid_ranks(self._cells.sum(axis=1)), _mid_ranks(self._cells.sum(axis=0))]
        centred = [r - (n + 1) / 2 for r in ranks]
        squares = [
            float(self._cells.sum(axis=1) @ centred[0] ** 2),
            float(self._cells.sum(axis=0) @ centred[1] ** 2),
        ]
        if min(squares) <= 0:
            return None
        return float(centred[0] @ self._cells @ centred[1]) / math.sqrt(squares[0] * squares[1])

    def output_by_input(self, groups: int = 8) -> list[dict[str, float]]:
        """Median and 90 % quantile of the output length in `groups` equally filled groups of input length."""
        rows = self._cells.sum(axis=1)
        group = np.minimum((np.cumsum(rows) - rows / 2) * groups // max(int(rows.sum()), 1), groups - 1)
        out = []
        for g in range(groups):
            member = np.flatnonzero((group == g) & (rows > 0))
            if not len(member):
                continue
            below = np.cumsum(self._cells[member].sum(axis=0))
            edges = [_edge(int(member[0]), self._PER_OCTAVE), _edge(int(member[-1]) + 1, self._PER_OCTAVE)]
            middle = [
                _edge(int(np.searchsorted(below, math.ceil(below[-1] * p))) + 0.5, self._PER_OCTAVE)
                for p in (0.5, 0.9)
            ]
            out.append(
                {
                    "input_from": math.ceil(edges[0]),
                    "input_below": math.ceil(edges[1]),
                    "requests": int(below[-1]),
                    "output_p50": middle[0],
                    "output_p90": middle[1],
                }
            )
        return out

    def cells(self, per_octave: int = 2) -> list[dict[str, float]]:
        """Occupied cells of a coarser grid, with their edges, for a picture."""
        step = self._PER_OCTAVE // per_octave
        size = -(-self._BINS // step) * step
        grid = np.zeros((size, size), dtype=np.int64)
        grid[: self._BINS, : self._BINS] = self._cells
        coarse = grid.reshape(size // step, step, size // step, step).sum(axis=(1, 3))
        return [
            {
                "input_from": _edge(i, per_octave),
                "input_below": _edge(i + 1, per_octave),
                "output_from": _edge(j, per_octave),
                "output_below": _edge(j + 1, per_octave),
                "requests": int(coarse[i, j]),
            }
            for i, j in np.argwhere(coarse).tolist()
        ]


def _edge(place: float, per_octave: int) -> float:
    return float(2.0 ** (place / per_octave))


def _mid_ranks(counts: Ints) -> Floats:
    return np.asarray(np.cumsum(counts) - (counts - 1) / 2, dtype=np.float64)
