"""Azure LLM inference traces 2023 and 2024: CSV of TIMESTAMP, ContextTokens, GeneratedTokens.

Azure/AzurePublicDataset, `AzureLLMInferenceTrace_{code,conv}.csv` (2023: seven fraction digits) and
`AzureLLMInferenceTrace_{code,conv}_1week.csv` (2024: up to six, with a UTC offset, none where they are zero).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TraceError
from ..trace import Trace
from .base import Chunk, Context, Extra, Format, Sample, WriteState
from .csvfile import as_integers, find, read_tables
from .fields import bad
from .rows import chunk_of
from .source import Source

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
DEFAULT_ORIGIN = "2000-01-01T00:00:00"
"""Wall clock of second 0 in files written from a trace that had none."""

_CLOCK = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:?\d\d)?", re.ASCII)
_EXPECTED = "a date and time such as 2023-11-16 18:15:46.6805900"


def sniff(sample: Sample) -> bool:
    """A CSV header with the three names."""
    return {name.lower() for name in COLUMNS} <= set(sample.header)


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Seconds since the first row; `meta["origin"]` keeps the wall clock of that row."""
    for table, lines in read_tables(source, context):
        stamp, n_in, n_out = (find(table, (name,), context) for name in COLUMNS)
        clock_ns = nanoseconds(table.pop(stamp), lines, stamp, context.name)
        if context.origin is None:
            context.origin = int(clock_ns[0])
            context.meta["origin"] = str(np.datetime64(context.origin, "ns"))
        seconds = ((clock_ns - context.origin) / 1e9).tolist()
        columns = {
            "timestamp": seconds,
            n_in: as_integers(table.pop(n_in)),
            n_out: as_integers(table.pop(n_out)),
        }
        rows = [dict(zip((*columns, *table), values, strict=True))
                for values in zip(*columns.values(), *table.values(), strict=True)]  # fmt: skip
        names = {"input_length": n_in, "output_length": n_out}
        yield chunk_of(rows, lines, context, names=names, unit_s=1.0, low_s=-np.inf)


def nanoseconds(texts: list[str], lines: list[int], name: str, source: str) -> NDArray[np.int64]:
    """Wall clocks as nanoseconds since 1970 UTC; without an offset they are taken as UTC."""
    parts = [_CLOCK.fullmatch(text.strip()) for text in texts]
    if None in parts:
        i = parts.index(None)
        bad(f"{source}:{lines[i]}", name, texts[i], _EXPECTED)
    whole = [f"{m[1]}T{m[2]}" for m in parts if m]
    try:
        seconds = np.array(whole, dtype="datetime64[s]").astype(np.int64)
    except ValueError:
        _explain(whole, lines, name, source)
    fraction = np.array([int((m[3] or "").ljust(9, "0")) for m in parts if m], dtype=np.int64)
    offset = np.array([_offset_s(m[4]) for m in parts if m], dtype=np.int64)
    if len(seconds) and not -9e9 < seconds.min() <= seconds.max() < 9e9:
        i = int(np.argmax(np.abs(seconds)))
        bad(f"{source}:{lines[i]}", name, texts[i], f"{_EXPECTED} between 1700 and 2250")
    return (seconds - offset) * 1_000_000_000 + fraction


def _explain(whole: list[str], lines: list[int], name: str, source: str) -> None:
    for text, line in zip(whole, lines, strict=True):
        try:
            np.datetime64(text, "s")
        except ValueError:
            bad(f"{source}:{line}", name, text, _EXPECTED)
    raise TraceError(f"{source}:{lines[0]}: {name}: expected {_EXPECTED}")


def _offset_s(text: str | None) -> int:
    if not text or text == "Z":
        return 0
    digits = text.replace(":", "")
    return (-1 if text[0] == "-" else 1) * (int(digits[1:3]) * 3600 + int(digits[3:5]) * 60)


def write(state: WriteState, trace: Trace, _extra: Extra | None) -> bytes:
    """Rows with seven fraction digits (100 ns), from `meta["origin"]` on."""
    origin = np.datetime64(state.meta.get("origin", DEFAULT_ORIGIN), "ns")
    clock = origin + np.round(trace.arrival_s * 1e9).astype("timedelta64[ns]")
    texts = [text[:27].replace("T", " ") for text in np.datetime_as_string(clock, unit="ns").tolist()]
    lines: list[Any] = [] if state.rows else [",".join(COLUMNS)]
    lines += [
        f"{at},{n_in},{n_out}"
        for at, n_in, n_out in zip(
            texts, trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True
        )
    ]
    return "".join(f"{line}\n" for line in lines).encode()


FORMAT = Format(
    name="azure",
    about="CSV: TIMESTAMP (date and time), ContextTokens, GeneratedTokens (Azure 2023, 2024)",
    sniff=sniff,
    read=read,
    write=write,
    absolute=True,
)
