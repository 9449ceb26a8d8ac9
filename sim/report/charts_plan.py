"""Charts of a plan: price against latency, attainment and goodput over the rate, cost per token, other loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from .chart_parts import PALETTE, SPARSE, Chart, Spec, log_ms_axis, name_beside, name_tip, tip
from .label_room import offsets, shares

METRICS = {"ttft_p99": "TTFT p99", "tpot_p99": "TPOT p99", "e2e_p99": "E2E p99"}
"""What price can be set against."""

SHOWN = 5
"""Candidates whose curves over the rate are drawn at first."""

Rows = list[dict[str, Any]]


def tables(plan: Mapping[str, Any]) -> dict[str, Rows]:
    """Rows by table: candidates (one a candidate and metric), costs, rates, looks, loads."""
    winner = plan["winner"] and plan["winner"]["label"]
    simulated = [row for row in plan["candidates"] if row["status"] == "simulated"]
    priced = [row for row in simulated if row["usd_per_hour"] is not None]
    base = {row["label"]: _base(row, row["label"] == winner) for row in simulated}
    prices = [
        base[row["label"]] | {"metric": metric, "ms": 1000 * row["at_load"][metric]}
        for row in priced
        for metric in METRICS
        if row["at_load"].get(metric) is not None
    ]
    for metric in METRICS:
        _give_room([row for row in prices if row["metric"] == metric])
    looks = [
        {"label": row["label"], "goodput": look["rate_per_s"] * look.get("good_frac", 0.0), **look}
        for row in simulated
        for look in row["looks"]
    ]
    return {
        "prices": prices,
        "candidates": list(base.values()),
        "looks": looks,
        "loads": [dict(row) for row in plan["load_sensitivity"]],
    }


_FRONT_PX = (900, 340)
"""Size of the plot of price against latency, on a page of 1200 px."""


def _give_room(rows: Rows) -> None:
    """`dy`: where the name of each point of the front stands (see `label_room`)."""
    across = shares([row["usd_per_hour"] for row in rows])
    up = shares([row["ms"] for row in rows], is_log=True)
    least, front = inf, []
    for i in sorted(range(len(rows)), key=lambda i: (rows[i]["usd_per_hour"], rows[i]["ms"])):
        if rows[i]["ms"] < least:
            least = rows[i]["ms"]
            front.append(i)
    front.sort(key=lambda i: not rows[i]["wins"])  # the plan's own name comes first
    names = [str(rows[i]["label"]) for i in front]
    found = offsets(names, [across[i] for i in front], [up[i] for i in front], *_FRONT_PX)
    for i, dy in zip(front, found, strict=True):
        rows[i]["dy"] = dy


def _base(row: Mapping[str, Any], wins: bool) -> dict[str, Any]:
    names = ("label", "replicas", "gpus", "usd_per_hour", "usd_per_million_tokens", "rate_per_s", "low_per_s",
             "high_per_s", "bound_per_s", "pareto", "why")  # fmt: skip
    return {**{n: row[n] for n in names}, "gpu": str(row["settings"]["gpu"]), "wins": wins}


def charts(plan: Mapping[str, Any]) -> list[Chart]:
    """The charts that this plan has data for."""
    rows = tables(plan)
    gpus = list(dict.fromkeys(row["gpu"] for row in rows["candidates"]))
    made = []
    if rows["prices"]:
        made += [_front(gpus), _costs(rows["prices"], gpus)]
    if rows["looks"]:
        labels = list(dict.fromkeys(row["label"] for row in rows["looks"]))
        made += [_over_rate(labels, "good_frac", "SLO attainment", "share of requests that meet every limit"),
                 _over_rate(labels, "goodput", "Goodput", "requests within the SLO a second: its knee is the capacity")]  # fmt: skip
    if rows["candidates"]:
        made.append(_rates(rows["candidates"], gpus))
    if rows["loads"]:
        made.append(_loads(rows["loads"]))
    return made


def _gpu_color(gpus: Sequence[str]) -> Spec:
    scale = {"domain": list(gpus), "range": [PALETTE[i % len(PALETTE)] for i in range(len(gpus))]}
    return {
        "field": "gpu",
        "type": "nominal",
        "scale": scale,
        "legend": {"title": None, "orient": "top", "columns": 6},
    }


_TIPS = [
    name_tip("label", "candidate"),
    tip("replicas", "replicas", ",d"),
    tip("gpus", "GPUs", ",d"),
    tip("usd_per_hour", "$/h", ",.2f"),
    tip("usd_per_million_tokens", "$/M tokens", ",.3f"),
]


def _front(gpus: Sequence[str]) -> Chart:
    """Price of carrying the load against a latency under it; the line joins what nothing else beats in both."""
    x = {"field": "usd_per_hour", "type": "quantitative", "title": "$ per hour for the load",
         "scale": {"zero": False, "padding": 12}, "axis": {"tickCount": 6, **SPARSE}}  # fmt: skip
    y = log_ms_axis("ms", channel="y")
    y["scale"] |= {"padding": 14}
    best = [
        {"window": [{"op": "min", "field": "ms", "as": "least"}], "sort": [{"field": "usd_per_hour"}, {"field": "ms"}],
         "frame": [None, 0]},
        {"filter": "datum.ms <= datum.least"},
    ]  # fmt: skip
    spec: Spec = {
        "height": _FRONT_PX[1],
        "transform": [{"filter": "datum.metric === metric"}],
        "encoding": {"x": x, "y": y},
        "layer": [
            {
                "transform": best,
                "mark": {
                    "type": "line",
                    "interpolate": "step-after",
                    "strokeDash": [4, 3],
                    "color": "#9498a0",
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 0.85},
                "encoding": {"color": _gpu_color(gpus), "tooltip": [*_TIPS, tip("ms", "ms")]},
            },
            {
                "transform": [{"filter": "datum.wins"}],
                "mark": {"type": "point", "size": 320, "strokeWidth": 2, "color": PALETTE[2]},
            },
            {
                "transform": [{"filter": "isValid(datum.dy)"}],
                "mark": name_beside("usd_per_hour"),
                "encoding": {"text": {"field": "label"}},
            },
        ],
    }
    caption = (
        "each candidate with as many replicas as the load needs; dashed: the Pareto front; ringed: the plan"
    )
    return Chart("front", "price", "Price and latency", "prices", spec, caption, width="whole")


def _costs(rows: Rows, gpus: Sequence[str]) -> Chart:
    count = len({row["label"] for row in rows})
    spec: Spec = {
        "height": max(60, 20 * count),
        "transform": [{"filter": "datum.metric === 'ttft_p99'"}],
        "mark": {"type": "bar", "height": {"band": 0.7}},
        "encoding": {
            "y": _label_axis("usd_per_million_tokens"),
            "x": {
                "field": "usd_per_million_tokens",
                "type": "quantitative",
                "title": "$ per million tokens",
                "axis": {"tickCount": 5, **SPARSE},
            },
            "color": {**_gpu_color(gpus), "legend": None},
            "tooltip": _TIPS,
        },
    }
    return Chart(
        "costs", "price", "Cost per million tokens", "prices", spec, "prompt and output, at the load", "half"
    )


def _label_axis(sort: str) -> Spec:
    order = {"field": sort, "op": "min"}
    return {"field": "label", "type": "nominal", "title": None, "sort": order, "axis": {"labelLimit": 170}}


def _rates(rows: Rows, gpus: Sequence[str]) -> Chart:
    y = {**_label_axis("rate_per_s"), "sort": {"field": "rate_per_s", "op": "min", "order": "descending"}}
    at = {
        "field": "rate_per_s",
        "type": "quantitative",
        "title": "requests/s of one replica",
        "axis": {"tickCount": 6, **SPARSE},
    }
    spec: Spec = {
        "height": max(60, 20 * len(rows)),
        "transform": [{"filter": "datum.rate_per_s > 0"}],
        "encoding": {"y": y, "color": {**_gpu_color(gpus), "legend": None}},
        "layer": [
            {
                "transform": [{"filter": "isValid(datum.high_per_s)"}],
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {
                    "x": {"field": "low_per_s", "type": "quantitative"},
                    "x2": {"field": "high_per_s"},
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70},
                "encoding": {
                    "x": at,
                    "tooltip": [
                        *_TIPS,
                        tip("rate_per_s", "req/s a replica"),
                        tip("bound_per_s", "physical bound"),
                        name_tip("why", "limit above"),
                    ],
                },
            },
        ],
    }
    caption = "highest sustainable rate with its 95 % interval over replications"
    return Chart("rates", "price", "Capacity of a replica", "candidates", spec, caption, "half")


def _over_rate(labels: Sequence[str], field: str, title: str, caption: str) -> Chart:
    """A curve over the offered rate, one a candidate; hollow where the objectives were missed."""
    share = field == "good_frac"
    y: Spec = {"field": field, "type": "quantitative", "title": None}
    y |= {"axis": {"format": ".0%"}, "scale": {"domain": [0, 1]}} if share else {"axis": {"tickCount": 5}}
    colors = [PALETTE[i % len(PALETTE)] for i in range(len(labels))]
    color = {
        "field": "label",
        "type": "nominal",
        "scale": {"domain": list(labels), "range": colors},
        "legend": None,
    }
    x = {"field": "rate_per_s", "type": "quantitative", "title": "offered requests/s of one replica",
         "axis": {"tickCount": 6}}  # fmt: skip
    spec: Spec = {
        "height": 240,
        "transform": [{"filter": "indexof(shown, datum.label) >= 0"}],
        "encoding": {"x": x, "y": y, "color": color},
        "layer": [
            {
                "mark": {"type": "line", "strokeWidth": 1.2, "opacity": 0.6},
                "encoding": {"order": {"field": "rate_per_s"}},
            },
            {
                "mark": {"type": "point", "size": 40},
                "encoding": {
                    "fill": {"condition": {"test": "datum.ok", **color}, "value": "transparent"},
                    "tooltip": [
                        name_tip("label", "candidate"),
                        tip("rate_per_s", "offered req/s"),
                        tip("good_frac", "good", ".1%"),
                        tip("goodput", "goodput/s"),
                        name_tip("ok", "objectives met"),
                    ],
                },
            },
        ],
    }
    return Chart(field, "rate", title, "looks", spec, f"{caption}; hollow: objectives missed", "half")


def _loads(rows: Rows) -> Chart:
    labels = list(dict.fromkeys(row["label"] for row in rows if row["label"]))
    colors = [PALETTE[i % len(PALETTE)] for i in range(len(labels))]
    spec: Spec = {
        "height": 220,
        "transform": [{"filter": "isValid(datum.usd_per_hour)"}],
        "encoding": {
            "x": {
                "field": "load_per_s",
                "type": "quantitative",
                "title": "requests/s to carry",
                "axis": {"tickCount": 8, **SPARSE},
            },
            "y": {
                "field": "usd_per_hour",
                "type": "quantitative",
                "title": "$ per hour",
                "axis": {"tickCount": 5},
            },
        },
        "layer": [
            {"mark": {"type": "line", "interpolate": "step-before", "color": "#9498a0"}},
            {
                "mark": {"type": "point", "filled": True, "size": 80},
                "encoding": {
                    "color": {
                        "field": "label",
                        "type": "nominal",
                        "legend": {"title": None, "orient": "top", "columns": 3, "labelLimit": 260},
                        "scale": {"domain": labels, "range": colors},
                    },
                    "tooltip": [
                        name_tip("label", "candidate"),
                        tip("load_factor", "× load"),
                        tip("replicas", "replicas", ",d"),
                        tip("gpus", "GPUs", ",d"),
                        tip("usd_per_hour", "$/h", ",.2f"),
                    ],
                },
            },
        ],
    }
    caption = "the cheapest candidate by its rate, for other loads"
    return Chart("loads", "loads", "If the load is another", "loads", spec, caption, "whole")
