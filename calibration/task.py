"""What a fit is made of: rows, a form, starts, splits, regimes; and how rows are chosen and merged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from stepline.sim.cost.specs import GpuSpec

from .fit_core import Array
from .fit_residual import ResidualPlan

if TYPE_CHECKING:
    import pandas as pd


Columns = dict[str, Array]
"""Shape columns of the selected rows as float arrays; text columns are not needed once rows are selected."""


@dataclass(frozen=True, slots=True)
class Task:
    """One kernel to fit.

    name       kernel name in the calibration
    form       form name, see `stepline.sim.cost.calibration.FORMS`
    select     rows of a timing table that this kernel is fitted on, for a weight dtype
    predict    seconds from (constants, columns, GPU, dtype): the simulator's own form on the operators' amounts
    floor      seconds below which no GPU can be, same arguments without constants
    starts     first guesses of the fitted constants (the best fit wins); `fixed` the others
    choices    constants that are not fitted but picked: each mapping is tried with every start
    group      columns that together name a shape family (held out whole in the `unseen` split)
    size       column whose largest values the `largest` split holds out, with the share of rows held out
    regime     column of the regimes and their edges (upper ends)
    scope      which subset of the table this is, in words
    wide       columns whose large values the `large-nk` split holds out; `wider` those of the first
    features   shapes as the residual grid sees them; `residual` its knots and smoothing, None: no such layer
    subsets    named parts of the rows that are scored on their own too
    """

    name: str
    form: str
    select: Callable[[pd.DataFrame, str], pd.DataFrame]
    predict: Callable[[Mapping[str, float], Columns, GpuSpec, str], Array]
    floor: Callable[[Columns, GpuSpec, str], Array]
    starts: tuple[Mapping[str, float], ...]
    shapes: tuple[str, ...]
    group: tuple[str, ...]
    size: str
    regime: tuple[str, tuple[float, ...]]
    scope: str
    fixed: Mapping[str, float] = field(default_factory=dict)
    choices: tuple[Mapping[str, float], ...] = ({},)
    wide: tuple[str, ...] = ()
    features: Callable[[Columns], Mapping[str, Array]] = dict
    residual: ResidualPlan | None = None
    subsets: Mapping[str, Callable[[Columns], NDArray[np.bool_]]] = field(default_factory=dict)


def columns_of(rows: pd.DataFrame, task: Task) -> Columns:
    """Shape columns of `rows` as floats."""
    return {name: rows[name].to_numpy(dtype=float, na_value=np.nan) for name in task.shapes}


L2_SUSPECTS_FRAC = 0.01
"""Where more rows than this beat the physical floor, the table's warm rows cannot stand for reads from memory."""

LATENCY_BOUND = 3.0
"""A row that takes this many times its floor is made by launches: warm or cold makes no difference to it."""


def without_l2_replays(rows: pd.DataFrame, task: Task, gpu: GpuSpec, dtype: str) -> pd.DataFrame:
    """Merged rows less those that ran out of L2, on GPUs whose L2 is large enough to matter (L40S: 96 MB).

    A collector that replays one small KV cache or weight leaves it in L2; an engine never does. Rows of H100 tables
    hardly ever beat the floor and all stay.
    """
    ratio = rows["median_s"].to_numpy(float) / task.floor(columns_of(rows, task), gpu, dtype)
    if float(np.mean(ratio < 1.0)) <= L2_SUSPECTS_FRAC:
        return rows
    return rows.loc[rows["cold"].to_numpy(bool) | (ratio >= LATENCY_BOUND)]


def rows_for(task: Task, table: pd.DataFrame, gpu: GpuSpec, dtype: str) -> pd.DataFrame:
    """The rows of a timing table on which a kernel is fitted and scored, one a shape."""
    rows = merged(task.select(table, dtype), task)
    return without_l2_replays(rows, task, gpu, dtype) if len(rows) else rows


def merged(rows: pd.DataFrame, task: Task) -> pd.DataFrame:
    """One row a shape: the median of repeats, and whether all of them were cold."""
    known = rows.assign(cold=rows["cold"].fillna(True).astype(bool))
    groups = known.groupby(list(task.shapes), sort=True)
    return groups.agg(median_s=("median_s", "median"), cold=("cold", "all")).reset_index()


def powers(low: float, high: float, step: float = 1.0) -> tuple[float, ...]:
    """Knots 2^low, 2^(low + step), ... up to 2^high."""
    return tuple(float(2.0**e) for e in np.arange(low, high + 0.5 * step, step))


SMOOTHINGS = (0.3, 1.0, 3.0)
"""Factors on a plan's stiffness that cross-validation chooses from."""


def plan(
    knots: Mapping[str, tuple[float, ...]],
    stiffness: float,
    pull: float = 3e-3,
    scales: tuple[float, ...] = SMOOTHINGS,
) -> ResidualPlan:
    """A residual grid with the same stiffness along every axis."""
    return ResidualPlan(knots, dict.fromkeys(knots, stiffness), pull, scales)


def families(rows: pd.DataFrame, task: Task) -> NDArray[np.integer[Any]]:
    """Number of the shape family of each row, 0 .. n - 1, in the order of their shapes."""
    return np.asarray(rows.groupby(list(task.group), sort=True).ngroup())


M_REGIMES = (16.0, 256.0, 4096.0)
"""Upper ends of the token regimes: m <= 16, 16-256, 256-4 k, above."""


def aliases(dtype: str) -> tuple[str, ...]:
    """Names under which a table may hold a weight dtype: fp16 rows stand for bf16."""
    return ("bf16", "fp16") if dtype == "bf16" else (dtype,)
