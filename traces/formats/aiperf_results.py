"""aiperf's `profile_export.jsonl`: one measured request a line as `metadata` and `metrics` {value, unit}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .base import Chunk, Context, Format, Sample
from .fields import bad
from .jsonl import read_lines
from .records import UNITS_S, first, measured
from .rows import Rows, chunk_of
from .source import Source

_NAMES = {
    "timestamp": "metadata.request_start_ns",
    "input_length": "metrics.input_sequence_length",
    "output_length": "metrics.output_sequence_length",
}


def sniff(sample: Sample) -> bool:
    """A line with metadata and metrics."""
    return isinstance(first(sample.row, "metadata"), dict) and isinstance(first(sample.row, "metrics"), dict)


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Nanoseconds, counted from the first request; warm-up, cancelled and failed requests are left out."""
    for records, numbers in read_lines(source, context):
        rows, lines = [], []
        for record, line in zip(records, numbers, strict=True):
            if reason := _left_out(record):
                context.count(reason, "left out", 1)
                continue
            rows.append(_row(record, f"{context.name}:{line}"))
            lines.append(line)
        if rows:
            yield chunk_of(Rows(rows), lines, context, names=_NAMES, unit_s=1e-9)


def _left_out(record: dict[str, Any]) -> str | None:
    if first(record, "metadata.benchmark_phase") == "warmup":
        return "warm-up request"
    if record.get("error") or first(record, "metadata.was_cancelled"):
        return "failed or cancelled request"
    return None


def _row(record: dict[str, Any], where: str) -> dict[str, Any]:
    metrics = record.get("metrics")
    gaps = _value(metrics, "inter_chunk_latency", where, ms=True)
    conversation = first(record, "metadata.conversation_id")
    row = {
        _NAMES["timestamp"]: first(record, "metadata.request_start_ns", "metadata.timestamp_ns"),
        _NAMES["input_length"]: _value(metrics, "input_sequence_length", where),
        _NAMES["output_length"]: _value(metrics, "output_sequence_length", where),
        "request_id": first(record, "metadata.x_request_id"),
        "observed": measured(
            ttft_ms=_value(metrics, "time_to_first_token", where, ms=True),
            e2e_ms=_value(metrics, "request_latency", where, ms=True),
            itl_ms=gaps if isinstance(gaps, list) else None,
        ),
    }
    if conversation is not None:
        row |= {"session_id": conversation, "turn": first(record, "metadata.turn_index")}
    return row


def _value(metrics: Any, name: str, where: str, *, ms: bool = False) -> Any:
    """A metric, in milliseconds if it is a time. Raises: TraceError for a unit that is none."""
    metric = first(metrics, name)
    value, unit = (metric.get("value"), metric.get("unit")) if isinstance(metric, dict) else (metric, None)
    if not ms or value is None:
        return value
    if (unit or "ms") not in UNITS_S:
        bad(where, f"metrics.{name}.unit", unit, f"one of {', '.join(UNITS_S)}")
    scale = UNITS_S[unit or "ms"] * 1e3
    if isinstance(value, list):
        return [v * scale if isinstance(v, int | float) else v for v in value]
    return value * scale if isinstance(value, int | float) and not isinstance(value, bool) else value


FORMAT = Format(
    name="aiperf-results",
    about="JSONL: metadata and metrics of each request (aiperf profile_export.jsonl)",
    sniff=sniff,
    read=read,
    absolute=True,
)
