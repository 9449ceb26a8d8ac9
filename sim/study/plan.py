"""How many GPUs, which, set up how, at what price: the cheapest way to carry a load under objectives."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from heapq import heapify, heappop, heappush
from math import ceil, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import CalibrationError, ConfigError
from stepline.traces.wording import counted

from .config import FLEET_TEXTS, flag
from .executors import Executor, InProcess
from .plan_bounds import bounds, demand_of
from .plan_capacity import Capacity, Effort
from .plan_money import Ledger, mark_pareto
from .plan_probe import mean_rate
from .plan_tasks import CapacityTask, FleetTask, run_task, save_load, slo_of
from .plan_types import Candidate, Fleet, PlanProgress, PlanResult, Row
from .prices import Prices, read_prices
from .run import loaded
from .setup import check_names, resolve

if TYPE_CHECKING:
    from stepline.traces.trace import Trace

    from .config import RunConfig

WAVE = 4
"""Candidates that are simulated between two looks at what can still win; fixed, so that the plan does not depend on
the number of workers."""

POOLING = 1.25
"""A fleet behind a good router may carry this much more per replica than one replica alone: smaller fleets than that
are not tried."""

LEAST_REQUESTS = 100
LOAD_FACTORS = (0.5, 0.8, 0.9, 1.1, 1.25, 1.5, 2.0)

OnProgress = Callable[[PlanProgress], None]


def plan(
    trace: Trace | str | Path,
    configs: Mapping[str, RunConfig],
    *,
    max_replicas: int = 64,
    prices: Prices | None = None,
    effort: Effort | None = None,
    max_price_factor: float = 4.0,
    calibration_draws: int = 0,
    executor: Executor | None = None,
    on_progress: OnProgress | None = None,
) -> PlanResult:
    """Find the cheapest of `configs` (by label) for the trace's load under their objectives (`slo`).

    For each that its bounds leave in the race: the highest rate one replica sustains. Then fleets of the best ones are
    simulated under the whole load, the cheapest first, until one carries it. `max_price_factor` (>= 1): candidates
    whose bounds say that they cost more than so many times the cheapest are left out. `calibration_draws`: how often
    the rates of the three best are found again with other constants that the calibration's data would allow.

    Raises:
        InputError: nothing to plan, a wrong trace, objectives that differ between configurations.
    """
    began = time.perf_counter()
    first = _check(configs, max_price_factor)
    load = loaded(trace, first)
    if len(load) < LEAST_REQUESTS or mean_rate(load) == inf:
        raise ConfigError(
            f"--trace: {counted(len(load), 'request')}, a plan needs at least {LEAST_REQUESTS} over some time"
        )
    with tempfile.TemporaryDirectory(prefix="stepline-plan-") as directory:
        planner = _Planner(
            load=load,
            path=save_load(load, directory),
            ledger=Ledger.of(load, prices or read_prices()),
            executor=executor or InProcess(),
            effort=effort or Effort(),
            max_replicas=max_replicas,
            tell=on_progress or (lambda _: None),
        )
        racers, out = planner.enter(configs)
        rows = planner.race(racers, max_price_factor)
        ranked = mark_pareto(_ranked([*rows, *out]))
        winner, fleets = planner.fleets(ranked, {r.candidate.label: r for r in racers})
        draws = planner.draws(ranked, {r.candidate.label: r for r in racers}, calibration_draws)
    ledger = planner.ledger
    return PlanResult(
        load_per_s=ledger.load_per_s,
        tokens_per_request=ledger.tokens_per_request,
        output_tokens_per_request=ledger.output_tokens_per_request,
        slo=first.slo,
        rows=tuple(ranked),
        winner=winner,
        fleets=tuple(fleets),
        load_sensitivity=ledger.at_other_loads(ranked, LOAD_FACTORS, max_replicas),
        cost_sensitivity=draws,
        settings={
            "max_replicas": max_replicas,
            "max_price_factor": max_price_factor,
            "seed": first.seed,
            "pooling": POOLING,
        },
        effort=asdict(planner.effort),
        wall_s=time.perf_counter() - began,
    )


def _check(configs: Mapping[str, RunConfig], max_price_factor: float) -> RunConfig:
    if not max_price_factor >= 1:
        raise ConfigError(f"--max-price-factor: got {max_price_factor}, expected a number >= 1")
    if not configs:
        raise ConfigError("plan: got no configurations, expected at least one")
    first = next(iter(configs.values()))
    for name in ("slo", "seed", "rate_scale", "rate_scale_mode", "spread_quantum"):
        values = {getattr(c, name) for c in configs.values()}
        if len(values) > 1:
            raise ConfigError(
                f"plan: {name} differs between configurations ({values}), expected one load and one SLO"
            )
    for label, config in configs.items():
        if config.replay != "open" or config.max_concurrency is not None:
            raise ConfigError(f"plan: {label}: closed loops have no rate to plan for, expected --replay open")
        for name in FLEET_TEXTS:
            if getattr(config, name) is not None:
                raise ConfigError(f"plan: {label}: fleets of equal replicas only, expected no {flag(name)}")
    return first


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Cheapest for the load first; pruned ones by their bound; infeasible ones last."""
    order = {"simulated": 0, "pruned": 1, "infeasible": 2}

    def key(row: Row) -> tuple[Any, ...]:
        price = inf if row.usd_per_hour is None else row.usd_per_hour
        return (
            order[row.status],
            row.replicas is None,
            price,
            row.gpus or 0,
            -(row.rate_per_s or 0),
            row.label,
        )

    return sorted(rows, key=key)


@dataclass(frozen=True, slots=True, eq=False)
class _Racer:
    """A candidate that might win: its settings, bound, and the best that its bound would allow."""

    candidate: Candidate
    config: RunConfig
    gpu: Any
    bound_per_s: float
    least_usd: float


@dataclass(slots=True, eq=False)
class _Planner:
    load: Trace
    path: str
    ledger: Ledger
    executor: Executor
    effort: Effort
    max_replicas: int
    tell: OnProgress

    def enter(self, configs: Mapping[str, RunConfig]) -> tuple[list[_Racer], list[Row]]:
        """Those that can carry the load as far as bounds tell, the cheapest bound first; rows of the others."""
        racers, out = [], []
        demands: dict[bool, Any] = {}
        for label, config in configs.items():
            candidate = Candidate(label, replace(config, replicas=1))
            check_names(candidate.config)
            try:
                setup = resolve(candidate.config)
            except (ConfigError, CalibrationError) as error:
                out.append(self._out(candidate, " ".join(str(error).split())))
                continue
            spec = setup.cluster.replicas[0]
            caching = spec.eviction is not None
            if caching not in demands:
                demands[caching] = demand_of(self.load, caching=caching)
            found = bounds(spec, demands[caching], slo_of(config))
            needed = ceil(self.ledger.load_per_s / (found.rate_per_s * POOLING))
            if found.misses or needed > self.max_replicas:
                why = (
                    found.misses
                    or f"needs at least {counted(needed, 'replica')}, --max-replicas is {self.max_replicas}"
                )
                out.append(self._out(candidate, why, found.rate_per_s))
                continue
            least = self.ledger.least_usd(spec, max(1, needed), found.rate_per_s, config)
            racers.append(_Racer(candidate, candidate.config, spec.gpu, found.rate_per_s, least))
        return sorted(racers, key=lambda r: (r.least_usd, r.candidate.label)), out

    def _out(self, candidate: Candidate, why: str, bound: float | None = None) -> Row:
        config = candidate.config
        return Row(
            candidate.label,
            _settings(config),
            config.gpus_per_replica,
            "infeasible",
            why,
            bound_per_s=bound,
        )

    def race(self, racers: list[_Racer], factor: float) -> list[Row]:
        """Rates of all racers that can still be within `factor` of the best price."""
        rows: dict[str, Row] = {}
        left = list(racers)
        while left:
            wave, left = left[:WAVE], left[WAVE:]
            tasks = [(r.candidate.label, self._task(r, r.bound_per_s, self.effort)) for r in wave]
            by_label = {r.candidate.label: r for r in wave}
            for outcome in self.executor.run(run_task, tasks):
                racer = by_label[outcome.key]
                rows[outcome.key] = self._row(racer, outcome.value, outcome.error)
                self._tell("capacity", len(rows), len(racers), rows.values())
            left = self._prune(left, rows, factor)
            self._tell("capacity", len(rows), len(racers), rows.values())
        return [rows[r.candidate.label] for r in racers]

    def _task(self, racer: _Racer, bound: float, effort: Effort, draw: int | None = None) -> CapacityTask:
        return CapacityTask(racer.config, self.path, bound, self.ledger.load_per_s, effort, draw)

    def _prune(self, left: list[_Racer], rows: dict[str, Row], factor: float) -> list[_Racer]:
        """Leave out those that cost more than `factor` times the best simulated one even at their bounds."""
        kept = []
        best, label = min([(self.ledger.sure_usd(row, POOLING), row.label) for row in rows.values()])
        for racer in left:
            if racer.least_usd <= factor * best:
                kept.append(racer)
                continue
            rows[racer.candidate.label] = Row(
                racer.candidate.label,
                _settings(racer.config),
                racer.config.gpus_per_replica,
                "pruned",
                f"costs at least ${racer.least_usd:.2f}/h, {racer.least_usd / best:.1f} times {label}",
                bound_per_s=racer.bound_per_s,
            )
        return kept

    def _row(self, racer: _Racer, found: Capacity | None, error: str | None) -> Row:
        config = racer.config
        base = Row(
            racer.candidate.label, _settings(config), config.gpus_per_replica, "simulated",
            bound_per_s=racer.bound_per_s,
        )  # fmt: skip
        if found is None:
            return replace(base, status="infeasible", why=error or "failed")
        return self.ledger.priced(base, found, racer.gpu, config, self.max_replicas)

    # -- fleets -----------------------------------------------------------------------------------------------------

    def fleets(self, ranked: Sequence[Row], racers: Mapping[str, _Racer]) -> tuple[Fleet | None, list[Fleet]]:
        """The cheapest fleet that carries the whole load in simulation, and all that were tried."""
        queue = []
        for row in ranked:
            if row.rate_per_s:
                best = min(row.high_per_s or inf, row.bound_per_s or inf) * POOLING
                n = max(1, ceil(self.ledger.load_per_s / best)) if best < inf else 1
                queue.append(self._entry(row, racers[row.label], n))
        heapify(queue)
        tried: list[Fleet] = []
        while queue:
            wave = [heappop(queue) for _ in range(min(WAVE // 2, len(queue)))]
            tasks = [
                (str(i), FleetTask(replace(racers[row.label].config, replicas=n), self.path))
                for i, (*_, n, row) in enumerate(wave)
            ]
            probes = {o.key: o for o in self.executor.run(run_task, tasks)}
            for i, (*_, n, row) in enumerate(wave):
                outcome = probes[str(i)]
                fleet = self._fleet(row, racers[row.label], n, outcome.value, outcome.error)
                tried.append(fleet)
                if fleet.ok:
                    return fleet, tried
                if n < self.max_replicas and outcome.error is None:
                    heappush(queue, self._entry(row, racers[row.label], n + 1))
            self.tell(
                PlanProgress(
                    "fleets", len(tried), len(tried) + len(queue), f"{tried[-1].label} × {tried[-1].replicas}"
                )
            )
        return None, tried

    def _entry(self, row: Row, racer: _Racer, n: int) -> tuple[float, int, str, int, Row]:
        price = self.ledger.usd_per_hour(racer.gpu, racer.config, n, row.at_load.get("busy_frac", 1.0))
        return (inf if price is None else price, n * row.gpus_per_replica, row.label, n, row)

    def _fleet(self, row: Row, racer: _Racer, n: int, found: Any, error: str | None) -> Fleet:
        gpus = n * row.gpus_per_replica
        if found is None:
            return Fleet(row.label, n, gpus, None, False, error, {})
        price = self.ledger.usd_per_hour(racer.gpu, racer.config, n, found.figures["busy_frac"])
        figures = {
            **found.figures,
            **self.ledger.per_million(price, racer.gpu, gpus, found.figures["busy_frac"]),
        }
        return Fleet(row.label, n, gpus, price, found.ok, found.why_not, figures)

    # -- what is not known ------------------------------------------------------------------------------------------

    def draws(self, ranked: Sequence[Row], racers: Mapping[str, _Racer], n: int) -> Any:
        """Rates of the three best candidates under other draws of the calibration."""
        import pandas as pd

        best = [row for row in ranked if row.rate_per_s][:3] if n else []
        effort = replace(self.effort, most=1, least=1)
        tasks = [
            (f"{row.label}\n{i}", self._task(racers[row.label], inf, effort, draw=i))
            for row in best
            for i in range(n)
        ]
        rates: dict[str, list[float]] = {row.label: [] for row in best}
        for done, outcome in enumerate(self.executor.run(run_task, tasks), 1):
            if outcome.error is not None:
                raise ConfigError(f"--calibration-draws: {outcome.error}")
            rates[outcome.key.split("\n")[0]].append(outcome.value.rate_per_s)
            self.tell(PlanProgress("calibration", done, len(tasks), ""))
        rows = [
            {
                "label": row.label,
                "rate_per_s": row.rate_per_s,
                "lowest_per_s": min(rates[row.label]),
                "highest_per_s": max(rates[row.label]),
                "draws": n,
                "most_replicas": ceil(self.ledger.load_per_s / low)
                if (low := min(rates[row.label]))
                else None,
            }
            for row in best
        ]
        names = ["label", "rate_per_s", "lowest_per_s", "highest_per_s", "draws", "most_replicas"]
        return pd.DataFrame(rows, columns=names)

    def _tell(self, stage: str, done: int, total: int, rows: Any) -> None:
        priced = [row for row in rows if row.usd_per_hour is not None]
        best = min(priced, key=lambda row: (row.usd_per_hour, row.label), default=None)
        pruned = sum(row.status == "pruned" for row in rows)
        note = f"{pruned} pruned" + (
            f", best {best.label} × {best.replicas} at ${best.usd_per_hour:.2f}/h" if best else ""
        )
        self.tell(PlanProgress(stage, done, total, note))


def _settings(config: RunConfig) -> dict[str, Any]:
    names = ("model", "gpu", "tensor_parallel_size", "policy", "routing", "engine", "dtype", "kv_cache_dtype")
    spread = {
        n: getattr(config, n)
        for n in ("pipeline_parallel_size", "data_parallel_size")
        if getattr(config, n) > 1
    }
    return {**{name: getattr(config, name) for name in names}, **spread}
