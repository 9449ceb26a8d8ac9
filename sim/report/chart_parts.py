"""What the charts of a page share: parameters of the window, axes, colours, tooltips (Vega-Lite as plain dicts)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .label_room import BESIDE_PX, LIMIT_PX
from .page_data import PageData

Spec = dict[str, Any]

PALETTE = (
    "#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#a463f2", "#3ca951", "#ff8ab7", "#9c6b4e", "#97bbf5", "#9498a0",
)  # fmt: skip
"""Observable10 (Observable Plot's categorical palette), which reads on light and dark grounds."""

SPARSE: Spec = {"labelOverlap": "greedy", "labelSeparation": 10}
"""Labels of an axis that leave room between them."""

SHORT = "abs(datum.value) < 1 ? format(datum.value, ',.3~r') : format(datum.value, ',.3~s')"
"""Label of a number without a prefix below 1: 0.2, 4, 1.5k."""


def short_label(channel: str) -> str:
    """`SHORT` of an axis that need not begin at 0: all digits where its ends are so close that three of them repeat."""
    span = f"domain('{channel}')[1] - domain('{channel}')[0]"
    return f"{span} < abs(datum.value) / 20 ? format(datum.value, ',.8~r') : {SHORT}"


IN_WINDOW: Spec = {"filter": "datum.t >= t0 - 1e-9 && datum.t < t1 - 1e-9"}
IS_SHOWN: Spec = {"filter": "indexof(shown, datum.run) >= 0"}
IS_FOCUS: Spec = {"filter": "datum.run === focus"}


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: `table` of the page data that it draws (`only` its rows with that value in that column), `spec` without
    data, `width`: share of a row.
    """

    name: str
    section: str
    title: str
    table: str
    spec: Spec
    caption: str = ""
    width: Literal["third", "half", "whole"] = "third"
    only: tuple[str, str] | None = None

    @property
    def follows_window(self) -> bool:
        """Whether it shows the window that is selected; figures of whole runs cannot."""
        return self.table != "runs"


def run_color(data: PageData) -> Spec:
    """Colour by run; the page's toggles are the legend."""
    colors = [PALETTE[i % len(PALETTE)] for i in range(len(data.labels))]
    scale = {"domain": list(data.labels), "range": colors}
    return {"field": "run", "type": "nominal", "scale": scale, "legend": None}


def time_axis(data: PageData, *, whole: bool = False) -> Spec:
    """x of a chart over time: the window, or the whole run."""
    window = {"domainMin": {"expr": "t0"}, "domainMax": {"expr": "t1"}, "zero": False}
    scale = {"domain": [data.begin, data.end]} if whole else window
    axis = {
        "title": None,
        "labelExpr": f"datum.label + ' {data.unit}'",
        "grid": False,
        "tickCount": 8 if whole else 4,
        "labelOverlap": True,
    }
    return {"field": "t", "type": "quantitative", "scale": {**scale, "nice": False}, "axis": axis}


def log_ms_axis(field: str, *, channel: str = "x") -> Spec:
    """A logarithmic axis of milliseconds, labelled µs, ms or s."""
    close = f"domain('{channel}')[1] / domain('{channel}')[0] < 1.05"
    return log_axis(field, f"({close} ? {_ms_label(6)} : {_ms_label(3)})", channel=channel)


def log_axis(field: str, label: str, *, channel: str = "x") -> Spec:
    """A logarithmic axis with labels at 1, 2 and 5 of each decade (at every tick, where it spans less than one).

    label: Vega expression of a label.
    """
    digit = "round(datum.value / pow(10, floor(log(datum.value) / LN10 + 1e-9)))"
    span = f"domain('{channel}')[1] / domain('{channel}')[0]"
    few = f"{span} < 6 || indexof([1, 2, 5], {digit}) >= 0"
    return {
        "field": field,
        "type": "quantitative",
        "title": None,
        "scale": {"type": "log", "nice": False},
        "axis": {"labelExpr": f"{few} ? {label} : ''", "tickCount": 5, **SPARSE, "gridOpacity": 0.6},
    }


def _ms_label(digits: int) -> str:
    """Vega expression of a label of so many significant digits, in µs, ms or s."""
    form = f"',.{digits}~r'"
    return (
        f"(datum.value >= 1000 ? format(datum.value / 1000, {form}) + ' s' : "
        f"datum.value >= 1 ? format(datum.value, {form}) + ' ms' : format(datum.value * 1000, {form}) + ' µs')"
    )


def distribution(series: str, *, tail: bool = False) -> list[Spec]:
    """From cells (x, x2, n) of the window to points (at, share) of the share up to x, or of the tail above it.

    Each bin gives two points, at its borders: a gap between bins is flat, as it should be. A tail ends at half an
    observation, as a logarithmic axis has no 0.
    """
    share = "max(1 - {0} / datum.total, 0.5 / datum.total)" if tail else "{0} / datum.total"
    points = (
        f"[[datum.x, {share.format('(datum.below - datum.n)')}], [datum.x2, {share.format('datum.below')}]]"
    )
    return [
        IN_WINDOW,
        {"aggregate": [{"op": "sum", "field": "n", "as": "n"}], "groupby": [series, "x", "x2"]},
        {"joinaggregate": [{"op": "sum", "field": "n", "as": "total"}], "groupby": [series]},
        {
            "window": [{"op": "sum", "field": "n", "as": "below"}],
            "sort": [{"field": "x"}],
            "groupby": [series],
            "frame": [None, 0],
        },
        {"calculate": points, "as": "points"},
        {"flatten": ["points"], "as": ["point"]},
        {"calculate": "datum.point[0]", "as": "at"},
        {"calculate": "datum.point[1]", "as": "share"},
    ]


def tip(field: str, title: str, form: str = ",.3~g") -> Spec:
    """A number in a tooltip."""
    return {"field": field, "title": title, "type": "quantitative", "format": form}


def name_beside(x_field: str) -> Spec:
    """A text mark beside a point, on the side where there is room for it, `dy` px lower than the point (see
    `label_room`; 8 px higher where the data do not say).
    """
    right = f"scale('x', datum.{x_field}) > width / 2"
    return {
        "type": "text",
        "align": {"expr": f"{right} ? 'right' : 'left'"},
        "dx": {"expr": f"{right} ? -{BESIDE_PX:g} : {BESIDE_PX:g}"},
        "dy": {"expr": "isValid(datum.dy) ? datum.dy : -8"},
        "baseline": "middle",
        "color": "#808891",
        "limit": LIMIT_PX,
    }


def name_tip(field: str, title: str) -> Spec:
    """A name in a tooltip."""
    return {"field": field, "title": title, "type": "nominal"}
