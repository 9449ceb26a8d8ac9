"""Routed experts of a fused MoE kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from stepline.sim.cost import forms, operators
from stepline.sim.cost.residual import moe_features
from stepline.sim.cost.roofline import compute_peak
from stepline.sim.cost.specs import GpuSpec

from .fit_core import Array
from .task import M_REGIMES, Columns, Task, aliases, plan, powers

if TYPE_CHECKING:
    import pandas as pd


MOE_MIN_WIDTH = 256
"""Experts sliced thinner than this leave the form (launch-bound tiles); models do so only at high TP."""


def _moe_rows(table: pd.DataFrame, dtype: str) -> pd.DataFrame:
    rows = table.loc[(table["kernel"] == "moe") & table["dtype"].isin(_moe_dtypes(table, dtype))]
    rows = rows.loc[(rows["ep"] == 1) & (rows["n"] >= MOE_MIN_WIDTH)]
    rows = rows.loc[
        rows["skew"] == rows["skew"].min()
    ]  # balanced; a collection without such rows: the mildest skew
    # Nemotron-3's experts have two matrices; the table does not say so, its shapes do
    ungated = (rows["top_k"] == 22) | ((rows["k"] == 2688) & (rows["n_experts"] == 128))
    gated: pd.DataFrame = rows.loc[~ungated]
    return gated


def _moe_dtypes(table: pd.DataFrame, dtype: str) -> tuple[str, ...]:
    """Which rows stand for a weight dtype. fp8: those of fp8_block where there are any.

    The tables' plain fp8 rows time one vendor's checkpoints on an untuned CUTLASS kernel that is slower than bf16 at
    every size; the fp8 checkpoints that are served (per channel or per block) run the Triton kernel of the other rows.
    """
    blocks = dtype == "fp8" and bool(((table["kernel"] == "moe") & (table["dtype"] == "fp8_block")).any())
    return ("fp8_block",) if blocks else aliases(dtype)


def _moe_work(x: Columns, dtype: str) -> tuple[Array, Array, Array]:
    """Amounts of table rows: balanced ones deal copies round robin, so that min(N, T k) experts are touched."""
    shape = operators.MoeShape(x["k"], x["n"], x["n_experts"], x["top_k"])  # type: ignore[arg-type]  # columns
    experts = np.minimum(x["n_experts"], x["m"] * x["top_k"])
    for n, k, skew in set(zip(x["n_experts"], x["top_k"], x["skew"], strict=True)):
        if skew > 0:
            same = (x["n_experts"] == n) & (x["top_k"] == k) & (x["skew"] == skew)
            experts[same] = operators.distinct_experts(x["m"][same], int(n), int(k), float(skew))
    flops, weights, activations = operators.moe_work(x["m"], shape, dtype, experts)
    return np.asarray(flops), np.asarray(weights), np.asarray(activations)


def _moe_s(c: Mapping[str, float], x: Columns, gpu: GpuSpec, dtype: str) -> Array:
    length = x["k"] + x["n"]
    return np.asarray(forms.fused_moe_s(*_moe_work(x, dtype), length, c, gpu, compute_peak(gpu, dtype)))


def _moe_floor(x: Columns, gpu: GpuSpec, dtype: str) -> Array:
    flops, weights, activations = _moe_work(x, dtype)
    return np.asarray(
        np.maximum(flops / compute_peak(gpu, dtype), (weights + activations) / gpu.hbm_bytes_per_s)
    )


_RESIDUAL = plan(
    {"per_expert": powers(-9, 12, 0.5), "width": powers(8, 14), "top_k": (1.0, 2.0, 8.0, 16.0)}, 0.02, 0.03
)
"""By experts a token takes rather than by how many there are: models of one expert a token run other kernels around the
same GEMMs. Axes and pull were chosen on seeds 100 to 109 of `unseen`, which no published score uses."""

MOE = Task(
    name="moe",
    form="chained-moe",
    select=_moe_rows,
    predict=_moe_s,
    floor=_moe_floor,
    starts=(
        {
            "t0_s": 2e-5,
            "chain_s_per_k": 1.5e-9,
            "compute_eff": 0.55,
            "memory_eff": 0.89,
            "activation_eff": 0.3,
            "exponent": 2.0,
        },
    ),
    shapes=("m", "n", "k", "n_experts", "top_k", "skew"),
    group=("k", "n_experts", "top_k"),
    size="m",
    regime=("m", M_REGIMES),
    scope=f"gated experts of width {MOE_MIN_WIDTH} or more, EP 1, balanced routing (or the mildest skew there is)",
    features=lambda x: moe_features(x["m"], x["n"], x["n_experts"], x["top_k"]),
    residual=_RESIDUAL,
)
