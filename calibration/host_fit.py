"""Fits the host constants of an engine profile on measured serving runs, and shows how they carry to unseen models.

    python -m stepline.calibration.host_fit --measured DIR --engine vllm-0.15.1

Kernel constants come from kernel tables and are not touched. What is fitted are the few constants of an engine and
version that no kernel table has: GPU and host seconds of a step outside the model, by TP class (1, more), what
truncated sampling costs, and the way of a request in and out. One set for all models, workloads and loads. Gauss-Newton
with finite differences of whole simulations on common random numbers; residuals are log(predicted / measured) of mean
TPOT and mean TTFT of each stage, weighted by the noise of such a value (1 % and 2 %), every experiment with the weight
of one. Of runs where clients gave up only the TPOT of those who were served teaches. Leave-one-model-out: the
constants are fitted again without a model's runs and applied to them.

`--scan NAME=VALUE,...` prints the errors at some values of one constant instead, TTFT of closed loops among them: whether
a request still joins a step or waits for the next makes that jump, so no slope leads to its best value.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stepline.sim.cluster.spec import ReplicaSpec
from stepline.sim.cost.catalogue import load_engine
from stepline.sim.cost.roofline import RooflineCostModel
from stepline.sim.cost.specs import EngineProfile
from stepline.sim.cost.storing import StoringCostModel
from stepline.sim.cost.work import CostModel
from stepline.sim.study.measured import Experiment, chosen, load_measured
from stepline.sim.study.setup import Setup, resolve
from stepline.sim.study.validation_runs import engine_for, run_experiment, settings_for
from stepline.sim.study.validation_scores import UNSTATED
from stepline.traces.errors import CalibrationError, InputError, nearest

Array = NDArray[np.float64]
Mapper = Callable[..., Iterable[Any]]
"""`map`, or the like of a process pool."""

NOISE = {"tpot_mean": 0.01, "ttft_mean": 0.02, "throughput_output_tokens": 0.01}
"""Relative noise of a stage's value (repeated runs of one setting): the weight of a residual."""

STEPS: dict[str, float] = {
    "step_gpu_s": 1e-4,
    "tp_step_gpu_s": 1e-4,
    "step_host_s": 2e-4,
    "tp_step_host_s": 2e-4,
    "step_host_per_seq_s": 5e-6,
    "prompt_launch_s": 5e-6,
    "truncation_per_vocab_s": 1e-9,
    "truncation_per_logit_s": 2e-11,
    "request_ingest_s": 5e-4,
    "request_ingest_per_token_s": 1e-6,
    "output_per_seq_s": 1e-5,
    "tp_output_delay_s": 5e-4,
    "generated_token_s": 1e-8,
    "kv_layer_copy_s": 2e-5,
    "store_scan_s": 5e-9,
}
"""Constants that can be fitted, with the step of their finite difference."""

GAVE_UP = 0.01
"""Share of clients that gave up beyond which a run teaches nothing (what was aborted when decides its times) but the
TPOT of those who were served."""

QUEUED_STEPS = 20
"""A mean TTFT of more TPOTs than this is a queue, which amplifies any error of capacity: only TPOT teaches there (an
empty server's TTFT is 3 to 6)."""

UNFELT = 1e-6
"""A constant whose whole value changes no time by more than this fraction is not fitted."""

SLACK = 1e-6
"""How far below 0 the solver may go, in log(predicted / measured): so near a bound it would not move at all."""

DEFAULT_NAMES = (
    "step_gpu_s", "tp_step_gpu_s", "truncation_per_vocab_s", "truncation_per_logit_s", "request_ingest_s",
    "output_per_seq_s", "tp_output_delay_s", "generated_token_s", "store_scan_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Points:
    """Residuals of the stages: log(predicted / measured), their weights, and what each belongs to."""

    residual: Array
    weight: Array
    labels: tuple[tuple[str, str, str], ...]  # (experiment, model, metric)


@dataclass(frozen=True, slots=True, eq=False)
class HostFit:
    """Fitted constants, standard errors, the residuals there, and the errors of the left-out models.

    `left_out`: {model: {metric: mean |error|}} of each model predicted by a fit without it.
    """

    engine: str
    names: tuple[str, ...]
    values: Array
    standard_errors: Array
    points: Points
    left_out: Mapping[str, Mapping[str, float]]

    def errors(self) -> dict[str, dict[str, float]]:
        """{model: {metric: mean |error|}} with all runs in the fit."""
        return _errors_by_model(self.points, self.points.residual)


def with_engine(setup: Setup, engine: EngineProfile) -> Setup:
    """The same run on another engine profile: scheduler, clients and the roofline priced with it."""
    replicas = [replace(r, engine=engine, cost_model=priced(r, engine)) for r in setup.cluster.replicas]
    return replace(setup, cluster=replace(setup.cluster, replicas=tuple(replicas)))


def priced(spec: ReplicaSpec, engine: EngineProfile, *, residual: bool = True) -> CostModel:
    """The roofline of a replica on another profile, with the host's memory behind it where it has any.

    Raises:
        CalibrationError: the replica is not priced by the roofline.
    """
    plain = spec.cost_model.calm if isinstance(spec.cost_model, StoringCostModel) else spec.cost_model
    if not isinstance(plain, RooflineCostModel):
        raise CalibrationError(
            f"cost model {type(plain).__name__}: host constants are fitted on the roofline"
        )
    calibration = plain.calibration if residual else plain.calibration.without_residuals()

    def price(profile: EngineProfile) -> RooflineCostModel:
        return RooflineCostModel(
            plain.model,
            plain.gpu,
            calibration,
            tp=plain.tp,
            engine=profile,
            kv_dtype=plain.kv_dtype,
            ep=plain.ep,
        )

    if spec.offloading is None:
        return price(engine)
    return StoringCostModel.of(price, engine, spec.offloading.cpu_blocks(spec), spec.block_size)


def usable(experiments: Iterable[Experiment], engine: str, *, overloaded: bool = False) -> list[Experiment]:
    """Runs on this engine profile that can teach host constants: dense, on calibrated GPUs, where hardly anybody gave up.

    `overloaded`: those where clients gave up, too, of MoE models among them: all seats are full there for minutes.
    """
    kept = []
    for experiment in experiments:
        try:
            fits = engine_for(experiment) == engine and bool(resolve(settings_for(experiment)))
        except InputError:
            continue
        gave_up = any(s.measured.get("failed_fraction", 0.0) > GAVE_UP for s in experiment.stages)
        teaches = overloaded if gave_up else experiment.arch == "dense"
        if fits and teaches and experiment.gpu.startswith("h100"):
            kept.append(experiment)
    return kept


def measure(
    experiment: Experiment, engine: EngineProfile, *, everything: bool = False
) -> list[tuple[str, float]]:
    """(metric, log(predicted / measured)) of the stages of one experiment, one arrival seed; what teaches, or `everything`."""
    setup = with_engine(resolve(settings_for(experiment)), engine)
    outcome = run_experiment(experiment, seeds=1, setup=setup)
    found = []
    for stage in outcome.stages:
        for metric, measured in stage.measured.items():
            name = UNSTATED.get(metric, metric)
            known = name in NOISE and name in stage.predicted
            if known and (everything or _teaches(name, experiment, stage.measured)):
                found.append((name, float(np.log(stage.predicted[name] / measured))))
    return found


def _teaches(metric: str, experiment: Experiment, measured: Mapping[str, float]) -> bool:
    """Whether a metric of a stage says something of the host: TPOT always.

    Not TTFT of a closed loop, which moves in jumps (see `scan`), nor where requests queue (`QUEUED_STEPS`). Throughput
    only of a whole published run: it ends with the last requests, nearly alone, whose steps tell host time a step from
    host time a sequence; elsewhere it is that of the arrivals.
    """
    if metric == "throughput_output_tokens":
        return experiment.replay == "trace"
    return metric == "tpot_mean" or (experiment.replay != "closed" and not _queued(measured))


def _queued(measured: Mapping[str, float]) -> bool:
    return measured.get("ttft_mean", 0.0) > QUEUED_STEPS * measured.get("tpot_mean", math.inf)


def points_of(
    experiments: Sequence[Experiment],
    engine: EngineProfile,
    mapper: Mapper = map,
    *,
    everything: bool = False,
) -> Points:
    """Residuals of all experiments under one profile."""
    residuals: list[float] = []
    weights: list[float] = []
    labels: list[tuple[str, str, str]] = []
    for experiment, rows in zip(
        experiments,
        mapper(partial(measure, engine=engine, everything=everything), experiments),
        strict=True,
    ):
        stages = max(sum(metric == "tpot_mean" for metric, _ in rows), 1)
        for metric, value in rows:
            residuals.append(value)
            weights.append(1.0 / (NOISE[metric] * stages**0.5))
            labels.append((experiment.key, experiment.model, metric))
    return Points(np.array(residuals), np.array(weights), tuple(labels))


def scan(
    experiments: Sequence[Experiment],
    engine: EngineProfile,
    name: str,
    values: Sequence[float],
    *,
    mapper: Mapper = map,
) -> dict[float, dict[str, tuple[float, float]]]:
    """{value of the constant: {metric: (mean, median) of |predicted / measured - 1| over the stages}}."""
    found = {}
    for value in values:
        changed: dict[str, Any] = {name: value}
        points = points_of(experiments, replace(engine, **changed), mapper, everything=True)
        errors = np.abs(np.expm1(points.residual))
        metrics = np.array([metric for _, _, metric in points.labels])
        found[value] = {
            m: (float(errors[metrics == m].mean()), float(np.median(errors[metrics == m])))
            for m in ("tpot_mean", "ttft_mean")
        }
    return found


def fit_host(
    experiments: Sequence[Experiment],
    engine: EngineProfile,
    names: Sequence[str],
    *,
    rounds: int = 2,
    mapper: Mapper = map,
) -> HostFit:
    """Fit `names` (fields of `EngineProfile`, none below 0), starting from the profile as it stands.

    `mapper` runs the simulations of one evaluation, e.g. the `map` of a process pool.

    Raises:
        CalibrationError: no run on this engine, or a constant that cannot be fitted.
    """
    if not experiments:
        raise CalibrationError(f"--engine: got {engine.name!r}, no dense run of the folder was served by it")
    for name in names:
        if name not in STEPS:
            raise CalibrationError(f"--fit: got {name!r}{nearest(name, STEPS)}")
    values = np.array([float(getattr(engine, name)) for name in names])
    steps = np.array([STEPS[name] for name in names])

    def at(x: Array) -> Points:
        return points_of(experiments, replace(engine, **dict(zip(names, x.tolist(), strict=True))), mapper)

    points = at(values)
    jacobian = np.zeros((len(points.residual), len(names)))
    for round_ in range(rounds):
        moved = [at(values + np.eye(len(names))[i] * h) for i, h in enumerate(steps)]
        jacobian = np.column_stack(
            [(p.residual - points.residual) / h for p, h in zip(moved, steps, strict=True)]
        )
        everything = np.ones(len(points.residual), dtype=bool)
        values = np.maximum(values + _solve(jacobian, points, values, everything), 0.0)
        points = at(values)
        cost = float(np.sqrt(np.mean((points.residual * points.weight) ** 2)))
        print(f"round {round_ + 1}: weighted rms {cost:.2f}", file=sys.stderr)
    errors, left_out = _standard_errors(jacobian, points), _leave_out(jacobian, points, values)
    return HostFit(engine.name, tuple(names), values, errors, points, left_out)


def _solve(jacobian: Array, points: Points, values: Array, rows: NDArray[np.bool_]) -> Array:
    """Change of the constants that lowers the weighted residuals of `rows` most, robust, none below 0.

    A constant that moves no residual (host time that never binds) stays as it is.
    """
    from scipy.optimize import least_squares

    scale = np.abs(jacobian[rows]).max(axis=0)
    felt = scale * np.maximum(values, 1e-6) > UNFELT
    change = np.zeros(len(values))
    if not felt.any():
        return change
    a = jacobian[rows][:, felt] * points.weight[rows, None] / scale[felt]
    b = points.residual[rows] * points.weight[rows]
    lowest = -values[felt] * scale[felt] - SLACK
    found = least_squares(
        lambda x: a @ x + b, np.zeros(int(felt.sum())), bounds=(lowest, np.inf), loss="soft_l1", f_scale=2.0
    )
    change[felt] = found.x / scale[felt]
    return change


def _standard_errors(jacobian: Array, points: Points) -> Array:
    a = jacobian * points.weight[:, None]
    spread = float(np.mean((points.residual * points.weight) ** 2))
    return np.asarray(np.sqrt(np.diag(np.linalg.pinv(a.T @ a)) * spread))


def _leave_out(jacobian: Array, points: Points, values: Array) -> dict[str, dict[str, float]]:
    """Errors on each model's runs of the constants fitted without them (linear around the full fit)."""
    models = [model for _, model, _ in points.labels]
    errors: dict[str, dict[str, float]] = {}
    for model in dict.fromkeys(models):
        kept = np.array([m != model for m in models])
        if kept.any():
            change = _solve(jacobian, points, values, kept)
            errors[model] = _errors_by_model(points, points.residual + jacobian @ change)[model]
    return errors


def _errors_by_model(points: Points, residual: Array) -> dict[str, dict[str, float]]:
    """{model: {metric: mean |error|}}, stages averaged per experiment first."""
    book: dict[str, dict[str, dict[str, list[float]]]] = {}
    for (key, model, metric), value in zip(points.labels, np.abs(np.expm1(residual)), strict=True):
        book.setdefault(model, {}).setdefault(metric, {}).setdefault(key, []).append(float(value))
    return {
        model: {m: float(np.mean([np.mean(v) for v in keys.values()])) for m, keys in metrics.items()}
        for model, metrics in book.items()
    }


# --- the command


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, print constants and errors, and with `--write` put the constants into an engines table."""
    args = _parser().parse_args(argv)
    runs = [e for e in chosen(load_measured(args.measured), args.set.split(",")) if args.only in e.key]
    experiments = usable(runs, args.engine, overloaded=True)
    names = tuple(args.fit.split(",")) if args.fit else DEFAULT_NAMES
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        if args.scan:
            name, values = _scanned(args.scan)
            rows = scan(experiments, load_engine(args.engine), name, values, mapper=pool.map)
            print(scan_report(name, rows))
            return 0
        found = fit_host(experiments, load_engine(args.engine), names, rounds=args.rounds, mapper=pool.map)
    print(report(found))
    if args.write:
        write_constants(
            Path(args.write), args.engine, dict(zip(found.names, found.values.tolist(), strict=True))
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stepline.calibration.host_fit", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--measured", required=True, help="folder of measured runs")
    parser.add_argument("--engine", default="vllm-0.15.1", help="engine profile (vllm-0.15.1)")
    parser.add_argument("--set", default="A,B", help="sets of runs (A,B)")
    parser.add_argument("--only", default="", help="runs whose name contains this")
    parser.add_argument("--fit", help="constants, by commas: " + ", ".join(STEPS))
    parser.add_argument("--scan", metavar="NAME=VALUE,...", help="errors at values of one constant; no fit")
    parser.add_argument("--rounds", type=int, default=2, help="Gauss-Newton rounds (2)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--write", help="engines.toml to put the constants into")
    return parser


def _scanned(text: str) -> tuple[str, list[float]]:
    """Name and values of `--scan`."""
    name, _, values = text.partition("=")
    if name not in STEPS:
        raise CalibrationError(f"--scan: got {name!r}{nearest(name, STEPS)}")
    try:
        return name, [float(value) for value in values.split(",")]
    except ValueError:
        raise CalibrationError(f"--scan: got {text!r}, expected NAME=VALUE,... with numbers") from None


def scan_report(name: str, rows: Mapping[float, Mapping[str, tuple[float, float]]]) -> str:
    """One line a value: mean and median errors in percent."""
    lines = [f"{name:>28} {'TPOT mean':>10} {'median':>7} {'TTFT mean':>10} {'median':>7}"]
    for value, errors in rows.items():
        (tpot, tpot_50), (ttft, ttft_50) = (errors[m] for m in ("tpot_mean", "ttft_mean"))
        lines.append(
            f"{value:28.4g} {100 * tpot:10.1f} {100 * tpot_50:7.1f} {100 * ttft:10.1f} {100 * ttft_50:7.1f}"
        )
    return "\n".join(lines)


def report(found: HostFit) -> str:
    """Constants with standard errors; errors by model with all runs in the fit and with the model left out."""
    lines = [f"{found.engine}: {len({k for k, _, _ in found.points.labels})} runs"]
    for name, value, error in zip(found.names, found.values, found.standard_errors, strict=True):
        lines.append(f"  {name:26} {value:.4g} ± {error:.2g}")
    lines.append(f"{'model':42} {'TPOT':>6} {'TTFT':>6}   left out: {'TPOT':>6} {'TTFT':>6}")
    inside, outside = found.errors(), found.left_out
    for model, errors in inside.items():
        row = [errors.get("tpot_mean"), errors.get("ttft_mean")]
        row += [outside.get(model, {}).get(m) for m in ("tpot_mean", "ttft_mean")]
        shown = ["–" if v is None else f"{100 * v:.1f}" for v in row]
        lines.append(f"{model:42} {shown[0]:>6} {shown[1]:>6}             {shown[2]:>6} {shown[3]:>6}")
    for title, book in (("mean of models", inside), ("mean, left out", outside)):
        means = [[e[m] for e in book.values() if m in e] for m in ("tpot_mean", "ttft_mean")]
        shown = [f"{100 * np.mean(m):.1f}" if m else "–" for m in means]
        lines.append(f"{title:42} {shown[0]:>6} {shown[1]:>6}")
    return "\n".join(lines)


def write_constants(path: Path, engine: str, constants: Mapping[str, float]) -> None:
    """Replace (or add) `name = value` lines in the engine's table of a TOML file.

    Raises:
        CalibrationError: no such engine in the file.
    """
    parts = re.split(r"(?m)^(?=\[\[engine\]\])", path.read_text(encoding="utf-8"))
    for index, part in enumerate(parts):
        if re.search(rf'(?m)^name = "{re.escape(engine)}"$', part):
            for name, value in constants.items():
                line = f"{name} = {value:.4g}"
                part, count = re.subn(rf"(?m)^{name} = .*$", line, part)
                if not count:
                    part = re.sub(r"(?m)^source = ", f"{line}\nsource = ", part, count=1)
            parts[index] = part
            path.write_text("".join(parts), encoding="utf-8")
            return
    raise CalibrationError(f"{path}: got no engine {engine!r}")


if __name__ == "__main__":
    sys.exit(main())
