"""Whole engine steps: our cost model against the sum of the tables' own times, log-interpolated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from stepline.sim.cost import operators
from stepline.sim.cost.calibration import Calibration
from stepline.sim.cost.catalogue import load_model
from stepline.sim.cost.roofline import RooflineCostModel
from stepline.sim.cost.specs import ModelSpec
from stepline.sim.cost.work import StepWork
from stepline.traces.errors import CalibrationError

from .fit import fit_calibration
from .sources import Source
from .tasks import DECODE, GEMM, PREFILL, PREFILL_MHA, Task, merged

if TYPE_CHECKING:
    import pandas as pd

CASES: tuple[tuple[str, int], ...] = (("llama-3.1-8b", 1), ("llama-3.1-70b", 4), ("llama-3.1-70b", 8))
"""Models and TP sizes that are compared (Llama-3-70B has the shapes of 3.1)."""

BATCHES = (1, 8, 16, 32, 64, 128, 256)
CONTEXTS = (1024, 4096)
PROMPTS = (512, 2048, 8192)


class LogTable:
    """A full grid of timings, interpolated linearly in the logarithms of shapes and seconds."""

    def __init__(self, rows: pd.DataFrame, axes: tuple[str, ...]) -> None:
        self.axes = axes
        self.knots = {name: np.unique(rows[name].to_numpy(float)) for name in axes}
        values = np.full([len(knots) for knots in self.knots.values()], np.nan)
        index = tuple(np.searchsorted(self.knots[name], rows[name].to_numpy(float)) for name in axes)
        values[index] = np.log(rows["median_s"].to_numpy(float))
        self.values = values

    def seconds(self, **shape: float) -> float:
        """Seconds at a shape; beyond the last knot of an axis in proportion to it; NaN where the grid has gaps."""
        values, scale = self.values, 1.0
        for name in self.axes:
            knots = np.log(self.knots[name])
            x = float(np.log(shape[name]))
            if x >= knots[-1]:
                scale *= float(np.exp(x - knots[-1]))
                values = values[-1]
                continue
            low = max(int(np.searchsorted(knots, x, side="right")) - 1, 0)
            u = (x - knots[low]) / (knots[low + 1] - knots[low])
            values = values[low] if u <= 0.0 else values[low] * (1 - u) + values[low + 1] * u
        return scale * float(np.exp(values))


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """The tables that price one model's step."""

    gemm: LogTable
    prefill: LogTable
    decode: LogTable
    all_reduce: LogTable | None
    all_gather: LogTable | None


def compare_steps(source: Source, dtype: str) -> pd.DataFrame | None:
    """One row a step: model, TP, phase, size, table milliseconds, signed error of formula and residual in percent.

    None where the source is no such full table (a quick measurement, say) or another weight dtype than bf16.
    """
    import pandas as pd

    if dtype != "bf16" or source.own_gpu:
        return None
    try:
        calibration, _ = fit_calibration(source.table, source.gpu, source.library, dtype, {})
    except CalibrationError:
        return None
    rows = []
    for name, tp in CASES:
        model = load_model(name)
        tables = _tables(source, model, tp)
        if tables is not None:
            rows += _rows(calibration, source, model, tp, tables)
    return pd.DataFrame(rows) if rows else None


def _rows(
    calibration: Calibration, source: Source, model: ModelSpec, tp: int, tables: Tables
) -> list[dict[str, object]]:
    formula = RooflineCostModel(model, source.gpu, calibration, tp=tp, residual=False)
    residual = RooflineCostModel(model, source.gpu, calibration, tp=tp)
    rows: list[dict[str, object]] = []
    for phase, label, work in _steps():
        elementwise = sum(formula.explain(work).seconds["elementwise"].values())
        table_s = _table_s(tables, model, tp, work) + elementwise
        if not np.isfinite(table_s):
            continue
        rows.append(
            {
                "model": model.name,
                "tp": tp,
                "phase": phase,
                "step": label,
                "table_ms": 1e3 * table_s,
                "formula": 100 * (formula.step_s(work) / table_s - 1),
                "residual": 100 * (residual.step_s(work) / table_s - 1),
            }
        )
    return rows


def _steps() -> list[tuple[str, str, StepWork]]:
    steps = []
    for batch in BATCHES:
        for context in CONTEXTS:
            work = StepWork(n_decode=batch, context_tokens=(batch * context,), logits_rows=batch)
            steps.append(("decode", f"batch {batch}, context {context}", work))
    for prompt in PROMPTS:
        work = StepWork(prompt, 1, int(operators.causal_pairs(prompt)), prompt, logits_rows=1)
        steps.append(("prefill", f"prompt {prompt}", work))
    return steps


def _table_s(tables: Tables, model: ModelSpec, tp: int, work: StepWork) -> float:
    tokens = work.new_tokens
    total = 0.0
    for linear in operators.linears(model, tp):
        rows = work.logits_rows if linear.kernel == "lm_head" else tokens
        total += linear.count * tables.gemm.seconds(m=rows, n=linear.n, k=linear.k)
    if work.n_decode:
        context = work.context_tokens[0] / work.n_decode
        total += model.n_layers * tables.decode.seconds(batch=work.n_decode, context_tokens=context)
    if work.prefill_tokens:
        total += model.n_layers * tables.prefill.seconds(batch=1, query_tokens=work.prefill_tokens)
    if tables.all_reduce is not None and tables.all_gather is not None:
        message = operators.ACTIVATION_BYTES * model.hidden_size * tokens
        total += 2 * model.n_layers * tables.all_reduce.seconds(message_bytes=message)
        logits = operators.ACTIVATION_BYTES * operators.head_linear(model, tp).n * tp * work.logits_rows
        total += tables.all_gather.seconds(message_bytes=logits)
    return total


def _tables(source: Source, model: ModelSpec, tp: int) -> Tables | None:
    heads, kv_heads = operators.heads_per_gpu(model, tp)
    mha = model.n_heads == model.n_kv_heads
    gemm = merged(GEMM.select(source.table, "bf16"), GEMM)
    prefill = _of_heads(source, PREFILL_MHA if mha else PREFILL, heads, kv_heads)
    decode = _of_heads(source, DECODE, heads, kv_heads)
    links = (
        [_collective(source, kind, tp) for kind in ("all_reduce", "all_gather")] if tp > 1 else [None, None]
    )
    if gemm.empty or prefill.empty or decode.empty or (tp > 1 and None in links):
        return None
    return Tables(
        LogTable(gemm, ("m", "n", "k")),
        LogTable(prefill, ("batch", "query_tokens")),
        LogTable(decode, ("batch", "context_tokens")),
        *links,
    )


def _of_heads(source: Source, task: Task, heads: int, kv_heads: int) -> pd.DataFrame:
    rows = merged(task.select(source.table, "bf16"), task)
    return rows[(rows["heads"] == heads) & (rows["kv_heads"] == kv_heads)]


def _collective(source: Source, kind: str, tp: int) -> LogTable | None:
    from .tasks import COLLECTIVES

    task = next(t for t in COLLECTIVES if t.name == f"{kind}_{tp}")
    rows = merged(task.select(source.table, "bf16"), task)
    return None if rows.empty else LogTable(rows, ("message_bytes",))
