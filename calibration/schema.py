"""The one schema of kernel timings: what `calibrate measure` writes and every table reader produces.

One row a timed case. Shapes are per GPU (after tensor parallelism has divided heads and widths). Columns that
a kernel does not use are null. Times are seconds, always.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepline.traces.errors import CalibrationError, nearest

if TYPE_CHECKING:
    import pandas as pd

TIMING_COLUMNS: dict[str, str] = {
    "kernel": "str",  # one of TIMING_KERNELS
    "gpu": "str",  # catalogue name, e.g. h100-sxm; "cpu" for the CPU back end
    "library": "str",  # who provides the kernel, NAME-VERSION, e.g. vllm-0.24.0, torch-2.9.0
    "dtype": "str",  # of the weights (GEMM, MoE), else of activations: bf16, fp16, fp32, fp8, int4 ...
    "kv_dtype": "str",  # of cached keys and values (attention)
    "m": "Int64",  # GEMM and elementwise: rows (tokens)
    "n": "Int64",  # GEMM: output width; elementwise: width of a row
    "k": "Int64",  # GEMM: inner width
    "heads": "Int64",  # query heads
    "kv_heads": "Int64",
    "head_dim": "Int64",
    "window": "Int64",  # sliding window in tokens; null: full attention
    "batch": "Int64",  # sequences (attention)
    "query_tokens": "Int64",  # new tokens of each sequence (prefill); 1 in a decode
    "context_tokens": "Int64",  # keys of each sequence, new tokens included; the mean if ragged
    "history_tokens": "Int64",  # cached tokens before the chunk; 0: fresh prompt
    "ragged": "boolean",  # context lengths differ inside the batch (context_tokens is their mean)
    "prefill_batch": "Int64",  # `attention_mixed`: sequences with a chunk, beside `batch` decodes
    "decode_context_tokens": "Int64",  # `attention_mixed`: context of each decode
    "n_experts": "Int64",
    "top_k": "Int64",
    "ep": "Int64",  # MoE: expert-parallel ways; experts on this GPU = n_experts / ep
    "skew": "Float64",  # MoE: power-law exponent of expert popularity; 0: balanced
    "world": "Int64",  # GPUs of a collective
    "message_bytes": "Int64",  # per-GPU buffer of a collective, or bytes moved by a copy
    "operation": "str",  # elementwise: norm, add_norm, rope, act, residual, copy; host: launch, sampling ...
    "graph": "boolean",  # replayed from a CUDA graph; false: launched eagerly
    "cold": "boolean",  # weights or KV could not sit in L2 (working set over repeats larger than L2)
    "median_s": "Float64",
    "spread_s": "Float64",  # half the 16-84 % range of the repeats; null: unknown
    "repeats": "Int64",
}
"""Column -> dtype. Every file needs kernel, gpu, library, dtype, median_s and its kernels' own columns."""

TIMING_KERNELS: dict[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "attention_prefill": ("batch", "query_tokens", "history_tokens", "heads", "kv_heads", "head_dim"),
    "attention_decode": ("batch", "context_tokens", "heads", "kv_heads", "head_dim"),
    "attention_mixed": (
        "batch",
        "prefill_batch",
        "query_tokens",
        "history_tokens",
        "decode_context_tokens",
        "heads",
        "kv_heads",
        "head_dim",
    ),
    "mla_prefill": ("batch", "query_tokens", "history_tokens", "heads"),
    "mla_decode": ("batch", "context_tokens", "heads"),
    "moe": ("m", "n", "k", "n_experts", "top_k", "ep", "skew"),  # m tokens, k hidden size, n expert width
    "elementwise": ("m", "n", "operation"),
    "copy": ("message_bytes",),
    "all_reduce": ("world", "message_bytes"),
    "all_gather": ("world", "message_bytes"),
    "reduce_scatter": ("world", "message_bytes"),
    "all_to_all": ("world", "message_bytes"),
    "host": ("operation",),
}
"""Kernel -> the shape columns that its rows must fill."""

_ALWAYS = ("kernel", "gpu", "library", "dtype", "median_s")
LONGEST_KERNEL_S = 60.0
"""No single kernel of a served model takes a minute: the longest table row is 0.34 s (bf16 GEMM on H100)."""

SHORTEST_KERNEL_S = 2e-7
"""No kernel launch is this short: an empty kernel takes 1-2 us on any GPU."""


SLOWEST_FLOPS_PER_S = 1e5
"""No machine that runs these tools multiplies matrices slower than this, however small they are."""

TELLING_S = 1e-5
"""A GEMM that takes at least this long by its GPU's datasheet is made by its work, not by its launch."""

ROOFLINE_FRACS = (0.02, 20.0)
"""Between these fractions of the datasheet roofline the median of such GEMMs must lie: a wrong unit is off by 1000."""


def check_timings(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return `frame` with exactly `TIMING_COLUMNS`, typed; refuse rows that cannot be timings.

    Args:
        frame: rows in this schema; further columns are dropped.
        where: file name for messages.

    Raises:
        CalibrationError: a column is missing, a kernel is unknown, a shape is null, zero or negative, a time
            is NaN, zero, negative, or of a size that only a wrong unit explains (all times of a kernel above
            `LONGEST_KERNEL_S` or below `SHORTEST_KERNEL_S`, GEMMs a thousand times off their GPU's roofline).
    """
    missing = [c for c in _ALWAYS if c not in frame.columns]
    if missing:
        raise CalibrationError(f"{where}: missing column {missing[0]!r}, expected {', '.join(_ALWAYS)}")
    typed = _typed(frame, where)
    for kernel, rows in typed.groupby("kernel", sort=True):
        if kernel not in TIMING_KERNELS:
            raise CalibrationError(f"{where}: kernel: got {kernel!r}{nearest(str(kernel), TIMING_KERNELS)}")
        _check_shapes(rows, str(kernel), frame.columns, where)
        _check_times(rows, str(kernel), where)
    return typed


_PANDAS: dict[str, Any] = {"str": "string", "Int64": "Int64", "Float64": "Float64", "boolean": "boolean"}


def _typed(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    import pandas as pd

    columns: dict[str, Any] = {}
    for name, dtype in TIMING_COLUMNS.items():
        values = frame[name] if name in frame.columns else pd.Series(pd.NA, index=frame.index, dtype="object")
        try:
            columns[name] = values.astype(_PANDAS[dtype])
        except (TypeError, ValueError) as error:
            raise CalibrationError(f"{where}: column {name!r}: expected {dtype}: {error}") from None
    return pd.DataFrame(columns).reset_index(drop=True)


def _check_shapes(rows: pd.DataFrame, kernel: str, present: Any, where: str) -> None:
    for name in TIMING_KERNELS[kernel]:
        if name not in present:
            raise CalibrationError(f"{where}: missing column {name!r}, which {kernel} rows need")
        values = rows[name]
        if values.isna().any():
            raise CalibrationError(
                f"{where}: row {_row(values.isna())}: {name}: got nothing, {kernel} rows need it"
            )
        least = 0 if name in ("history_tokens", "skew") else 1
        if name != "operation" and bool((values < least).any()):
            bad = values < least
            got = values[bad].iloc[0]
            raise CalibrationError(f"{where}: row {_row(bad)}: {name}: got {got}, expected >= {least}")


def _check_times(rows: pd.DataFrame, kernel: str, where: str) -> None:
    times = rows["median_s"]
    bad = times.isna() | ~(times > 0) | (times == float("inf"))
    if bad.any():
        got = times[bad].iloc[0]
        raise CalibrationError(f"{where}: row {_row(bad)}: median_s: got {got}, expected seconds > 0")
    if float(times.min()) > LONGEST_KERNEL_S:
        raise CalibrationError(
            f"{where}: {kernel}: times of {float(times.min()):g} to {float(times.max()):g} s: wrong unit "
            "suspected, expected seconds (were these milliseconds or microseconds?)"
        )
    if float(times.max()) < SHORTEST_KERNEL_S:
        raise CalibrationError(
            f"{where}: {kernel}: no time above {float(times.max()):g} s: wrong unit suspected, want seconds"
        )
    if kernel == "gemm":
        _check_rates(rows, where)


def _check_rates(rows: pd.DataFrame, where: str) -> None:
    """Refuse GEMM rows whose times are those of no such device in seconds."""
    from stepline.sim.cost.catalogue import known_gpus, load_gpu
    from stepline.sim.cost.roofline import compute_peak

    shape = {name: rows[name].astype(float) for name in ("m", "n", "k")}
    m, n, k, seconds = *shape.values(), rows["median_s"].astype(float)
    flops = 2.0 * m * n * k
    if float((flops / seconds).max()) < SLOWEST_FLOPS_PER_S:
        raise CalibrationError(
            f"{where}: gemm: at most {float((flops / seconds).max()):.3g} FLOP/s: wrong unit suspected, want seconds"
        )
    names = rows["gpu"].unique()
    if len(names) != 1 or str(names[0]) not in known_gpus():
        return  # a device that nobody knows may be as slow as it likes
    gpu = load_gpu(str(names[0]))
    peak = rows["dtype"].map({d: compute_peak(gpu, str(d)) for d in rows["dtype"].unique()}).astype(float)
    least = (flops / peak).combine(
        (n * k + m * k + m * n) / gpu.hbm_bytes_per_s, max
    )  # a byte or more an element
    telling = least >= TELLING_S
    frac = float((least / seconds)[telling].median()) if telling.any() else 1.0
    if not ROOFLINE_FRACS[0] < frac < ROOFLINE_FRACS[1]:
        raise CalibrationError(
            f"{where}: gemm: large GEMMs run at {frac:.2g} of the roofline of {gpu.name}: wrong unit suspected, "
            "expected seconds (were these milliseconds or microseconds?)"
        )


def _row(mask: Any) -> int:
    """First row (0-based, of the file) where `mask` holds."""
    return int(mask.index[mask.to_numpy(dtype=bool, na_value=True)][0])
