"""A run in the Prometheus text format, under the metric names of vLLM's `/metrics`.

Counters and histograms stand where a server scraped at the end of the run would have them; gauges are time-weighted
means over the run (a scrape would show the instant, which is the empty server). Names, labels and buckets: vLLM V1
`vllm/v1/metrics/loggers.py`. Histograms are exact: counts at the bucket borders, not of binned values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from stepline.sim.engine.result import STATUSES, RunResult
from stepline.traces.errors import InvariantError

from . import metrics

Floats = NDArray[np.float64]
Buckets = Sequence[float]
Sample = tuple[str, str, float]

TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
ITERATION_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
RESIDENCY_BUCKETS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800,
)  # fmt: skip

_REASONS = {"finished": "stop", "timed_out": "abort", "rejected": "error"}
"""vLLM's finish reason of each way to end; it has none for a request turned away at the door, which is its `error`."""


def prometheus_text(result: RunResult) -> str:
    """The metrics of a run simulated with `record_blocks` (the three `kv_block_*` histograms need it)."""
    if result.block_times is None:
        raise InvariantError("prometheus: the run was simulated without record_blocks")
    labels = f'model_name="{_escape(str(result.config.get("model")))}",engine="0"'
    lines: list[str] = []
    for part in (_gauges(result), _counters(result), _histograms(result)):
        for family in part:
            lines += family.lines(labels)
    return "\n".join(lines) + "\n"


class _Family:
    """A metric with its samples: (suffix, more labels, value)."""

    def __init__(self, name: str, kind: str, text: str, samples: Sequence[Sample]) -> None:
        self.name, self.kind, self.text, self.samples = f"vllm:{name}", kind, text, samples

    def lines(self, labels: str) -> list[str]:
        """Text format 0.0.4."""
        shown = f"{self.name}_total" if self.kind == "counter" else self.name
        head = [f"# HELP {shown} {self.text}", f"# TYPE {shown} {self.kind}"]
        return head + [
            f"{shown}{suffix}{{{labels}{',' if more else ''}{more}}} {_number(value)}"
            for suffix, more, value in self.samples
        ]


def _gauges(result: RunResult) -> Iterator[_Family]:
    series = result.totals.series
    width = series["width_s"].to_numpy()

    def mean(name: str) -> float:
        return float((series[name] * width).sum() / width.sum()) if len(series) and name in series else 0.0

    replicas = result.config.get("replicas") or 1
    yield _Family("num_requests_running", "gauge", "Mean requests in execution.", [("", "", mean("running"))])
    yield _Family("num_requests_waiting", "gauge", "Mean requests waiting.", [("", "", mean("waiting"))])
    used = mean("kv_used_frac") / replicas
    yield _Family("kv_cache_usage_perc", "gauge", "Mean KV cache usage, 1 is full.", [("", "", used)])


def _counters(result: RunResult) -> Iterator[_Family]:
    requests, kv = result.requests, result.kv
    begun = requests["scheduled_s"].notna()
    prompts = int(requests["input_tokens"][begun].sum())

    def counter(name: str, text: str, value: float) -> _Family:
        return _Family(name, "counter", text, [("", "", value)])

    yield counter("num_preemptions", "Preemptions.", int(requests["preemptions"].sum()))
    yield counter("prompt_tokens", "Prompt tokens of scheduled requests.", prompts)
    yield counter("generation_tokens", "Generated tokens.", int(requests["output_tokens"].sum()))
    yield counter("prefix_cache_queries", "Tokens looked up in the prefix cache.", kv["query_tokens"])
    below = sum([tier["hit_tokens"] for tier in result.tiers.values()])
    yield counter("prefix_cache_hits", "Of them found.", kv["hit_tokens"] - below)
    if result.tiers:
        missed = kv["query_tokens"] - kv["hit_tokens"] + below
        yield counter("external_prefix_cache_queries", "Tokens looked up in the tiers behind it.", missed)
        yield counter("external_prefix_cache_hits", "Of them found.", below)
    status = requests["status"].to_numpy()
    samples = [
        ("", f'finished_reason="{reason}"', int((status == STATUSES.index(name)).sum()))
        for name, reason in _REASONS.items()
    ]
    yield _Family("request_success", "counter", "Requests by the way they ended.", samples)


def _histograms(result: RunResult) -> Iterator[_Family]:
    done = metrics.finished(result)
    seconds = metrics.latencies(done)
    first, finish, scheduled = (
        done[name].to_numpy(np.float64) for name in ("first_token_s", "finish_s", "scheduled_s")
    )
    longest = float(result.config.get("max_model_len") or 131_072)
    yield _of("time_to_first_token_seconds", "Time to first token.", seconds["ttft"], TTFT_BUCKETS)
    yield _gaps(result)
    tpot = seconds["tpot"]
    yield _of("request_time_per_output_token_seconds", "TPOT of a request.", tpot, TOKEN_BUCKETS)
    yield _of("e2e_request_latency_seconds", "End-to-end latency.", seconds["e2e"], REQUEST_BUCKETS)
    yield _of("request_queue_time_seconds", "Arrival to first scheduled.", seconds["queue"], REQUEST_BUCKETS)
    yield _of("request_prefill_time_seconds", "Scheduled to first token.", first - scheduled, REQUEST_BUCKETS)
    yield _of("request_decode_time_seconds", "First to last token.", finish - first, REQUEST_BUCKETS)
    yield _of(
        "request_inference_time_seconds", "Scheduled to last token.", finish - scheduled, REQUEST_BUCKETS
    )
    tokens = _buckets_1_2_5(longest)
    prompt, output = done["input_tokens"].to_numpy(float), done["output_tokens"].to_numpy(float)
    yield _of("request_prompt_tokens", "Prompt tokens of a request.", prompt, tokens)
    yield _of("request_generation_tokens", "Generated tokens of a request.", output, tokens)
    computed = prompt - done["cached_tokens"].to_numpy(float)
    yield _of("request_prefill_kv_computed_tokens", "Prompt tokens not from the cache.", computed, tokens)
    yield _iterations(result)
    yield from _blocks(result)


def _of(name: str, text: str, values: Floats, buckets: Buckets) -> _Family:
    kept = np.sort(values[~np.isnan(values)])
    return _histogram(
        name, text, buckets, lambda edge: int(np.searchsorted(kept, edge, "right")), len(kept), kept.sum()
    )


def _gaps(result: RunResult) -> _Family:
    rows = metrics.GapRows.of(result.gaps)
    total = float((rows.weight * rows.n * (rows.low + rows.delta * (rows.n - 1) / 2)).sum())
    text = "Gaps between two tokens."
    count = lambda edge: int((rows.up_to(edge) * rows.weight).sum())  # noqa: E731 - one line beside its use
    return _histogram("inter_token_latency_seconds", text, TOKEN_BUCKETS, count, rows.total, total)


def _iterations(result: RunResult) -> _Family:
    """New tokens a step; the step bins are powers of two, as the buckets are."""
    table = result.totals.step_bins
    rows = table[table["what"] == "tokens"]
    tops, steps = rows["x"].to_numpy(np.float64), rows["steps"].to_numpy(np.float64)
    tokens = (
        float(result.totals.series[["prefill_tokens", "emitted_tokens"]].sum().sum()) if len(table) else 0.0
    )
    text = "Tokens of an engine step."
    count = lambda edge: int(steps[tops <= edge].sum())  # noqa: E731
    return _histogram("iteration_tokens_total", text, ITERATION_BUCKETS, count, int(steps.sum()), tokens)


def _blocks(result: RunResult) -> Iterator[_Family]:
    times = result.block_times
    if times is None:
        return
    texts = {
        "lifetime": ("kv_block_lifetime_seconds", "Computation of a KV block to its eviction."),
        "idle": ("kv_block_idle_before_evict_seconds", "Last access of a KV block to its eviction."),
        "reuse_gap": ("kv_block_reuse_gap_seconds", "Between two hits of a KV block, of its last four."),
    }
    for field, (name, text) in texts.items():
        rows: Floats = getattr(times, field)
        seconds, blocks = rows[:, 0], rows[:, 1]
        count = _weighted(seconds, blocks)
        total = float((seconds * blocks).sum())
        yield _histogram(name, text, RESIDENCY_BUCKETS, count, int(blocks.sum()), total)


def _weighted(values: Floats, weights: Floats) -> Callable[[float], int]:
    return lambda edge: int(weights[values <= edge].sum())


def _histogram(
    name: str, text: str, buckets: Buckets, up_to: Callable[[float], int], count: int, total: float
) -> _Family:
    samples: list[Sample] = [
        ("_bucket", f'le="{_number(float(edge))}"', up_to(float(edge))) for edge in buckets
    ]
    samples += [("_bucket", 'le="+Inf"', count), ("_count", "", count), ("_sum", "", float(total))]
    return _Family(name, "histogram", text, samples)


def _buckets_1_2_5(most: float) -> list[float]:
    """1, 2, 5, 10, ... up to `most` (vLLM `build_1_2_5_buckets`)."""
    edges = [m * 10.0**e for e in range(12) for m in (1, 2, 5)]
    return [edge for edge in edges if edge <= most]


def _number(value: float) -> str:
    return repr(float(value)) if value != int(value) else f"{int(value)}.0"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
