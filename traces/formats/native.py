"""The native format: JSON Lines with Mooncake's and aiperf's names, times in milliseconds.

Mooncake (kvcache-ai/Mooncake, FAST25 release) has timestamp, input_length, output_length and hash_ids of 512-token
blocks; aiperf's `mooncake_trace` adds session_id and delay; the other fields are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ..trace import OPTIONAL_COLUMNS, Trace
from .base import Chunk, Context, Extra, Format, Sample, WriteState
from .jsonl import read_objects
from .rows import FIELDS
from .source import Source

_UNITS_S = {"ms": 1e-3, "s": 1.0}
_OWN_KEYS = {"timestamp", "input_length", "output_length", "hash_ids"}


def sniff(sample: Sample) -> bool:
    """A JSON object with at least one of Mooncake's keys."""
    return bool(_OWN_KEYS & sample.row.keys())


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Milliseconds, unless the sidecar says `"time_unit": "s"`."""
    return read_objects(source, context, unit_s=_UNITS_S[context.meta.get("time_unit", "ms")])


def write(state: WriteState, trace: Trace, extra: Extra | None) -> bytes:
    """Rows in order; `block_size` is written where a row differs from the first one (the sidecar holds that)."""
    rows = native_rows(trace, state)
    if extra is not None:
        for row, more in zip(rows, extra, strict=True):
            row.update({f"source_{k}" if k in FIELDS else k: v for k, v in more.items()})
    return json_lines(rows)


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    """One JSON object a line."""
    out = bytearray()
    for row in rows:  # a list of a million separate results makes each of them twenty times as slow
        out += orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    return bytes(out)


def native_rows(trace: Trace, state: WriteState) -> list[dict[str, Any]]:
    """The rows of a trace under native names, without what is absent."""
    rows: list[dict[str, Any]] = [
        {"timestamp": at, "input_length": n_in, "output_length": n_out}
        for at, n_in, n_out in zip(
            milliseconds(trace.arrival_s),
            trace.input_tokens.tolist(),
            trace.output_tokens.tolist(),
            strict=True,
        )
    ]
    _put_ids(rows, trace, state)
    if trace.output_hash_ids is not None:
        for i, row in enumerate(rows):
            if (ids := trace.output_hash_ids.row(i)) is not None:
                row["output_hash_ids"] = ids
    for name in OPTIONAL_COLUMNS:
        if name in trace.columns:
            _put_column(rows, name, trace.columns[name])
    return rows


def _put_ids(rows: list[dict[str, Any]], trace: Trace, state: WriteState) -> None:
    all_ids, sizes = trace.hash_ids, trace.block_size
    if all_ids is None or sizes is None:
        return
    for i, (row, size) in enumerate(zip(rows, sizes.tolist(), strict=True)):
        ids = all_ids.row(i)
        if ids is None:
            continue
        row["hash_ids"] = ids
        if state.block_size is None:
            state.block_size = size
        if size != state.block_size:
            row["block_size"] = size


def _put_column(rows: list[dict[str, Any]], name: str, values: Any) -> None:
    key = {"delay_s": "delay", "max_output_tokens": "max_output_length"}.get(name, name)
    if name == "delay_s":
        kept = [i for i, v in enumerate(values) if v is not None]
        written = milliseconds(np.array([values[i] for i in kept], dtype=np.float64))
        for i, value in zip(kept, written, strict=True):
            rows[i][key] = value
        return
    for row, value in zip(rows, values, strict=True):
        if value is not None:
            row[key] = value


def milliseconds(seconds: NDArray[np.float64]) -> list[int | float]:
    """Milliseconds that read back (divided by 1000) as exactly these seconds, as few digits as that takes.

    >>> milliseconds(np.array([4314.579 / 1000, 3.0]))
    [4314.579, 3000]
    """
    exact = np.round(seconds * 1e3, 6)
    for guess in (seconds * 1e3, np.nextafter(seconds * 1e3, np.inf), np.nextafter(seconds * 1e3, 0)):
        exact = np.where(exact / 1e3 == seconds, exact, guess)
    return [int(ms) if ms.is_integer() else ms for ms in exact.tolist()]


FORMAT = Format(
    name="native",
    about="JSONL: timestamp (ms), input_length, output_length, hash_ids, ... (Mooncake, aiperf)",
    sniff=sniff,
    read=read,
    write=write,
    holds=frozenset({*OPTIONAL_COLUMNS, "hash_ids", "output_hash_ids", "extra"}),
    aliases=("aiperf", "mooncake_trace"),
    sidecar=True,
)
