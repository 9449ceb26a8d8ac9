"""When requests arrive: a renewal process run on a clock whose speed is the rate.

Gaps of mean 1 are laid out in operational time; real time is where the integrated rate reaches them. Poisson, gamma,
Weibull and constant arrivals differ in the gaps; diurnal, ramp, spike, ON/OFF, MMPP and OU differ in the rate. Any gaps
go with any modulation. Times are whole microseconds, so rounding of the last bit of a float changes no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .laws import Law, law
from .modulation import MODULATORS, Modulator
from .registry import Registry, number

Times = NDArray[np.int64]
Streams = Callable[..., np.random.Generator]
ARRIVALS = Registry("arrival process")
_BLOCK = 65_536  # gaps drawn at once: large enough for NumPy, small enough for memory
_CELLS = 4_096  # rate cells per window of a modulated process


class Arrivals(Protocol):
    """An arrival process."""

    def scaled(self, rate_scale: float) -> Arrivals:
        """The same process at `rate_scale` times the rate."""
        ...

    def chunks(self, streams: Streams) -> Iterator[Times]:
        """Endless blocks of arrival times, int64 microseconds since the start, non-decreasing throughout."""
        ...


@ARRIVALS.add("renewal")
@dataclass(frozen=True, slots=True)
class Renewal:
    """`rate_per_s` requests a second on average, independent `gaps` (any law; its mean does not matter),
    the rate multiplied at every moment by the factors of `modulation` (evaluated in cells of `cell_s` seconds).
    """

    rate_per_s: float
    gaps: Any = field(default_factory=lambda: {"kind": "exponential"})
    modulation: Any = ()
    cell_s: float = 1.0

    def __post_init__(self) -> None:
        number("rate_per_s", self.rate_per_s, low=0, above=True)
        number("cell_s", self.cell_s, low=0, above=True)
        if isinstance(self.gaps, dict):
            object.__setattr__(self, "gaps", law(self.gaps, "gaps"))
        if self.gaps.mean <= 0:
            raise ConfigError("gaps: got a law of mean 0, expected a positive mean")
        parts = [
            MODULATORS.build(m, f"modulation[{i}]") if isinstance(m, dict) else m
            for i, m in enumerate(self.modulation)
        ]
        object.__setattr__(self, "modulation", tuple(parts))

    def scaled(self, rate_scale: float) -> Renewal:
        """The same gaps and modulation at `rate_scale` times the rate."""
        return replace(self, rate_per_s=self.rate_per_s * rate_scale)

    def chunks(self, streams: Streams) -> Iterator[Times]:
        """Endless blocks of arrival times in microseconds."""
        gaps = _unit_gaps(self.gaps, streams("gaps"))
        if self.modulation:
            return _warped(gaps, self._rates(streams), self.cell_s)
        return _summed(gaps, 1e6 / self.rate_per_s)

    def _rates(self, streams: Streams) -> Iterator[NDArray[np.float64]]:
        """Endless blocks of `_CELLS` rates (1/s), one per cell."""
        parts: list[Modulator] = list(self.modulation)
        sources = [p.factors(streams("rate", i), self.cell_s, _CELLS) for i, p in enumerate(parts)]
        for factors in zip(*sources, strict=True):
            yield self.rate_per_s * np.prod(factors, axis=0)


def _unit_gaps(gaps: Law, random: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    while True:
        yield gaps.ppf(random.random(_BLOCK)) / gaps.mean


def _summed(gaps: Iterator[NDArray[np.float64]], scale_us: float) -> Iterator[Times]:
    last = 0
    for block in gaps:
        times = last + np.cumsum(np.rint(block * scale_us).astype(np.int64))
        last = int(times[-1])
        yield times


def _warped(
    gaps: Iterator[NDArray[np.float64]], rates: Iterator[NDArray[np.float64]], cell_s: float
) -> Iterator[Times]:
    """Arrivals at the operational times cumsum(gaps), each window of rate cells in turn."""
    ahead = np.cumsum(next(gaps))  # operational times not yet placed, relative to the window's start
    for window, rate in enumerate(rates):
        reached = np.concatenate([[0.0], np.cumsum(rate * cell_s)])
        while ahead[-1] <= reached[-1]:
            ahead = np.concatenate([ahead, ahead[-1] + np.cumsum(next(gaps))])
        n = int(np.searchsorted(ahead, reached[-1], side="right"))
        cells = np.interp(ahead[:n], reached, np.arange(len(reached), dtype=np.float64))
        ahead = ahead[n:] - reached[-1]
        yield np.rint((window * len(rate) + cells) * (cell_s * 1e6)).astype(np.int64)
