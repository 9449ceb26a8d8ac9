"""Where steps spend their time: kernel classes, batch sizes, durations, the roofline."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..cost.work import KERNELS
from .chart_parts import (
    IN_WINDOW,
    IS_FOCUS,
    IS_SHOWN,
    PALETTE,
    SHORT,
    Chart,
    Spec,
    log_axis,
    log_ms_axis,
    name_tip,
    run_color,
    time_axis,
    tip,
)
from .page_data import PageData

KERNEL_NAMES = {
    "gemm": "linear layers",
    "attention_prefill": "attention, prefill",
    "attention_decode": "attention, decode",
    "moe": "experts",
    "elementwise": "norm, rope, act",
    "lm_head": "LM head",
    "comm": "communication",
    "host": "host",
}
"""Kernel classes for people."""


def kernels(data: PageData) -> Chart:
    """Where the time of steps goes, stacked; what is missing to the top is idle."""
    table = data.tables["series"]
    fields = [f"kernel_{k}" for k in KERNELS if (table[f"kernel_{k}"] > 0).any()] or ["kernel_gemm"]
    names = [KERNEL_NAMES[f.removeprefix("kernel_")] for f in fields]
    name_of = "{" + ", ".join(f"{f}: '{n}'" for f, n in zip(fields, names, strict=True)) + "}"
    spec: Spec = {
        "height": 220,
        "transform": [
            IS_FOCUS,
            {"filter": "datum.t >= t0 - bin && datum.t <= t1"},
            {"fold": fields, "as": ["field", "share"]},
            {"calculate": f"({name_of})[datum.field]", "as": "kernel"},
            {"calculate": f"indexof({fields}, datum.field)", "as": "order"},
        ],
        "mark": {"type": "area", "interpolate": "step-after", "clip": True},
        "encoding": {
            "x": time_axis(data),
            "y": {
                "field": "share",
                "type": "quantitative",
                "stack": "zero",
                "title": None,
                "axis": {"format": ".0%"},
            },
            "color": {
                "field": "kernel",
                "type": "nominal",
                "legend": {"title": None, "orient": "top", "columns": len(names), "labelLimit": 140},
                "scale": {"domain": names, "range": list(PALETTE[: len(names)])},
            },
            "order": {"field": "order", "type": "quantitative"},
            "tooltip": [
                name_tip("kernel", "kernel"),
                tip("t", f"from, {data.unit}", ",.4~g"),
                tip("share", "share of time", ".1%"),
            ],
        },
    }
    caption = "share of wall time, summed over replicas (one busy replica: 100 %); host time only where the GPU waits"
    return Chart("kernels", "steps", "Step time by kernel class", "series", spec, caption, width="whole")


def step_charts(data: PageData) -> list[Chart]:
    """Batch sizes and durations of steps, by the time spent in them."""
    whole = "(datum.value >= 1 ? format(datum.value, ',.3~r') : '')"
    return [
        _steps(data, "batch", "Batch size", "sequences in a step", log_axis("x", whole)),
        _steps(data, "duration", "Step time", "ms", log_ms_axis("x")),
    ]


def _steps(data: PageData, what: str, title: str, unit: str, x: Spec) -> Chart:
    sums = [
        {"op": "sum", "field": "seconds", "as": "spent"},
        {"op": "sum", "field": "steps", "as": "steps"},
    ]
    spec: Spec = {
        "height": 180,
        "transform": [
            IS_SHOWN,
            IN_WINDOW,
            {"aggregate": sums, "groupby": ["run", "x", "x2"]},
            {"joinaggregate": [{"op": "sum", "field": "spent", "as": "total"}], "groupby": ["run"]},
            {"calculate": "datum.spent / datum.total", "as": "share"},
        ],
        "mark": {"type": "rect", "opacity": 0.6 if len(data.labels) > 1 else 0.9},
        "encoding": {
            "x": x,
            "x2": {"field": "x2"},
            "y2": {"datum": 0},
            "y": {
                "field": "share",
                "type": "quantitative",
                "stack": None,
                "title": None,
                "axis": {"format": ".0%", "tickCount": 5},
            },
            "color": run_color(data),
            "tooltip": [
                name_tip("run", "run"),
                tip("x", f"from, {unit}"),
                tip("x2", f"to, {unit}"),
                tip("share", "of busy time", ".2~%"),
                tip("steps", "steps", ",.0f"),
            ],
        },
    }
    caption = "sequences in a step" if what == "batch" else "duration of a step"
    caption = f"{caption}; share of the busy time"
    return Chart(what, "steps", title, "steps", spec, caption, width="half", only=("what", what))


def roofline(data: PageData, peaks: Mapping[str, float]) -> Chart:
    """Steps of the window under the ceilings of one GPU; a dot's area is the time spent there."""
    flops, bandwidth = peaks["flops_per_s"] / 1e12, peaks["bytes_per_s"] / 1e12
    ridge = flops / bandwidth
    table = data.tables["roofline"]
    low = min(float(table["x"].min()) if len(table) else 1.0, 1.0) / 2
    high = max(float(table["x"].max()) if len(table) else 1.0, ridge) * 3
    log = {"type": "log", "nice": False}
    x: Spec = {
        "field": "x",
        "type": "quantitative",
        "title": "FLOP per byte of HBM traffic",
        "scale": {**log, "domain": [low, high]},
        "axis": {"labelExpr": SHORT, "tickCount": 5, "gridOpacity": 0.6},
    }
    y: Spec = {
        "field": "y",
        "type": "quantitative",
        "title": "TFLOP/s on one GPU",
        "scale": log,
        "axis": {"format": ",~g", "tickCount": 5, "gridOpacity": 0.6},
    }
    spec: Spec = {
        "height": 320,
        "layer": [_dots(x, y, flops, bandwidth), *_roof(low, ridge, high, flops, bandwidth)],
    }
    caption = (
        "a dot is a cell of steps of like intensity and rate, its area the time spent in them; "
        "the line is the datasheet's roof of one GPU"
    )
    return Chart("roofline", "steps", "Roofline", "roofline", spec, caption, width="whole")


def _dots(x: Spec, y: Spec, flops: float, bandwidth: float) -> Spec:
    sums = [
        {"op": "sum", "field": "seconds", "as": "spent"},
        {"op": "sum", "field": "steps", "as": "steps"},
    ]
    return {
        "transform": [
            IS_FOCUS,
            {"filter": "datum.t >= t0 - 1e-9 - 3 * bin && datum.t < t1 - 1e-9"},
            {"aggregate": sums, "groupby": ["x", "y"]},
            {"joinaggregate": [{"op": "sum", "field": "spent", "as": "total"}]},
            {"calculate": "datum.spent / datum.total", "as": "share"},
            {"calculate": f"datum.y / min(datum.x * {bandwidth}, {flops})", "as": "of_roof"},
        ],
        "mark": {"type": "circle", "opacity": 0.75, "color": PALETTE[0]},
        "encoding": {
            "x": x,
            "y": y,
            "size": {"field": "share", "type": "quantitative", "legend": None, "scale": {"range": [10, 900]}},
            "tooltip": [
                tip("x", "FLOP/byte"),
                tip("y", "TFLOP/s"),
                tip("of_roof", "of the roof", ".0%"),
                tip("share", "of busy time", ".2~%"),
                tip("steps", "steps", ",.0f"),
            ],
        },
    }


def _roof(low: float, ridge: float, high: float, flops: float, bandwidth: float) -> list[Spec]:
    """The ceilings and their names."""
    at: Spec = {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y", "type": "quantitative"}}
    at_slope = math.sqrt(low * ridge)
    points = [{"x": x, "y": min(x * bandwidth, flops)} for x in (low, at_slope, ridge, high)]
    line: Spec = {
        "data": {"values": points},
        "mark": {"type": "line", "strokeWidth": 2, "color": PALETTE[2]},
        "encoding": at,
    }
    return [
        line,
        _note({**points[3], "text": f"{flops:,.0f} TFLOP/s"}, at, align="right", dx=0, dy=12),
        _note({**points[1], "text": f"{bandwidth:.3g} TB/s"}, at, align="right", dx=-10, dy=-8),
    ]


def _note(point: dict[str, object], at: Spec, *, align: str, dx: int, dy: int) -> Spec:
    mark = {"type": "text", "align": align, "dx": dx, "dy": dy, "color": PALETTE[2]}
    return {"data": {"values": [point]}, "mark": mark, "encoding": {**at, "text": {"field": "text"}}}
