"""Parts of a page that are text and tables: verdicts, figures, differences, provenance (HTML fragments)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import orjson
from stepline.traces.wording import counted

from .chart_parts import PALETTE, Chart
from .comparison_tables import ComparisonTables, metric_name, records
from .fleet_lines import fleet_lines
from .run_tables import RunTables
from .side_by_side import LATENCIES, STATISTICS, rows_of
from .time_bar import time_bar, time_key
from .units import rate_text, seconds_text, share_text, signed_text, signed_together

Summary = Mapping[str, Any]


def verdict_card(summary: Summary) -> str:
    """What bounds the run, why, and what to try."""
    found = summary["verdict"]
    return (
        f'<section class="card verdict"><strong>{escape(found["headline"])}</strong>'
        f'<div class="columns"><ul>{_items(found["because"])}</ul>'
        f'<ul class="try">{_items(found["try_first"])}</ul></div>{_slo(summary)}'
        f"{time_bar(summary)}{time_key([summary])}{_warnings(summary)}</section>"
    )


def _items(texts: Sequence[str]) -> str:
    return "".join(f"<li>{escape(text)}</li>" for text in texts)


def _warnings(summary: Summary) -> str:
    return "".join(f'<p class="dim">warning: {escape(text)}</p>' for text in summary["warnings"])


def _slo(summary: Summary) -> str:
    slo = summary.get("slo")
    if not slo:
        return ""
    state = "good" if slo["met"] else "bad"
    terms = "; ".join(
        f"{escape(term['limit'])} {seconds_text(term['value_s'])} (limit {seconds_text(term['limit_s'])})"
        for term in slo["limits"]
    )
    return (
        f'<p>SLO <b class="{state}">{"met" if slo["met"] else "missed"}</b>: {terms}; '
        f"{share_text(slo['attainment_frac'])} of requests good</p>"
    )


def ranking_card(comparison: ComparisonTables) -> str:
    """The runs from best to worst, each with its reason."""
    places = "".join(
        f"<li value='{p['place']}'><b>{escape(p['run'])}</b>{' (a tie)' if p['is_tie'] else ''}: {escape(p['why'])}</li>"
        for p in comparison.ranking["places"]
    )
    return (
        f'<section class="card verdict"><ol class="ranking">{places}</ol>'
        f'<p class="dim">ranking by {escape(comparison.ranking["criterion"])}</p></section>'
    )


def _tier_tiles(kv: Summary) -> list[tuple[str, str, str]]:
    """A tile for each tier behind the GPU's pool."""
    return [
        (
            f"hits in {name}",
            share_text(tier["hit_token_frac"]),
            f"peak {share_text(tier['peak_used_frac'])} full",
        )
        for name, tier in kv.get("tiers", {}).items()
    ]


def headline(summary: Summary) -> list[tuple[str, str, str]]:
    """The tiles of a run: label, value, note."""
    requests, rates, kv = summary["requests"], summary["throughput"], summary["kv"]
    lost = requests["submitted"] - requests["completed"]
    usd = summary["cost"]["usd_per_million_output_tokens"]
    good = rates["goodput_requests_per_s"]
    note = (
        f"of {counted(requests['submitted'], 'request')}"
        if lost
        else f"{rate_text(rates['requests_per_s'])} requests/s"
    )
    tiles = [
        ("finished", f"{requests['completed']:,}", note),
        (
            "output tokens/s",
            rate_text(rates["output_tokens_per_s"]),
            f"over {seconds_text(summary['duration_s'])}",
        ),
        ("TTFT p50", seconds_text(summary["ttft_s"]["p50"]), f"p99 {seconds_text(summary['ttft_s']['p99'])}"),
        ("ITL p50", seconds_text(summary["itl_s"]["p50"]), f"p99 {seconds_text(summary['itl_s']['p99'])}"),
        (
            "TPOT mean",
            seconds_text(summary["tpot_s"]["mean"]),
            f"p99 {seconds_text(summary['tpot_s']['p99'])}",
        ),
        ("E2E p50", seconds_text(summary["e2e_s"]["p50"]), f"p99 {seconds_text(summary['e2e_s']['p99'])}"),
        ("KV peak", share_text(kv["peak_used_frac"]), f"{requests['preemptions']:,} preempted"),
        ("prefix hits", share_text(kv["prefix_hit_token_frac"]), "of prompts"),
        *_tier_tiles(kv),
        ("GPU busy", share_text(1 - summary["time_frac"]["idle"]), f"MFU {share_text(summary['mfu_frac'])}"),
    ]
    if usd is not None:
        tiles.append(("$ / M output", f"{usd:,.2f}", f"{summary['cost']['gpu_hours']:.2g} GPU h"))
    if good is not None:
        tiles.append(("goodput/s", rate_text(good), "within SLO"))
    return tiles


def chart_card(chart: Chart) -> str:
    """A chart's place on the page."""
    caption = f'<p class="dim">{escape(chart.caption)}</p>' if chart.caption else ""
    choice = ""
    if chart.name == "slowest":
        choice = (
            '<p class="dim">slowest by <label><input type="radio" name="slow_by" value="e2e" checked> E2E</label> '
            '<label><input type="radio" name="slow_by" value="ttft"> TTFT</label></p>'
        )
    return (
        f'<div class="card {chart.width}{"" if chart.follows_window else " whole-run"}"><h3>{escape(chart.title)}</h3>{caption}{choice}'
        f'<div class="chart" id="chart-{chart.name}" style="min-height: {_least_px(chart)}px"></div></div>'
    )


def _least_px(chart: Chart) -> int:
    """The height that a chart is given before it is drawn, so that the page does not grow under its reader."""
    height = chart.spec.get("height")
    return height if isinstance(height, int) else 0


def latency_section(summary: Summary) -> str:
    """Exact statistics of the whole run."""
    head = "".join(f"<th>{name.replace('_', '.')}</th>" for name in STATISTICS)
    rows = "".join(
        f'<tr><td title="{escape(meaning)}">{label}</td>'
        + "".join(f"<td>{seconds_text(summary[key][name])}</td>" for name in STATISTICS)
        + "</tr>"
        for label, key, meaning in LATENCIES
    )
    return section("Latencies of the whole run", f"<table><tr><th></th>{head}</tr>{rows}</table>")


def fleet_section(summary: Summary) -> str:
    """Pools, outages, scaling and hardware of a fleet; nothing for plain replicas."""
    rows = "".join(f"<tr><td>{name}</td><td>{escape(line)}</td></tr>" for name, line in fleet_lines(summary))
    return section("Fleet", f"<table>{rows}</table>") if rows else ""


def observed_section(summary: Summary) -> str:
    """Statistics as measured and as simulated, over the requests that were measured."""
    if "observed" not in summary:
        return ""
    head = "".join(f"<th>{name.replace('_', '.')}</th>" for name in STATISTICS)
    rows = ""
    for key, found in summary["observed"].items():
        for source in ("measured", "simulated"):
            cells = "".join(f"<td>{seconds_text(found[source][name])}</td>" for name in STATISTICS)
            rows += f"<tr><td>{key.removesuffix('_s').upper()} {source}</td>{cells}</tr>"
    return section("Measured and simulated", f"<table><tr><th></th>{head}</tr>{rows}</table>")


def side_by_side_section(comparison: ComparisonTables) -> str:
    """Figures of all runs, best first, the best value of a row bold."""
    summaries = [run.summary for run in comparison.ranked]
    head = "".join(f"<th>{_dot(comparison, run.label)}{escape(run.label)}</th>" for run in comparison.ranked)
    rows = ""
    for row in rows_of(summaries):
        cells = zip(row.texts(summaries), row.best(summaries), strict=True)
        rows += f"<tr><td>{escape(row.label)}</td>" + "".join(
            f'<td class="best">{text}</td>' if best else f"<td>{text}</td>" for text, best in cells
        )
        rows += "</tr>"
    return section("Side by side", f"<table><tr><th></th>{head}</tr>{rows}</table>")


def differences_section(comparison: ComparisonTables) -> str:
    """Every paired difference with its interval; what is not told apart from 0 is dim."""
    others = [label for label in comparison.labels if label != comparison.baseline]
    table = comparison.differences[comparison.differences["unit"] == "s"]
    cells = {(d["run"], metric_name(d)): _difference(d) for d in records(table)}
    names = list(dict.fromkeys(name for _, name in cells))
    if not names:
        return ""
    head = "".join(f"<th>{escape(label)} − {escape(comparison.baseline)}</th>" for label in others)
    rows = "".join(
        f"<tr><td>{name}</td>" + "".join(cells.get((label, name), "<td>–</td>") for label in others) + "</tr>"
        for name in names
    )
    note = f'<p class="dim">{escape(comparison.method)}; dim: the interval holds 0</p>'
    return section("Paired differences", f"<table><tr><th></th>{head}</tr>{rows}</table>", note)


def _difference(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return "<td>–</td>"
    if row["low"] is None:
        return f'<td class="unclear">{signed_text(row["difference"])} (no interval)</td>'
    middle, low, high = signed_together(row["difference"], row["low"], row["high"])
    state = "unclear" if row["low"] <= 0 <= row["high"] else "bad" if row["difference"] > 0 else "good"
    return f'<td class="{state}">{middle} [{low}, {high}]</td>'


def bounds_section(comparison: ComparisonTables) -> str:
    """What bounds each run, best first, and where its GPU time went."""
    rows = "".join(
        f'<div class="bound"><b>{_dot(comparison, run.label)}{escape(run.label)}</b> '
        f"{escape(run.summary['verdict']['headline'])}{time_bar(run.summary)}</div>"
        for run in comparison.ranked
    )
    key = time_key([run.summary for run in comparison.ranked])
    return f'<section><h2>What bounds each run</h2><div class="card">{rows}{key}</div></section>'


def _dot(comparison: ComparisonTables, label: str) -> str:
    """A run's colour in every chart of the page."""
    return f'<i class="dot" style="background:{PALETTE[comparison.labels.index(label) % len(PALETTE)]}"></i>'


def section(title: str, table: str, note: str = "") -> str:
    """A heading and a card with a table that scrolls sideways where it must."""
    return (
        f'<section><h2>{title}</h2><div class="card"><div class="scroll">{table}</div>{note}</div></section>'
    )


_LONG = ("model_spec", "gpu_spec", "engine_profile", "kv_ledger", "trace")


def provenance(runs: Sequence[RunTables]) -> str:
    """Where the runs come from: command, trace, versions and every resolved setting."""
    first = runs[0]
    trace = first.config["trace"]
    facts = {
        "command": first.manifest.get("command"),
        "trace": f"{trace['source']} ({counted(trace['requests'], 'request')}, sha256 {str(trace['sha256'])[:16]})",
        "calibration": first.config.get("calibration"),
        "versions": ", ".join(f"{name} {version}" for name, version in first.manifest["versions"].items()),
    }
    folds = "".join(_settings(run, is_open=len(runs) == 1) for run in runs)
    body = f'<div class="card">{_facts(facts)}{folds}</div>'
    return f"<section><h2>Configuration and provenance</h2>{body}</section>"


def _settings(run: RunTables, *, is_open: bool) -> str:
    short = {k: v for k, v in run.config.items() if k not in _LONG and v is not None}
    folds = "".join(
        f"<details><summary>{name}</summary><pre>{escape(_json(run.config[name]))}</pre></details>"
        for name in _LONG
        if run.config.get(name)
    )
    state = " open" if is_open else ""
    return (
        f"<details{state}><summary>settings of {escape(run.label)}</summary>{_facts(short)}{folds}</details>"
    )


def _facts(facts: Mapping[str, Any]) -> str:
    pairs = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>"
        for name, value in facts.items()
        if value is not None
    )
    return f"<dl>{pairs}</dl>"


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode()
