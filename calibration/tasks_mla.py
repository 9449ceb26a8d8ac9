"""Latent attention (MLA): the tables time whole modules, so the attention form is fitted on top of the GEMM form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from stepline.sim.cost import forms, operators
from stepline.sim.cost.attention_costs import AttentionShape, decode_shape, prefill_shape
from stepline.sim.cost.catalogue import load_model
from stepline.sim.cost.roofline import compute_peak
from stepline.sim.cost.specs import GpuSpec, ModelSpec

from .fit_core import Array
from .tasks import M_REGIMES, Columns, Task

if TYPE_CHECKING:
    import pandas as pd

MODEL = "deepseek-v3"
"""The modules in the tables are DeepSeek-V3's, with 1 to 128 of its heads."""


def mla_tasks(gemm: Mapping[str, float]) -> tuple[Task, Task]:
    """Tasks `mla_prefill` and `mla_decode`: module seconds = Σ GEMM form of the projections + attention form.

    The launch constant takes in what else a module launches (norms, rope, cache write).

    Args:
        gemm: constants of the GEMM form on the same GPU and dtype.
    """
    return _task(gemm, prefill=True), _task(gemm, prefill=False)


def _task(gemm: Mapping[str, float], *, prefill: bool) -> Task:
    kernel = "mla_prefill" if prefill else "mla_decode"

    def select(table: pd.DataFrame, dtype: str) -> pd.DataFrame:
        rows = table.loc[
            (table["kernel"] == kernel) & (table["dtype"] == dtype) & (table["kv_dtype"] == "bf16")
        ]
        return rows.loc[rows["history_tokens"].fillna(0) == 0] if prefill else rows

    def predict(c: Mapping[str, float], x: Columns, gpu: GpuSpec, dtype: str) -> Array:
        attention = _prefill_s if prefill else _decode_s
        return np.asarray(_projections_s(gemm, x, gpu, dtype, prefill) + attention(c, x, gpu))

    def floor(x: Columns, gpu: GpuSpec, dtype: str) -> Array:
        flops, bytes_ = _projection_work(x, dtype, prefill)
        shape, pairs, kv_tokens, tokens = _attention_work(x, prefill)
        peak = compute_peak(gpu, dtype)
        flops = flops + pairs * shape["flops_per_pair"]
        bytes_ = bytes_ + tokens * shape["query_bytes"] + kv_tokens * shape["kv_floor_bytes"]
        return np.asarray(np.maximum(flops / peak, bytes_ / gpu.hbm_bytes_per_s))

    length = "query_tokens" if prefill else "context_tokens"
    start: dict[str, float] = {"t0_s": 5e-5, "compute_eff": 0.5, "memory_eff": 0.4, "exponent": 1.3}
    if not prefill:
        start = {"t0_s": 4e-5, "wave_s": 1e-6, "memory_eff": 0.7}
    return Task(
        name=kernel,
        form="p-norm" if prefill else "waves",
        select=select,
        predict=predict,
        floor=floor,
        starts=(start,),
        shapes=("batch", length, "heads"),
        group=("heads",),
        size=length,
        regime=(length, M_REGIMES),
        scope="DeepSeek-V3 modules less the GEMM form of their projections, bf16 KV",
    )


def _one_layer(heads: int) -> ModelSpec:
    return replace(load_model(MODEL), n_layers=1, n_heads=heads, n_kv_heads=heads, attention_windows=())


def _tokens(x: Columns, prefill: bool) -> Array:
    return x["batch"] * (x["query_tokens"] if prefill else 1.0)


def _projections_s(gemm: Mapping[str, float], x: Columns, gpu: GpuSpec, dtype: str, prefill: bool) -> Array:
    total, tokens = np.zeros(len(x["heads"])), _tokens(x, prefill)
    for heads in np.unique(x["heads"]):
        rows = x["heads"] == heads
        for linear in operators.attention_linears(_one_layer(int(heads))):
            n, k, m = linear.n, linear.k, tokens[rows]
            bytes_ = operators.gemm_weight_bytes(n, k, dtype) + operators.gemm_activation_bytes(m, n, k)
            total[rows] += forms.gemm_s(m, n, k, bytes_, gemm, gpu, compute_peak(gpu, dtype))
    return total


def _projection_work(x: Columns, dtype: str, prefill: bool) -> tuple[Array, Array]:
    flops, bytes_, tokens = np.zeros(len(x["heads"])), np.zeros(len(x["heads"])), _tokens(x, prefill)
    for heads in np.unique(x["heads"]):
        rows = x["heads"] == heads
        for linear in operators.attention_linears(_one_layer(int(heads))):
            flops[rows] += operators.gemm_flops(tokens[rows], linear.n, linear.k)
            bytes_[rows] += operators.gemm_weight_bytes(linear.n, linear.k, dtype)
    return flops, bytes_


def _attention_work(x: Columns, prefill: bool) -> tuple[dict[str, Array], Array, Array, Array]:
    """Per-unit amounts (arrays over rows), pairs, keys and new tokens."""
    shapes: dict[float, AttentionShape] = {
        float(h): (prefill_shape if prefill else decode_shape)(_one_layer(int(h)), 1, "bf16")
        for h in np.unique(x["heads"])
    }
    names = ("flops_per_pair", "query_bytes", "kv_bytes", "kv_floor_bytes")
    unit = {name: np.array([getattr(shapes[h], name) for h in x["heads"]], dtype=float) for name in names}
    tokens = _tokens(x, prefill)
    if prefill:
        return unit, tokens * (x["query_tokens"] + 1) / 2, tokens, tokens
    return unit, x["batch"] * x["context_tokens"], x["batch"] * x["context_tokens"], tokens


def _prefill_s(c: Mapping[str, float], x: Columns, gpu: GpuSpec) -> Array:
    unit, pairs, keys, tokens = _attention_work(x, True)
    bytes_ = tokens * unit["query_bytes"] + keys * unit["kv_bytes"]
    peak = compute_peak(gpu, "bf16")
    return np.asarray(forms.overlapped_s(pairs * unit["flops_per_pair"], bytes_, c, gpu, peak))


def _decode_s(c: Mapping[str, float], x: Columns, gpu: GpuSpec) -> Array:
    unit, pairs, keys, tokens = _attention_work(x, False)
    peak = compute_peak(gpu, "bf16")
    query, kv = tokens * unit["query_bytes"], keys * unit["kv_bytes"]
    flops = pairs * unit["flops_per_pair"]
    return np.asarray(forms.decode_attention_s(x["batch"], 1, query, kv, flops, c, gpu, peak))
