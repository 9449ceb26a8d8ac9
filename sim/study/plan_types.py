"""What a plan asks and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from .config import RunConfig


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to set up a replica, by label."""

    label: str
    config: RunConfig


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate in the plan.

    status       "simulated"; "pruned" (its bounds say that it costs too much to matter); "infeasible"
    why          of a status other than simulated; of a simulated one, what fails just above its rate
    replicas     that the load needs by its sustainable rate; None: more than allowed
    pareto       no simulated one is as good in price, TTFT p99 and TPOT p99 at the load and better in one of them
    `figures` at the highest rate of one replica, `at_load` under its share of the planned load; `looks`: what one
    replica did at every rate that was tried.
    """

    label: str
    settings: Mapping[str, Any]
    gpus_per_replica: int
    status: str
    why: str = ""
    bound_per_s: float | None = None
    rate_per_s: float | None = None
    low_per_s: float | None = None
    high_per_s: float | None = None
    replications: int = 0
    replicas: int | None = None
    gpus: int | None = None
    usd_per_hour: float | None = None
    usd_per_million_tokens: float | None = None
    usd_per_million_output_tokens: float | None = None
    kwh_per_million_tokens: float | None = None
    goodput_per_s: float | None = None
    usd_per_million_tokens_full: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    at_load: Mapping[str, float] = field(default_factory=dict)
    pareto: bool = False
    looks: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet that was simulated under the whole load: `ok`, or what failed."""

    label: str
    replicas: int
    gpus: int
    usd_per_hour: float | None
    ok: bool
    why_not: str | None
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PlanResult:
    """A plan.

    `rows`: all candidates, the cheapest for the load first. `winner`: the cheapest fleet that carried the whole load in
    simulation (None: none did within `max_replicas`); `fleets`: every fleet that was tried, in order.
    `load_sensitivity`, `cost_sensitivity`: the best candidate at other loads, and rates of the best candidates under
    other draws of the calibration (empty where not asked for).
    """

    load_per_s: float
    tokens_per_request: float
    output_tokens_per_request: float
    slo: str | None
    rows: tuple[Row, ...]
    winner: Fleet | None
    fleets: tuple[Fleet, ...]
    load_sensitivity: pd.DataFrame
    cost_sensitivity: pd.DataFrame
    settings: Mapping[str, Any]
    effort: Mapping[str, Any]
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PlanProgress:
    """How far a plan is: candidates done of all (pruned ones count), fleets tried, the best so far."""

    stage: str
    done: int
    total: int
    note: str
