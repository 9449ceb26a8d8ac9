"""inference-perf's `per_request_lifecycle_metrics.json`: a list of requests with start, end and token times (s)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from .base import Chunk, Context, Format, Sample
from .fields import bad
from .records import Found, first, measured
from .source import Source

_NAMES = {
    "timestamp": "start_time",
    "input_length": "info.input_tokens",
    "output_length": "info.output_tokens",
}


def sniff(sample: Sample) -> bool:
    """A list of objects with start_time and info."""
    items = sample.document
    return (
        isinstance(items, list)
        and isinstance(first(items, "0.info"), dict)
        and first(items, "0.start_time") is not None
    )


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Seconds on the tool's clock, counted from the first request; failed requests are left out and counted."""
    found, failed, document = Found(), 0, source.document()
    if not isinstance(document.value, list):
        bad(f"{context.name}:1", "requests", document.value, "a list of requests")
    for i, request in enumerate(document.value):
        if first(request, "error") or first(request, "info.output_tokens") == 0:
            failed += 1
            continue
        found.add(_row(request), i)
    context.count("failed request", "left out", failed)
    yield from found.chunks(source, context, _NAMES)


def _row(request: Any) -> dict[str, Any]:
    start, end = first(request, "start_time"), first(request, "end_time")
    tokens = first(request, "info.output_token_times")
    observed = None
    if all(isinstance(t, int | float) for t in (start, end)):
        gaps = ttft = None
        if isinstance(tokens, list) and tokens and all(isinstance(t, int | float) for t in tokens):
            ttft = (tokens[0] - start) * 1e3
            gaps = [(b - a) * 1e3 for a, b in itertools.pairwise(tokens)]
        observed = measured(ttft_ms=ttft, e2e_ms=(end - start) * 1e3, itl_ms=gaps)
    return {
        "timestamp": start,
        "input_length": first(request, "info.input_tokens"),
        "output_length": first(request, "info.output_tokens"),
        "adapter": first(request, "info.lora_adapter"),
        "observed": observed,
    }


FORMAT = Format(
    name="inference-perf",
    about="JSON: [{start_time, end_time, info: {input_tokens, output_tokens, ...}}] (per-request report)",
    sniff=sniff,
    read=read,
    absolute=True,
)
