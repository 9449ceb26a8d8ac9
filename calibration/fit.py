"""Fit kernels of a timing table and make a calibration of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from stepline.sim.cost.calibration import Calibration, KernelFit
from stepline.sim.cost.residual import ResidualGrid
from stepline.sim.cost.specs import GpuSpec
from stepline.traces.errors import CalibrationError

from .fit_core import Array, Fit, best_fit, bootstrap_covariance, mape
from .fit_residual import ResidualPlan, fit_residual
from .reach import reach
from .task import families
from .tasks import GEMM, TASKS, Columns, Task, columns_of, rows_for
from .tasks_mla import mla_tasks
from .tasks_serving import SERVING

if TYPE_CHECKING:
    import pandas as pd

MIN_ROWS = 8
"""Fewer shapes than this, or than two a constant, fit no form: the kernel is left out and said so."""

MIN_RESIDUAL_ROWS = 20
MIN_ROWS_PER_KNOT = 0.25
"""Fewer shapes than these, or than one for four knots of the plan, get no residual layer: nothing to smooth."""

MIN_FAMILIES = 8
"""With fewer shape families the bootstrap draws rows."""

MIN_SERVING_ROWS = 60
"""Fewer cold shapes than this get no constants of their own for serving (see `tasks_serving`)."""

STATED_ELEMENTWISE = KernelFit(
    form="launch-bytes",
    constants={"t0_s": 2.5e-6, "memory_eff": 1.6 / 3.35},
    provenance={"source": "stated, not fitted: 2-3 us a launch, 1.3-2 TB/s on H100 (Vidur's H100 profiles)"},
)
"""For tables that do not time norm, rope and activation, as no published one does."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """One kernel fitted on some rows."""

    task: Task
    fit: Fit
    residual: ResidualGrid | None

    def formula_s(self, x: Columns, gpu: GpuSpec, dtype: str) -> Array:
        """Seconds by the form alone."""
        return self.task.predict(self.fit.constants, x, gpu, dtype)

    def seconds(self, x: Columns, gpu: GpuSpec, dtype: str) -> Array:
        """Seconds with the residual layer (where there is one), never below the physical floor."""
        formula = self.formula_s(x, gpu, dtype)
        if self.residual is None:
            return formula
        factor = np.exp(self.residual.log_factor(self.task.features(x)))
        return np.maximum(formula * factor, self.task.floor(x, gpu, dtype))


def fit_task(task: Task, rows: pd.DataFrame, gpu: GpuSpec, dtype: str, residual: bool = True) -> Fitted:
    """Fit one kernel on rows already selected and merged.

    Raises:
        CalibrationError: too few rows or no convergence, naming the kernel.
    """
    x, seconds = columns_of(rows, task), rows["median_s"].to_numpy(dtype=float)
    try:
        found = best_fit(
            lambda c: task.predict(c, x, gpu, dtype), seconds, task.starts, task.fixed, task.choices
        )
    except CalibrationError as error:
        raise CalibrationError(f"{task.name}: {error}") from None
    grid = None
    if residual and task.residual is not None and _enough(len(rows), task.residual):
        formula = task.predict(found.constants, x, gpu, dtype)
        ratio = np.log(seconds / formula)
        grid = fit_residual(task.residual, task.features(x), ratio, families(rows, task))
    return Fitted(task, found, grid)


def min_rows(task: Task) -> int:
    """Shapes without which a kernel is not fitted."""
    return max(MIN_ROWS, 2 * min(len(start) for start in task.starts))


def _enough(rows: int, plan: ResidualPlan) -> bool:
    knots = math.prod(len(axis) for axis in plan.knots.values())
    return rows >= max(MIN_RESIDUAL_ROWS, MIN_ROWS_PER_KNOT * knots)


def fit_calibration(
    table: pd.DataFrame,
    gpu: GpuSpec,
    library: str,
    dtype: str,
    provenance: Mapping[str, Any],
    residual: bool = True,
) -> tuple[Calibration, list[str]]:
    """Fit every kernel that the table has rows for; returns the calibration and what was left out, in words.

    Args:
        table: timings in `schema.TIMING_COLUMNS` of one GPU.
        gpu: its datasheet; constants are efficiencies of it.
        library: NAME-VERSION that the calibration is for.
        dtype: weight dtype that is fitted.
        provenance: source, files and hashes.
        residual: fit residual layers too.

    Raises:
        CalibrationError: too few GEMM rows of `dtype`, or a fit fails.
    """
    kernels: dict[str, KernelFit] = {}
    skipped: list[str] = []
    for task in TASKS:
        rows = rows_for(task, table, gpu, dtype)
        if len(rows) >= min_rows(task):
            kernels[task.name] = kernel_fit(fit_task(task, rows, gpu, dtype, residual), rows, gpu, dtype)
        elif len(rows):
            skipped.append(f"{task.name}: {len(rows)} shapes, needs {min_rows(task)}")
    if "gemm" not in kernels:
        raise CalibrationError(
            f"{gpu.name} {library}: too few gemm rows of dtype {dtype}, expected {min_rows(GEMM)} shapes or more"
        )
    for task in mla_tasks(kernels["gemm"].constants):
        rows = rows_for(task, table, gpu, dtype)
        if len(rows) >= min_rows(task):
            kernels[task.name] = kernel_fit(fit_task(task, rows, gpu, dtype, residual), rows, gpu, dtype)
    for task in SERVING:
        rows = rows_for(task, table, gpu, dtype)
        if len(rows) >= MIN_SERVING_ROWS:
            kernels[task.name] = kernel_fit(fit_task(task, rows, gpu, dtype, residual), rows, gpu, dtype)
    kernels.setdefault("elementwise", STATED_ELEMENTWISE)
    return Calibration(gpu.name, library, dtype, kernels, provenance), skipped


def kernel_fit(fitted: Fitted, rows: pd.DataFrame, gpu: GpuSpec, dtype: str) -> KernelFit:
    """The calibration entry of a fitted kernel, with its errors on the rows that it was fitted on."""
    x, seconds = columns_of(rows, fitted.task), rows["median_s"].to_numpy(dtype=float)
    train = {"formula": mape(fitted.formula_s(x, gpu, dtype), seconds)}
    if fitted.residual is not None:
        train["residual"] = mape(fitted.seconds(x, gpu, dtype), seconds)
    covariance = family_covariance(fitted, rows, gpu, dtype)
    spread = np.sqrt(np.diag(np.array(covariance)))
    furthest, beyond = reach(fitted.task, rows, gpu, dtype)
    return KernelFit(
        form=fitted.task.form,
        constants=fitted.fit.constants,
        standard_errors={
            name: fitted.fit.constants[name] * float(sd)
            for name, sd in zip(fitted.fit.fitted, spread, strict=True)
        },
        covariance=covariance,
        fitted=fitted.fit.fitted,
        valid={name: (float(x[name].min()), float(x[name].max())) for name in fitted.task.shapes},
        reach=furthest,
        errors={"train": train, **({"wider": beyond} if beyond else {})},
        rows=len(rows),
        provenance={"scope": fitted.task.scope},
        residual=fitted.residual,
    )


def family_covariance(
    fitted: Fitted, rows: pd.DataFrame, gpu: GpuSpec, dtype: str
) -> tuple[tuple[float, ...], ...]:
    """Covariance of the constants by bootstrap over shape families; over rows where there are few families."""
    task = fitted.task
    x, seconds = columns_of(rows, task), rows["median_s"].to_numpy(dtype=float)
    family = families(rows, task)
    if int(family.max()) + 1 < MIN_FAMILIES:
        family = np.arange(len(rows))

    return bootstrap_covariance(lambda c: task.predict(c, x, gpu, dtype), seconds, family, fitted.fit)


def with_errors(calibration: Calibration, errors: Mapping[str, Mapping[str, Any]]) -> Calibration:
    """The calibration with held-out errors {kernel: {split: {regime: fraction}}} added to those of its kernels."""
    kernels = {
        name: replace(fit, errors={**fit.errors, **errors.get(name, {})})
        for name, fit in calibration.kernels.items()
    }
    return replace(calibration, kernels=kernels)
