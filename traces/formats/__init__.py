"""Every trace format: one module with one `FORMAT` record each, and one line in `_MODULES`."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from ..errors import ConfigError, TraceError, nearest
from .base import Chunk, Context, Extra, Format, ReadOptions, Sample, WriteState
from .source import Source

__all__ = [
    "Chunk",
    "Context",
    "Extra",
    "Format",
    "ReadOptions",
    "Sample",
    "Source",
    "WriteState",
    "detect",
    "format_named",
    "formats",
]

# Asked in this order: a format that is a special case of another one stands before it.
_MODULES = (
    "azure",
    "vidur",
    "splitwise",
    "burstgpt",
    "blis",
    "qwen_bailian",
    "llmservingsim",
    "aiperf_results",
    "weka",
    "otel",
    "vllm_bench",
    "guidellm",
    "genai_perf",
    "openai_chat",
    "native",
    "mooncake",
    "vllm_timed",
    "sharegpt",
    "inference_perf",
)


@cache
def formats() -> tuple[Format, ...]:
    """All formats, in the order in which a file is offered to them."""
    return tuple(import_module(f".{module}", __name__).FORMAT for module in _MODULES)


def format_named(name: str, flag: str = "--trace-format") -> Format:
    """The format called `name` or having it as an alias. Raises: ConfigError with the nearest name."""
    by_name = {alias: f for f in formats() for alias in (f.name, *f.aliases)}
    try:
        return by_name[name]
    except KeyError:
        raise ConfigError(f"{flag}: got {name!r}{nearest(name, by_name)}") from None


def detect(source: Source) -> Format:
    """The first format that recognises the beginning of `source`. Raises: TraceError where none does."""
    sample = Sample(source)
    for candidate in formats():
        if candidate.sniff(sample):
            return candidate
    if sample.is_json and sample.value is None and sample.document is None:
        raise TraceError(f"{source.name}:{sample.line}: not valid JSON: {sample.problem}")
    got = sample.first[:60].decode("utf-8", "replace")
    raise TraceError(
        f"{source.name}:{sample.line}: no known trace format: got {got!r}, expected for example a JSON object a line "
        f"(no array around them) with timestamp, input_length, output_length; --trace-format names a format "
        f"(known: {', '.join(f.name for f in formats())})"
    )
