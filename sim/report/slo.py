"""Service-level objectives: read them, count the requests that meet them, judge a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stepline.traces.errors import ConfigError, nearest

METRICS = ("ttft", "tpot", "itl", "e2e", "queue")
STATS = ("mean", "p50", "p90", "p95", "p99", "p99_9", "max")

MLPERF: dict[str, str] = {
    "llama2-70b-server": "ttft_p99<2,tpot_p99<0.2",
    "llama2-70b-interactive": "ttft_p99<0.45,tpot_p99<0.04",
    "mixtral-8x7b-server": "ttft_p99<2,tpot_p99<0.2",
    "llama3.1-8b-server": "ttft_p99<2,tpot_p99<0.1",
    "llama3.1-8b-interactive": "ttft_p99<0.5,tpot_p99<0.03",
    "llama3.1-405b-server": "ttft_p99<6,tpot_p99<0.175",
    "llama3.1-405b-interactive": "ttft_p99<4.5,tpot_p99<0.08",
    "deepseek-r1-server": "ttft_p99<2,tpot_p99<0.08",
    "deepseek-r1-interactive": "ttft_p99<1.5,tpot_p99<0.015",
    "gpt-oss-120b-server": "ttft_p99<3,tpot_p99<0.08",
    "gpt-oss-120b-interactive": "ttft_p99<2,tpot_p99<0.015",
    "qwen3-vl-server": "e2e_p99<12",
}
"""MLPerf Inference limits by model and scenario; source: mlperf.conf of mlcommons/inference (p99, in seconds here)."""

_TERM = re.compile(r"^\s*([a-z0-9]+)(?:_([a-z0-9_]+))?\s*(<=|>=|<|>)\s*([0-9.eE+-]+)\s*(ms|s|%)?\s*$")


@dataclass(frozen=True, slots=True)
class Limit:
    """One latency limit: `stat` of `metric` (None: of every request) stays at or below `limit_s` seconds."""

    metric: str
    stat: str | None
    limit_s: float

    @property
    def key(self) -> str:
        """The limit's name, e.g. `ttft_p99`."""
        return f"{self.metric}_{self.stat}" if self.stat else self.metric


@dataclass(frozen=True, slots=True)
class Slo:
    """Latency limits, and the share of submitted requests that must meet all per-request ones (`attainment_frac`).

    A request is *good* when its own TTFT, TPOT, E2E and queue time are within the limits, whatever statistic a limit
    is stated for (as `vllm bench serve --goodput` counts). ITL limits judge the pooled gaps of the run only.
    """

    text: str
    limits: tuple[Limit, ...]
    attainment_frac: float | None = None

    def good(self, latencies_s: Mapping[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
        """Which finished requests are good; `latencies_s` as `metrics.latencies` gives them (NaN: does not apply)."""
        size = len(latencies_s["e2e"])
        good = np.ones(size, dtype=np.bool_)
        for limit in self.limits:
            if limit.metric != "itl":
                value = latencies_s[limit.metric]
                good &= np.isnan(value) | (value <= limit.limit_s)
        return good

    def ratios(self, latencies_s: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """How many times its strictest limit each request took: good at or below 1 (0 where no limit applies)."""
        worst = np.zeros(len(latencies_s["e2e"]))
        for limit in self.limits:
            if limit.metric != "itl":
                worst = np.fmax(worst, latencies_s[limit.metric] / limit.limit_s)
        return worst

    def judge(self, summary: Mapping[str, Any], good: int, submitted: int) -> dict[str, Any]:
        """The verdict of each limit against a run's summary, the attainment and whether everything is met.

        A limit without a statistic is judged by the attainment alone; if no attainment is asked for, every
        submitted request must be good.
        """
        attained = good / submitted if submitted else 1.0
        terms = [self._term(limit, summary) for limit in self.limits if limit.stat]
        floor = self.attainment_frac
        if floor is None and any(limit.stat is None for limit in self.limits):
            floor = 1.0
        enough = floor is None or attained >= floor
        return {
            "text": self.text,
            "limits": terms,
            "attainment_frac": attained,
            "attainment_required_frac": floor,
            "met": enough and all(term["met"] for term in terms),
        }

    @staticmethod
    def _term(limit: Limit, summary: Mapping[str, Any]) -> dict[str, Any]:
        value = summary[f"{limit.metric}_s"][limit.stat]
        met = value is not None and value <= limit.limit_s
        return {"limit": limit.key, "limit_s": limit.limit_s, "value_s": value, "met": met}


def parse_slo(text: str, where: str = "--slo") -> Slo:
    """Read `ttft_p99<0.5,tpot_p99<50ms,attainment>0.99` (seconds unless marked ms) or `mlperf:MODEL-SCENARIO`.

    Raises:
        ConfigError: a term that is not METRIC[_STAT]<SECONDS or attainment>FRACTION, or an unknown preset.
    """
    listing = _preset(text.removeprefix("mlperf:"), where) if text.startswith("mlperf:") else text
    limits: list[Limit] = []
    attainment = None
    for piece in filter(str.strip, listing.split(",")):
        metric, stat, sign, value, unit = _parse_term(piece, where)
        if metric == "attainment":
            attainment = _fraction(piece, stat, sign, value, unit, where)
        else:
            limits.append(_limit(piece, metric, stat, sign, value, unit, where))
    if not limits:
        raise ConfigError(f"{where}: got {text!r}, expected at least one latency limit, e.g. ttft_p99<0.5")
    return Slo(text, tuple(limits), attainment)


def _preset(name: str, where: str) -> str:
    if name not in MLPERF:
        raise ConfigError(f"{where}: unknown preset 'mlperf:{name}'{nearest(name, MLPERF)}")
    return MLPERF[name]


def _parse_term(piece: str, where: str) -> tuple[str, str | None, str, float, str | None]:
    found = _TERM.match(piece)
    try:
        if not found:
            raise ValueError
        metric, stat, sign, number, unit = found.groups()
        return metric, stat, sign, float(number), unit
    except ValueError:
        raise ConfigError(
            f"{where}: got {piece.strip()!r}, expected METRIC_STAT<SECONDS (ttft_p99<0.5) or attainment>FRACTION"
        ) from None


def _limit(
    piece: str, metric: str, stat: str | None, sign: str, value: float, unit: str | None, where: str
) -> Limit:
    if metric not in METRICS:
        raise ConfigError(f"{where}: unknown metric {metric!r} in {piece!r}{nearest(metric, METRICS)}")
    stat = stat.replace("p999", "p99_9") if stat else None
    if stat is not None and stat not in STATS:
        raise ConfigError(f"{where}: unknown statistic {stat!r} in {piece!r}{nearest(stat, STATS)}")
    if metric == "itl" and stat is None:
        raise ConfigError(
            f"{where}: got {piece!r}: ITL is pooled over requests, give a statistic such as itl_p99"
        )
    limit_s = value / 1000 if unit == "ms" else value
    if not sign.startswith("<") or not 0 < limit_s < float("inf") or unit == "%":
        raise ConfigError(f"{where}: got {piece!r}, expected {metric}<SECONDS with seconds > 0 (or ms)")
    return Limit(metric, stat, limit_s)


def _fraction(piece: str, stat: str | None, sign: str, value: float, unit: str | None, where: str) -> float:
    fraction = value / 100 if unit == "%" else value
    if stat or not sign.startswith(">") or not 0 < fraction <= 1 or unit in ("s", "ms"):
        raise ConfigError(f"{where}: got {piece!r}, expected attainment>FRACTION with a fraction in 0..1")
    return fraction
