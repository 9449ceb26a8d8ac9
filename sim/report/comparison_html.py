"""A comparison as one HTML page."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from .ranking import criterion, rank
from .units import seconds_text

if TYPE_CHECKING:
    from .paired import Comparison

_METRICS = ("ttft", "tpot", "itl", "e2e", "queue")


def comparison_html(comparison: Comparison) -> str:
    """Ranking, latencies by run, and paired differences with intervals; opens offline (Vega is inside)."""
    places = rank(comparison)
    items = "".join(f"<li><b>{escape(p.run)}</b>: {escape(p.why)}</li>" for p in places)
    return _PAGE.format(
        ranking=items,
        criterion=escape(criterion(comparison)),
        charts=_charts(comparison),
        table=_table(comparison),
        method=escape(comparison.method),
    )


def _charts(comparison: Comparison) -> str:
    import altair as alt

    frame = comparison.frame()
    frame = frame[frame["metric"].isin(_METRICS) & (frame["value"] > 0)]  # a logarithm has no place for 0
    values = frame.assign(value_ms=frame["value"] * 1000)[["run", "metric", "stat", "value_ms"]]
    bars = (
        alt.Chart(values, width=150, height=alt.Step(16))
        .mark_circle(size=90, opacity=1)
        .encode(
            x=alt.X("value_ms:Q", title="ms", scale=alt.Scale(type="log", nice=True)),
            y=alt.Y("run:N", title=None, sort=list(comparison.results)),
            color=alt.Color("run:N", legend=None),
            tooltip=["run", "metric", "stat", alt.Tooltip("value_ms:Q", format=",.4~g")],
        )
        .facet(
            row=alt.Row("metric:N", title=None, sort=list(_METRICS)), column=alt.Column("stat:N", title=None)
        )
        .resolve_scale(x="independent")
    )
    return str(bars.to_html(inline=True, fullhtml=False))


def _table(comparison: Comparison) -> str:
    rows = []
    for d in comparison.differences:
        if d.run == comparison.baseline or d.unit != "s":
            continue
        interval = "–" if d.low is None else f"{seconds_text(d.low)} … {seconds_text(d.high)}"
        cells = (d.run, f"{d.metric.upper()} {d.stat}", seconds_text(d.baseline), seconds_text(d.value),
                 seconds_text(d.difference), interval, "yes" if d.is_clear else "no")  # fmt: skip
        rows.append(cells)
    names = ["run", "metric", comparison.baseline, "value", "difference", "95 % interval", "clear"]
    return pd.DataFrame(rows, columns=names).to_html(index=False, border=0)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Comparison</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem .8rem; text-align: right; }}
tr:nth-child(even) {{ background: #8881; }} small {{ color: #777; }}
</style></head><body>
<h1>Comparison</h1>
<ol>{ranking}</ol><small>Ranking by {criterion}.</small>
<h2>Latencies</h2>{charts}
<h2>Paired differences</h2>{table}<small>{method}.</small>
</body></html>
"""
