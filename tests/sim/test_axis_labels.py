"""Labels of axes, as they are drawn: no two alike, however close the ends of an axis are."""

from __future__ import annotations

import re

import pytest
import vl_convert
from stepline.sim.report.chart_parts import SPARSE, log_ms_axis, short_label


def labels(y, values):
    """The labels on y of a chart of such values."""
    spec = {
        "width": 200,
        "height": 300,
        "data": {"values": [{"v": v, "x": i} for i, v in enumerate(values)]},
        "mark": "point",
        "encoding": {"x": {"field": "x", "type": "quantitative", "axis": None}, "y": y},
    }
    svg = str(vl_convert.vegalite_to_svg(spec))
    axis = svg[svg.index('class="mark-text role-axis-label"') :]
    return [
        text for text in re.findall(r"<text[^>]*>([^<]*)</text>", axis.split("</g><g class", 1)[0]) if text
    ]


@pytest.mark.parametrize(
    "values", [(1234.1, 1234.4), (466.5, 468.5), (31_004, 31_009), (10, 900), (0.01, 0.03)]
)
def test_labels_of_rates_are_all_different(values):
    axis = {"labelExpr": short_label("y"), "tickCount": 5, **SPARSE}
    y = {"field": "v", "type": "quantitative", "title": None, "scale": {"zero": False}, "axis": axis}
    found = labels(y, values)
    assert len(found) >= 3
    assert len(set(found)) == len(found), found


@pytest.mark.parametrize("values", [(101.1, 101.9), (1004.0, 1009.0), (20.0, 900.0), (7.41, 7.48)])
def test_labels_of_latencies_are_all_different(values):
    found = labels(log_ms_axis("v", channel="y"), values)
    assert len(found) >= 2
    assert len(set(found)) == len(found), found
