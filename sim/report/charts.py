"""The charts of a page, in order, as Vega-Lite specifications over the tables of `page_data`.

Every chart has the parameters `t0`, `t1` (the window of time), `shown` (labels of the runs to draw), `focus` (the run
that single-run charts show), `slow_by` ("e2e" or "ttft") and `bin` (width of a time bin). All aggregation over the
window is in the specifications themselves, so that a browser and `vl_convert` draw the same picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .chart_parts import IS_SHOWN, SHORT, Chart, Spec, name_tip, run_color, time_axis, tip
from .charts_latency import before_after, latency_charts
from .charts_slowest import slowest
from .charts_steps import kernels, roofline, step_charts
from .charts_tradeoff import tradeoff_charts
from .page_data import PageData

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
"""Names the dialect; nothing is fetched."""


def charts(data: PageData, peaks: Mapping[str, float]) -> list[Chart]:
    """All charts for these data. `peaks`: FLOP/s and bytes/s of one GPU (the roofline's ceilings)."""
    return [
        _overview(data),
        *tradeoff_charts(data),
        *latency_charts(data),
        *before_after(data),
        *_load(data),
        kernels(data),
        *step_charts(data),
        roofline(data, peaks),
        slowest(data),
    ]


def default_params(data: PageData) -> dict[str, Any]:
    """Values of the parameters when a page opens: the whole run, every run, the first in focus."""
    return {
        "t0": data.begin,
        "t1": data.end,
        "shown": list(data.labels),
        "focus": data.labels[0],
        "slow_by": "e2e",
    }


def _overview(data: PageData) -> Chart:
    """The whole run at a glance; dragging in it selects the window that every other chart shows."""
    axis = {"tickCount": 2, "labelExpr": SHORT, "grid": False}
    spec: Spec = {
        "height": 52,
        "params": [{"name": "brush", "select": {"type": "interval", "encodings": ["x"]}}],
        "transform": [IS_SHOWN],
        "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.2},
        "encoding": {
            "x": time_axis(data, whole=True),
            "y": {"field": "emitted_tokens", "type": "quantitative", "title": "tokens/s", "axis": axis},
            "color": run_color(data),
        },
    }
    return Chart("overview", "overview", "Output tokens/s", "series", spec, width="whole")


_LOAD = (
    ("arrivals", "Arrivals, requests/s", "arrived", ",.3~r", "as the clients sent them"),
    ("output", "Output tokens/s", "emitted_tokens", ",.3~r", "of all replicas"),
    ("prompt", "Prompt tokens computed/s", "prefill_tokens", ",.3~r", "without those from the prefix cache"),
    ("running", "Running sequences", "running", ",.3~r", "of all replicas"),
    ("waiting", "Waiting requests", "waiting", ",.3~r", "arrived, not yet admitted"),
    ("kv", "KV blocks in use", "kv_used_frac", ".1~%", "sum over replicas of each one's share"),
    ("hits", "Prefix cache hits", "hit_frac", ".0%", "share of prompt tokens, at first admission"),
    ("preemptions", "Preemptions/s", "preempted", ",.3~r", "sequences that gave way"),
)


def _load(data: PageData) -> list[Chart]:
    """What runs, waits, is held and is made, over time."""
    return [
        Chart(name, "load", title, "series", _lines(data, field, form, title), caption)
        for name, title, field, form, caption in _LOAD
    ]


def always_zero(data: PageData) -> dict[str, str]:
    """Name and title of the charts over time that a page leaves out: nothing of the kind happened in any run."""
    series = data.tables["series"]
    return {name: title for name, title, field, *_ in _LOAD if not (series[field] > 0).any()}


def _lines(data: PageData, field: str, form: str, title: str) -> Spec:
    y = {
        "field": field,
        "type": "quantitative",
        "title": None,
        "axis": {"tickCount": 4, **({"format": form} if "%" in form else {"labelExpr": SHORT})},
        "scale": {"zero": True},
    }
    return {
        "height": 110,
        "transform": [IS_SHOWN, {"filter": "datum.t >= t0 - bin && datum.t <= t1"}],
        "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.5, "clip": True},
        "encoding": {
            "x": time_axis(data),
            "y": y,
            "color": run_color(data),
            "tooltip": [
                name_tip("run", "run"),
                tip("t", f"from, {data.unit}", ",.4~g"),
                tip(field, title, form),
            ],
        },
    }
