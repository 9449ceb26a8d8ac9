"""Predicted against measured seconds of every fitted kernel, by regime; residuals over shapes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..tasks import TASKS, Task, columns_of, merged

if TYPE_CHECKING:
    import pandas as pd
    from stepline.sim.cost.calibration import Calibration
    from stepline.sim.cost.specs import GpuSpec

MOST_POINTS = 1200
"""Points of one kernel in the scatter: an even sample over the sorted shapes beyond it; errors use every row."""


def predictions(table: pd.DataFrame, calibration: Calibration, gpu: GpuSpec) -> pd.DataFrame:
    """Every shape of the table that the calibration has a form for.

    Columns: kernel, regime, measured_us, predicted_us (the formula, no residual), floor_us (datasheet
    roofline),
    error (predicted over measured, less 1), x, y (axes of the residual map, see `map_axes`), shape (text).
    """
    import pandas as pd

    frames = [f for task in TASKS if (f := _of_task(task, table, calibration, gpu)) is not None]
    if not frames:
        return pd.DataFrame()
    return pd.concat(frames, ignore_index=True)


def _of_task(task: Task, table: pd.DataFrame, calibration: Calibration, gpu: GpuSpec) -> pd.DataFrame | None:
    import pandas as pd

    if task.name not in calibration.kernels:
        return None
    rows = merged(task.select(table, calibration.dtype), task)
    if rows.empty:
        return None
    x = columns_of(rows, task)
    seconds = rows["median_s"].to_numpy(float)
    predicted = task.predict(calibration.kernels[task.name].constants, x, gpu, calibration.dtype)
    across, along = map_axes(task, x)
    return pd.DataFrame(
        {
            "kernel": kind_of(task.name),
            "regime": regimes(task, x),
            "measured_us": seconds * 1e6,
            "predicted_us": predicted * 1e6,
            "floor_us": task.floor(x, gpu, calibration.dtype) * 1e6,
            "error": predicted / seconds - 1.0,
            "x": across,
            "y": along,
            "shape": [", ".join(f"{n} {int(v[i])}" for n, v in x.items()) for i in range(len(rows))],
        }
    )


def kind_of(name: str) -> str:
    """A kernel's name without the number of GPUs that collectives end in."""
    kind, _, world = name.rpartition("_")
    return kind if world.isdigit() else name


def regimes(task: Task, x: dict[str, Any]) -> list[str]:
    """Regime of each row in words, such as `m 16–256`; for collectives the number of GPUs."""
    column, edges = task.regime
    if column == "message_bytes":
        return [f"{task.name.rpartition('_')[2]} GPUs"] * len(x[column])
    values, column = x[column], REGIME_NAMES.get(column, column)
    names = [f"{column} ≤ {_short(edges[0])}"]
    names += [f"{column} {_short(a)}–{_short(b)}" for a, b in pairwise(edges)]
    names.append(f"{column} > {_short(edges[-1])}")
    return [names[i] for i in np.searchsorted(edges, values)]


REGIME_NAMES = {"query_tokens": "prompt", "context_tokens": "context"}
"""How people call the columns that regimes are made of."""


def map_axes(task: Task, x: dict[str, Any]) -> tuple[Any, Any]:
    """Axes of a residual map: tokens against weights for GEMMs, length against batch (times heads) for attention."""
    if task.name == "gemm":
        return x["m"], x["n"] * x["k"]
    if "heads" in x:
        return x[task.size], x["batch"] * x["kv_heads"]
    return x[task.size], np.ones_like(x[task.size])


AXIS_TITLES = {
    "gemm": ("m (tokens)", "n · k (weights)"),
    "attention_prefill": ("prompt tokens", "batch · KV heads"),
    "attention_prefill_mha": ("prompt tokens", "batch · heads"),
    "attention_decode": ("context tokens", "batch · KV heads"),
}
"""Titles of the axes of the residual maps; kernels that are not here have no map."""


def error_table(found: pd.DataFrame) -> pd.DataFrame:
    """Mean absolute error by kernel and regime: of the formula, and of the datasheet roofline; number of shapes.

    Columns: kernel, regime, shapes, formula, datasheet (fractions).
    """
    errors = found.assign(
        formula=found["error"].abs(), datasheet=(found["floor_us"] / found["measured_us"] - 1.0).abs()
    )
    every = errors.assign(regime="all")
    import pandas as pd

    both = pd.concat([errors, every])
    grouped = both.groupby(["kernel", "regime"], sort=False)
    answer = grouped.agg(
        shapes=("formula", "size"), formula=("formula", "mean"), datasheet=("datasheet", "mean")
    )
    return answer.reset_index().sort_values("kernel", kind="stable")


def sampled(found: pd.DataFrame) -> pd.DataFrame:
    """At most `MOST_POINTS` rows of each kernel, evenly over its measured times."""
    import pandas as pd

    parts = []
    for _, part in found.groupby("kernel", sort=False):
        ordered = part.sort_values("measured_us", kind="stable")
        step = max(1, -(-len(ordered) // MOST_POINTS))
        parts.append(ordered.iloc[::step])
    return pd.concat(parts, ignore_index=True)


def residual_map(found: pd.DataFrame, kernel: str, bins: int = 18) -> pd.DataFrame:
    """Median signed error of one kernel over a grid of its shapes, on logarithmic axes.

    Columns: x, x2, y, y2 (edges of the cell), error (median), shapes.
    """
    import pandas as pd

    part = found[found["kernel"] == kernel]
    cells: dict[str, Any] = {}
    for axis in ("x", "y"):
        edges = _edges(part[axis].to_numpy(float), bins)
        index = np.clip(np.searchsorted(edges, part[axis], side="right") - 1, 0, len(edges) - 2)
        cells |= {axis: edges[index], f"{axis}2": edges[index + 1]}
    frame = pd.DataFrame(cells | {"error": part["error"].to_numpy()})
    grouped = frame.groupby(["x", "x2", "y", "y2"], as_index=False)
    return grouped.agg(error=("error", "median"), shapes=("error", "size"))


def _edges(values: Any, bins: int) -> Any:
    """Cell borders: halfway between the values where they are few, else evenly spaced; both on a log scale."""
    levels = np.unique(values)
    if len(levels) == 1:
        return np.array([levels[0] / 1.25, levels[0] * 1.25])
    if len(levels) > 2 * bins:
        return np.geomspace(levels[0], levels[-1] * 1.0001, bins + 1)
    middle = np.sqrt(levels[1:] * levels[:-1])
    return np.concatenate(([levels[0] ** 2 / middle[0]], middle, [levels[-1] ** 2 / middle[-1]]))


def _short(value: float) -> str:
    for size, unit in ((2**20, "Mi"), (2**10, "Ki")):
        if value >= size and value % size == 0:
            return f"{value / size:g} {unit}"
    return f"{value:g}"
