"""A grid of runs as one HTML page."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from ..report.units import seconds_text

if TYPE_CHECKING:
    from .grid import Grid, GridRow

SHOWN = (
    "output_tokens_per_s", "goodput_requests_per_s", "ttft_mean", "ttft_p99", "tpot_mean", "tpot_p99", "itl_p99",
    "e2e_mean", "e2e_p99", "prefix_hit_token_frac", "preemptions", "rejected",
)  # fmt: skip
"""Columns of the tables, where a run has them."""


def grid_html(grid: Grid, title: str) -> str:
    """Throughput against tail latency with the Pareto set, all figures, all differences; opens offline."""
    return _PAGE.format(
        title=escape(title),
        pareto="".join(f"<li><b>{escape(run)}</b></li>" for run in grid.pareto),
        chart=_chart(grid),
        values=_table(grid, _value_cell),
        differences=_table(grid, _difference_cell, skip=grid.baseline),
        baseline=escape(grid.baseline),
        method=escape(grid.method),
    )


def figure_text(figure: str, unit: str, value: float | None) -> str:
    """A value with its unit."""
    if value is None:
        return "–"
    if unit == "s":
        return seconds_text(value)
    return f"{100 * value:.1f} %" if figure.endswith("_frac") else f"{value:,.4g}"


def _chart(grid: Grid) -> str:
    import altair as alt
    import pandas as pd

    points = [
        {
            "run": run,
            "tokens": grid.find(run, "output_tokens_per_s").value,
            "ttft_ms": 1e3 * (grid.find(run, "ttft_p99").value or 0.0),
            "tpot_ms": 1e3 * (grid.find(run, "tpot_p99").value or 0.0),
            "pareto": "Pareto set" if run in grid.pareto else "dominated",
        }
        for run in grid.configs
        if any(r.run == run and r.figure == "tpot_p99" for r in grid.rows)
    ]
    if not points:
        return "<p>No run finished enough requests to be drawn.</p>"
    frame = pd.DataFrame(points)
    y = alt.Y("tokens:Q", title="output tokens/s", scale=alt.Scale(zero=False))
    panels = []
    for field, name in (("ttft_ms", "p99 TTFT, ms"), ("tpot_ms", "p99 TPOT, ms")):
        base = alt.Chart(frame, width=380, height=320).encode(
            x=alt.X(f"{field}:Q", title=name, scale=alt.Scale(type="log", nice=True)), y=y
        )
        marks = base.mark_point(size=110, filled=True).encode(
            color=alt.Color("run:N", title=None, legend=alt.Legend(labelLimit=400, columns=1)),
            shape=alt.Shape("pareto:N", title=None),
            opacity=alt.condition("datum.pareto == 'Pareto set'", alt.value(1), alt.value(0.45)),
            tooltip=[
                "run",
                "pareto",
                alt.Tooltip("tokens:Q", format=",.4~g"),
                alt.Tooltip(f"{field}:Q", format=",.4~g"),
            ],
        )
        panels.append(marks)
    return str(alt.hconcat(*panels).to_html(inline=True, fullhtml=False))


def _table(grid: Grid, cell: Any, skip: str | None = None) -> str:
    shown = [name for name in SHOWN if any(r.figure == name for r in grid.rows)]
    rows = {(r.run, r.figure): r for r in grid.rows}
    head = "".join(f"<th>{escape(_title(name))}</th>" for name in shown)
    lines = []
    for run in grid.configs:
        if run == skip:
            continue
        cells = "".join(f"<td>{cell(rows[run, n]) if (run, n) in rows else '–'}</td>" for n in shown)
        mark = "★ " if run in grid.pareto else ""
        lines.append(f"<tr><th>{mark}{escape(run)}</th>{cells}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"


def _title(name: str) -> str:
    text = name.removesuffix("_frac").replace("_per_s", "/s").replace("_", " ")
    return (
        text
        if "/" in text or len(text.split()[0]) > 4
        else text.replace(text.split()[0], text.split()[0].upper(), 1)
    )


def _value_cell(row: GridRow) -> str:
    text = escape(figure_text(row.figure, row.unit, row.value))
    if row.value_low is None:
        return text
    low, high = (figure_text(row.figure, row.unit, v) for v in (row.value_low, row.value_high))
    return f"{text}<br><small>{escape(low)} … {escape(high)}</small>"


def _difference_cell(row: GridRow) -> str:
    text = escape(figure_text(row.figure, row.unit, row.difference))
    if row.low is None:
        return text
    low, high = (figure_text(row.figure, row.unit, v) for v in (row.low, row.high))
    shade = "" if row.is_clear else ' class="dim"'
    return f"<span{shade}>{text}<br><small>{escape(low)} … {escape(high)}</small></span>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; font-size: 13px; }}
td, th {{ padding: .2rem .6rem; text-align: right; white-space: nowrap; }}
tr:nth-child(even) {{ background: #8881; }} small {{ color: #777; }} .dim {{ opacity: .5; }}
</style></head><body>
<h1>{title}</h1>
<p>Pareto set of output throughput against p99 TTFT and p99 TPOT (★): no other run is better in one without being
worse in another.</p><ul>{pareto}</ul>
{chart}
<h2>Figures</h2>{values}
<h2>Differences to {baseline}</h2>{differences}
<p><small>{method}. Dim: the interval holds 0.</small></p>
</body></html>
"""
