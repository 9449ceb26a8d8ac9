"""Kernels as a running engine sees them, fitted beside the plain ones on the same tables.

Two things in the tables are not so in an engine:

- Small weights and small KV caches are replayed out of L2. Between two calls of one layer an engine reads all the
  other layers, so weights and KV always come from memory: only `cold` rows count.
- Bandwidth-bound GEMM rows of one shape fall on two branches about 14 % apart, at random (H100, vllm 0.24.0: n = 51200,
  k = 3584 runs at 0.75, 0.88, 0.75 of the bandwidth for m = 16, 17, 32); other collections of the same kernels do not
  agree on which rows are slow. A GEMM of m rows never needs to cost more than one of more rows (it could be padded),
  so the slow rows are cut by the running minimum over larger m: t(m) := min over m' >= m of t(m').
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from .fit_residual import ResidualPlan
from .tasks import DECODE, GEMM, MOE, Task
from .tasks_gemm import GEMM_SERVING_RESIDUAL

if TYPE_CHECKING:
    import pandas as pd

SUFFIX = "_serving"
"""Names of these kernels: that of the plain one and this."""


def cold_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose operands come from memory; a table that does not say counts as cold."""
    cold = rows["cold"]
    return rows[cold.isna() | (cold == True)]  # noqa: E712 - an object column with missing values


def never_dearer_than_more_rows(rows: pd.DataFrame, shape: tuple[str, ...] = ("n", "k")) -> pd.DataFrame:
    """Rows with `median_s` replaced by the least of the same weights (`shape`) at this m or above."""
    ordered = rows.sort_values("m", kind="stable", ascending=False)
    least = ordered.groupby(list(shape), sort=False)["median_s"].cummin()
    return rows.assign(median_s=least.reindex(rows.index))


def _serving(task: Task, clean: Callable[[pd.DataFrame], pd.DataFrame], scope: str) -> Task:
    return replace(
        task,
        name=task.name + SUFFIX,
        select=lambda table, dtype: clean(task.select(table, dtype)),
        scope=f"{task.scope}; {scope}",
    )


MOE_KNOTS = {
    "m": tuple(2.0**e for e in range(15)),
    "width": (256.0, 512.0, 1024.0, 2048.0, 3584.0, 4096.0, 7168.0, 8192.0, 14336.0, 16384.0),
    "n_experts": (8.0, 16.0, 128.0, 256.0, 512.0),
}
"""The residual of routed experts by tokens, width and experts: served models are mostly ones that were timed."""


SERVING: tuple[Task, ...] = (
    replace(
        _serving(
            GEMM,
            lambda rows: never_dearer_than_more_rows(cold_rows(rows)),
            "cold rows only, running minimum over m",
        ),
        scope="all m, n, k of the dtype; cold rows only, running minimum over m",
        residual=GEMM_SERVING_RESIDUAL,
    ),
    replace(
        _serving(
            MOE,
            lambda rows: never_dearer_than_more_rows(rows, ("n", "k", "n_experts", "top_k", "skew")),
            "running minimum over m",
        ),
        residual=ResidualPlan(MOE_KNOTS, dict.fromkeys(MOE_KNOTS, 0.05), 3e-3),
    ),
    _serving(DECODE, cold_rows, "cold rows only"),
)
"""Fitted with every calibration; priced where the engine profile says `serving_kernels`."""
