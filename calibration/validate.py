"""Held-out scores of every form, by split and regime, beside the datasheet roofline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from stepline.traces.errors import CalibrationError

from .fit import MIN_SERVING_ROWS, Fitted, fit_task, min_rows
from .fit_core import Array
from .sources import Source
from .splits import SEEDLESS, SPLITS, Mask, held_out
from .task import families
from .tasks import GEMM, TASKS, Columns, Task, columns_of, rows_for
from .tasks_mla import mla_tasks
from .tasks_serving import SERVING

if TYPE_CHECKING:
    import pandas as pd

UNSEEN_OF = {
    f"{kind}_{world}": "leave-one-out"
    for kind in ("all_reduce", "all_gather", "all_to_all")
    for world in (2, 4, 8)
}
"""Kernels whose unseen shapes are single message sizes."""

MODELS = ("datasheet", "formula", "residual")


@dataclass(frozen=True, slots=True)
class Score:
    """Mean absolute relative error (fraction) of one kernel, split, regime and model over all seeds.

    `rows`: held-out rows in all seeds together; `spread`: standard deviation over the seeds; `bias`: mean of
    log(predicted / measured). `family_sd`: standard deviation of that mean over the held-out shape families.
    """

    kernel: str
    split: str
    regime: str
    model: str
    mape: float
    spread: float
    bias: float
    rows: int
    family_sd: float


def validate(
    source: Source,
    dtype: str = "bf16",
    *,
    seeds: int = 5,
    splits: Sequence[str] = SPLITS,
    kernels: Sequence[str] = (),
) -> list[Score]:
    """Refit every kernel on what each split leaves and score it on what it holds out.

    Raises:
        CalibrationError: the source has rows for none of the kernels.
    """
    scores: list[Score] = []
    for task in tasks_of(source, dtype):
        if kernels and task.name not in kernels:
            continue
        rows = rows_for(task, source.table, source.gpu, dtype)
        if len(rows) < (MIN_SERVING_ROWS if task in SERVING else min_rows(task)):
            continue
        for split in splits:
            scores += _scores(task, rows, source, dtype, split, seeds)
        if task.name.startswith("all_"):
            scores += _collect(task, "leave-one-out", _leave_one_out(task, rows, source, dtype))
    if not scores:
        raise CalibrationError(
            f"{source.gpu.name} {source.library}: no kernel has enough {dtype} rows to be scored"
        )
    return scores


def tasks_of(source: Source, dtype: str) -> tuple[Task, ...]:
    """All tasks; those of latent attention stand on a GEMM form fitted on all rows."""
    rows = rows_for(GEMM, source.table, source.gpu, dtype)
    if len(rows) < min_rows(GEMM):
        return (*TASKS, *SERVING)
    gemm = fit_task(GEMM, rows, source.gpu, dtype, residual=False).fit.constants
    return (*TASKS, *mla_tasks(gemm), *SERVING)


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """Held-out rows of one seed: where each belongs (regime or subset -> mask), log(predicted / measured) by model,
    and its means by shape family.
    """

    parts: dict[str, Mask]
    log_ratio: dict[str, Array]
    family_means: dict[str, Array]


def _scores(
    task: Task, rows: pd.DataFrame, source: Source, dtype: str, split: str, seeds: int
) -> list[Score]:
    held: list[_Held] = []
    for seed in range(1 if split in SEEDLESS else seeds):
        mask = held_out(rows, task, split, seed)
        if mask is not None:
            fitted = fit_task(task, rows[~mask], source.gpu, dtype)
            held.append(_hold(task, fitted, rows[mask], source, dtype))
    return _collect(task, split, held)


def _leave_one_out(task: Task, rows: pd.DataFrame, source: Source, dtype: str) -> list[_Held]:
    """Every row predicted from all others, as one seed."""
    parts = []
    for i in range(len(rows)):
        mask = np.arange(len(rows)) == i
        parts.append(_hold(task, fit_task(task, rows[~mask], source.gpu, dtype), rows[mask], source, dtype))
    masks = {name: np.concatenate([held.parts[name] for held in parts]) for name in parts[0].parts}
    ratios = {m: np.concatenate([part.log_ratio[m] for part in parts]) for m in parts[0].log_ratio}
    return [_Held(masks, ratios, ratios)]


def _hold(task: Task, fitted: Fitted, rows: pd.DataFrame, source: Source, dtype: str) -> _Held:
    x, seconds = columns_of(rows, task), rows["median_s"].to_numpy(float)
    predicted = {
        "datasheet": task.floor(x, source.gpu, dtype),
        "formula": fitted.formula_s(x, source.gpu, dtype),
    }
    if fitted.residual is not None:
        predicted["residual"] = fitted.seconds(x, source.gpu, dtype)
    log_ratio = {model: np.log(p / seconds) for model, p in predicted.items()}
    family = families(rows, task)
    rows_of = np.bincount(family)
    means = {model: np.bincount(family, weights=ratio) / rows_of for model, ratio in log_ratio.items()}
    return _Held(parts_of(task, x), log_ratio, means)


def _collect(task: Task, split: str, held: list[_Held]) -> list[Score]:
    if not held:
        return []
    scores = []
    for name in held[0].parts:
        for model in MODELS:
            seeds = [h.log_ratio[model][h.parts[name]] for h in held if model in h.log_ratio]
            seeds = [s for s in seeds if len(s)]
            if not seeds:
                continue
            errors = [float(np.mean(np.abs(np.expm1(s)))) for s in seeds]
            every = np.concatenate(seeds)
            scores.append(
                Score(
                    kernel=task.name,
                    split=split,
                    regime=name,
                    model=model,
                    mape=float(np.mean(errors)),
                    spread=float(np.std(errors)),
                    bias=float(np.mean(every)),
                    rows=len(every),
                    family_sd=float(
                        np.std(
                            np.concatenate([h.family_means[model] for h in held if model in h.family_means])
                        )
                    ),
                )
            )
    return scores


def parts_of(task: Task, x: Columns) -> dict[str, Mask]:
    """Which rows belong to what is scored on its own: all, each regime, each subset of the task."""
    column, edges = task.regime
    regime = np.searchsorted(np.array(edges), x[column], side="left")
    parts = {"all": np.ones(len(regime), dtype=bool)}
    parts |= {name: regime == i for i, name in enumerate(regime_names(task))}
    return parts | {name: subset(x) for name, subset in task.subsets.items()}


def regime_names(task: Task) -> list[str]:
    """Names of a task's regimes, e.g. `m <= 16`, `m 16-256`, ..., `m > 4096`."""
    column, edges = task.regime
    names = [f"{column} <= {edges[0]:g}"]
    names += [f"{column} {low:g}-{high:g}" for low, high in pairwise(edges)]
    return [*names, f"{column} > {edges[-1]:g}"]


def scores_by_kernel(scores: Iterable[Score]) -> dict[str, dict[str, Any]]:
    """{kernel: {split: {regime: {model: error fraction}}}}, for the calibration JSON, and under `family_sd`
    the spread of the mean errors of unseen shape families by model, for `uncertainty.draw`.
    """
    found: dict[str, dict[str, Any]] = {}
    for s in scores:
        if s.model != "datasheet":
            kernel = found.setdefault(s.kernel, {})
            kernel.setdefault(s.split, {}).setdefault(s.regime, {})[s.model] = s.mape
            if s.split == UNSEEN_OF.get(s.kernel, "unseen") and s.regime == "all":
                kernel.setdefault("family_sd", {})[s.model] = s.family_sd
    return found
