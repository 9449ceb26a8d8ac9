"""GuideLLM's `benchmarks.json`: every benchmark's requests with their lengths, times and latencies.

Field names changed between versions; each is looked up under all names it had.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .base import Chunk, Context, Format, Sample
from .document import Place
from .fields import bad
from .records import Found, clock_s, first, listed, measured, to_ms
from .source import Source

_INPUT = ("prompt_tokens", "input_metrics.total_tokens", "input_metrics.text_tokens")
_OUTPUT = ("output_tokens", "output_metrics.total_tokens", "output_metrics.text_tokens")
_START = (
    "start_time",
    "request_start_time",
    "info.timings.request_start",
    "scheduler_info.request_timings.request_start",
)
_NAMES = {"timestamp": _START[0], "input_length": _INPUT[0], "output_length": _OUTPUT[0]}
_FAILED = ("errored", "incomplete")


def sniff(sample: Sample) -> bool:
    """An object with a list of benchmarks that have requests."""
    document = sample.row or sample.document
    return isinstance(first(document, "benchmarks.0.requests"), dict)


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Wall-clock seconds, counted from the first request of all benchmarks; failed requests are counted."""
    found, document = Found(), source.document()
    for b, benchmark in enumerate(listed(document, "benchmarks")):
        requests = first(benchmark, "requests")
        done = first(requests, "successful")
        if not isinstance(done, list):
            bad(document.where(("benchmarks", b)), "requests.successful", done, "a list of requests")
        for kind in _FAILED:
            others = first(requests, kind)
            context.count(f"{kind} request", "left out", len(others) if isinstance(others, list) else 0)
        for i, request in enumerate(done):
            path = ("benchmarks", b, "requests", "successful", i)
            start = first(request, *_START)
            at = None if start is None else clock_s(start, Place(document, path), _START[0])
            found.add(_row(request, at), *path)
    yield from found.chunks(source, context, _NAMES)


def _row(request: Any, start_s: float | None) -> dict[str, Any]:
    return {
        "timestamp": start_s,
        "input_length": first(request, *_INPUT),
        "output_length": first(request, *_OUTPUT),
        "request_id": first(request, "request_id", "response_id"),
        "observed": measured(
            ttft_ms=first(request, "time_to_first_token_ms"), e2e_ms=to_ms(first(request, "request_latency"))
        ),
    }


FORMAT = Format(
    name="guidellm",
    about="JSON: benchmarks[].requests.successful[] (GuideLLM benchmarks.json)",
    sniff=sniff,
    read=read,
    absolute=True,
)
