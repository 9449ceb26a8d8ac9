"""The highest rate one replica sustains: bracketing and bisection, replicated until the answer is tight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, inf, sqrt
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from .plan_probe import Probe, at_rate, probe

if TYPE_CHECKING:
    from stepline.traces.trace import Trace

    from ..report.slo import Slo
    from .setup import Setup

STEP = 1.5
"""Factor between two rates while the bracket is sought."""

START_FRAC = 0.25
"""First rate as a share of the bound: under latency objectives engines reach 20-40 % of the physical floor's rate."""


LOOSE_FRAC = 0.15
"""Relative half-width that an interval must have even where a wider one tells how many replicas are needed."""

LEAST_COARSE = 200
"""Fewer requests than this say too little of a tail to seek a bracket by."""

COARSE_WIDTH = 0.15
"""Relative width of the bracket that is sought first, with few requests a look."""

LOOKED = ("good_frac", "ttft_p99", "tpot_p99")
"""What is kept of each look at a rate, for curves over it."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How finely to look: requests in a probe (of the first ones, which only seek the bracket, a share `coarse_frac`),
    relative width of the last bracket, and how many replications at least and at most. They stop when the
    relative half-width of the mean's 95 % interval is `interval_frac`, or `LOOSE_FRAC` where that tells how many replicas
    the load needs."""

    requests: int = 4000
    bracket_frac: float = 0.04
    interval_frac: float = 0.03
    coarse_frac: float = 0.25
    least: int = 2
    most: int = 5

    @property
    def coarse_requests(self) -> int:
        """Requests in a probe that only seeks the bracket; 0: a full probe is small enough for that."""
        few = round(self.coarse_frac * self.requests)
        return few if few >= LEAST_COARSE else 0


@dataclass(frozen=True, slots=True)
class Capacity:
    """Rates per second of one replica: mean over replications and its 95 % interval (Student's t).

    `limit`: what fails just above. `figures`: means over the replications' highest carried loads; `at_load`: those of
    one replica under its share of the planned load. `probes`, `requests`: simulated in all. Rate 0: not even the
    least load that was tried meets the objectives. `looks`: every rate that was tried {rate_per_s, ok, good_frac,
    ttft_p99, tpot_p99}.
    """

    rate_per_s: float
    low_per_s: float
    high_per_s: float
    replications: int
    limit: str
    figures: dict[str, float]
    at_load: dict[str, float]
    probes: int
    requests: int
    looks: tuple[dict[str, float], ...] = ()


class Search:
    """Looks for the highest rate at which `look(rate)` is ok, on one sample of the load."""

    def __init__(self, look: Callable[[float], Probe], ceiling: float, floor: float) -> None:
        self.look = look
        self.ceiling, self.floor = ceiling, floor
        self.best: Probe | None = None
        self.limit = ""

    def ok(self, rate: float) -> bool:
        """Probe a rate; remember the highest carried one and what fails above it."""
        seen = self.look(rate)
        if seen.ok:
            self.best = seen
        else:
            self.limit = seen.why_not or ""
        return seen.ok

    def run(self, guess: float, step: float, width: float) -> float:
        """The middle of a bracket of relative `width` around the highest carried rate; 0 if none is carried."""
        low, high = self._bracket(min(guess, self.ceiling), step)
        while low and high / low > 1 + width:
            middle = sqrt(low * high)
            low, high = (middle, high) if self.ok(middle) else (low, middle)
        return sqrt(low * high)

    def _bracket(self, rate: float, step: float) -> tuple[float, float]:
        if self.ok(rate):
            while rate < self.ceiling:
                above = min(rate * step, self.ceiling)
                if not self.ok(above):
                    return rate, above
                rate, step = above, step * step  # bounds are known to be near: grow faster only when far off
            return rate, rate
        while rate > self.floor:
            below = rate / step
            if self.ok(below):
                return below, rate
            rate, step = below, step * step
        return 0.0, rate


def capacity(
    setup: Setup, trace: Trace, slo: Slo | None, bound_per_s: float, load_per_s: float, effort: Effort
) -> Capacity:
    """The sustainable rate of one replica of a setup under loads like `trace`.

    `bound_per_s`: a rate that cannot be exceeded (inf: unknown); `load_per_s`: what a fleet of such replicas is to carry.
    Each replication is a sample of the trace of its own, on which all rates are probed (common random numbers), so a
    probe differs from the next by the rate alone.
    """
    ceiling = bound_per_s if bound_per_s < inf else 1e6
    guess, step = (START_FRAC * bound_per_s if bound_per_s < inf else 1.0), STEP
    probes = requests = 0
    rates: list[float] = []
    bests: list[dict[str, float]] = []
    limits: list[str] = []
    looks: list[dict[str, float]] = []

    def glance(rate: float, n_requests: int) -> Probe:
        nonlocal probes, requests
        load = at_rate(trace, rate, n_requests, setup.config.seed + len(rates))
        probes, requests = probes + 1, requests + len(load)
        return probe(setup, load, slo)

    def look(rate: float) -> Probe:
        seen = glance(rate, effort.requests)
        looks.append(
            {"rate_per_s": rate, "ok": seen.ok} | {n: seen.figures[n] for n in LOOKED if n in seen.figures}
        )
        return seen

    if effort.coarse_requests:
        coarse = Search(lambda rate: glance(rate, effort.coarse_requests), ceiling, ceiling / 4096)
        if rough := coarse.run(guess, step, COARSE_WIDTH):
            guess, step = rough, 1.0 + 2 * effort.bracket_frac
    while len(rates) < effort.most:
        search = Search(look, ceiling, ceiling / 4096)
        rate = search.run(guess, step, effort.bracket_frac)
        limits.append(search.limit)
        if search.best is not None:
            bests.append(search.best.figures)
        rates.append(rate)
        if not rate or _settled(rates, load_per_s, effort):
            break
        guess, step = fmean(rates), 1.0 + 2 * effort.bracket_frac
    mean = fmean(rates)
    at_load = look(load_per_s / ceil(load_per_s / mean)).figures if mean else {}
    low, high = interval(rates)
    figures = {k: fmean([b[k] for b in bests if k in b]) for k in (bests[0] if bests else ())}
    limit = max(sorted(set(limits)), key=limits.count)
    return Capacity(
        mean, low, high, len(rates), limit or "the bound", figures, at_load, probes, requests, tuple(looks)
    )


def _settled(rates: list[float], load_per_s: float, effort: Effort) -> bool:
    if len(rates) < effort.least:
        return False
    low, high = interval(rates)
    half = (high - low) / 2 / fmean(rates)
    if half <= effort.interval_frac:
        return True
    return half <= LOOSE_FRAC and low > 0 and ceil(load_per_s / low) == ceil(load_per_s / high)


def interval(rates: list[float]) -> tuple[float, float]:
    """95 % interval of the mean of a few replications (Student's t); open above for a single one that is not 0."""
    if len(rates) < 2:
        return (0.0, 0.0) if rates == [0.0] else (0.0, inf)
    from scipy.special import stdtrit

    half = float(stdtrit(len(rates) - 1, 0.975)) * stdev(rates) / sqrt(len(rates))
    return max(0.0, fmean(rates) - half), fmean(rates) + half


def single(setup: Setup) -> Setup:
    """The setup with its first replica alone."""
    cluster = replace(setup.cluster, replicas=setup.cluster.replicas[:1])
    return replace(setup, cluster=cluster)
