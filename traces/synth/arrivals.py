"""When requests arrive.

`renewal`: gaps of mean 1 are laid out in operational time; real time is where the integrated rate reaches
them. Poisson, gamma, Weibull and constant arrivals differ in the gaps; diurnal, ramp, spike, ON/OFF, MMPP and
OU differ in the rate; any gaps go with any modulation. `bursts`: alternating ON and OFF periods with measured
gaps inside, for traffic that no rate describes. Times are whole microseconds, so the last bit of a float
changes no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .laws import Law, Scaled, ar1, law, normal_cdf, normal_ppf
from .modulation import MODULATORS, Modulator
from .registry import Registry, number

Times = NDArray[np.int64]
Streams = Callable[..., np.random.Generator]
ARRIVALS = Registry("arrival process")
_BLOCK = 16_384  # gaps drawn at once: large enough for NumPy, small enough for memory
_CELLS = 1_024  # rate cells per window of a modulated process; rows per block of bursts


class Arrivals(Protocol):
    """An arrival process."""

    def scaled(self, rate_scale: float) -> Arrivals:
        """The same process at `rate_scale` times the rate."""
        ...

    def chunks(self, streams: Streams) -> Iterator[Times]:
        """Blocks of arrival times, int64 microseconds since the start, non-decreasing throughout."""
        ...


@ARRIVALS.add("renewal")
@dataclass(frozen=True, slots=True)
class Renewal:
    """`rate_per_s` requests a second on average, independent `gaps` (any law; its mean does not matter).

    The rate is multiplied at every moment by the factors of `modulation`, each held for a cell of `cell_s` s.
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


@ARRIVALS.add("bursts")
@dataclass(frozen=True, slots=True)
class Bursts:
    """ON periods of law `on_s` seconds, OFF periods of law `off_s`; gaps of law `gaps_s` while ON.

    Gaps resemble their neighbours: a share `memory_frac` of the variance of their normal scores follows an
    AR(1) with a memory of `memory_gaps` gaps (a Gaussian copula, so the law of all gaps stays `gaps_s`).
    """

    on_s: Any
    off_s: Any
    gaps_s: Any
    memory_frac: float = 0.0
    memory_gaps: float = 1.0

    def __post_init__(self) -> None:
        for name in ("on_s", "off_s", "gaps_s"):
            if not hasattr(getattr(self, name), "ppf"):
                object.__setattr__(self, name, law(getattr(self, name), name))
            if name != "off_s" and getattr(self, name).mean <= 0:
                raise ConfigError(f"{name}: got a law of mean 0, expected a positive mean")
        number("memory_frac", self.memory_frac, low=0)
        number("memory_gaps", self.memory_gaps, low=0, above=True)
        if self.memory_frac > 1:
            raise ConfigError(f"memory_frac: got {self.memory_frac!r}, expected a number in 0..1")

    def scaled(self, rate_scale: float) -> Bursts:
        """The same ON and OFF periods with gaps divided by `rate_scale`."""
        return replace(self, gaps_s=Scaled(self.gaps_s, 1.0 / rate_scale))

    def chunks(self, streams: Streams) -> Iterator[Times]:
        """Endless blocks of arrival times in microseconds."""
        held: list[NDArray[np.float64]] = []
        for burst in self._bursts(streams):
            held.append(burst)
            if sum(map(len, held)) >= _CELLS:
                yield np.rint(np.concatenate(held) * 1e6).astype(np.int64)
                held = []

    def _bursts(self, streams: Streams) -> Iterator[NDArray[np.float64]]:
        """Arrival times in seconds, one ON period after the other."""
        random, gaps, start = streams("periods"), self._gaps(streams), 0.0
        share = self.on_s.mean / (self.on_s.mean + self.off_s.mean)
        ahead = next(gaps)
        if random.random() >= share:
            start += float(self.off_s.ppf(random.random(1))[0])
        while True:
            length, pause = (float(part.ppf(random.random(1))[0]) for part in (self.on_s, self.off_s))
            since = np.concatenate([[0.0], np.cumsum(ahead)])
            while since[-1] < length:
                ahead = np.concatenate([ahead, next(gaps)])
                since = np.concatenate([[0.0], np.cumsum(ahead)])
            n = int(np.searchsorted(since, length))
            yield start + since[:n]
            ahead = ahead[n:]
            start += length + pause

    def _gaps(self, streams: Streams) -> Iterator[NDArray[np.float64]]:
        """Endless blocks of gaps in seconds."""
        random, memory = streams("gaps"), ar1(streams("memory"), self.memory_gaps, _CELLS)
        own, shared = sqrt(1.0 - self.memory_frac), sqrt(self.memory_frac)
        while True:
            u = random.random(_CELLS)
            if self.memory_frac > 0:
                u = normal_cdf(own * normal_ppf(u) + shared * next(memory))
            yield self.gaps_s.ppf(u)


@ARRIVALS.add("users")
@dataclass(frozen=True, slots=True)
class Users:
    """`count` users, who start evenly spread over `within_s` seconds; no one else comes."""

    count: int
    within_s: float = 0.0

    def __post_init__(self) -> None:
        number("count", self.count, low=1)
        number("within_s", self.within_s, low=0)
        if not isinstance(self.count, int):
            raise ConfigError(f"count: got {self.count!r}, expected an integer >= 1")

    def scaled(self, rate_scale: float) -> Users:
        """`rate_scale` times as many users (rounded, at least one)."""
        return replace(self, count=max(1, round(self.count * rate_scale)))

    def chunks(self, streams: Streams) -> Iterator[Times]:
        """One block: the start of each user in microseconds."""
        yield np.rint(np.arange(self.count) * (self.within_s * 1e6 / self.count)).astype(np.int64)
