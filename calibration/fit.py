"""`calibrate fit`: from a timing table to a calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stepline.sim.cost.calibration import Calibration, KernelFit
from stepline.sim.cost.specs import GpuSpec
from stepline.traces.errors import CalibrationError

from .fit_core import Fit, fit_constants, mape
from .tasks import TASKS, Columns, Task, columns_of, merged

if TYPE_CHECKING:
    import pandas as pd

MIN_ROWS = 8
"""Fewer shapes than this fit no form: the kernel is left out and said so."""

ELEMENTWISE_CONSTANTS = {"t0_s": 2.5e-6, "memory_eff": 1.6 / 3.35}
"""No table times norm, rope and activation. Stated: 2-3 us a launch and 1.3-2 TB/s of H100's 3.35 (Vidur's profiles)."""


def fit_task(task: Task, rows: pd.DataFrame, gpu: GpuSpec, dtype: str) -> tuple[Fit, Columns, Any]:
    """Fit one kernel on rows already selected and merged; returns the fit, its columns and seconds."""
    x, seconds = columns_of(rows, task), rows["median_s"].to_numpy(dtype=float)
    try:
        found = fit_constants(lambda c: task.predict(c, x, gpu, dtype), seconds, task.start, task.fixed)
    except CalibrationError as error:
        raise CalibrationError(f"{task.name}: {error}") from None
    return found, x, seconds


def fit_calibration(
    table: pd.DataFrame, gpu: GpuSpec, library: str, dtype: str, provenance: Mapping[str, Any]
) -> tuple[Calibration, list[str]]:
    """Fit every kernel that the table has rows for; returns the calibration and what was left out, in words.

    Raises:
        CalibrationError: the table has too few GEMM rows of `dtype`, or a fit fails.
    """
    kernels: dict[str, KernelFit] = {}
    skipped: list[str] = []
    for task in TASKS:
        rows = merged(task.select(table, dtype), task)
        if len(rows) < MIN_ROWS:
            if len(rows):
                skipped.append(f"{task.name}: {len(rows)} shapes, needs {MIN_ROWS}")
            continue
        kernels[task.name] = _kernel_fit(task, rows, gpu, dtype)
    if "gemm" not in kernels:
        raise CalibrationError(
            f"{gpu.name}/{library}: too few {dtype} gemm rows for a fit, needs {MIN_ROWS} shapes"
        )
    kernels["elementwise"] = KernelFit(
        form="launch-bytes",
        constants=ELEMENTWISE_CONSTANTS,
        provenance={"source": "stated: 2-3 us a launch, 1.3-2 TB/s on H100 (Vidur's H100 profiles)"},
    )
    return Calibration(gpu.name, library, dtype, kernels, provenance), skipped


def _kernel_fit(task: Task, rows: pd.DataFrame, gpu: GpuSpec, dtype: str) -> KernelFit:
    found, x, seconds = fit_task(task, rows, gpu, dtype)
    return KernelFit(
        form=task.form,
        constants=found.constants,
        standard_errors=found.standard_errors,
        covariance=found.covariance,
        fitted=found.fitted,
        valid={name: (float(x[name].min()), float(x[name].max())) for name in task.shapes},
        errors={"train": {"all": mape(task.predict(found.constants, x, gpu, dtype), seconds)}},
        rows=len(rows),
        provenance={"scope": task.scope},
    )
