"""Linear layers: the K-chain form on (m, n, k)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from stepline.sim.cost import forms, operators
from stepline.sim.cost.residual import gemm_features
from stepline.sim.cost.roofline import compute_peak
from stepline.sim.cost.specs import GpuSpec

from .fit_core import Array
from .fit_residual import ResidualPlan
from .task import M_REGIMES, Columns, Task, aliases, plan, powers

if TYPE_CHECKING:
    import pandas as pd


def _gemm_rows(table: pd.DataFrame, dtype: str) -> pd.DataFrame:
    rows = table[(table["kernel"] == "gemm") & table["dtype"].isin(aliases(dtype))]
    return rows[
        rows["graph"].fillna(True).astype(bool) | (rows["m"] >= 1024)
    ]  # eager rows time the host below 1 k


def _gemm_bytes(x: Columns, dtype: str) -> Array:
    weights = operators.gemm_weight_bytes(x["n"], x["k"], dtype)
    return np.asarray(weights + operators.gemm_activation_bytes(x["m"], x["n"], x["k"]))


def _gemm_s(c: Mapping[str, float], x: Columns, gpu: GpuSpec, dtype: str) -> Array:
    return np.asarray(
        forms.gemm_s(x["m"], x["n"], x["k"], _gemm_bytes(x, dtype), c, gpu, compute_peak(gpu, dtype))
    )


def _gemm_floor(x: Columns, gpu: GpuSpec, dtype: str) -> Array:
    flops = operators.gemm_flops(x["m"], x["n"], x["k"])
    return np.asarray(
        np.maximum(flops / compute_peak(gpu, dtype), _gemm_bytes(x, dtype) / gpu.hbm_bytes_per_s)
    )


_SERVING_ROWS = (
    *(1.0, 4.0, 8.0, 12.0, 16.0, 17.0, 32.0, 33.0, 48.0, 64.0, 65.0, 80.0, 96.0, 97.0, 112.0, 128.0, 129.0),
    *(160.0, 192.0, 224.0, 256.0, 257.0, 512.0, 513.0, 768.0, 1024.0, 1536.0, 2048.0, 3072.0, 4096.0),
    *(8192.0, 16384.0, 32768.0),
)
"""Knots of m of cold rows: libraries change kernels at multiples of 16 up to 128, at 256 and 512, hence one on either
side."""

_GEMM_ROWS = (
    *(1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 17.0, 32.0, 33.0, 48.0, 49.0, 64.0, 65.0, 80.0, 81.0),
    *(96.0, 97.0, 112.0, 113.0, 128.0, 129.0, 160.0, 161.0, 192.0, 193.0, 224.0, 225.0, 256.0, 257.0),
    *(512.0, 513.0, 768.0, 769.0, 1024.0, 1025.0, 1280.0, 1281.0, 1536.0, 1537.0, 1792.0, 1793.0),
    *(2048.0, 2049.0, 2304.0, 2305.0, 2560.0, 3072.0, 3073.0, 4096.0, 4097.0, 8192.0, 16384.0, 32768.0),
)
"""Knots of m: one on either side of every multiple of a tile that was timed, up to where tiles fill many rounds."""

_GEMM_WIDTHS = (
    *powers(5, 9),
    *(768.0, 1024.0, 1536.0, 2048.0, 2560.0, 3072.0, 3584.0, 4096.0, 5120.0, 6144.0, 7168.0, 8192.0),
    *(10240.0, 12288.0, 16384.0, 51200.0, 65536.0),
)
"""Knots of n and k: the widths of common models."""

GEMM_SERVING_RESIDUAL = plan({"m": _SERVING_ROWS, "n": _GEMM_WIDTHS, "k": _GEMM_WIDTHS}, 0.02, scales=(1.0,))
"""Residual of the cold rows, whose scatter over m is cut (see `tasks_serving`): nothing jumps."""

GEMM = Task(
    name="gemm",
    form="k-chain",
    select=_gemm_rows,
    predict=_gemm_s,
    floor=_gemm_floor,
    starts=(
        {
            "t0_s": 2.6e-6,
            "compute_eff": 0.8,
            "memory_eff": 0.85,
            "chain_s_per_k": 1.3e-9,
            "overlap_exponent": 2.4,
        },
    ),
    fixed={"exponent": 2.0},
    shapes=("m", "n", "k"),
    group=("n", "k"),
    size="m",
    wide=("n", "k"),
    regime=("m", M_REGIMES),
    scope="all m, n, k of the dtype, L2-warm rows included",
    features=lambda x: gemm_features(x["m"], x["n"], x["k"]),
    residual=ResidualPlan(
        {"m": _GEMM_ROWS, "n": _GEMM_WIDTHS, "k": _GEMM_WIDTHS},
        {"m": 0.02, "n": 0.1, "k": 0.1},
        pairs=(("m", "n"), ("m", "k")),
        jumps=("m",),
        own={"m": 3.0},
    ),
)
