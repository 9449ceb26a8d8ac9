"""The figures by which runs are set beside each other, on the terminal, on pages and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepline.traces.wording import counted

from .units import rate_text, seconds_text, share_text


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: where it is in a summary, how it is written, and whether more is better (None: neither)."""

    label: str
    path: tuple[str, str]
    text: Callable[[Any], str]
    higher_is_better: bool | None

    def value(self, summary: Mapping[str, Any]) -> Any:
        """The figure of one run; None where it does not apply."""
        return summary.get(self.path[0], {}).get(self.path[1])

    def texts(self, summaries: Sequence[Mapping[str, Any]]) -> list[str]:
        """The figure of each run; `–` where it does not apply."""
        return ["–" if (v := self.value(s)) is None else self.text(v) for s in summaries]

    def best(self, summaries: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Which runs hold the best value; none where all read the same or no value is better."""
        texts = self.texts(summaries)
        known = [v for s in summaries if (v := self.value(s)) is not None]
        if self.higher_is_better is None or len(set(texts)) == 1 or not known:
            return [False] * len(texts)
        shown = self.text(max(known) if self.higher_is_better else min(known))
        return [text == shown for text in texts]


def rows_of(summaries: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows that at least one run has."""
    return [row for row in ROWS if any(row.value(s) is not None for s in summaries)]


ROWS = (
    Row("completed", ("requests", "completed"), lambda v: f"{v:,}", True),
    Row("requests/s", ("throughput", "requests_per_s"), rate_text, True),
    Row("goodput/s", ("throughput", "goodput_requests_per_s"), rate_text, True),
    Row("SLO met", ("slo", "met"), lambda v: "yes" if v else "no", None),
    Row("output tokens/s", ("throughput", "output_tokens_per_s"), rate_text, True),
    Row("TTFT mean", ("ttft_s", "mean"), seconds_text, False),
    Row("TTFT p99", ("ttft_s", "p99"), seconds_text, False),
    Row("TPOT mean", ("tpot_s", "mean"), seconds_text, False),
    Row("TPOT p99", ("tpot_s", "p99"), seconds_text, False),
    Row("ITL p50", ("itl_s", "p50"), seconds_text, False),
    Row("ITL p99", ("itl_s", "p99"), seconds_text, False),
    Row("E2E mean", ("e2e_s", "mean"), seconds_text, False),
    Row("E2E p99", ("e2e_s", "p99"), seconds_text, False),
    Row("queue mean", ("queue_s", "mean"), seconds_text, False),
    Row("GPU busy", ("time_frac", "idle"), lambda v: share_text(1 - v), None),
    Row("preemptions", ("requests", "preemptions"), lambda v: f"{v:,}", None),
    Row("$ / M output tokens", ("cost", "usd_per_million_output_tokens"), lambda v: f"{v:,.2f}", False),
)
"""Figures of a comparison, in order."""

LATENCIES = (
    ("TTFT", "ttft_s", "arrival to first token"),
    ("TPOT", "tpot_s", "(E2E - TTFT) / (tokens - 1), a request"),
    ("ITL", "itl_s", "every gap between two tokens"),
    ("E2E", "e2e_s", "arrival to last token"),
    ("queue", "queue_s", "arrival to first scheduled"),
)
"""Latency distributions: label, key in the summary, definition."""

STATISTICS = ("mean", "p50", "p90", "p95", "p99", "p99_9", "max")

TIME_SHARES = (
    ("compute", "compute_bound"),
    ("weights", "weight_bandwidth_bound"),
    ("KV", "kv_bandwidth_bound"),
    ("comm", "comm"),
    ("latency", "latency"),
    ("host", "host_overhead"),
    ("bubble", "pipeline_bubble"),
    ("idle", "idle"),
)
"""Shares of GPU time: label, key in the summary."""


def time_text(summary: Mapping[str, Any]) -> str:
    """Where the GPU time went, in one line."""
    shares = summary["time_frac"]
    return ", ".join(
        f"{label} {share_text(shares[key])}" for label, key in TIME_SHARES if shares.get(key, 0.0) >= 0.0005
    )


def tiers_text(kv: Mapping[str, Any]) -> str:
    """Where prompt tokens were found, nearest first, and how long a load took."""
    parts = [f"GPU {share_text(kv['gpu_hit_token_frac'])}"]
    parts += [f"{name} {share_text(tier['hit_token_frac'])}" for name, tier in kv["tiers"].items()]
    if kv["loads"]:
        parts.append(f"{kv['loads']:,} loads of {seconds_text(kv['mean_load_s'])}")
    return ", ".join(parts)


def requests_text(summary: Mapping[str, Any]) -> str:
    """How the requests ended, in one line."""
    requests = summary["requests"]
    lost = {k: requests[k] for k in ("rejected", "timed_out", "unfinished") if requests[k]}
    done = f"{requests['completed']:,} of {requests['submitted']:,} completed"
    parts = [done, *(f"{v:,} {k.replace('_', ' ')}" for k, v in lost.items())]
    if n := requests["preemptions"]:
        parts.append(counted(n, "preemption"))
    return "; ".join(parts)
