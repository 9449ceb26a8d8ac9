"""What is fitted: for each kernel its rows, its form (the simulator's own), its constants, splits and regimes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from stepline.sim.cost import forms, operators
from stepline.sim.cost.residual import decode_features, gemm_features, moe_features, prefill_features
from stepline.sim.cost.roofline import compute_peak
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
    group      columns that together name a shape family (held out whole in the `unseen` split)
    size       column whose largest values the `largest` split holds out, with the share of rows held out
    regime     column of the regimes and their edges (upper ends)
    scope      which subset of the table this is, in words
    wide       columns whose large values the `large-nk` split holds out
    features   shapes as the residual grid sees them; `residual` its knots and smoothing, None: no such layer
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
    wide: tuple[str, ...] = ()
    features: Callable[[Columns], Mapping[str, Array]] = dict
    residual: ResidualPlan | None = None


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


def _powers(low: float, high: float, step: float = 1.0) -> tuple[float, ...]:
    """Knots 2^low, 2^(low + step), ... up to 2^high."""
    return tuple(float(2.0**e) for e in np.arange(low, high + 0.5 * step, step))


def _plan(knots: Mapping[str, tuple[float, ...]], stiffness: float, pull: float = 3e-3) -> ResidualPlan:
    return ResidualPlan(knots, dict.fromkeys(knots, stiffness), pull)


M_REGIMES = (16.0, 256.0, 4096.0)
"""Upper ends of the token regimes: m <= 16, 16-256, 256-4 k, above."""


# --- GEMM


def _gemm_rows(table: pd.DataFrame, dtype: str) -> pd.DataFrame:
    rows = table[(table["kernel"] == "gemm") & table["dtype"].isin(_aliases(dtype))]
    return rows[
        rows["graph"].fillna(True).astype(bool) | (rows["m"] >= 1024)
    ]  # eager rows time the host below 1 k


def _aliases(dtype: str) -> tuple[str, ...]:
    return ("bf16", "fp16") if dtype == "bf16" else (dtype,)


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


_GEMM_ROWS = (
    *(1.0, 4.0, 8.0, 12.0, 16.0, 17.0, 32.0, 33.0, 48.0, 64.0, 65.0, 80.0, 96.0, 97.0, 112.0, 128.0, 129.0),
    *(160.0, 192.0, 224.0, 256.0, 257.0, 512.0, 513.0, 768.0, 1024.0, 1536.0, 2048.0, 3072.0, 4096.0),
    *(8192.0, 16384.0, 32768.0),
)
"""Knots of m: libraries change kernels at multiples of 16 up to 128, at 256 and 512, hence one on either side."""

_GEMM_WIDTHS = (
    *_powers(5, 9),
    *(768.0, 1024.0, 1536.0, 2048.0, 2560.0, 3072.0, 3584.0, 4096.0, 5120.0, 6144.0, 7168.0, 8192.0),
    *(10240.0, 12288.0, 16384.0, 51200.0, 65536.0),
)
"""Knots of n and k: the widths of common models."""

GEMM = Task(
    name="gemm",
    form="k-chain",
    select=_gemm_rows,
    predict=_gemm_s,
    floor=_gemm_floor,
    starts=({"t0_s": 2.6e-6, "compute_eff": 0.8, "memory_eff": 0.85, "chain_s_per_k": 1.3e-9},),
    fixed={"exponent": 2.0},
    shapes=("m", "n", "k"),
    group=("n", "k"),
    size="m",
    wide=("n", "k"),
    regime=("m", M_REGIMES),
    scope="all m, n, k of the dtype, L2-warm rows included",
    features=lambda x: gemm_features(x["m"], x["n"], x["k"]),
    residual=_plan({"m": _GEMM_ROWS, "n": _GEMM_WIDTHS, "k": _GEMM_WIDTHS}, 0.02),
)


# --- attention


def attention_dtype(dtype: str) -> str:
    """Type in which attention computes and caches beside weights of `dtype`: bf16, but fp32 in an fp32 model."""
    return "fp32" if dtype == "fp32" else "bf16"


def _attention_rows(table: pd.DataFrame, kernel: str, mha: bool, dtype: str) -> pd.DataFrame:
    rows = table[(table["kernel"] == kernel) & (table["head_dim"] == 128) & table["window"].isna()]
    rows = rows[rows["kv_dtype"].isin(_aliases(attention_dtype(dtype))) | rows["kv_dtype"].isna()]
    rows = rows[~rows["ragged"].fillna(False).astype(bool)]
    same = rows["heads"] == rows["kv_heads"]
    return rows[same if mha else ~same]


def _prefill_rows(mha: bool) -> Callable[[Any, str], Any]:
    def select(table: pd.DataFrame, dtype: str) -> pd.DataFrame:
        rows = _attention_rows(table, "attention_prefill", mha, dtype)
        return rows[rows["history_tokens"].fillna(0) == 0]

    return select


def _decode_rows(mha: bool) -> Callable[[Any, str], Any]:
    def select(table: pd.DataFrame, dtype: str) -> pd.DataFrame:
        return _attention_rows(table, "attention_decode", mha, dtype)

    return select


def _prefill_work(x: Columns, dtype: str) -> tuple[Array, Array]:
    pairs = x["batch"] * x["query_tokens"] * (x["query_tokens"] + 1) / 2
    tokens = x["batch"] * x["query_tokens"]
    flops = operators.attention_flops(pairs, x["heads"], x["head_dim"])
    bytes_ = operators.query_bytes(tokens, x["heads"], x["head_dim"])
    return flops, bytes_ + operators.kv_bytes(tokens, x["kv_heads"], x["head_dim"], attention_dtype(dtype))


def _prefill_s(c: Mapping[str, float], x: Columns, gpu: GpuSpec, dtype: str) -> Array:
    peak = compute_peak(gpu, attention_dtype(dtype))
    tokens, group = x["batch"] * x["query_tokens"], x["heads"] / x["kv_heads"]
    tiles = forms.query_tiles(tokens, x["batch"], x["kv_heads"], group)
    return np.asarray(forms.tile_walk_s(*_prefill_work(x, dtype), tiles, x["query_tokens"], c, gpu, peak))


def _prefill_floor(x: Columns, gpu: GpuSpec, dtype: str) -> Array:
    flops, bytes_ = _prefill_work(x, dtype)
    return np.maximum(flops / compute_peak(gpu, attention_dtype(dtype)), bytes_ / gpu.hbm_bytes_per_s)


def _decode_work(x: Columns, dtype: str) -> tuple[Array, Array, Array]:
    tokens = x["batch"] * x["context_tokens"]
    query = operators.query_bytes(x["batch"], x["heads"], x["head_dim"])
    kv = operators.kv_bytes(tokens, x["kv_heads"], x["head_dim"], attention_dtype(dtype))
    return query, kv, operators.attention_flops(tokens, x["heads"], x["head_dim"])


def _decode_s(c: Mapping[str, float], x: Columns, gpu: GpuSpec, dtype: str) -> Array:
    peak = compute_peak(gpu, attention_dtype(dtype))
    work = _decode_work(x, dtype)
    return np.asarray(forms.decode_attention_s(x["batch"], x["kv_heads"], *work, c, gpu, peak))


def _decode_floor(x: Columns, gpu: GpuSpec, dtype: str) -> Array:
    query, kv, flops = _decode_work(x, dtype)
    return np.maximum(flops / compute_peak(gpu, attention_dtype(dtype)), (query + kv) / gpu.hbm_bytes_per_s)


_GROUPS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0)
"""Query heads that share a KV head."""


def _prefill_task(mha: bool) -> Task:
    lengths = (1.0, *_powers(4, 14))
    return Task(
        name="attention_prefill_mha" if mha else "attention_prefill",
        form="tile-walk",
        select=_prefill_rows(mha),
        predict=_prefill_s,
        floor=_prefill_floor,
        starts=(
            {
                "t0_s": 12.8e-6,
                "wave_s": 3e-6,
                "chain_s_per_key": 6e-9,
                "compute_eff": 0.65,
                "memory_eff": 0.5,
                "exponent": 1.2,
            },
        ),
        shapes=("batch", "query_tokens", "heads", "kv_heads", "head_dim"),
        group=("heads", "kv_heads"),
        size="query_tokens",
        regime=("query_tokens", M_REGIMES),
        features=lambda x: prefill_features(
            x["batch"] * x["query_tokens"],
            x["batch"] * x["query_tokens"] * (x["query_tokens"] + 1) / 2,
            x["heads"],
            x["kv_heads"],
        ),
        residual=_plan(
            {"batch": _powers(0, 8), "query_tokens": lengths, "heads": (*_powers(0, 6), 96.0)}
            if mha
            else {"kv_rows": _powers(0, 11), "query_tokens": lengths, "group": _GROUPS},
            0.03,
        ),
        scope=f"{'as many KV as query heads' if mha else 'grouped KV heads'}, head_dim 128, no window, bf16 KV",
    )


def _decode_task(mha: bool) -> Task:
    return Task(
        name="attention_decode_mha" if mha else "attention_decode",
        form="waves",
        select=_decode_rows(mha),
        predict=_decode_s,
        floor=_decode_floor,
        starts=({"t0_s": 12e-6, "wave_s": 3.3e-6, "memory_eff": 0.9},),
        shapes=("batch", "context_tokens", "heads", "kv_heads", "head_dim"),
        group=("heads", "kv_heads"),
        size="context_tokens",
        regime=("context_tokens", M_REGIMES),
        features=lambda x: decode_features(x["batch"], x["context_tokens"], x["heads"], x["kv_heads"]),
        residual=_plan(
            {
                # few head shapes with one KV head a query head were timed: a coarser grid, lest it copies the rows
                "batch": (*_powers(0, 10, 2), 2048.0) if mha else _powers(0, 11),
                "context_tokens": _powers(1, 17, 2) if mha else _powers(1, 17),
                "kv_heads": _powers(0, 3),
            },
            0.01,
        ),
        scope=f"{'as many KV as query heads' if mha else 'grouped KV heads'}, head_dim 128, no window, bf16 KV",
    )


PREFILL, PREFILL_MHA = _prefill_task(False), _prefill_task(True)
DECODE, DECODE_MHA = _decode_task(False), _decode_task(True)


# --- collectives


def _collective_task(kind: str, world: int) -> Task:
    def select(table: pd.DataFrame, dtype: str) -> pd.DataFrame:
        del dtype
        rows = table[(table["kernel"] == kind) & (table["world"] == world)]
        return rows.loc[rows["graph"].fillna(True).astype(bool)]

    def predict(c: Mapping[str, float], x: Columns, gpu: GpuSpec, dtype: str) -> Array:
        del dtype
        return np.asarray(forms.collective_s(x["message_bytes"], world, c, gpu, kind))

    def floor(x: Columns, gpu: GpuSpec, dtype: str) -> Array:
        del dtype
        wire = (world - 1) / world * x["message_bytes"]
        return np.asarray(wire / gpu.nvlink_bytes_per_s)

    return Task(
        name=f"{kind}_{world}",
        form="alpha-beta",
        select=select,
        predict=predict,
        floor=floor,
        starts=tuple(
            {"t0_s": 5e-6, "one_shot_eff": one, "two_shot_s": two, "two_shot_eff": 0.7}
            for one in (0.3, 0.7)
            for two in (1e-5, 1e-4)
        ),
        shapes=("message_bytes",),
        group=("message_bytes",),
        size="message_bytes",
        regime=("message_bytes", (65536.0, 1048576.0, 16777216.0)),
        residual=_plan({"message_bytes": _powers(8, 30)}, 0.05),
        scope=f"{world} GPUs, CUDA graph",
    )


COLLECTIVES = tuple(
    _collective_task(kind, world)
    for kind in ("all_reduce", "all_gather", "all_to_all")
    for world in (2, 4, 8)
)

# --- elementwise

ELEMENTWISE_ELEMENTS = {"norm": 2.0, "add_norm": 4.0, "residual": 3.0, "act": 3.0, "rope": 2.0}
"""Elements moved for each of the m · n of a row: x in and out; with the residual too; two in, one out."""


def _elementwise_rows(table: pd.DataFrame, dtype: str) -> pd.DataFrame:
    rows = table.loc[(table["kernel"] == "elementwise") & table["dtype"].isin(_aliases(dtype))]
    moved = rows["operation"].map(ELEMENTWISE_ELEMENTS)
    elements = (rows["m"] * rows["n"]).astype("Float64") * moved.astype("Float64")
    sized = rows.assign(message_bytes=elements * operators.bytes_per_element(dtype))
    known: pd.DataFrame = sized.loc[moved.notna()]
    return known


def _elementwise_s(c: Mapping[str, float], x: Columns, gpu: GpuSpec, dtype: str) -> Array:
    del dtype
    return np.asarray(c["t0_s"] + x["message_bytes"] / (c["memory_eff"] * gpu.hbm_bytes_per_s))


def _elementwise_floor(x: Columns, gpu: GpuSpec, dtype: str) -> Array:
    del dtype
    return np.asarray(x["message_bytes"] / gpu.hbm_bytes_per_s)


ELEMENTWISE = Task(
    name="elementwise",
    form="launch-bytes",
    select=_elementwise_rows,
    predict=_elementwise_s,
    floor=_elementwise_floor,
    starts=({"t0_s": 2.5e-6, "memory_eff": 0.5},),
    shapes=("message_bytes",),
    group=("message_bytes",),
    size="message_bytes",
    regime=("message_bytes", (65536.0, 1048576.0, 16777216.0)),
    scope="norm, add + norm, residual add, activation, rope; a median over operations of equal bytes",
)


# --- mixture of experts

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
    return ("fp8_block",) if blocks else _aliases(dtype)


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
    return np.asarray(forms.fused_moe_s(*_moe_work(x, dtype), c, gpu, compute_peak(gpu, dtype)))


def _moe_floor(x: Columns, gpu: GpuSpec, dtype: str) -> Array:
    flops, weights, activations = _moe_work(x, dtype)
    return np.asarray(
        np.maximum(flops / compute_peak(gpu, dtype), (weights + activations) / gpu.hbm_bytes_per_s)
    )


MOE = Task(
    name="moe",
    form="fused-moe",
    select=_moe_rows,
    predict=_moe_s,
    floor=_moe_floor,
    starts=({"t0_s": 3e-5, "compute_eff": 0.55, "memory_eff": 0.89, "activation_eff": 0.3, "exponent": 2.0},),
    shapes=("m", "n", "k", "n_experts", "top_k", "skew"),
    group=("k", "n_experts", "top_k"),
    size="m",
    regime=("m", M_REGIMES),
    scope=f"gated experts of width {MOE_MIN_WIDTH} or more, EP 1, balanced routing (or the mildest skew there is)",
    features=lambda x: moe_features(x["m"], x["n"], x["n_experts"], x["top_k"]),
    # a wider grid (width, experts, m) fits its own rows to 2 % and does not carry over to unseen models
    residual=_plan({"per_expert": _powers(-9, 12)}, 0.1),
)


TASKS: tuple[Task, ...] = (
    GEMM,
    PREFILL,
    PREFILL_MHA,
    DECODE,
    DECODE_MHA,
    MOE,
    ELEMENTWISE,
    *COLLECTIVES,
)
"""Everything that can be fitted, in the order of reports."""
