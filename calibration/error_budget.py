"""What the remaining error of a validation is made of: each source taken away, or varied, by itself.

    python -m stepline.calibration.error_budget --measured DIR

On the dense runs of one engine profile that the host constants are fitted on (`host_fit.usable`). A row gives the mean
absolute error of mean TPOT and mean TTFT with something changed, and how far the predictions themselves move: what is
far from row one matters, what hardly moves does not. Measurement noise is what repeated runs of one setting differ by.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
from stepline.sim.cost.catalogue import load_engine
from stepline.sim.cost.specs import EngineProfile
from stepline.sim.study.measured import Experiment, chosen, load_measured
from stepline.sim.study.setup import Setup, resolve
from stepline.sim.study.validation_runs import Outcome, run_experiment, settings_for
from stepline.sim.study.validation_scores import NOISE

from .host_fit import DEFAULT_NAMES, STEPS, priced, usable, with_engine

METRICS = ("tpot_mean", "ttft_mean")
SEEDS = 3
Mapper = Callable[..., Iterable[Any]]


@dataclass(frozen=True, slots=True)
class Variant:
    """One change: `engine` replaces the profile (None: as it is); `residual` False drops the kernels' residual layers."""

    name: str
    engine: EngineProfile | None = None
    residual: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """Of one variant: {metric: value}. `error`: mean |predicted / measured - 1|; `moved`: mean |change| of predictions."""

    name: str
    error: dict[str, float]
    moved: dict[str, float]


def _zeroed(engine: EngineProfile, names: Iterable[str]) -> EngineProfile:
    """The profile without these seconds."""
    zeros: dict[str, Any] = dict.fromkeys(names, 0.0)
    return replace(engine, **zeros)


def variants(engine: EngineProfile) -> tuple[Variant, ...]:
    """The changes that are tried, the unchanged profile first."""
    none = _zeroed(engine, (*STEPS, "output_delay_s"))
    parts = {
        "no cost a generated token": ("generated_token_s",),
        "no cost of truncated sampling": ("truncation_per_vocab_s", "truncation_per_logit_s"),
        "no seconds of a step outside kernels": ("step_gpu_s", "tp_step_gpu_s"),
        "no way in and out": tuple(n for n in DEFAULT_NAMES if "output" in n or "ingest" in n),
    }
    without = [Variant(name, _zeroed(engine, some)) for name, some in parts.items()]
    return (
        Variant("as it is"),
        Variant("no host model at all", none),
        *without,
        Variant("kernel forms without residual layers", residual=False),
        Variant("GEMMs and attention as timed in L2", replace(engine, serving_kernels=False)),
    )


def changed(experiment: Experiment, variant: Variant) -> Setup:
    """The run of an experiment under a variant."""
    setup = resolve(settings_for(experiment))
    if variant.engine is not None:
        setup = with_engine(setup, variant.engine)
    if not variant.residual:
        bare = tuple(
            [
                replace(spec, cost_model=priced(spec, spec.engine, residual=False))
                for spec in setup.cluster.replicas
            ]
        )
        setup = replace(setup, cluster=replace(setup.cluster, replicas=bare))
    return setup


def run(experiment: Experiment, variant: Variant) -> Outcome:
    """One experiment under one variant, on the same arrivals as under every other."""
    return run_experiment(experiment, seeds=1, setup=changed(experiment, variant))


def budget(experiments: Sequence[Experiment], engine: EngineProfile, mapper: Mapper = map) -> list[Row]:
    """Rows of all variants, then of other arrivals (statistical replays) and of the measurement's noise."""
    rows: list[Row] = []
    base: dict[tuple[str, int, str], float] = {}
    for variant in variants(engine):
        found = _values(mapper(partial(run, variant=variant), experiments))
        predicted = {key: p for key, (p, _) in found.items()}
        base = base or predicted
        rows.append(
            Row(
                variant.name,
                _means({key: abs(p / m - 1.0) for key, (p, m) in found.items()}),
                _means({key: abs(p / base[key] - 1.0) for key, p in predicted.items()}),
            )
        )
    return [*rows, _other_arrivals(experiments, mapper), _noise()]


def _values(outcomes: Iterable[Outcome]) -> dict[tuple[str, int, str], tuple[float, float]]:
    """{(experiment, stage, metric): (predicted, measured)}."""
    return {
        (outcome.experiment.key, stage.stage, metric): (stage.predicted[metric], stage.measured[metric])
        for outcome in outcomes
        for stage in outcome.stages
        for metric in METRICS
        if metric in stage.predicted and metric in stage.measured
    }


def _means(values: dict[tuple[str, int, str], float]) -> dict[str, float]:
    """Means by metric over experiments, stages averaged first."""
    book: dict[str, dict[str, list[float]]] = {}
    for (key, _, metric), value in values.items():
        book.setdefault(metric, {}).setdefault(key, []).append(value)
    return {m: float(np.mean([np.mean(v) for v in keys.values()])) for m, keys in book.items()}


def _other_arrivals(experiments: Sequence[Experiment], mapper: Mapper) -> Row:
    """Standard deviation of a stage's prediction over arrival seeds, relative to it."""
    drawn = [e for e in experiments if e.replay == "law"]
    spreads = {
        (outcome.experiment.key, stage.stage, metric): stage.spread[metric] / stage.predicted[metric]
        for outcome in mapper(partial(run_experiment, seeds=SEEDS), drawn)
        for stage in outcome.stages
        for metric in METRICS
        if metric in stage.spread and metric in stage.measured
    }
    return Row("other arrivals of the same law", {}, _means(spreads))


def _noise() -> Row:
    return Row("noise of the measurement", {}, {m: NOISE[m.split("_", 1)[0]] for m in METRICS})


def report(rows: Sequence[Row]) -> str:
    """The rows as text, in percent."""
    lines = [f"{'':40} {'TPOT':>6} {'TTFT':>6}   moves: {'TPOT':>6} {'TTFT':>6}"]
    for row in rows:
        cells = [
            f"{100 * book[m]:6.1f}" if m in book else f"{'–':>6}"
            for book in (row.error, row.moved)
            for m in METRICS
        ]
        lines.append(f"{row.name:40} {cells[0]} {cells[1]}          {cells[2]} {cells[3]}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the budget."""
    parser = argparse.ArgumentParser(
        prog="python -m stepline.calibration.error_budget", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--measured", required=True, help="folder of measured runs")
    parser.add_argument("--engine", default="vllm-0.15.1", help="engine profile (vllm-0.15.1)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    args = parser.parse_args(argv)
    experiments = usable(chosen(load_measured(args.measured), ["A", "B"]), args.engine)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        print(report(budget(experiments, load_engine(args.engine), pool.map)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
