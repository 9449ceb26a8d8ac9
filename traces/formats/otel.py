"""OpenTelemetry spans with `gen_ai.*` attributes (semantic conventions for generative AI, and vLLM's own spans).

Read as OTLP JSON (`resourceSpans`, one document or one a line, as the collector's file exporter writes it) or as one
span a line with plain attributes. Spans without token counts are no requests; they are counted and left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .base import Chunk, Context, Format, Sample
from .fields import bad
from .jsonl import read_lines
from .records import clock_s, first, measured, to_ms
from .rows import Rows, chunk_of
from .source import Source

_INPUT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_CACHED = (
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cached_tokens",
    "gen_ai.usage.cache_read_input_tokens",
)
_NAMES = {"timestamp": "startTimeUnixNano", "input_length": _INPUT[0], "output_length": _OUTPUT[0]}


def sniff(sample: Sample) -> bool:
    """OTLP's `resourceSpans`, or a span with a gen_ai attribute."""
    document = sample.row or sample.document
    if not isinstance(document, dict):
        return False
    attributes = document.get("attributes")
    named = attributes if isinstance(attributes, dict) else {}
    return "resourceSpans" in document or any(str(name).startswith("gen_ai.") for name in named)


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Start times, counted from the first one; the span's length is the end-to-end latency."""
    for documents, numbers in _documents(source, context):
        rows, lines = [], []
        for document, line in zip(documents, numbers, strict=True):
            where = f"{context.name}:{line}"
            for span in _spans(document, where):
                row = _row(span, where)
                if row is None:
                    context.count("span", "without gen_ai token counts left out", 1)
                    continue
                rows.append(row)
                lines.append(line)
        if rows:
            yield chunk_of(Rows(rows), lines, context, names=_NAMES, unit_s=1.0)


def _documents(source: Source, context: Context) -> Iterator[tuple[list[dict[str, Any]], list[int]]]:
    if Sample(source).row:
        yield from read_lines(source, context)
        return
    value = source.document().value
    if not isinstance(value, dict):
        bad(f"{context.name}:1", "resourceSpans", value, "a JSON object")
    yield [value], [1]


def _spans(document: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    if "resourceSpans" not in document:
        yield document
        return
    for resource in _list(document, "resourceSpans", where):
        scopes = first(resource, "scopeSpans", "instrumentationLibrarySpans")
        for scope in _list({"scopeSpans": scopes}, "scopeSpans", where):
            yield from (span for span in _list(scope, "spans", where) if isinstance(span, dict))


def _list(holder: Any, name: str, where: str) -> list[Any]:
    value = first(holder, name)
    if not isinstance(value, list):
        bad(where, name, value, "a list")
    return value


def _row(span: dict[str, Any], where: str) -> dict[str, Any] | None:
    named = _attributes(span.get("attributes"))
    n_in, n_out = _first_of(named, _INPUT), _first_of(named, _OUTPUT)
    if n_in is None and n_out is None:
        return None
    start = _seconds(
        first(span, "startTimeUnixNano", "start_time_unix_nano", "start_time", "startTime"), where
    )
    end = _seconds(first(span, "endTimeUnixNano", "end_time_unix_nano", "end_time", "endTime"), where)
    return {
        _NAMES["timestamp"]: start,
        _NAMES["input_length"]: n_in,
        _NAMES["output_length"]: n_out,
        "request_id": _first_of(named, ("gen_ai.request.id", "gen_ai.response.id")) or first(span, "spanId"),
        "session_id": named.get("gen_ai.conversation.id"),
        "model": _first_of(named, ("gen_ai.response.model", "gen_ai.request.model")),
        "max_output_length": named.get("gen_ai.request.max_tokens"),
        "observed": measured(
            ttft_ms=to_ms(named.get("gen_ai.latency.time_to_first_token")),
            e2e_ms=to_ms(_e2e(named, start, end)),
            cached_tokens=_first_of(named, _CACHED),
        ),
    }


def _e2e(named: Mapping[str, Any], start: float | None, end: float | None) -> Any:
    stated = named.get("gen_ai.latency.e2e")
    if stated is None and start is not None and end is not None and end >= start:
        return end - start
    return stated


def _first_of(named: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((named[name] for name in names if named.get(name) is not None), None)


def _attributes(value: Any) -> dict[str, Any]:
    """Attributes by name, from OTLP's list of {key, value: {intValue: "12"}} or from a plain object."""
    if isinstance(value, dict):
        return value
    out = {}
    for item in value if isinstance(value, list) else ():
        typed = first(item, "value")
        if isinstance(typed, dict) and typed and isinstance(first(item, "key"), str):
            kind, held = next(iter(typed.items()))
            # OTLP writes 64-bit integers as strings, as protobuf's JSON mapping does.
            number = (
                kind == "intValue" and isinstance(held, str) and held.lstrip("-").isdigit() and len(held) < 20
            )
            out[item["key"]] = int(held) if number else held
    return out


def _seconds(value: Any, where: str) -> float | None:
    """Nanoseconds since 1970 (a number, or its digits), or a date and time, as seconds."""
    if isinstance(value, str) and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value > 1e16:
        return value / 1e9
    return clock_s(value, where, _NAMES["timestamp"])


FORMAT = Format(
    name="otel",
    about="OpenTelemetry spans with gen_ai.usage.* attributes (OTLP JSON, or one span a line)",
    sniff=sniff,
    read=read,
    absolute=True,
)
