"""How calls are timed: wall clock on a CPU, CUDA-graph replays on a GPU. Both return seconds per call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .kernels import Call

SHORTEST_SAMPLE_S = 200e-6
"""A sample shorter than this is repeated until it is not: 1000 ticks of a clock that resolves well under 1 µs."""

FEWEST_SAMPLES, MOST_SAMPLES = 3, 40
"""A median needs three; each is already the mean of a round of calls."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call: median, half the 16–84 % range of the samples, how many samples.

    `graph`: replayed from a CUDA graph, so without launch overhead; False: launched call by call; None: the
    device (a CPU) has no such thing.
    """

    median_s: float
    spread_s: float
    repeats: int
    graph: bool | None = None


class Timer(Protocol):
    """Times calls that rotate over operands."""

    def time(self, calls: Sequence[Call], budget_s: float, *, graph: bool = True) -> Timing:
        """Seconds per call over whole rounds of `calls`, in about `budget_s` (at least `FEWEST_SAMPLES` rounds)."""
        ...


@dataclass(frozen=True, slots=True)
class WallTimer:
    """Wall clock around rounds of calls; for a CPU, whose calls return when they are done."""

    clock: Callable[[], float] = time.perf_counter

    def time(self, calls: Sequence[Call], budget_s: float, *, graph: bool = True) -> Timing:
        """See `Timer.time`; one round warms up. A CPU has no graphs."""

        def rounds(n: int) -> float:
            start = self.clock()
            for _ in range(n):
                for call in calls:
                    call()
            return self.clock() - start

        return sample(rounds, len(calls), budget_s)


def sample(
    rounds: Callable[[int], float], n_calls: int, budget_s: float, graph: bool | None = None
) -> Timing:
    """Sample `rounds(n)` = seconds of n rounds of `n_calls` calls each, after a warm-up round.

    A sample holds as many rounds as `SHORTEST_SAMPLE_S` needs; samples are taken until the budget is spent,
    but
    never fewer than `FEWEST_SAMPLES` nor more than `MOST_SAMPLES`.
    """
    first = max(rounds(1), 1e-9)
    inner = 1
    if first < SHORTEST_SAMPLE_S:  # the warm-up overstates short calls: look again before choosing
        first = max(rounds(1), 1e-9)
        inner = max(1, round(SHORTEST_SAMPLE_S / first))
    count = int(np.clip(budget_s / (first * inner), FEWEST_SAMPLES, MOST_SAMPLES))
    per_call = np.array([rounds(inner) for _ in range(count)]) / (inner * n_calls)
    low, median, high = np.percentile(per_call, (16, 50, 84))
    return Timing(float(median), float(high - low) / 2, count, graph)
