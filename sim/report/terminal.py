"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from stepline.traces.wording import counted

from .fitting import Fitting
from .fleet_lines import fleet_lines
from .ranking import Place, criterion, rank
from .side_by_side import LATENCIES, STATISTICS, requests_text, rows_of, tiers_text, time_text
from .units import rate_text, seconds_text, share_text, signed_text, signed_together

if TYPE_CHECKING:
    from .paired import Comparison, Difference


def run_view(summary: Mapping[str, Any], title: str) -> RenderableType:
    """One run: headline numbers, latency table, where the time went, the verdict."""
    return Group(
        _header(title),
        _headline(summary),
        _latency_table(summary),
        *_observed(summary),
        *([_uncertainty(summary["uncertainty"])] if "uncertainty" in summary else []),
        _time_line(summary),
        *_verdict(summary),
    )


def comparison_view(comparison: Comparison, title: str) -> RenderableType:
    """Several runs: figures side by side, ranking with reasons, paired differences against the first."""
    places = rank(comparison)
    others = [run for run in comparison.results if run != comparison.baseline]
    return Group(
        _header(title),
        Fitting(places, partial(_side_by_side, comparison)),
        _ranking(places, criterion(comparison)),
        Text(""),
        Fitting(others, partial(_differences, comparison)),
        Text(f"{comparison.method}; dim: the interval holds 0", style="dim"),
    )


def _header(title: str) -> Text:
    return Text(f"\n{title}", style="bold")


def _headline(summary: Mapping[str, Any]) -> Table:
    rates, kv = summary["throughput"], summary["kv"]
    table = Table.grid(padding=(0, 2))
    table.add_row("requests", requests_text(summary))
    table.add_row("throughput", _throughput(rates))
    used = f"peak {share_text(kv['peak_used_frac'])} of {counted(kv['blocks_total'], 'block')}"
    table.add_row(
        "KV cache", f"{used}, prefix hits {share_text(kv['prefix_hit_token_frac'])} of prompt tokens"
    )
    if "tiers" in kv:
        table.add_row("KV tiers", tiers_text(kv))
    table.add_row("cost", _cost(summary))
    for name, line in fleet_lines(summary):
        table.add_row(name, line)
    if slo := summary.get("slo"):
        table.add_row("SLO", _slo(slo))
    table.columns[0].style = "dim"
    return table


def _throughput(rates: Mapping[str, Any]) -> str:
    text = f"{rate_text(rates['requests_per_s'])} requests/s, {rate_text(rates['output_tokens_per_s'])} output tokens/s"
    good = rates["goodput_requests_per_s"]
    return text if good is None else f"{text}, goodput {rate_text(good)} requests/s"


def _cost(summary: Mapping[str, Any]) -> str:
    usd = summary["cost"]["usd_per_million_output_tokens"]
    money = "no price" if usd is None else f"${usd:,.2f} per million output tokens"
    gpus, seconds = summary["n_gpus"], summary["duration_s"]
    if "hardware" in summary.get("fleet", {}):
        return f"{money}; {summary['cost']['gpu_hours']:.3g} GPU hours in {seconds_text(seconds)}"
    return f"{money}; {counted(gpus, 'GPU')} for {seconds_text(seconds)}"


def _slo(slo: Mapping[str, Any]) -> Text:
    """Each limit with what was reached, green when met, red when missed."""
    text = Text("met" if slo["met"] else "missed", style="green" if slo["met"] else "red")
    for term in slo["limits"]:
        line = f"; {term['limit']} {seconds_text(term['value_s'])} (limit {seconds_text(term['limit_s'])})"
        text.append(line, style="" if term["met"] else "red")
    return text.append(f"; {share_text(slo['attainment_frac'])} of requests good", style="")


def _latency_table(summary: Mapping[str, Any]) -> Table:
    table = _statistics_table("latency")
    for label, key, _ in LATENCIES:
        table.add_row(label, *(seconds_text(summary[key][c]) for c in STATISTICS))
    return table


def _statistics_table(title: str) -> Table:
    """A column a statistic, whole in a terminal of 80 columns."""
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column(title, no_wrap=True)
    for name in STATISTICS:
        table.add_column(name.replace("_", "."), justify="right", no_wrap=True)
    return table


def _uncertainty(found: Mapping[str, Any]) -> Table:
    """Intervals of a run over drawn kernel constants."""
    table = Table(box=None, padding=(0, 2), header_style="bold")
    title = f"{found['level']:.0%} of {counted(found['draws'], 'draw')} of the kernel constants"
    for name, side in ((title, "left"), ("nominal", "right"), ("low", "right"), ("high", "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]  # a Literal that rich spells out
    for group, names in found["figures"].items():
        text = rate_text if group == "throughput" else seconds_text
        for name, figure in names.items():
            label = (
                name.replace("_per_s", "/s").replace("_", " ")
                if group == "throughput"
                else f"{group[:-2].upper()} {name}"
            )
            table.add_row(label, *(text(figure[key]) for key in ("nominal", "low", "high")))
    return table


def _observed(summary: Mapping[str, Any]) -> list[Table]:
    """Measured values of the trace beside the simulated ones of the same requests."""
    if "observed" not in summary:
        return []
    table = _statistics_table("as measured")
    for key, found in summary["observed"].items():
        table.add_row(
            key.removesuffix("_s").upper(), *(seconds_text(found["measured"][s]) for s in STATISTICS)
        )
        table.add_row("  simulated", *(seconds_text(found["simulated"][s]) for s in STATISTICS), style="dim")
    return [table]


def _time_line(summary: Mapping[str, Any]) -> Text:
    return Text(f"GPU time  {time_text(summary)}")


def _verdict(summary: Mapping[str, Any]) -> list[Text]:
    found = summary["verdict"]
    lines = [Text("verdict   ").append(found["headline"], style="bold")]
    lines += [Text(f"          because {fact}") for fact in found["because"]]
    lines += [Text(f"          try {advice}") for advice in found["try_first"]]
    return lines


def _side_by_side(comparison: Comparison, places: Sequence[Place]) -> Table:
    """One column a run in order of rank; the best value of a row, of all runs, is bold."""
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("", no_wrap=True)
    for place in places:
        table.add_column(escape(f"{_place(place)} {place.run}"), justify="right", no_wrap=True)
    for row in rows_of(list(comparison.summaries.values())):
        best = dict(zip(comparison.summaries, row.best(list(comparison.summaries.values())), strict=True))
        texts = row.texts([comparison.summaries[p.run] for p in places])
        cells = (
            f"[bold green]{text}[/]" if best[p.run] else text for p, text in zip(places, texts, strict=True)
        )
        table.add_row(row.label, *cells)
    return table


def _ranking(places: Sequence[Place], rule: str) -> Group:
    lines = [Text(f"\nranking by {rule}", style="dim")]
    lines += [Text(f"{_place(p)} {p.run}: ", style="bold").append(p.why, style="not bold") for p in places]
    if any(p.is_tie for p in places):
        lines.append(Text("=: not told apart from the run before it", style="dim"))
    return Group(*lines)


def _place(place: Place) -> str:
    return f"{place.place}{'=' if place.is_tie else '.'}"


_DIFFERENCES = (
    ("ttft", "mean"), ("ttft", "p99"), ("tpot", "mean"), ("itl", "p99"), ("e2e", "mean"), ("e2e", "p99"),
)  # fmt: skip


def _differences(comparison: Comparison, runs: Sequence[str]) -> Table:
    """Difference to the baseline with its interval; a difference whose interval holds 0 is dim."""
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("difference", no_wrap=True)
    for run in runs:
        table.add_column(escape(f"{run} - {comparison.baseline}"), justify="right", no_wrap=True)
    for metric, stat in _DIFFERENCES:
        table.add_row(
            f"{metric.upper()} {stat}", *(_cell(comparison.find(run, metric, stat)) for run in runs)
        )
    return table


def _cell(difference: Difference) -> Text:
    if difference.difference is None:
        return Text("–")
    if difference.low is None or difference.high is None:
        return Text(f"{signed_text(difference.difference)} (no interval)", style="dim")
    middle, low, high = signed_together(difference.difference, difference.low, difference.high)
    return Text(f"{middle} [{low}, {high}]", style="" if difference.is_clear else "dim")
