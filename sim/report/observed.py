"""Measured latencies that a trace carries, beside the simulated ones of the same requests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stepline.sim.engine.result import RunResult

from . import metrics

Floats = NDArray[np.float64]

FIELDS = {"ttft": "ttft_ms", "e2e": "e2e_ms"}
"""Metric: the key of `Request.observed` that measures it."""


def measured(result: RunResult) -> dict[str, Floats]:
    """Measured seconds by metric, one a row of the trace, NaN where absent; metrics that no row has are left out."""
    rows = result.trace_columns.get("observed")
    if rows is None:
        return {}
    found = {}
    for metric, key in FIELDS.items():
        values = np.array([_seconds(row, key) for row in rows], dtype=np.float64)
        if np.isfinite(values).any():
            found[metric] = values
    return found


def _seconds(row: Any, key: str) -> float:
    value = row.get(key) if row else None
    return np.nan if value is None else value / 1000


def before_after(result: RunResult) -> dict[str, Any] | None:
    """Distributions of measured and simulated latencies over the finished requests that were measured.

    {"ttft_s": {"n", "measured": {...}, "simulated": {...}}, "e2e_s": ...}; None where the trace has no measured values.
    """
    known = measured(result)
    if not known:
        return None
    done = metrics.finished(result)
    index = done["request_index"].to_numpy()
    simulated = metrics.latencies(done)
    figures = {}
    for metric, values in known.items():
        seen = values[index]
        both = np.isfinite(seen)
        figures[f"{metric}_s"] = {
            "n": int(both.sum()),
            "measured": metrics.distribution(seen),
            "simulated": metrics.distribution(np.where(both, simulated[metric], np.nan)),
        }
    return figures
