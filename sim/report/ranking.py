"""Rank compared runs and say why, in a sentence made of their own numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, log
from typing import Any

from .paired import Comparison
from .units import seconds_text

CLEAR_RATIO = 1.05
"""Figures closer than this are not worth a word."""


@dataclass(frozen=True, slots=True)
class Place:
    """A run's place (1 is best), and why: its strongest and its weakest figure beside the other runs."""

    run: str
    place: int
    why: str


@dataclass(frozen=True, slots=True)
class _Figure:
    """One figure by which runs are told apart. `text` formats a value; `weakness` says what being worst means."""

    name: str
    values: Mapping[str, float]
    text: Any
    higher_is_better: bool = False


def rank(comparison: Comparison) -> list[Place]:
    """Runs from best to worst.

    Order: most requests completed; then, with an SLO, most goodput; then the least mean end-to-end latency.
    """
    order = sorted(comparison.summaries, key=lambda run: _key(comparison.summaries[run]))
    figures = _figures(comparison)
    return [Place(run, i + 1, _why(run, figures)) for i, run in enumerate(order)]


def criterion(comparison: Comparison) -> str:
    """The rule of `rank`, in words."""
    with_slo = any(s.get("slo") for s in comparison.summaries.values())
    return f"requests completed, {'then goodput, ' if with_slo else ''}then mean end-to-end latency"


def _key(summary: Mapping[str, Any]) -> tuple[float, float, float]:
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
        _Figure("GPU time per output token", gpu_s, seconds_text),
        _Figure("output rate", rate, lambda v: f"{v:,.0f} tokens/s", higher_is_better=True),
    ]
    return [f for f in figures if all(v is not None and v > 0 for v in f.values.values())]


def _why(run: str, figures: list[_Figure]) -> str:
    """The figure in which this run leads by most, and the one in which it trails by most."""
    best = max(figures, key=lambda f: _lead(run, f), default=None)
    worst = max(figures, key=lambda f: _lag(run, f), default=None)
    parts = []
    if best and _lead(run, best) > log(CLEAR_RATIO):
        parts.append(_praise(run, best))
    if worst and _lag(run, worst) > log(CLEAR_RATIO):
        parts.append(_blame(run, worst))
    return "; ".join(parts) or "no figure differs by more than 5 % from the best of the others"


def _cost(figure: _Figure, run: str) -> float:
    """The logarithm of the value, turned so that less is better."""
    value = log(figure.values[run])
    return -value if figure.higher_is_better else value


def _rivals(run: str, figure: _Figure) -> list[str]:
    return sorted((r for r in figure.values if r != run), key=lambda r: _cost(figure, r))


def _lead(run: str, figure: _Figure) -> float:
    """Log ratio to the next best; negative when the run is not the best."""
    rivals = _rivals(run, figure)
    return _cost(figure, rivals[0]) - _cost(figure, run) if rivals else 0.0


def _lag(run: str, figure: _Figure) -> float:
    """Log ratio to the best."""
    rivals = _rivals(run, figure)
    return _cost(figure, run) - _cost(figure, rivals[0]) if rivals else 0.0


def _praise(run: str, figure: _Figure) -> str:
    rival = _rivals(run, figure)[0]
    word = "highest" if figure.higher_is_better else "lowest"
    return f"{word} {figure.name}: {figure.text(figure.values[run])}, {rival} has {figure.text(figure.values[rival])}"


def _blame(run: str, figure: _Figure) -> str:
    rivals = _rivals(run, figure)
    is_last = _cost(figure, run) >= _cost(figure, rivals[-1])
    word = ("lowest" if figure.higher_is_better else "highest") if is_last else "behind in"
    times = 2.718281828459045 ** _lag(run, figure)
    side = f"1/{times:.2g} of" if figure.higher_is_better else f"{times:.2g}× that of"
    return f"{word} {figure.name}: {figure.text(figure.values[run])}, {side} {rivals[0]}"
