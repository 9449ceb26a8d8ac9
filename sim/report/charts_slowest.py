"""The slowest requests of the window, as a waterfall."""

from __future__ import annotations

from .chart_parts import IN_WINDOW, IS_FOCUS, Chart, Spec, name_tip, tip
from .page_data import SLOWEST, PageData

_LEAST = {"chunks": 1, "away": 0}  # a prompt in one chunk is its prefill
PHASES = {"queue": "#9498a0", "prefill": "#efb118", "decode": "#4269d0", "preempted": "#ff725c"}


def slowest(data: PageData) -> Chart:
    """Queue, prefill (chunk by chunk, where recorded), decode and preemptions of the slowest requests."""
    spans, table = _encoding(data), data.tables["slow"]
    more = [name for name in ("chunks", "away") if len(table) and table[name].map(len).max() > _LEAST[name]]
    spec: Spec = {
        "height": 22 * max(1, min(SLOWEST, len(table))),
        "transform": [
            IS_FOCUS,
            IN_WINDOW,
            {"calculate": "slow_by === 'ttft' ? datum.ttft : datum.e2e", "as": "key"},
            {
                "window": [{"op": "row_number", "as": "rank"}],
                "sort": [{"field": "key", "order": "descending"}],
            },
            {"filter": f"datum.rank <= {SLOWEST}"},
            {"calculate": "datum.ttft", "as": "prefill"},
            {"calculate": "datum.e2e", "as": "decode"},
            {"calculate": "'#' + datum.id", "as": "name"},
        ],
        "layer": [_phases(spans), *(_span_layer(name, spans) for name in more)],
    }
    caption = (
        "queue: arrival to first scheduled; prefill: to the first token; preempted: gave way and waited again; "
        "outlined: single chunks, with --record-steps"
    )
    return Chart("slowest", "slowest", "Slowest requests of the window", "slow", spec, caption, width="whole")


def _encoding(data: PageData) -> Spec:
    """What all layers share."""
    return {
        "x": {
            "field": "from",
            "type": "quantitative",
            "title": "seconds since arrival",
            "axis": {"tickCount": 6},
        },
        "x2": {"field": "to"},
        "y": {
            "field": "name",
            "type": "nominal",
            "title": None,
            "sort": {"field": "rank", "op": "min"},
            "axis": {"labelLimit": 90},
        },
        "color": {
            "field": "phase",
            "type": "nominal",
            "legend": {"title": None, "orient": "top"},
            "scale": {"domain": list(PHASES), "range": list(PHASES.values())},
        },
        "tooltip": [
            name_tip("name", "request"),
            name_tip("phase", "phase"),
            tip("lasts", "lasts, s"),
            tip("t", f"arrival, {data.unit}", ",.4~g"),
            tip("input", "prompt tokens", ","),
            tip("cached", "of them cached", ","),
            tip("output", "output tokens", ","),
            tip("ttft", "TTFT, s"),
            tip("e2e", "E2E, s"),
        ],
    }


def _phases(spans: Spec) -> Spec:
    begin = "datum.phase === 'queue' ? 0 : datum.phase === 'prefill' ? datum.queue : datum.ttft"
    return {
        "transform": [
            {"fold": ["queue", "prefill", "decode"], "as": ["phase", "to"]},
            {"calculate": begin, "as": "from"},
            {"calculate": "datum.to - datum.from", "as": "lasts"},
        ],
        "mark": {"type": "bar", "height": {"band": 0.62}, "opacity": 0.85},
        "encoding": spans,
    }


def _span_layer(field: str, spans: Spec) -> Spec:
    """Bars of a list of [from, to] pairs: preemptions, or the chunks of a prompt cut in several (outlined)."""
    away = field == "away"
    band = {"type": "bar", "height": {"band": 0.3}, "opacity": 1}
    outline = {
        "type": "bar",
        "height": {"band": 0.62},
        "fillOpacity": 0,
        "stroke": "#8a6100",
        "strokeWidth": 1,
    }
    return {
        "transform": [
            {"filter": f"datum.{field} && datum.{field}.length > {_LEAST[field]}"},
            {"flatten": [field], "as": ["span"]},
            {"calculate": "datum.span[0]", "as": "from"},
            {"calculate": "datum.span[1]", "as": "to"},
            {"calculate": "datum.to - datum.from", "as": "lasts"},
            {"calculate": "'preempted'" if away else "'prefill'", "as": "phase"},
        ],
        "mark": band if away else outline,
        "encoding": spans,
    }
