"""How a rate changes over time: factors of mean about 1, one per cell of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .laws import ar1, law
from .registry import Registry, ascending, number

Array = NDArray[np.float64]
MODULATORS = Registry("rate modulation")


class Modulator(Protocol):
    """A rate factor as a function of time."""

    def factors(self, random: np.random.Generator, cell_s: float, cells: int) -> Iterator[Array]:
        """Endless blocks of `cells` factors, each the factor in one cell of `cell_s` seconds, from t = 0 on."""
        ...


def _middles(cell_s: float, cells: int) -> Iterator[Array]:
    """Mid-cell times in seconds, block after block."""
    for block in count():
        yield (block * cells + np.arange(cells, dtype=np.float64) + 0.5) * cell_s


@MODULATORS.add("curve")
@dataclass(frozen=True, slots=True)
class Curve:
    """Linear through the points (`time_s`, `factor`), level outside; repeats every `period_s` where given."""

    time_s: Any
    factor: Any
    period_s: float | None = None

    def __post_init__(self) -> None:
        ascending("time_s", self.time_s, strict=True)
        if len(self.factor) != len(self.time_s):
            raise ConfigError(f"factor: got {len(self.factor)} values, expected {len(self.time_s)}")
        for i, value in enumerate(self.factor):
            number(f"factor[{i}]", value, low=0)
        if self.period_s is not None:
            number("period_s", self.period_s, low=self.time_s[-1])

    def factors(self, random: np.random.Generator, cell_s: float, cells: int) -> Iterator[Array]:
        """See `Modulator`; draws nothing."""
        for t in _middles(cell_s, cells):
            yield np.interp(t if self.period_s is None else t % self.period_s, self.time_s, self.factor)


@MODULATORS.add("diurnal")
@dataclass(frozen=True, slots=True)
class Diurnal:
    """1 + amplitude·sin(2π(t − phase)/period): a day's wave."""

    amplitude: float
    period_s: float = 86_400.0
    phase_s: float = 0.0

    def __post_init__(self) -> None:
        number("amplitude", self.amplitude, low=0)
        number("period_s", self.period_s, low=0, above=True)
        if self.amplitude > 1:
            raise ConfigError(f"amplitude: got {self.amplitude!r}, expected a number in 0..1")

    def factors(self, random: np.random.Generator, cell_s: float, cells: int) -> Iterator[Array]:
        """See `Modulator`; draws nothing."""
        for t in _middles(cell_s, cells):
            yield 1.0 + self.amplitude * np.sin(2 * np.pi * ((t - self.phase_s) / self.period_s % 1.0))


@MODULATORS.add("ramp")
@dataclass(frozen=True, slots=True)
class Ramp:
    """From factor `start` at t = 0 to `end` at `duration_s` (level after), on a line or, `exponential`, by ratio."""

    start: float
    end: float
    duration_s: float
    exponential: bool = False

    def __post_init__(self) -> None:
        number("start", self.start, low=0, above=self.exponential)
        number("end", self.end, low=0, above=True)
        number("duration_s", self.duration_s, low=0, above=True)

    def factors(self, random: np.random.Generator, cell_s: float, cells: int) -> Iterator[Array]:
        """See `Modulator`; draws nothing."""
        for t in _middles(cell_s, cells):
            done = np.minimum(t / self.duration_s, 1.0)
            if self.exponential:
                yield self.start * (self.end / self.start) ** done
            else:
                yield self.start + (self.end - self.start) * done


@MODULATORS.add("spike")
@dataclass(frozen=True, slots=True)
class Spike:
    """`factor` during [at_s, at_s + duration_s), 1 otherwise; again every `period_s` where given."""

    at_s: float
    duration_s: float
    factor: float
    period_s: float | None = None

    def __post_init__(self) -> None:
        number("at_s", self.at_s, low=0)
        number("duration_s", self.duration_s, low=0, above=True)
        number("factor", self.factor, low=0)
        if self.period_s is not None:
            number("period_s", self.period_s, low=self.at_s + self.duration_s)

    def factors(self, random: np.random.Generator, cell_s: float, cells: int) -> Iterator[Array]:
        """See `Modulator`; draws nothing."""
        for t in _middles(cell_s, cells):
            since = (t if self.period_s is None else t % self.period_s) - self.at_s
            yield np.where((since >= 0) & (since < self.duration_s), float(self.factor), 1.0)


@MODULATORS.add("ou")
@dataclass(frozen=True, slots=True)
class OrnsteinUhlenbeck:
    """exp(x − sigma²/2) with x a stationary Ornstein–Uhlenbeck process: standard deviation `sigma`, memory `tau_s`.

    A lognormal Cox process: as in chat traffic, the index of dispersion grows with the window of counting.
    """

    sigma: float
    tau_s: float

    def __post_init__(self) -> None:
        number("sigma", self.sigma, low=0)
        number("tau_s", self.tau_s, low=0, above=True)

    def factors(self, random: np.random.Generator, cell_s: float, cells: int) -> Iterator[Array]:
        """See `Modulator`; one uniform a cell, sampled exactly at the cells' borders."""
        for x in ar1(random, self.tau_s / cell_s, cells):
            yield np.exp(self.sigma * x - self.sigma**2 / 2)


@MODULATORS.add("markov")
@dataclass(frozen=True, slots=True)
class Markov:
    """Markov-modulated (MMPP): level `factors[i]` for an exponential time of mean `mean_s[i]`, then another state.

    The next state is drawn evenly from the others; with two states they alternate. It starts in state 0 or, with
    `stationary`, in a state picked by its share of time.
    """

    levels: Any
    mean_s: Any
    stationary: bool = True

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.mean_s) or len(self.levels) < 2:
            raise ConfigError(
                f"levels: got {len(self.levels)} for {len(self.mean_s)} mean_s, expected >= 2 pairs"
            )
        for i, (level, mean) in enumerate(zip(self.levels, self.mean_s, strict=True)):
            number(f"levels[{i}]", level, low=0)
            number(f"mean_s[{i}]", mean, low=0, above=True)

    def factors(self, random: np.random.Generator, cell_s: float, cells: int) -> Iterator[Array]:
        """See `Modulator`; three uniforms a sojourn."""
        return _cells_of(self._sojourns(random), cell_s, cells)

    def _sojourns(self, random: np.random.Generator) -> Iterator[tuple[float, float]]:
        shares = np.cumsum(self.mean_s) / np.sum(self.mean_s)
        state = int(np.searchsorted(shares, random.random(), side="right")) if self.stationary else 0
        while True:
            hold, jump = random.random(2)
            yield self.levels[state], -self.mean_s[state] * float(np.log1p(-hold))
            other = int(jump * (len(self.levels) - 1))
            state = other + (other >= state)


@MODULATORS.add("on-off")
@dataclass(frozen=True, slots=True)
class OnOff:
    """Factor 1/(share of ON time) while ON and 0 while OFF, so that the mean rate stays the process's own.

    `on_s`, `off_s`: laws of the two durations in seconds. It starts OFF or ON by their share of time.
    """

    on_s: Any
    off_s: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "on_s", law(self.on_s, "on_s"))
        object.__setattr__(self, "off_s", law(self.off_s, "off_s"))
        if self.on_s.mean <= 0:
            raise ConfigError("on_s: got a law of mean 0, expected a positive mean")

    def factors(self, random: np.random.Generator, cell_s: float, cells: int) -> Iterator[Array]:
        """See `Modulator`; one uniform a period."""
        return _cells_of(self._sojourns(random), cell_s, cells)

    def _sojourns(self, random: np.random.Generator) -> Iterator[tuple[float, float]]:
        share = self.on_s.mean / (self.on_s.mean + self.off_s.mean)
        on = bool(random.random() < share)
        while True:
            which = self.on_s if on else self.off_s
            yield (1.0 / share if on else 0.0), float(which.ppf(random.random(1))[0])
            on = not on


def _cells_of(sojourns: Iterator[tuple[float, float]], cell_s: float, cells: int) -> Iterator[Array]:
    """Average level in each cell of a piecewise-constant path given as (level, seconds)."""
    level, left = next(sojourns)
    while True:
        block = np.empty(cells)
        for k in range(cells):
            area, room = 0.0, cell_s
            while left < room:
                area += level * left
                room -= left
                level, left = next(sojourns)
            left -= room
            block[k] = (area + level * room) / cell_s
        yield block
