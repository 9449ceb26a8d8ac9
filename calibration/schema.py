"""The timing table: one row a measured kernel shape, the form in which `measure` writes and `fit` reads.

Every source of timings (a live device, a published table) is brought to these columns: seconds, bytes, shapes as
one GPU of a tensor-parallel group sees them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import CalibrationError, nearest

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class TimingRow:
    """One timed kernel shape on one device. Shape columns that do not apply are None.

    kernel          a key of `KERNEL_SHAPES`
    gpu             catalogue name of the device if it has one (`h100-sxm`), else a slug of the driver's name
    library         who ran it, with version: `torch-2.6.0`, `flashinfer-0.2.1`, `vllm-0.24.0`, `numpy-2.1.0`
    dtype           element type of the operands; `kv_dtype` of the KV cache where it differs (None: the same)
    m, n, k         GEMM: (m × k) · (k × n). Row-wise kernels: m rows of n elements. MoE: m tokens, expert
                    width n (as one GPU holds it), hidden size k
    heads, kv_heads, head_dim  attention heads on one GPU
    batch           sequences in the call
    query_tokens    new tokens of each sequence (1 in decode)
    history_tokens  tokens already in the KV cache before the call, mean per sequence
    context_tokens  keys each sequence attends to, mean per sequence: history plus new tokens
    window_tokens   sliding window, None for full attention
    n_experts, top_k  mixture of experts
    world           GPUs in the collective
    message_bytes   bytes of a copy (read + written), or of the buffer that a collective reduces
    variant         what else tells two rows apart: `uniform`, `ragged`, `mixed`, `rms`, `silu-mul`
    median_s        median seconds of one call; `spread_s` half the interquartile range; `repeats` samples
    cold            True if the operands that stream from memory cannot have been in the last cache
    """

    kernel: str
    gpu: str
    library: str
    dtype: str
    median_s: float
    spread_s: float = 0.0
    repeats: int = 1
    cold: bool = True
    m: int | None = None
    n: int | None = None
    k: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    batch: int | None = None
    query_tokens: int | None = None
    context_tokens: int | None = None
    history_tokens: int | None = None
    window_tokens: int | None = None
    n_experts: int | None = None
    top_k: int | None = None
    world: int | None = None
    message_bytes: int | None = None
    kv_dtype: str | None = None
    variant: str = "uniform"


_ATTENTION = ("heads", "kv_heads", "head_dim", "batch", "query_tokens", "context_tokens", "history_tokens")

KERNEL_SHAPES: dict[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "attention_prefill": _ATTENTION,  # history_tokens > 0: chunked prefill on a cached prefix
    "attention_decode": _ATTENTION,
    # one chunk of query_tokens on history_tokens beside `batch` decodes of context_tokens each
    "attention_mixed": _ATTENTION,
    "moe": ("m", "n", "k", "n_experts", "top_k"),
    "norm": ("m", "n"),
    "rope": ("m", "n"),  # n = rotated elements of a token: (heads + kv_heads) · head_dim
    "act": ("m", "n"),  # n = width after the gate
    "add": ("m", "n"),
    "copy": ("message_bytes",),
    "launch": (),
    "sampling": ("m", "n"),
    "all_reduce": ("world", "message_bytes"),
    "all_gather": ("world", "message_bytes"),
    "all_to_all": ("world", "message_bytes"),
}
"""Kernels of the table and the shape columns that each must fill."""

TEXT_COLUMNS = ("kernel", "gpu", "library", "dtype", "kv_dtype", "variant")
SHAPE_COLUMNS = (
    "m", "n", "k", "heads", "kv_heads", "head_dim", "batch", "query_tokens", "context_tokens",
    "history_tokens", "window_tokens", "n_experts", "top_k", "world", "message_bytes",
)  # fmt: skip
COLUMNS = tuple(f.name for f in dataclasses.fields(TimingRow))
KEY_COLUMNS = ("kernel", "gpu", "dtype", *SHAPE_COLUMNS, "kv_dtype", "variant")
"""What makes two rows the same measurement (a second one of them is a repeat)."""

REQUIRED_COLUMNS = ("kernel", "dtype", "median_s")
LONGEST_KERNEL_S = 60.0
"""A single kernel that takes longer than this was written in another unit (ms or µs)."""


def frame(rows: Iterable[TimingRow | Mapping[str, Any]]) -> pd.DataFrame:
    """Table of rows with the columns `COLUMNS`, absent shapes as <NA>."""
    import pandas as pd

    records = [dataclasses.asdict(r) if isinstance(r, TimingRow) else dict(r) for r in rows]
    return _typed(pd.DataFrame(records, columns=list(COLUMNS)))


def read_table(path: str | Path) -> pd.DataFrame:
    """Timing table from a `.parquet` or `.csv` file, checked and typed (shapes Int64, seconds float64).

    Raises CalibrationError naming file, row and field for unknown kernels, missing shapes, and times that are
    missing, not positive or plainly in another unit.
    """
    import pandas as pd

    path = Path(path)
    if not path.exists():
        raise CalibrationError(f"{path}: no such file, expected a timing table (.parquet or .csv)")
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise CalibrationError(f"{path}: cannot be read as a timing table: {error}") from error
    missing = [c for c in REQUIRED_COLUMNS if c not in table.columns]
    if missing:
        raise CalibrationError(
            f"{path}: columns {', '.join(missing)} are missing, got {', '.join(table.columns)}"
        )
    unknown = [c for c in table.columns if c not in COLUMNS]
    if unknown:
        raise CalibrationError(f"{path}: unknown column {unknown[0]!r}{nearest(unknown[0], COLUMNS)}")
    for column, value in {"gpu": "unknown", "library": "unknown", "variant": "uniform", "cold": True}.items():
        if column not in table.columns:
            table[column] = value
    table = table.reindex(columns=list(COLUMNS))
    table["spread_s"] = table["spread_s"].fillna(0.0)
    table["repeats"] = table["repeats"].fillna(1)
    try:
        table = _typed(table)
    except (TypeError, ValueError) as error:
        raise CalibrationError(
            f"{path}: {error}; expected whole numbers in shapes, numbers in seconds"
        ) from error
    check_table(table, str(path))
    return table


def check_table(table: pd.DataFrame, where: str = "timing table") -> None:
    """Raise CalibrationError at the first row (counted from 1) that no fit could use."""
    import numpy as np

    if table.empty:
        raise CalibrationError(f"{where}: no rows, expected at least one timing")
    for kernel in table["kernel"].unique():
        if kernel not in KERNEL_SHAPES:
            at = _row(where, table["kernel"] == kernel)
            raise CalibrationError(f"{at}: kernel: {kernel!r}{nearest(str(kernel), KERNEL_SHAPES)}")
        part = table[table["kernel"] == kernel]
        for column in KERNEL_SHAPES[kernel]:
            bad = part[column].isna() | (part[column] < 0).fillna(False)
            if bad.any():
                at = table.index.isin(part.index[bad])
                raise CalibrationError(
                    f"{_row(where, at)}: {column}: absent or negative, {kernel} rows need it"
                )
    seconds = table["median_s"].to_numpy(float)
    _refuse(where, ~np.isfinite(seconds), seconds, "median_s", "a finite number of seconds")
    _refuse(where, seconds <= 0, seconds, "median_s", "a time > 0 s")
    _refuse(where, seconds > LONGEST_KERNEL_S, seconds, "median_s", "seconds (is the column in ms or µs?)")


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a `.parquet` or `.csv` atomically: a reader sees the old file or the new one, never a half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    if path.suffix == ".parquet":
        table.to_parquet(part, index=False)
    elif path.suffix == ".csv":
        table.to_csv(part, index=False)
    else:
        raise CalibrationError(f"{path}: got suffix {path.suffix!r}, expected .parquet or .csv")
    part.replace(path)


def row_key(row: TimingRow | Mapping[str, Any]) -> tuple[Any, ...]:
    """Identity of a measurement (`KEY_COLUMNS`), the same for a row in memory and one read from a file."""
    get = row.get if isinstance(row, Mapping) else lambda c: getattr(row, c)
    return tuple(_plain(get(c)) for c in KEY_COLUMNS)


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    kinds: dict[str, Any] = dict.fromkeys(SHAPE_COLUMNS, "Int64") | dict.fromkeys(
        ("median_s", "spread_s"), float
    )
    return table.astype(kinds | {"repeats": "int64", "cold": bool} | dict.fromkeys(TEXT_COLUMNS, object))


def _plain(value: Any) -> Any:
    import pandas as pd

    if pd.isna(value):  # None, NaN and pandas' NA are one absence
        return None
    return str(value) if isinstance(value, str) else int(value)


def _row(where: str, mask: Any) -> str:
    import numpy as np

    return f"{where}: row {int(np.flatnonzero(np.asarray(mask))[0]) + 1}"


def _refuse(where: str, bad: Any, values: Any, field: str, expected: str) -> None:
    if bad.any():
        raise CalibrationError(f"{_row(where, bad)}: {field}: got {values[bad][0]}, expected {expected}")
