"""Errors of predictions against measurements: one table of values, and means over experiments and groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from .measured import Experiment
    from .validation_runs import Outcome

RULES = """\
Scoring rules
- One value per stage: full stages as the clients saw them (of class-A MoE runs the requests from number 300 on: before,
  just-in-time compilation stalls them). Stages are averaged per experiment, experiments per group. A row that covers
  a whole run counts only where a run has no stages.
- Error: |predicted - measured| / measured, in percent. TPOT is (e2e - ttft) / (output tokens - 1).
- TTFT p99 is reported, not scored (cold starts move it by 30 %).
- Runs in which clients gave up are a group of their own, scored by throughput, failed fraction (in points) and the
  last arrival before the collapse (the one that best parts requests that finished from those that gave up).
- A statistical replay draws the arrivals anew: mean over seeds, standard deviation beside it.
- KV blocks are taken from the folder only where their source says "measured"; else the memory ledger computes them.
- Closed-loop points do not say whether they are means or medians: they are held against means. Clients and server flags
  are those of the programs that made the sweep, where these are public (docs/concepts/accuracy.md).
- Groups are shown as means of their experiments and as medians.
- Peers are scored on the same experiments and stages, against the same measured values.
Noise of repeated measurements: E2E 1 %, TPOT 1 %, TTFT 2 %."""

SCORED = (
    "ttft_mean", "ttft_p50", "ttft_p90", "ttft_p99", "tpot_mean", "e2e_mean", "e2e_p90", "e2e_p99",
    "throughput_requests", "throughput_output_tokens",
)  # fmt: skip
"""Metrics with a relative error, in the order of the tables."""

OVERLOAD = ("throughput_requests", "failed_fraction", "last_survivor_s", "tpot_mean", "e2e_mean")
UNSTATED = {"ttft_unstated": "ttft_mean", "tpot_unstated": "tpot_mean"}
"""Measured values that may be means or medians: the prediction they are held against."""

NOISE = {"ttft": 0.02, "tpot": 0.01, "e2e": 0.01, "throughput": 0.01}
"""Relative noise of a measurement by kind of metric (repeated runs of one setting)."""


def value_table(outcomes: Iterable[Outcome]) -> pd.DataFrame:
    """One row an experiment, stage and metric: `predicted`, `measured`, `error` (signed; points for a fraction), `spread`.

    Times in seconds. Columns of the experiment: exp_key, set, group, gpu, model, arch, tp, engine, profile, workload.
    """
    import pandas as pd

    return pd.DataFrame([row for outcome in outcomes for row in _rows(outcome)])


def _rows(outcome: Outcome) -> Iterator[dict[str, Any]]:
    about = described(outcome.experiment) | {"profile": outcome.engine, "group": group_of(outcome)}
    for stage in outcome.stages:
        for metric, measured in stage.measured.items():
            name = UNSTATED.get(metric, metric)
            predicted = stage.predicted.get(name)
            if predicted is None or name not in {*SCORED, *OVERLOAD}:
                continue
            yield about | {
                "stage": stage.stage,
                "metric": name,
                "measured": measured,
                "predicted": predicted,
                "error": _error(name, predicted, measured),
                "spread": stage.spread.get(name),
            }


def _error(metric: str, predicted: float, measured: float) -> float:
    if metric == "failed_fraction":
        return predicted - measured
    return predicted / measured - 1.0 if measured else float("nan")


def described(experiment: Experiment) -> dict[str, Any]:
    """What tables say of an experiment."""
    return {
        "exp_key": experiment.key,
        "set": experiment.set,
        "gpu": experiment.gpu,
        "model": experiment.model,
        "arch": experiment.arch,
        "tp": experiment.tp,
        "engine": experiment.engine,
        "workload": experiment.workload,
    }


def group_of(outcome: Outcome) -> str:
    """Scored together: `overload`, else set (A and B together), architecture and GPU."""
    if outcome.overloaded:
        return "overload"
    experiment = outcome.experiment
    name = {"A": "served", "B": "served"}.get(experiment.set, experiment.set)
    return f"{name} {experiment.arch} {experiment.gpu}"


def by_experiment(values: pd.DataFrame) -> pd.DataFrame:
    """Mean |error| over the stages of an experiment; index (group, exp_key), one column a metric."""
    table = values.assign(size=values["error"].abs())
    keys = ["set", "group", "exp_key", "model", "gpu", "tp", "engine", "arch"]
    means = table.groupby([*keys, "metric"], sort=False)["size"].mean().unstack("metric")
    return means.reset_index()


def by_group(values: pd.DataFrame, key: str = "group", stat: str = "mean") -> pd.DataFrame:
    """Mean |error| over the experiments of each `key` (and `n`, how many), one column a metric; overloads only by group.

    `stat`: `mean` or `median` of the experiments.
    """
    table = by_experiment(values)
    if key != "group":
        table = table[table["group"] != "overload"]
        table = table.assign(**{key: table[key].astype(str)})
    metrics = [m for m in (*SCORED, *OVERLOAD) if m in table]
    metrics = list(dict.fromkeys(metrics))
    grouped = table.groupby(key, sort=False)
    means = grouped[metrics].agg(stat)
    means.insert(0, "n", grouped.size())
    return means


def peer_table(outcomes: Iterable[Outcome]) -> pd.DataFrame:
    """What peers predicted, row by row beside the measured values: as `value_table`, with a `peer` column."""
    import pandas as pd

    rows = []
    for outcome in outcomes:
        experiment = outcome.experiment
        about = described(experiment) | {"group": group_of(outcome)}
        measured = _measured_by_stage(outcome)
        for peer, stages in experiment.peers.items():
            for stage, metric, predicted in _comparable(stages, measured):
                value = measured[stage][metric]
                rows.append(
                    about | {"peer": peer, "stage": stage, "metric": metric, "measured": value,
                             "predicted": predicted, "error": _error(metric, predicted, value)}
                )  # fmt: skip
    return pd.DataFrame(rows)


def _measured_by_stage(outcome: Outcome) -> dict[int, dict[str, float]]:
    book = {s.stage: {UNSTATED.get(k, k): v for k, v in s.measured.items()} for s in outcome.stages}
    if outcome.experiment.whole and -1 not in book:
        book[-1] = dict(outcome.experiment.whole)
    return book


def _comparable(
    stages: Mapping[int, Mapping[str, float]], measured: Mapping[int, Mapping[str, float]]
) -> Iterator[tuple[int, str, float]]:
    """A peer's values by stage; those of the whole run only where it has none by stage."""
    by_stage = [stage for stage in stages if stage >= 0 and stage in measured]
    for stage in by_stage or [stage for stage in stages if stage in measured]:
        for metric, predicted in stages[stage].items():
            if metric in SCORED and metric in measured[stage]:
                yield stage, metric, predicted


def by_peer(values: pd.DataFrame, peers: pd.DataFrame) -> pd.DataFrame:
    """Mean |error| of each peer and of ours on the same experiments, by group; columns as `by_group`.

    Index (group, peer); the row after a peer's, `ours on these`, has our errors on the experiments that the peer
    predicted, metric by metric.
    """
    import pandas as pd

    if peers.empty:
        return pd.DataFrame()
    ours = by_experiment(values).set_index("exp_key")
    rows = []
    for (group, peer), part in peers.groupby(["group", "peer"], sort=True):
        theirs = by_experiment(part).set_index("exp_key")
        metrics = [m for m in SCORED if m in theirs]
        mine = {m: ours.reindex(theirs.index[theirs[m].notna()])[m].mean() for m in metrics if m in ours}
        rows.append({"group": group, "peer": peer, "n": len(theirs)} | {m: theirs[m].mean() for m in metrics})
        rows.append({"group": group, "peer": "  ours on these", "n": len(theirs)} | mine)
    return pd.DataFrame(rows).set_index(["group", "peer"])
