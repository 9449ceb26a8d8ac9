"""Rank compared runs and say why, in a sentence made of their own numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import inf, log
from typing import Any

from .paired import Comparison, not_separated
from .units import seconds_text, times_text

CLEAR_RATIO = 1.05
"""Figures closer than this are not worth a word."""

GPU_TIME = "GPU time per output token"


@dataclass(frozen=True, slots=True)
class Place:
    """A run's place (1 is best), and why: its strongest and its weakest figure beside another run's, and what holds it
    back where it cannot keep up with its load.

    `is_tie`: the run before it cannot be told apart (the interval of the mean latency difference holds 0).
    """

    run: str
    place: int
    why: str
    is_tie: bool = False


@dataclass(frozen=True, slots=True)
class _Figure:
    """One figure by which runs are told apart; `text` formats a value."""

    name: str
    values: Mapping[str, float]
    text: Any
    higher_is_better: bool = False


def rank(comparison: Comparison) -> list[Place]:
    """Runs from best to worst, the first set beside the second, all others beside the first.

    Order: most requests completed; then, with an SLO, most goodput; then the least mean end-to-end latency.
    """
    order = sorted(comparison.summaries, key=lambda run: order_key(comparison.summaries[run]))
    figures = _figures(comparison)
    rivals = [order[1 if len(order) > 1 else 0], *[order[0]] * (len(order) - 1)]
    ties = [False, *(_tie(comparison, a, b) for a, b in pairwise(order))]
    held = [_held_back(comparison.summaries[run]) for run in order]
    whys = [_why(run, rival, figures) + back for run, rival, back in zip(order, rivals, held, strict=True)]
    if len(order) > 1:
        whys[0] = f"{_decided(comparison.summaries[order[0]], comparison.summaries[order[1]])}; {whys[0]}"
    return [
        Place(run, i + 1, why, tie) for i, (run, why, tie) in enumerate(zip(order, whys, ties, strict=True))
    ]


def _tie(comparison: Comparison, first: str, second: str) -> bool:
    a, b = (order_key(comparison.summaries[run]) for run in (first, second))
    return a[:2] == b[:2] and not_separated(comparison.results[first], comparison.results[second])


def _decided(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The figure that put the first run before the second."""
    a, b = order_key(first), order_key(second)
    if a[0] != b[0]:
        return f"most requests completed ({-a[0]:,.0f}, then {-b[0]:,.0f})"
    if a[1] != b[1]:
        return f"most goodput ({-a[1]:.3g} requests/s, then {-b[1]:.3g})"
    return f"least mean E2E ({seconds_text(a[2])}, then {seconds_text(b[2])})"


def criterion(comparison: Comparison) -> str:
    """The rule of `rank`, in words."""
    return rule_text(any(s.get("slo") for s in comparison.summaries.values()))


def rule_text(with_slo: bool) -> str:
    """The rule by which runs are ranked, with or without objectives."""
    return f"requests completed, {'then goodput, ' if with_slo else ''}then mean end-to-end latency"


def order_key(summary: Mapping[str, Any]) -> tuple[float, float, float]:
    """Sorts summaries from the best run to the worst."""
    goodput = summary["throughput"]["goodput_requests_per_s"] or 0.0
    mean = summary["e2e_s"]["mean"]
    return (-summary["requests"]["completed"], -goodput, inf if mean is None else mean)


def _figures(comparison: Comparison) -> list[_Figure]:
    """What tells runs apart; a figure that a run lacks is left out for all."""
    summaries, results = comparison.summaries, comparison.results

    def seconds(label: str, metric: str, stat: str) -> _Figure:
        return _Figure(label, {run: s[metric][stat] for run, s in summaries.items()}, seconds_text)

    gpu_s = {
        run: results[run].totals.busy_s / max(results[run].requests["output_tokens"].sum(), 1)
        for run in results
    }
    rate = {run: s["throughput"]["output_tokens_per_s"] for run, s in summaries.items()}
    figures = [
        seconds("p99 ITL", "itl_s", "p99"),
        seconds("p99 TTFT", "ttft_s", "p99"),
        seconds("mean TTFT", "ttft_s", "mean"),
        seconds("mean TPOT", "tpot_s", "mean"),
        seconds("mean queue time", "queue_s", "mean"),
        seconds("p99 E2E", "e2e_s", "p99"),
        _Figure(GPU_TIME, gpu_s, seconds_text),
        _Figure("output rate", rate, lambda v: f"{v:,.0f} tokens/s", higher_is_better=True),
    ]
    return [f for f in figures if all(v is not None and v > 0 for v in f.values.values())]


def _why(run: str, rival: str, figures: list[_Figure]) -> str:
    """Where the run beats its rival by most, where it falls behind by most, and what it does to the GPU."""
    gains = {f.name: _gain(run, rival, f) for f in figures}
    least = log(CLEAR_RATIO)
    named = [name for name in _extremes(gains) if abs(gains[name]) > least]
    if gains.get(GPU_TIME, 0.0) < -least and GPU_TIME not in named:
        named.append(GPU_TIME)
    if not named:
        return f"no figure differs from {rival} by more than {CLEAR_RATIO - 1:.0%}"
    by_name = {f.name: f for f in figures}
    return f"against {rival}: " + "; ".join(_said(run, rival, by_name[name]) for name in named)


def _held_back(summary: Mapping[str, Any]) -> str:
    """What the verdict says of a run that falls behind its load; of any other, nothing."""
    found = summary["verdict"]
    return f". {found['headline']}" if found["overloaded"] else ""


def _extremes(gains: Mapping[str, float]) -> list[str]:
    """The largest gain and the largest loss, the larger of the two first."""
    found = [pick(gains, key=lambda name: gains[name]) for pick in (max, min)] if gains else []
    return sorted(dict.fromkeys(found), key=lambda name: -abs(gains[name]))


def _gain(run: str, rival: str, figure: _Figure) -> float:
    """Log ratio by which the run is better than its rival; negative: worse."""
    ratio = log(figure.values[rival] / figure.values[run])
    return -ratio if figure.higher_is_better else ratio


def _said(run: str, rival: str, figure: _Figure) -> str:
    own, other = figure.values[run], figure.values[rival]
    word = "higher" if own > other else "lower"
    return f"{word} {figure.name} ({figure.text(own)}, not {figure.text(other)}: {times_text(own / other)})"
