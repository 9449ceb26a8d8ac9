"""Results of `vllm bench serve --save-result --save-detailed` and of SGLang's `bench_serving --output-details`.

One JSON object with arrays over requests, times in seconds; what was measured becomes `observed`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import TraceError
from .base import Chunk, Context, Format, Sample
from .fields import bad
from .records import Found, measured, to_ms
from .source import Source

_NAMES = {"timestamp": "start_times", "input_length": "input_lens", "output_length": "output_lens"}
_ARRAYS = ("input_lens", "output_lens", "start_times", "ttfts", "itls", "latencies", "errors")


def sniff(sample: Sample) -> bool:
    """An object with the two arrays of lengths."""
    document = sample.row or sample.document
    return isinstance(document, dict) and {"input_lens", "output_lens"} <= document.keys()


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Start times count from the first one; without them (SGLang, older vLLM) there are no arrival times.

    Failed requests (an error text, or no output) are left out and counted.
    Raises: TraceError too where the arrays differ in length or the file holds several results.
    """
    result = source.document(one_of_many="results (--append-result): expected one a file").value
    arrays = _arrays(source, context.name, result)
    found, failed = Found(), 0
    for i in range(len(arrays["input_lens"])):
        at = {name: values[i] for name, values in arrays.items()}
        if at.get("errors") or at["output_lens"] == 0:
            failed += 1
            continue
        row = {
            "timestamp": at.get("start_times"),
            "input_length": at["input_lens"],
            "output_length": at["output_lens"],
            "observed": _observed(at),
        }
        found.add(row, "input_lens", i)
    context.count("failed request", "left out", failed)
    yield from found.chunks(source, context, _NAMES)


def _arrays(source: Source, name: str, result: Any) -> dict[str, list[Any]]:
    if not isinstance(result, dict):
        bad(f"{name}:1", "result", result, "a JSON object")
    arrays = {key: result[key] for key in _ARRAYS if result.get(key) is not None}
    for key in ("input_lens", "output_lens"):
        if key not in arrays:
            bad(f"{name}:1", key, None, "a list: was the result saved with --save-detailed?")
    for key, values in arrays.items():
        where = source.document().where((key,))
        if not isinstance(values, list):
            bad(where, key, values, "a list")
        if len(values) != len(arrays["input_lens"]):
            raise TraceError(
                f"{where}: {key}: got {len(values)} values, expected {len(arrays['input_lens'])} as in input_lens"
            )
    return arrays


def _observed(at: dict[str, Any]) -> dict[str, Any] | None:
    ttft, gaps, e2e = at.get("ttfts"), at.get("itls"), at.get("latencies")
    numbers = isinstance(gaps, list) and all(isinstance(g, int | float) for g in gaps)
    if e2e is None and numbers and isinstance(ttft, int | float):
        e2e = ttft + sum(gaps or ())
    return measured(
        ttft_ms=to_ms(ttft),
        e2e_ms=to_ms(e2e),
        itl_ms=[to_ms(g) for g in gaps] if isinstance(gaps, list) else gaps,
    )


FORMAT = Format(
    name="vllm-bench",
    about="JSON result with input_lens, output_lens, ttfts, itls, start_times (vLLM, SGLang)",
    sniff=sniff,
    read=read,
    aliases=("sglang-bench",),
    absolute=True,
)
