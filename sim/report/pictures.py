"""Charts as standalone specifications, SVG and PNG, drawn by vl-convert without a browser or a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import orjson
import pandas as pd

from .chart_parts import Chart
from .charts import SCHEMA, default_params
from .page_data import PageData

Theme = Literal["light", "dark"]

THEMES: dict[Theme, dict[str, str]] = {
    "light": {"ground": "#ffffff", "ink": "#1c2733", "dim": "#5b6875", "line": "#d9dfe6"},
    "dark": {"ground": "#171c22", "ink": "#e6ebf0", "dim": "#9aa7b4", "line": "#333d48"},
}


def theme_config(theme: Theme) -> dict[str, Any]:
    """Vega-Lite `config` of a theme."""
    c = THEMES[theme]
    font = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
    axis = {"labelColor": c["dim"], "titleColor": c["dim"], "gridColor": c["line"], "domainColor": c["line"],
            "tickColor": c["line"], "titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 11}  # fmt: skip
    return {
        "background": "transparent",
        "padding": {"left": 2, "top": 5, "right": 12, "bottom": 2},
        "font": font,
        "axis": axis,
        "legend": {
            "labelColor": c["ink"],
            "titleColor": c["ink"],
            "labelFontSize": 11,
            "symbolType": "square",
        },
        "title": {"color": c["ink"], "anchor": "start", "fontSize": 13},
        "view": {"stroke": None},
        "text": {"fontSize": 11},
    }


def standalone(chart: Chart, data: PageData, theme: Theme = "light", width: int = 480) -> dict[str, Any]:
    """A chart with its data, parameters, theme and size: opens in any Vega-Lite tool."""
    own = [p for p in chart.spec.get("params", []) if "select" not in p]
    params = [{"name": name, "value": value} for name, value in default_params(data).items()]
    spec = _with_legend(chart.spec) if len(data.labels) > 1 else chart.spec
    return {
        "$schema": SCHEMA,
        **spec,
        "params": [*own, *params, {"name": "bin", "value": data.step}],
        "width": {"third": width, "half": width, "whole": 2 * width}[chart.width],
        "title": chart.title,
        "data": {"values": records(_rows(chart, data))},
        "config": {**theme_config(theme), "background": THEMES[theme]["ground"]},
    }


def _rows(chart: Chart, data: PageData) -> pd.DataFrame:
    """What a chart draws."""
    table = data.tables[chart.table]
    return table if chart.only is None else table[table[chart.only[0]] == chart.only[1]]


def _with_legend(spec: Any) -> Any:
    """The specification with a legend of the runs, which on a page are its toggles."""
    if isinstance(spec, list):
        return [_with_legend(item) for item in spec]
    if not isinstance(spec, dict):
        return spec
    copy = {key: _with_legend(value) for key, value in spec.items()}
    if copy.get("field") == "run" and "legend" in copy:
        copy["legend"] = {"title": None, "orient": "top", "symbolOpacity": 1, "symbolType": "stroke"}
    return copy


def records(table: pd.DataFrame) -> list[Mapping[str, Any]]:
    """Rows of a table, NaN as None."""
    rows: list[Mapping[str, Any]] = orjson.loads(table.to_json(orient="records", double_precision=15))
    return rows


def svg(chart: Chart, data: PageData, theme: Theme = "light") -> bytes:
    """The chart as SVG."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(standalone(chart, data, theme))).encode()


def png(chart: Chart, data: PageData, theme: Theme = "light") -> bytes:
    """The chart as PNG, two pixels a point."""
    import vl_convert

    return bytes(vl_convert.vegalite_to_png(standalone(chart, data, theme), scale=2))
