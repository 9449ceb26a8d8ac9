"""splitwise-sim's request traces: CSV of arrival_timestamp (s), prompt_size, token_size, and ids."""

from __future__ import annotations

from collections.abc import Iterator

from .base import Chunk, Context, Format, Sample
from .csvfile import Column, read_columns
from .source import Source

_COLUMNS = (
    Column("timestamp", ("arrival_timestamp",), float),
    Column("input_length", ("prompt_size",), int),
    Column("output_length", ("token_size",), int),
    Column("request_id", ("request_id",), str, required=False),
)


def sniff(sample: Sample) -> bool:
    """A CSV header with splitwise's names."""
    return {column.names[0] for column in _COLUMNS if column.required} <= set(sample.header)


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Seconds; request_type, application_id and batch_size are unknown keys."""
    return read_columns(source, context, _COLUMNS)


FORMAT = Format(
    name="splitwise",
    about="CSV: arrival_timestamp (s), prompt_size, token_size (splitwise-sim)",
    sniff=sniff,
    read=read,
)
