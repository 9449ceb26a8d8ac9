"""BLIS (inference-sim) trace v2: CSV with times in microseconds, described by a YAML header.

The header stands in a file of its own beside the data, or as top-level `key: value` lines (between `---` if they
like) before the CSV header; of it only `time_unit` matters here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import TraceError
from .base import Chunk, Context, Format, Sample
from .csvfile import Column, read_columns
from .source import Block, Source

_COLUMNS = (
    Column("timestamp", ("arrival_time_us",), float),
    Column("input_length", ("input_tokens",), int),
    Column("output_length", ("output_tokens",), int),
    Column("request_id", ("request_id",), str, required=False),
    Column("tenant", ("tenant_id",), str, required=False),
    Column("slo_class", ("slo_class",), str, required=False),
    Column("session_id", ("session_id",), str, required=False),
    Column("turn", ("round_index",), int, required=False),
    Column("model", ("model",), str, required=False),
)
_STAMPS = ("send_time_us", "first_chunk_time_us", "last_chunk_time_us")


def sniff(sample: Sample) -> bool:
    """A CSV header with the names, or the YAML header's `trace_version`."""
    named = {"arrival_time_us", "input_tokens", "output_tokens"} <= set(sample.header)
    return named or (sample.text.startswith((b"---", b"trace_version:")) and b"trace_version:" in sample.text)


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Microseconds; requests whose `status` is not ok are left out and counted; client times give `observed`."""

    def edit(table: dict[str, Any], lines: list[int]) -> tuple[dict[str, Any], list[int]]:
        table["observed"] = _observed(table)
        status = table.get("status")
        if status is None:
            return table, lines
        kept = [
            i for i, text in enumerate(status) if text.strip().lower() in ("", "ok", "success", "completed")
        ]
        context.count("row", "with another status than ok left out", len(lines) - len(kept))
        return {name: [values[i] for i in kept] for name, values in table.items()}, [lines[i] for i in kept]

    _skip_header(source, context)
    return read_columns(source, context, _COLUMNS, unit_s=1e-6, edit=edit)


def _observed(table: dict[str, Any]) -> list[dict[str, float] | None]:
    n = len(next(iter(table.values())))
    if not all(name in table for name in _STAMPS):
        return [None] * n
    out: list[dict[str, float] | None] = []
    for sent, first, last in zip(*(table[name] for name in _STAMPS), strict=True):
        try:
            sent_us, first_us, last_us = float(sent), float(first), float(last)
        except ValueError:
            out.append(None)
            continue
        measured = 0 < sent_us <= first_us <= last_us
        out.append(
            {"ttft_ms": (first_us - sent_us) / 1e3, "e2e_ms": (last_us - sent_us) / 1e3} if measured else None
        )
    return out


def _skip_header(source: Source, context: Context) -> None:
    """Take the YAML lines off the front. Raises: TraceError where they say another unit than microseconds."""
    head = source.head()
    start = next(
        (
            i
            for i, line in enumerate(head.lines)
            if b"arrival_time_us" in line.split(b",")[:40] and b"," in line
        ),
        0,
    )
    for number, line in enumerate(head.lines[:start], head.first):
        key, _, value = line.decode("utf-8", "replace").partition(":")
        unit = value.strip().strip("\"'")
        if key == "time_unit" and unit not in ("us", "microseconds"):
            raise TraceError(f"{context.name}:{number}: time_unit: got {unit!r}, expected us")
    source.replace_head(Block(head.lines[start:], head.first + start))


FORMAT = Format(
    name="blis",
    about="CSV with a YAML header: arrival_time_us, input_tokens, output_tokens, ... (BLIS trace v2)",
    sniff=sniff,
    read=read,
)
