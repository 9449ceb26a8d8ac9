"""One-dimensional laws by their quantile functions: gaps, lengths, think times, turns all use the same table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, floor, log, sqrt
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .registry import Registry, ascending, number

Array = NDArray[np.float64]
LAWS = Registry("law")
# Largest uniform used: exp/gamma tails stay finite, and u = 1 never occurs in [0, 1) anyway.
_U_MAX = 1.0 - 2.0**-53


class Law(Protocol):
    """A distribution given by its quantile function."""

    def ppf(self, u: Array) -> Array:
        """Quantiles at `u` (any shape, values in [0, 1)), float64."""
        ...

    @property
    def mean(self) -> float:
        """Expected value."""
        ...


def law(spec: Any, where: str = "law") -> Law:
    """The law that `spec` describes; a bare number is a constant.

    >>> law({"kind": "uniform", "low": 2, "high": 4}).mean
    3.0
    """
    if isinstance(spec, int | float) and not isinstance(spec, bool):
        spec = {"kind": "constant", "value": spec}
    built: Law = LAWS.build(spec, where)
    return built


@LAWS.add("constant")
@dataclass(frozen=True, slots=True)
class Constant:
    """Always `value`."""

    value: float

    def __post_init__(self) -> None:
        number("value", self.value, low=0)

    def ppf(self, u: Array) -> Array:
        """`value`, in the shape of `u`."""
        return np.full(np.shape(u), float(self.value))

    @property
    def mean(self) -> float:
        """`value`."""
        return float(self.value)


@LAWS.add("uniform")
@dataclass(frozen=True, slots=True)
class Uniform:
    """Evenly spread between `low` and `high`."""

    low: float
    high: float

    def __post_init__(self) -> None:
        number("low", self.low, low=0)
        number("high", self.high, low=self.low)

    def ppf(self, u: Array) -> Array:
        """low + u·(high − low)."""
        return self.low + np.asarray(u) * (self.high - self.low)

    @property
    def mean(self) -> float:
        """(low + high)/2."""
        return (self.low + self.high) / 2


@LAWS.add("exponential")
@dataclass(frozen=True, slots=True)
class Exponential:
    """Memoryless with the given mean: gaps of a Poisson process."""

    mean: float = 1.0

    def __post_init__(self) -> None:
        number("mean", self.mean, low=0, above=True)

    def ppf(self, u: Array) -> Array:
        """−mean·ln(1 − u)."""
        return -self.mean * np.log1p(-np.minimum(u, _U_MAX))


@LAWS.add("gamma")
@dataclass(frozen=True, slots=True)
class Gamma:
    """Gamma with `shape` (burstier than Poisson below 1; squared coefficient of variation 1/shape) and `mean`."""

    shape: float
    mean: float = 1.0

    def __post_init__(self) -> None:
        number("shape", self.shape, low=0, above=True)
        number("mean", self.mean, low=0, above=True)

    def ppf(self, u: Array) -> Array:
        """Inverse of the regularised lower incomplete gamma function, scaled to `mean`."""
        from scipy.special import gammaincinv

        return np.asarray(gammaincinv(self.shape, np.minimum(u, _U_MAX))) * (self.mean / self.shape)


@LAWS.add("weibull")
@dataclass(frozen=True, slots=True)
class Weibull:
    """Weibull with `shape` (heavy-tailed below 1) and `mean`."""

    shape: float
    mean: float = 1.0

    def __post_init__(self) -> None:
        number("shape", self.shape, low=0, above=True)
        number("mean", self.mean, low=0, above=True)

    def ppf(self, u: Array) -> Array:
        """scale·(−ln(1 − u))^(1/shape), scale = mean/Γ(1 + 1/shape)."""
        from scipy.special import gamma

        scale = self.mean / float(gamma(1.0 + 1.0 / self.shape))
        return scale * (-np.log1p(-np.minimum(u, _U_MAX))) ** (1.0 / self.shape)


@LAWS.add("lognormal")
@dataclass(frozen=True, slots=True)
class LogNormal:
    """exp of a normal with standard deviation `sigma`, clipped to [low, high] where those are given."""

    median: float
    sigma: float
    low: float = 0.0
    high: float | None = None

    def __post_init__(self) -> None:
        number("median", self.median, low=0, above=True)
        number("sigma", self.sigma, low=0)
        number("low", self.low, low=0)
        if self.high is not None:
            number("high", self.high, low=self.low)

    def ppf(self, u: Array) -> Array:
        """median·exp(sigma·Φ⁻¹(u)), clipped."""
        return np.clip(self.median * np.exp(self.sigma * normal_ppf(u)), self.low, self.high)

    @property
    def mean(self) -> float:
        """Mean after clipping, by midpoint rule over 10⁵ quantiles."""
        return midpoint_mean(self)


@LAWS.add("normal")
@dataclass(frozen=True, slots=True)
class ClippedNormal:
    """Normal around `centre` with standard deviation `spread`, values outside [low, high] moved to the border."""

    centre: float
    spread: float
    low: float = 0.0
    high: float | None = None

    def __post_init__(self) -> None:
        number("centre", self.centre, low=0)
        number("spread", self.spread, low=0)
        number("low", self.low, low=0)
        if self.high is not None:
            number("high", self.high, low=self.low)

    def ppf(self, u: Array) -> Array:
        """centre + spread·Φ⁻¹(u), clipped."""
        return np.clip(self.centre + self.spread * normal_ppf(u), self.low, self.high)

    @property
    def mean(self) -> float:
        """Mean after clipping, by midpoint rule over 10⁵ quantiles."""
        return midpoint_mean(self)


@LAWS.add("geometric")
@dataclass(frozen=True, slots=True)
class Geometric:
    """1, 2, 3, ...: how many turns if each is followed by another with chance `again`."""

    again: float

    def __post_init__(self) -> None:
        number("again", self.again, low=0)
        if self.again >= 1:
            raise ConfigError(f"again: got {self.again!r}, expected a probability below 1")

    def ppf(self, u: Array) -> Array:
        """1 + ⌊ln(1 − u)/ln(again)⌋."""
        if self.again == 0:
            return np.ones(np.shape(u))
        return 1.0 + np.floor(np.log1p(-np.minimum(u, _U_MAX)) / log(self.again))

    @property
    def mean(self) -> float:
        """1/(1 − again)."""
        return 1.0 / (1.0 - self.again)


@LAWS.add("quantiles")
@dataclass(frozen=True, slots=True)
class Quantiles:
    """An empirical law: value `q[i]` at probability `p[i]`, linear in between (p from 0 to 1)."""

    p: Any
    q: Any

    def __post_init__(self) -> None:
        ascending("p", self.p, strict=True)
        ascending("q", self.q, size=len(self.p))
        if self.p[0] != 0 or self.p[-1] != 1:
            raise ConfigError(f"p: got {self.p[0]}..{self.p[-1]}, expected probabilities from 0 to 1")
        object.__setattr__(self, "p", np.asarray(self.p, dtype=np.float64))
        object.__setattr__(self, "q", np.asarray(self.q, dtype=np.float64))

    def ppf(self, u: Array) -> Array:
        """Linear interpolation in the table."""
        return np.asarray(np.interp(u, self.p, self.q))

    @property
    def mean(self) -> float:
        """Exact mean of the piecewise-uniform law, ∫ q dp."""
        return float(np.sum(np.diff(self.p) * (self.q[1:] + self.q[:-1])) / 2)


@LAWS.add("mixture")
@dataclass(frozen=True, slots=True)
class Mixture:
    """One of several laws, `weights` proportional to their probability; one uniform picks law and quantile."""

    weights: Any
    laws: Any

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.laws) or not self.laws:
            raise ConfigError(
                f"weights: got {len(self.weights)} for {len(self.laws)} laws, expected one each"
            )
        for i, weight in enumerate(self.weights):
            number(f"weights[{i}]", weight, low=0, above=True)
        parts = np.asarray(self.weights, dtype=np.float64)
        object.__setattr__(self, "weights", parts / parts.sum())
        object.__setattr__(self, "laws", tuple(law(s, f"laws[{i}]") for i, s in enumerate(self.laws)))

    def ppf(self, u: Array) -> Array:
        """Not a quantile function but a draw of the mixture: u's leading part picks, the rest is the quantile."""
        u = np.asarray(u)
        edges = np.concatenate([[0.0], np.cumsum(self.weights)])
        which = np.clip(np.searchsorted(edges, u, side="right") - 1, 0, len(self.laws) - 1)
        rest = np.clip((u - edges[which]) / self.weights[which], 0.0, _U_MAX)
        out = np.empty(u.shape)
        for i, part in enumerate(self.laws):
            out[which == i] = part.ppf(rest[which == i])
        return out

    @property
    def mean(self) -> float:
        """Weighted mean of the parts."""
        return float(sum(w * part.mean for w, part in zip(self.weights, self.laws, strict=True)))


@dataclass(frozen=True, slots=True)
class Scaled:
    """Another law times `factor`."""

    base: Law
    factor: float

    def ppf(self, u: Array) -> Array:
        """Quantiles of the base law times the factor."""
        return self.base.ppf(u) * self.factor

    @property
    def mean(self) -> float:
        """Mean of the base law times the factor."""
        return self.base.mean * self.factor


class Normal:
    """The standard normal law; not for profiles (its values may be negative), but for copulas."""

    mean = 0.0

    def ppf(self, u: Array) -> Array:
        """Φ⁻¹(u)."""
        return normal_ppf(u)


NORMAL = Normal()


def normal_ppf(u: Array) -> Array:
    """Standard normal quantiles at `u`; u = 0 is taken as 2⁻⁵⁴."""
    from scipy.special import ndtri

    return np.asarray(ndtri(np.clip(u, 2.0**-54, _U_MAX)))


def normal_cdf(x: Array) -> Array:
    """Standard normal distribution function."""
    from scipy.special import ndtr

    return np.asarray(ndtr(x), dtype=np.float64)


def ar1(random: np.random.Generator, memory: float, block: int) -> Iterator[Array]:
    """Endless blocks of a stationary AR(1) of variance 1: x[k+1] = a·x[k] + √(1 − a²)·z, a = exp(−1/memory)."""
    keep = exp(-1.0 / memory)
    kick = sqrt(1.0 - keep * keep)
    x = float(normal_ppf(random.random(1))[0])
    while True:
        path = []
        for z in (kick * normal_ppf(random.random(block))).tolist():
            path.append(x)
            x = keep * x + z
        yield np.array(path)


def midpoint_mean(any_law: Law, points: int = 100_000) -> float:
    """Mean of a law without a closed form: its quantile function averaged over `points` midpoints."""
    return float(np.mean(any_law.ppf((np.arange(points) + 0.5) / points)))


def whole(values: Array, low: int = 1) -> NDArray[np.int64]:
    """Lengths: the nearest integers (halves up), at least `low` (int64)."""
    return np.maximum(np.floor(values + 0.5), low).astype(np.int64)


def whole_number(value: float, low: int = 1) -> int:
    """One length: the nearest integer (halves up), at least `low`."""
    return max(floor(value + 0.5), low)


def seconds(times_us: Any) -> Any:
    """Microseconds (int64) as seconds, by way of the milliseconds a trace file holds, so that reading gives the same."""
    return np.asarray(times_us, dtype=np.int64) / 1000.0 / 1000.0
