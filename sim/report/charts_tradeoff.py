"""Runs against each other: how far the objectives are met, and which run gives up what for what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from .chart_parts import (
    IS_SHOWN,
    Chart,
    Spec,
    distribution,
    log_axis,
    log_ms_axis,
    name_beside,
    name_tip,
    run_color,
    tip,
)
from .page_data import PageData

_RULE = "#9498a0"
_TIMES = "format(datum.value, '.3~r') + '×'"
_REACH = (0.1, 10.0)  # a tenth to ten times the limits: beyond, nobody would set them


def tradeoff_charts(data: PageData) -> list[Chart]:
    """SLO attainment, where the runs have an SLO; p99 TTFT against p99 TPOT and price, where there are several."""
    latency, table = data.tables["latency"], data.tables["runs"]
    has_slo = len(latency) > 0 and bool((latency["metric"] == "SLO").any())
    made = [_attainment(data)] if has_slo else []
    if len(table.dropna(subset=["ttft", "tpot"])) > 1:
        made.append(_front(data, "TTFT against TPOT", "ttft", log_ms_axis("ttft"), "tpot"))
    if table["usd"].round(4).nunique() > 1:
        made.append(_front(data, "Price against E2E", "usd", _DOLLARS, "e2e"))
    width = _WIDTHS[len(made)] if made else "half"
    return [replace(chart, width=width) for chart in made]


_WIDTHS: dict[int, Literal["third", "half", "whole"]] = {1: "whole", 2: "half", 3: "third"}


def _attainment(data: PageData) -> Chart:
    """The share of requests that would be good if every limit were so many times what it is."""
    x = log_axis("at", _TIMES)
    x["scale"] |= {"domain": list(_REACH), "clamp": False}
    spec: Spec = {
        "height": 240,
        "layer": [
            {"data": {"values": [{}]}, "mark": {"type": "rule", "strokeDash": [4, 3], "color": _RULE},
             "encoding": {"x": {"datum": 1}}},
            {
                "transform": [IS_SHOWN, *distribution("run")],
                "mark": {"type": "line", "strokeWidth": 2, "clip": True},
                "encoding": {
                    "x": x,
                    "y": {"field": "share", "type": "quantitative", "title": "good requests",
                          "scale": {"domain": [0, 1]}, "axis": {"format": ".0%", "tickCount": 5}},
                    "color": run_color(data),
                    "tooltip": [name_tip("run", "run"), tip("at", "limits times", ",.3~r"), tip("share", "good", ".3~%")],
                },
            },
        ],
    }  # fmt: skip
    caption = "share of submitted requests within every limit, if all limits were so many times as long"
    return Chart("attainment", "tradeoff", "SLO attainment", "latency", spec, caption, only=("metric", "SLO"))


_DOLLARS: Spec = {"field": "usd", "type": "quantitative", "title": "$ per million output tokens",
                  "scale": {"zero": False, "padding": 12}, "axis": {"tickCount": 5}}  # fmt: skip

_AXIS_NAMES = {"ttft": "TTFT p99", "tpot": "TPOT p99", "e2e": "E2E p99"}


def _front(data: PageData, title: str, across: str, x: Spec, up: str) -> Chart:
    """Two figures of each run, both better when smaller; the line joins the runs that no other beats in both."""
    y = log_ms_axis(up, channel="y")
    y["title"], y["scale"] = _AXIS_NAMES[up], y["scale"] | {"padding": 14}
    if across != "usd":
        x = x | {"title": _AXIS_NAMES[across], "scale": x["scale"] | {"padding": 14}}
    least = {"window": [{"op": "min", "field": up, "as": "least"}], "sort": [{"field": across}, {"field": up}],
             "frame": [None, 0]}  # fmt: skip
    front: list[Any] = [least, {"filter": f"datum.{up} <= datum.least"}]
    # of runs with the very same figures only the first is named
    first = {"window": [{"op": "row_number", "as": "twin"}], "groupby": [across, up]}
    label = name_beside(across)
    line = {"type": "line", "interpolate": "step-after", "strokeDash": [4, 3], "color": _RULE}
    tips = [name_tip("run", "run"), tip(across, str(x["title"])), tip(up, f"{_AXIS_NAMES[up]}, ms"),
            tip("tokens", "output tokens/s", ",.3~s"), tip("completed", "completed", ",d")]  # fmt: skip
    spec: Spec = {
        "height": 240,
        "transform": [IS_SHOWN, {"filter": f"isValid(datum.{across}) && isValid(datum.{up})"}],
        "encoding": {"x": x, "y": y},
        "layer": [
            {"transform": front, "mark": line},
            {"mark": {"type": "point", "filled": True, "size": 110, "opacity": 0.9},
             "encoding": {"color": run_color(data), "tooltip": tips}},
            {"transform": [*front, first, {"filter": "datum.twin === 1"}], "mark": label, "encoding": {"text": {"field": "run"}}},
        ],
    }  # fmt: skip
    caption = "of the whole runs, whatever window is selected; left and low is better, the line joins what no other run beats in both"
    return Chart(f"{across}_{up}", "tradeoff", title, "runs", spec, caption)
