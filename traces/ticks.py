"""Does the clock of a trace tick so coarsely that requests bunch on its ticks?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .tallies import IntegerTally

MIN_ROWS = 20
"""Fewer rows say nothing about their clock."""

MIN_TICKS = 3
"""Fewer different times say nothing either: a batch of requests at time 0 has one."""

MIN_QUANTUM_S = 0.1
"""Finer clocks make no bursts that matter at the rates of one service (a few requests a second)."""

MIN_PER_TICK = 1.1
"""Requests per occupied tick from which a coarse clock matters."""

SLACK_FRAC = 0.02
"""How far from a whole number of ticks a step may be: Mooncake's 3 s ticks are off by 1 ms now and then."""

ON_TICK_FRAC = 0.98
"""Share of the steps that must be whole numbers of ticks; of random arrivals 4 % are (twice the slack)."""

_MAX_DISTINCT = 20_000


class Ticks:
    """The steps between different arrival times of a stream, in whole milliseconds, while they may be ticks."""

    def __init__(self) -> None:
        self.rows = 0
        self.distinct = 0
        self._previous_s = 0.0
        self._steps_ms: IntegerTally | None = IntegerTally()
        self._small = 0

    def add(self, arrival_s: NDArray[np.float64]) -> None:
        """Take in the next arrivals in seconds, float64 (n,), n >= 1."""
        if not self.rows:
            self._previous_s = float(arrival_s[0])
            self.distinct = 1
        steps_s = np.abs(np.diff(arrival_s, prepend=self._previous_s))
        steps_s = steps_s[steps_s > 0]
        self._previous_s = float(arrival_s[-1])
        self.rows += len(arrival_s)
        self.distinct += len(steps_s)
        self._small += int((steps_s < MIN_QUANTUM_S / 2).sum())
        if self._steps_ms is not None and len(steps_s):
            self._steps_ms.add(np.round(steps_s * 1e3).astype(np.int64))
            random = self._small > (1 - ON_TICK_FRAC) * self.distinct + MIN_ROWS
            if random or len(self._steps_ms.table()[0]) > _MAX_DISTINCT:
                self._steps_ms = None

    @property
    def per_tick(self) -> float:
        """Requests per occupied tick."""
        return self.rows / self.distinct if self.distinct else 0.0

    @property
    def quantum_s(self) -> float | None:
        """The tick in seconds, where it is coarse and holds more than one request now and then (else None)."""
        if self._steps_ms is None or self.rows < MIN_ROWS or self.distinct < MIN_TICKS:
            return None
        if self.per_tick < MIN_PER_TICK:
            return None
        steps, counts = self._steps_ms.table()
        return _tick_s(steps / 1e3, counts)


def _tick_s(steps_s: NDArray[np.float64], counts: NDArray[np.int64]) -> float | None:
    """The tick of which nearly all steps are whole multiples: guessed from the shortest, then averaged over all."""
    below = np.cumsum(counts)
    tick_s = float(steps_s[np.searchsorted(below, (1 - ON_TICK_FRAC) / 2 * below[-1])])
    for most in (1, 5, np.inf):
        if tick_s < MIN_QUANTUM_S / 2:
            return None
        multiples = np.round(steps_s / tick_s)
        near = (multiples >= 1) & (multiples <= most)
        tick_s = float((steps_s * counts)[near].sum() / (multiples * counts)[near].sum())
    off = np.abs(steps_s / tick_s - np.round(steps_s / tick_s))
    on_tick = counts[(off <= SLACK_FRAC) & (steps_s > tick_s / 2)].sum() >= ON_TICK_FRAC * below[-1]
    return round(tick_s, 3) if on_tick and tick_s >= MIN_QUANTUM_S * (1 - SLACK_FRAC) else None


def quantum_of(arrival_s: NDArray[np.float64]) -> float | None:
    """The coarse tick of sorted arrivals in seconds, or None.

    >>> quantum_of(np.repeat([0.0, 3.0, 6.0, 15.0], 10))
    3.0
    """
    ticks = Ticks()
    if len(arrival_s):
        ticks.add(arrival_s)
    return ticks.quantum_s
