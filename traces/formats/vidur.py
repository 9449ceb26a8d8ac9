"""Vidur's request traces: CSV of arrived_at (s), num_prefill_tokens, num_decode_tokens."""

from __future__ import annotations

from collections.abc import Iterator

from ..trace import Trace
from .base import Chunk, Context, Extra, Format, Sample, WriteState
from .csvfile import Column, read_columns
from .source import Source

_COLUMNS = (
    Column("input_length", ("num_prefill_tokens",), int),
    Column("output_length", ("num_decode_tokens",), int),
    Column("timestamp", ("arrived_at",), float, required=False),
)


def sniff(sample: Sample) -> bool:
    """A CSV header with Vidur's names of the lengths."""
    return {"num_prefill_tokens", "num_decode_tokens"} <= set(sample.header)


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Seconds. Files of lengths alone (Vidur draws their arrivals itself) have no times."""
    return read_columns(source, context, _COLUMNS)


def write(state: WriteState, trace: Trace, _extra: Extra | None) -> bytes:
    """The three columns, seconds with all their digits."""
    lines = [] if state.rows else ["arrived_at,num_prefill_tokens,num_decode_tokens"]
    columns = (trace.arrival_s.tolist(), trace.input_tokens.tolist(), trace.output_tokens.tolist())
    lines += [f"{at!r},{n_in},{n_out}" for at, n_in, n_out in zip(*columns, strict=True)]
    return "".join(f"{line}\n" for line in lines).encode()


FORMAT = Format(
    name="vidur",
    about="CSV: arrived_at (s), num_prefill_tokens, num_decode_tokens",
    sniff=sniff,
    read=read,
    write=write,
)
