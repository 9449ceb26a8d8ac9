"""Distributions of latencies and their tails; measured beside simulated."""

from __future__ import annotations

from .chart_parts import (
    IS_FOCUS,
    IS_SHOWN,
    PALETTE,
    Chart,
    Spec,
    distribution,
    log_ms_axis,
    name_tip,
    run_color,
    tip,
)
from .page_data import PageData

_METRICS = {
    "TTFT": "time to first token, of requests by arrival",
    "ITL": "every gap between two tokens, by emission",
    "E2E": "arrival to last token, of requests by arrival",
}


def latency_charts(data: PageData) -> list[Chart]:
    """For TTFT, ITL and E2E the share up to x; below each, the share above x on a logarithmic axis."""
    return [_chart(data, metric, kind) for kind in ("ecdf", "tail") for metric in _METRICS]


def _chart(data: PageData, metric: str, kind: str) -> Chart:
    tail = kind == "tail"
    title = "share above" if tail else "share up to"
    axis = {"title": None, **_TAIL} if tail else {"title": title, **_SHARE}
    y: Spec = {"field": "share", "type": "quantitative", **axis}
    spec: Spec = {
        "height": 180,
        "transform": [
            IS_SHOWN,
            *distribution("run", tail=tail),
        ],
        "mark": {"type": "line", "strokeWidth": 2, "opacity": 0.9, "clip": True},
        "encoding": {
            "x": log_ms_axis("at"),
            "y": y,
            "color": run_color(data),
            "tooltip": [
                name_tip("run", "run"),
                tip("at", "ms"),
                tip("share", title, ".3~%"),
                tip("n", "in this bin", ",.0f"),
            ],
        },
    }
    name = f"{metric}: {'tail' if tail else 'distribution'}"
    return Chart(
        f"{metric.lower()}_{kind}",
        "latency",
        name,
        "latency",
        spec,
        _TAIL_CAPTION if tail else _METRICS[metric],
        only=("metric", metric),
    )


_TAIL_CAPTION = "percentiles; the curve ends at the slowest"


_SHARE: Spec = {"scale": {"domain": [0, 1]}, "axis": {"format": ".0%", "tickCount": 5}}
_TAIL: Spec = {
    "scale": {"type": "log", "nice": False, "domainMax": 1},
    "axis": {
        "values": [0.5, 0.1, 0.01, 0.001, 1e-4, 1e-5, 1e-6, 1e-7],
        "labelExpr": "'p' + format(100 * (1 - datum.value), '.7~r')",
        "labelOverlap": "greedy",
    },
}


def before_after(data: PageData) -> list[Chart]:
    """Measured beside simulated latencies, where the trace holds `observed` values."""
    table = data.tables["observed"]
    metrics = list(dict.fromkeys(table["metric"])) if len(table) else []
    return [_measured(metric) for metric in metrics]


def _measured(metric: str) -> Chart:
    source = {"domain": ["measured", "simulated"], "range": [PALETTE[2], PALETTE[0]]}
    spec: Spec = {
        "height": 200,
        "transform": [
            IS_FOCUS,
            *distribution("source"),
        ],
        "mark": {"type": "line", "strokeWidth": 2},
        "encoding": {
            "x": log_ms_axis("at"),
            "y": {"field": "share", "type": "quantitative", "title": "share up to", **_SHARE},
            "color": {
                "field": "source",
                "type": "nominal",
                "legend": {"title": None, "orient": "top"},
                "scale": source,
            },
            "tooltip": [name_tip("source", "source"), tip("at", "up to, ms"), tip("share", "share", ".2~%")],
        },
    }
    caption = "the requests that have a measured value"
    title = f"{metric}: measured and simulated"
    return Chart(
        f"observed_{metric.lower()}", "observed", title, "observed", spec, caption, only=("metric", metric)
    )
