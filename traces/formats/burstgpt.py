"""BurstGPT (HPMLL/BurstGPT): CSV of Timestamp (s), Model, Request tokens, Response tokens, ...

Version 3 inserts Session ID and Elapsed time; columns are therefore found by name. A failed request has 0 response
tokens: it is left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .base import Chunk, Context, Format, Sample
from .csvfile import Column, read_columns
from .source import Source

_ELAPSED = "Elapsed time"
_COLUMNS = (
    Column("timestamp", ("Timestamp",), float),
    Column("input_length", ("Request tokens",), int),
    Column("output_length", ("Response tokens",), int),
    Column("model", ("Model",), str, required=False),
    Column("session_id", ("Session ID",), str, required=False),
    Column("observed", (_ELAPSED,), float, required=False),
)


def sniff(sample: Sample) -> bool:
    """A CSV header with BurstGPT's names."""
    return {"timestamp", "request tokens", "response tokens"} <= set(sample.header)


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Seconds; the elapsed time of a request becomes `observed.e2e_ms`."""

    def edit(table: dict[str, Any], lines: list[int]) -> tuple[dict[str, Any], list[int]]:
        by_lower = {name.lower(): name for name in table}
        elapsed = by_lower.get(_ELAPSED.lower())
        if elapsed is not None:
            table[elapsed] = [{"e2e_ms": v * 1e3} if isinstance(v, float) else v for v in table[elapsed]]
        counts = (table[by_lower["request tokens"]], table[by_lower["response tokens"]])
        failed = [0 in pair for pair in zip(*counts, strict=True)]
        if not any(failed):
            return table, lines
        context.count("row", "without tokens (failed requests) left out", sum(failed))
        kept = [i for i, out in enumerate(failed) if not out]
        return {name: [values[i] for i in kept] for name, values in table.items()}, [lines[i] for i in kept]

    return read_columns(source, context, _COLUMNS, edit=edit)


FORMAT = Format(
    name="burstgpt",
    about="CSV: Timestamp (s), Request tokens, Response tokens, Model, Session ID, ... (v1, v3)",
    sniff=sniff,
    read=read,
)
