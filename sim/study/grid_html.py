"""A grid of runs as one HTML page: throughput against tail latency, all figures, all differences; opens offline."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from stepline.traces.wording import counted

from ..report.chart_parts import (
    PALETTE,
    SPARSE,
    Chart,
    Spec,
    log_ms_axis,
    name_beside,
    name_tip,
    short_label,
    tip,
)
from ..report.charts import SCHEMA
from ..report.label_room import offsets, shares
from ..report.page import fill, resource, script_json, vega_bundle
from ..report.page_parts import chart_card, section
from ..report.pictures import THEMES, theme_config
from ..report.units import seconds_text

if TYPE_CHECKING:
    from .grid import Grid, GridRow

SHOWN = (
    "output_tokens_per_s", "goodput_requests_per_s", "ttft_mean", "ttft_p99", "tpot_mean", "tpot_p99", "itl_p99",
    "e2e_mean", "e2e_p99", "prefix_hit_token_frac", "preemptions", "rejected",
)  # fmt: skip
"""Columns of the tables, where a run has them."""

_MORE_IS_BETTER = {"output_tokens_per_s", "goodput_requests_per_s", "prefix_hit_token_frac"}

_TAILS = {"ttft": "TTFT p99", "tpot": "TPOT p99"}

_PARETO = (
    "Pareto set (★) of output throughput against p99 TTFT and p99 TPOT: no other run is better in one without being "
    "worse in another"
)


def grid_html(grid: Grid, title: str, command: str) -> str:
    """The page. `title`: its heading; `command`: what made it, at its foot."""
    points = _points(grid)
    made = [_throughput(grid, key) for key in _TAILS] if points else []
    cards = (
        "".join(chart_card(chart) for chart in made) or "<p>No run finished enough requests to be drawn.</p>"
    )
    best = ", ".join(f"<b>{escape(run)}</b>" for run in grid.pareto)
    content = {
        "schema": SCHEMA,
        "params": {},
        "themes": {theme: theme_config(theme) for theme in THEMES},
        "charts": [{"name": c.name, "table": c.table, "spec": c.spec} for c in made],
        "tables": {"points": points},
        "file_name": "comparison",
    }
    note = f'<p class="dim">{escape(grid.method)}; dim: the interval holds 0</p>'
    body = (
        f'<section class="card verdict">{best}<p class="dim">{_PARETO}</p></section>'
        f'<section><h2>Throughput against tails</h2><div class="grid">{cards}</div></section>'
        + section("Figures", _table(grid, _value_cell))
        + section(
            f"Differences to {escape(grid.baseline)}", _table(grid, _difference_cell, grid.baseline), note
        )
    )
    fills = {
        "@TITLE@": escape(title),
        "@CSS@": resource("style.css"),
        "@HEADING@": escape(title),
        "@SUBTITLE@": f"{len(grid.configs)} runs of the same requests, {counted(grid.rows[0].replications, 'replication')}",
        "@BODY@": body,
        "@FOOTER@": f"<code>{escape(command)}</code>",
        "@DATA@": script_json(content),
        "@VEGA@": vega_bundle(),
        "@APP@": resource("plain.js"),
    }
    return fill(resource("plain.html"), fills)


def figure_text(figure: str, unit: str, value: float | None) -> str:
    """A value with its unit."""
    if value is None:
        return "–"
    if unit == "s":
        return seconds_text(value)
    return f"{100 * value:.1f} %" if figure.endswith("_frac") else f"{value:,.4g}"


def _points(grid: Grid) -> list[dict[str, Any]]:
    """One row a run that finished requests: tokens a second and p99 latencies in ms."""
    have = {(row.run, row.figure): row.value for row in grid.rows}
    points = []
    for run in grid.configs:
        tails = {key: have.get((run, f"{key}_p99")) for key in _TAILS}
        known = {key: 1e3 * value for key, value in tails.items() if value is not None}
        if len(known) == len(_TAILS):
            points.append(
                {"run": run, "tokens": have[run, "output_tokens_per_s"], "best": run in grid.pareto, **known}
            )
    return _with_room(points)


def _with_room(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`dy_<latency>`: where the names of the Pareto set stand in each chart (None: no room)."""
    up = shares([point["tokens"] for point in points])
    named = [i for i, point in enumerate(points) if point["best"]]
    for key in _TAILS:
        across = shares([point[key] for point in points], is_log=True)
        names = [points[i]["run"] for i in named]
        found = offsets(names, [across[i] for i in named], [up[i] for i in named], _WIDTH_PX, _HEIGHT_PX)
        for i, dy in zip(named, found, strict=True):
            points[i][f"dy_{key}"] = dy
    return points


_WIDTH_PX = 420
"""Width of a plot in half a page of 1200 px."""

_HEIGHT_PX = 300


def _throughput(grid: Grid, key: str) -> Chart:
    """Output tokens a second over a p99 latency; the Pareto set is filled and named."""
    runs = list(grid.configs)
    colors = [PALETTE[i % len(PALETTE)] for i in range(len(runs))]
    color = {"field": "run", "type": "nominal", "legend": None, "scale": {"domain": runs, "range": colors}}
    x = log_ms_axis(key)
    x["title"], x["scale"] = _TAILS[key], x["scale"] | {"padding": 14}
    y = {"field": "tokens", "type": "quantitative", "title": "output tokens/s", "scale": {"zero": False, "padding": 14},
         "axis": {"labelExpr": short_label("y"), "tickCount": 5, **SPARSE}}  # fmt: skip
    tips = [name_tip("run", "run"), tip("tokens", "output tokens/s", ",.4~r"), tip(key, f"{_TAILS[key]}, ms"),
            name_tip("best", "in the Pareto set")]  # fmt: skip
    spec: Spec = {
        "height": _HEIGHT_PX,
        "encoding": {"x": x, "y": y},
        "layer": [
            {"mark": {"type": "point", "filled": True, "size": 110},
             "encoding": {"color": color, "tooltip": tips,
                          "opacity": {"condition": {"test": "datum.best", "value": 1}, "value": 0.5}}},
            {"transform": [{"filter": f"datum.best && isValid(datum.dy_{key})"},
                           {"calculate": f"datum.dy_{key}", "as": "dy"}],
             "mark": name_beside(key),
             "encoding": {"text": {"field": "run"}}},
        ],
    }  # fmt: skip
    return Chart(f"tokens_{key}", "grid", f"Output tokens/s against {_TAILS[key]}", "points", spec,
                 "left and high is better; pale: another run beats it", "half")  # fmt: skip


def _table(grid: Grid, cell: Callable[[GridRow], str], skip: str | None = None) -> str:
    shown = [name for name in SHOWN if any(r.figure == name for r in grid.rows)]
    rows = {(r.run, r.figure): r for r in grid.rows}
    head = "".join(f"<th>{escape(_title(name))}</th>" for name in shown)
    lines = []
    for i, run in enumerate(grid.configs):
        if run == skip:
            continue
        cells = "".join(cell(rows[run, n]) if (run, n) in rows else "<td>–</td>" for n in shown)
        dot = f'<i class="dot" style="background:{PALETTE[i % len(PALETTE)]}"></i>'
        lines.append(f"<tr><td>{dot}{escape(run)}{' ★' if run in grid.pareto else ''}</td>{cells}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"


def _title(name: str) -> str:
    text = name.removesuffix("_frac").replace("_per_s", "/s").replace("_", " ")
    first = text.split()[0]
    return text if "/" in text or len(first) > 4 else text.replace(first, first.upper(), 1)


def _value_cell(row: GridRow) -> str:
    return f"<td>{escape(figure_text(row.figure, row.unit, row.value))}{_range(row, row.value_low, row.value_high)}</td>"


def _difference_cell(row: GridRow) -> str:
    state = "unclear"
    if row.is_clear and row.difference is not None:
        state = "good" if (row.difference > 0) == (row.figure in _MORE_IS_BETTER) else "bad"
    text = escape(figure_text(row.figure, row.unit, row.difference))
    return f'<td class="{state}">{text}{_range(row, row.low, row.high)}</td>'


def _range(row: GridRow, low: float | None, high: float | None) -> str:
    if low is None:
        return ""
    texts = (escape(figure_text(row.figure, row.unit, value)) for value in (low, high))
    return f"<br><small>{' … '.join(texts)}</small>"
