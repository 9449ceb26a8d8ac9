"""The report page: one HTML file, everything inside it, that opens offline and redraws for any window of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
import orjson
import pandas as pd

from . import page_parts as parts
from .chart_parts import PALETTE, Chart
from .charts import SCHEMA, always_zero, charts, default_params
from .comparison_tables import ComparisonTables
from .page_data import PageData, page_data
from .pictures import THEMES, theme_config
from .run_tables import RunTables
from .titles import file_stem, subtitle, trace_text

_SECTIONS = {
    "tradeoff": "Objectives and trade-offs",
    "latency": "Latency",
    "observed": "Before and after",
    "load": "Load over time",
    "steps": "Steps",
    "slowest": "Slowest requests",
}


def run_page(run: RunTables) -> str:
    """The report of one run."""
    sections = (parts.latency_section, parts.fleet_section, parts.observed_section)
    body = "".join(make(run.summary) for make in sections) + parts.provenance([run])
    return _page([run], f"{run.label}: {trace_text(run.config)}", parts.verdict_card(run.summary), body)


def comparison_page(comparison: ComparisonTables) -> str:
    """The report of a comparison: ranking, figures side by side, paired differences, and every chart by run."""
    runs = comparison.runs
    top = parts.ranking_card(comparison) + parts.bounds_section(comparison)
    top += parts.side_by_side_section(comparison)
    body = parts.differences_section(comparison) + parts.provenance(runs)
    heading = (
        f"{' / '.join(comparison.labels[:6])}{' …' if len(runs) > 6 else ''}: {trace_text(runs[0].config)}"
    )
    return _page(runs, heading, top, body, focus=comparison.ranked[0].label)


def _page(runs: Sequence[RunTables], heading: str, top: str, body: str, focus: str | None = None) -> str:
    data = page_data(runs)
    zero = always_zero(data)
    made = [chart for chart in charts(data, runs[0].manifest["peaks"]) if chart.name not in zero]
    fills = {
        "@TITLE@": escape(heading),
        "@CSS@": resource("style.css"),
        "@HEADING@": escape(heading),
        "@SUBTITLE@": escape(subtitle(runs)),
        "@VERDICT@": top,
        "@BODY@": _chart_sections(made, data) + body,
        "@FOOTER@": escape(_footer(runs[0])),
        "@DATA@": script_json(_content(runs, data, made, focus or data.labels[0])),
        "@VEGA@": vega_bundle(),
        "@APP@": resource("app.js"),
    }
    return fill(resource("page.html"), fills)


def fill(template: str, fills: Mapping[str, str]) -> str:
    """The template with each @NAME@ replaced once; what is filled in is not searched again."""
    pieces, rest = [], template
    for name, text in fills.items():
        before, mark, rest = rest.partition(name)
        if not mark:
            raise ValueError(f"template: no {name} after the one before it")
        pieces += [before, text]
    return "".join([*pieces, rest])


def _zero_note(data: PageData) -> str:
    names = ", ".join(title[0].lower() + title[1:] for title in always_zero(data).values())
    return f'<p class="dim">zero throughout: {escape(names)}</p>' if names else ""


def _chart_sections(made: Sequence[Chart], data: PageData) -> str:
    sections = []
    for key, title in _SECTIONS.items():
        cards = "".join(parts.chart_card(chart) for chart in made if chart.section == key)
        if cards:
            note = _zero_note(data) if key == "load" else ""
            sections.append(f'<section><h2>{title}</h2><div class="grid">{cards}</div>{note}</section>')
    return "".join(sections)


def _content(runs: Sequence[RunTables], data: PageData, made: Sequence[Chart], focus: str) -> dict[str, Any]:
    """What the page's script reads."""
    return {
        "schema": SCHEMA,
        "labels": list(data.labels),
        "colors": list(PALETTE),
        "unit": data.unit,
        "bin": data.step,
        "params": {**default_params(data), "focus": focus},
        "themes": {theme: theme_config(theme) for theme in THEMES},
        "charts": [{"name": c.name, "table": c.table, "only": c.only, "spec": c.spec} for c in made],
        "tables": {name: packed(table) for name, table in data.tables.items()},
        "headline": {run.label: parts.headline(run.summary) for run in runs},
        "replicas": {run.label: run.config.get("replicas") or 1 for run in runs},
        "file_name": file_stem(runs),
    }


def packed(table: pd.DataFrame) -> dict[str, Any]:
    """A table as columns: numbers to 5 significant digits, names and borders of bins as codes into their values."""
    return {"rows": len(table), "columns": {str(name): _column(table[name]) for name in table.columns}}


_DIGITS = 5


def _column(column: pd.Series[Any]) -> Any:
    if column.dtype == object and len(column) and isinstance(column.iloc[0], list):
        return [[[_rounded(a), _rounded(b)] for a, b in spans] for spans in column]
    if column.dtype.kind in "iub":
        return column.tolist()
    if column.dtype.kind == "f" and column.nunique() > len(column) // 4:
        return [_rounded(v) for v in column.tolist()]
    codes, values = pd.factorize(column, use_na_sentinel=False)
    plain = [_rounded(v, 12) if isinstance(v, float) else str(v) for v in values]
    return {"codes": codes.tolist(), "values": plain}


def _rounded(value: float, digits: int = _DIGITS) -> float | int | None:
    if not np.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 2**53 else short


def script_json(content: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return orjson.dumps(content).decode().replace("<", "\\u003c")


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, once a page."""
    import vl_convert

    script = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    return script.replace("</script", "<\\/script")


def _footer(run: RunTables) -> str:
    versions = run.manifest["versions"]
    text = (
        f"simulated by stepline {versions['stepline']}, calibration {run.config.get('calibration') or 'none'}"
    )
    return f"{text}; {run.summary['percentile_method']}"


def resource(name: str) -> str:
    """The text of a file of `assets`."""
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")
