"""Azure LLM inference traces 2023 and 2024: CSV of TIMESTAMP, ContextTokens, GeneratedTokens.

Azure/AzurePublicDataset, `AzureLLMInferenceTrace_{code,conv}.csv` (2023: seven fraction digits) and
`AzureLLMInferenceTrace_{code,conv}_1week.csv` (2024: up to six, with a UTC offset, none where they are zero).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..trace import Trace
from .base import Chunk, Context, Extra, Format, Sample, WriteState
from .csvfile import Column, read_columns
from .document import Place
from .fields import bad
from .source import Source

_COLUMNS = (
    Column("timestamp", ("TIMESTAMP",), str),
    Column("input_length", ("ContextTokens",), int),
    Column("output_length", ("GeneratedTokens",), int),
)
DEFAULT_ORIGIN = "2000-01-01T00:00:00"
"""Wall clock of second 0 in files written from a trace that had none."""

_CLOCK = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:?\d\d)?", re.ASCII)
_EXPECTED = "a date and time such as 2023-11-16 18:15:46.6805900"
_CLOCK_CHARS = set("0123456789-:. T")
_FROM, _BEFORE = "1700", "2250"
"""Years that nanoseconds since 1970 can count in 64 bits, as the text starts."""


def sniff(sample: Sample) -> bool:
    """A CSV header with the three names."""
    return {column.names[0].lower() for column in _COLUMNS} <= set(sample.header)


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Seconds since the first row; `meta["origin"]` keeps the wall clock of that row."""
    return read_columns(source, context, _COLUMNS, absolute=True, edit=partial(_since_first, context))


def _since_first(
    context: Context, table: dict[str, Any], lines: list[int]
) -> tuple[dict[str, Any], list[int]]:
    name = next(iter(table))
    since_1970 = nanoseconds([text or "" for text in table[name]], lines, name, context.name)
    if context.origin is None:
        context.origin = int(since_1970[0])
        context.meta["origin"] = str(np.datetime64(context.origin, "ns"))
    return table | {name: ((since_1970 - context.origin) / 1e9).tolist()}, lines


def nanoseconds(texts: list[str], lines: list[int], name: str, source: str) -> NDArray[np.int64]:
    """Wall clocks as nanoseconds since 1970 UTC; without an offset they are taken as UTC."""
    plain = [text.strip().removesuffix("+00:00").removesuffix("Z") for text in texts]
    usual = min(map(len, plain)) >= 19 and min(plain) >= _FROM and max(plain) < _BEFORE
    if usual and set("".join(plain)) <= _CLOCK_CHARS and not any("-" in text[10:] for text in plain):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # NumPy warns where it takes a slip for a time zone
                return np.array(plain, dtype="datetime64[ns]").astype(np.int64)
        except (ValueError, UserWarning):
            pass
    one_by_one = [clock_ns(t.strip(), f"{source}:{n}", name) for t, n in zip(texts, lines, strict=True)]
    return np.array(one_by_one, dtype=np.int64)


def clock_ns(text: str, where: str | Place, name: str) -> int:
    """A date and time, with an offset or as UTC, as nanoseconds since 1970. Raises: TraceError where it is none."""
    match = _CLOCK.fullmatch(text)
    if match is None or not _FROM <= text < _BEFORE:
        bad(where, name, text, _EXPECTED)
    try:
        seconds = int(np.datetime64(f"{match[1]}T{match[2]}", "s").astype(np.int64))
    except ValueError:
        bad(where, name, text, _EXPECTED)
    fraction_ns = int((match[3] or "").ljust(9, "0"))
    return (seconds - _offset_s(match[4] or "Z")) * 1_000_000_000 + fraction_ns


def _offset_s(text: str) -> int:
    if text == "Z":
        return 0
    digits = text.replace(":", "")
    return (-1 if text[0] == "-" else 1) * (int(digits[1:3]) * 3600 + int(digits[3:5]) * 60)


def write(state: WriteState, trace: Trace, _extra: Extra | None) -> bytes:
    """Rows with seven fraction digits (100 ns), from `meta["origin"]` on."""
    origin = np.datetime64(state.meta.get("origin", DEFAULT_ORIGIN), "ns")
    clock = origin + np.round(trace.arrival_s * 1e9).astype("timedelta64[ns]")
    texts = [text[:27].replace("T", " ") for text in np.datetime_as_string(clock, unit="ns").tolist()]
    lines = [] if state.rows else [",".join(column.names[0] for column in _COLUMNS)]
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
