"""How far beyond its timings a fit may be used: as far as it was tried on timings that it had not seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stepline.sim.cost.specs import GpuSpec

from .fit_core import mape
from .splits import held_out
from .tasks import Task, columns_of

if TYPE_CHECKING:
    import pandas as pd

    from .fit import Fitted

MOST_ERROR = 0.1
"""Mean error up to which an extrapolation is accepted: that of a formula on shapes inside its range."""

Errors = dict[str, dict[str, float]]


def reach(task: Task, rows: pd.DataFrame, gpu: GpuSpec, dtype: str) -> tuple[dict[str, float], Errors]:
    """Widths that are accepted beyond those timed, and the held-out error of such a step.

    The rows of the widest matrices (split `wider`) are predicted by a fit of the others. Where that is right to
    `MOST_ERROR`, the fit of all rows may go as far again, in ratio. An LM head of 128 k rows of vocabulary is the case:
    the published tables end at n = 65536, and a fit of n up to 16384 is tried on 51200 and 65536.

    Returns:
        {column: highest accepted value}, empty where nothing was tried or it went wrong, and {"all": {model: error}}.
    """
    mask = held_out(rows, task, "wider", 0)
    if mask is None:
        return {}, {}
    from .fit import fit_task

    errors = _errors(fit_task(task, rows[~mask], gpu, dtype), rows[mask], gpu, dtype)
    column = task.wide[0]
    ratio = float(rows[column].max()) / float(rows.loc[~mask, column].max())
    if max(errors.values()) > MOST_ERROR:
        return {}, {"all": dict(errors)}
    return {column: ratio * float(rows[column].max())}, {"all": dict(errors)}


def _errors(fitted: Fitted, rows: pd.DataFrame, gpu: GpuSpec, dtype: str) -> Mapping[str, float]:
    x, seconds = columns_of(rows, fitted.task), rows["median_s"].to_numpy(dtype=float)
    errors = {"formula": mape(fitted.formula_s(x, gpu, dtype), seconds)}
    if fitted.residual is not None:
        errors["residual"] = mape(fitted.seconds(x, gpu, dtype), seconds)
    return errors
