"""The page of a plan: what to buy in its first line, then why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from . import page_parts as parts
from .chart_parts import PALETTE
from .charts import SCHEMA
from .charts_plan import METRICS, SHOWN, charts, tables
from .page import fill, resource, script_json, vega_bundle
from .pictures import THEMES, theme_config
from .units import rate_text, seconds_text

_SECTIONS = {"price": "Price", "rate": "Over the rate", "loads": "Other loads"}

_COLUMNS = (
    ("candidate", lambda r: r["label"]),
    ("req/s a replica", lambda r: rate_text(r["rate_per_s"])),
    ("replicas", lambda r: _count(r["replicas"])),
    ("GPUs", lambda r: _count(r["gpus"])),
    ("$/h", lambda r: _money(r["usd_per_hour"])),
    ("$/M tokens", lambda r: _money(r["usd_per_million_tokens"], 3)),
    ("$/M output", lambda r: _money(r["usd_per_million_output_tokens"], 3)),
    ("kWh/M tokens", lambda r: _money(r["kwh_per_million_tokens"], 4)),
    ("TTFT p99", lambda r: seconds_text(r["at_load"].get("ttft_p99"))),
    ("TPOT p99", lambda r: seconds_text(r["at_load"].get("tpot_p99"))),
    ("limit above its rate", lambda r: r["why"]),
)


def plan_page(plan: Mapping[str, Any], answer: str, command: str) -> str:
    """`plan`: the content of `plan.json`; `answer`: the plan in a sentence, which is the page's heading."""
    made = charts(plan)
    rows = tables(plan)
    load = plan["load"]
    subtitle = plan["details"] or (
        f"load {load['requests_per_s']:.3g} requests/s of {load['tokens_per_request']:,.0f} tokens"
    )
    cards = {key: [c for c in made if c.section == key] for key in _SECTIONS}
    body = "".join(
        f'<section><h2>{title}</h2>{_controls(key, rows)}<div class="grid">{"".join(map(parts.chart_card, cards[key]))}'
        "</div></section>"
        for key, title in _SECTIONS.items()
        if cards[key]
    )
    content = {
        "schema": SCHEMA,
        "params": {"metric": "ttft_p99", "shown": _labels(rows)[:SHOWN]},
        "themes": {theme: theme_config(theme) for theme in THEMES},
        "charts": [{"name": c.name, "table": c.table, "spec": c.spec} for c in made],
        "tables": rows,
        "file_name": "plan",
    }
    fills = {
        "@TITLE@": "Plan",
        "@CSS@": resource("style.css"),
        "@HEADING@": escape(answer),
        "@SUBTITLE@": escape(subtitle),
        "@BODY@": body + _candidates(plan) + _fleets(plan["fleets"]) + _left_out(plan),
        "@FOOTER@": f"<code>{escape(command)}</code>",
        "@DATA@": script_json(content),
        "@VEGA@": vega_bundle(),
        "@APP@": resource("plain.js"),
    }
    return fill(resource("plain.html"), fills)


def _labels(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    return list(dict.fromkeys(row["label"] for row in rows["looks"]))


def _controls(section: str, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    if section == "price":
        options = "".join(f'<option value="{name}">{label}</option>' for name, label in METRICS.items())
        return f'<p class="dim">against <select data-param="metric">{options}</select> at the load</p>'
    if section == "rate":
        boxes = "".join(
            f'<label><input type="checkbox" value="{escape(label)}"{" checked" if i < SHOWN else ""}> '
            f'<i class="dot" style="background:{PALETTE[i % len(PALETTE)]}"></i>{escape(label)}</label> '
            for i, label in enumerate(_labels(rows))
        )
        return f'<p class="dim checks" data-checks="shown">{boxes}</p>'
    return ""


def _candidates(plan: Mapping[str, Any]) -> str:
    rows = [row for row in plan["candidates"] if row["status"] == "simulated"]
    if not rows:
        return ""
    head = "".join(f"<th>{name}</th>" for name, _ in _COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(text(row)))}</td>" for _, text in _COLUMNS) + "</tr>"
        for row in rows
    )
    note = '<p class="dim">latencies: of one replica at its share of the load</p>'
    return parts.section("Candidates", f"<table><tr>{head}</tr>{body}</table>", note)


def _fleets(fleets: Sequence[Mapping[str, Any]]) -> str:
    if not fleets:
        return ""
    body = "".join(
        f"<tr><td>{f['replicas']} × {escape(f['label'])}</td><td>{_money(f['usd_per_hour'])}</td>"
        f"<td>{seconds_text(f['figures'].get('ttft_p99'))}</td><td>{seconds_text(f['figures'].get('tpot_p99'))}</td>"
        f"<td class='{'good' if f['ok'] else 'bad'}'>{'carries it' if f['ok'] else escape(str(f['why_not']))}</td></tr>"
        for f in fleets
    )
    head = "<tr><th></th><th>$/h</th><th>TTFT p99</th><th>TPOT p99</th><th></th></tr>"
    return parts.section("Fleets simulated under the whole load", f"<table>{head}{body}</table>")


def _left_out(plan: Mapping[str, Any]) -> str:
    rows = [row for row in plan["candidates"] if row["status"] != "simulated"]
    if not rows:
        return ""
    body = "".join(
        f"<tr><td>{escape(row['label'])}</td><td>{row['status']}</td>"
        f"<td style='text-align:left;white-space:normal'>{escape(row['why'])}</td></tr>"
        for row in rows
    )
    return parts.section("Left out", f"<table>{body}</table>")


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _money(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
