"""One picture of a trace: load over time, lengths, and how outputs depend on inputs; as PNG or as offline HTML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .wording import counted
from .writing import replacing

_WIDTH, _HEIGHT = 380, 200
_COLOURS = ("#3b6fb6", "#d1682f")
"""Input and output, as in every panel; told apart in grey too."""


def picture(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The Vega-Lite specification of a description (see `describe`)."""
    import altair as alt

    title = alt.TitleParams(
        Path(str(figures["source"])).name, subtitle=_subtitle(figures), anchor="start", fontSize=15
    )
    chart = alt.vconcat(
        alt.hconcat(_requests(figures), _tokens(figures)).resolve_scale(color="independent"),
        alt.hconcat(_lengths(figures), _joint(figures)).resolve_scale(color="independent"),
        title=title,
    ).configure_view(stroke=None)
    return dict(chart.to_dict())


def save_png(figures: Mapping[str, Any], path: str | Path) -> None:
    """Write the picture as PNG. Raises: TraceError where `path` cannot be written."""
    import vl_convert

    data = vl_convert.vegalite_to_png(picture(figures), scale=2)
    with replacing(Path(path)) as out:
        out.write(data)


def save_html(figures: Mapping[str, Any], path: str | Path) -> None:
    """Write the picture as one HTML file that needs no network. Raises: TraceError as `save_png`."""
    import vl_convert

    data = vl_convert.vegalite_to_html(picture(figures), bundle=True)
    with replacing(Path(path)) as out:
        out.write(data.encode())


def _subtitle(figures: Mapping[str, Any]) -> str:
    rate = figures["rate"]["requests_per_s"]
    parts = [f"{counted(figures['requests'], 'request')} in {figures['span_s']:,.0f} s"]
    if rate:
        parts.append(f"{rate:.3g} requests/s")
    if figures["reuse"]:
        parts.append(f"{figures['reuse']['ideal_hit_token_frac']:.0%} of input tokens reusable")
    if figures["sessions"]:
        parts.append(f"{counted(figures['sessions']['sessions'], 'session')}")
    return " · ".join(parts)


def _over_time(figures: Mapping[str, Any]) -> list[dict[str, float]]:
    rows = figures["series"]["over_time"]
    rows = rows[:-1] or rows  # the last bin is not whole
    minutes = figures["span_s"] > 600
    return [row | {"time": row["start_s"] / (60 if minutes else 1)} for row in rows]


def _time_axis(figures: Mapping[str, Any]) -> Any:
    import altair as alt

    return alt.X("time:Q", title="time [min]" if figures["span_s"] > 600 else "time [s]")


def _requests(figures: Mapping[str, Any]) -> Any:
    import altair as alt

    return (
        alt.Chart(_data(_over_time(figures)), title="Arrivals", width=_WIDTH, height=_HEIGHT)
        .mark_area(interpolate="step-after", color="#5a5a5a", opacity=0.75)
        .encode(x=_time_axis(figures), y=alt.Y("requests_per_s:Q", title="requests/s"))
    )


def _tokens(figures: Mapping[str, Any]) -> Any:
    import altair as alt

    rows = [
        {"time": row["time"], "tokens": row[f"{kind}_tokens_per_s"], "kind": kind}
        for row in _over_time(figures)
        for kind in ("input", "output")
        if row[f"{kind}_tokens_per_s"] > 0
    ]
    return (
        alt.Chart(_data(rows), title="Tokens", width=_WIDTH, height=_HEIGHT)
        .mark_line(interpolate="step-after", strokeWidth=1.2)
        .encode(
            x=_time_axis(figures),
            y=alt.Y("tokens:Q", title="tokens/s", scale=alt.Scale(type="log")),
            color=_kinds(),
        )
    )


def _lengths(figures: Mapping[str, Any]) -> Any:
    import altair as alt

    rows = [
        point | {"kind": kind}
        for kind in ("input", "output")
        for point in figures["series"][f"{kind}_tokens"]
    ]
    return (
        alt.Chart(_data(rows), title="Lengths", width=_WIDTH, height=_HEIGHT)
        .mark_line(interpolate="step-after")
        .encode(
            x=alt.X("tokens:Q", title="tokens", scale=alt.Scale(type="log")),
            y=alt.Y("share:Q", title="share of requests", axis=alt.Axis(format="%")),
            color=_kinds(),
        )
    )


def _data(rows: list[dict[str, Any]]) -> Any:
    import altair as alt

    return alt.InlineData(values=rows)


def _kinds() -> Any:
    import altair as alt

    return alt.Color(
        "kind:N",
        scale=alt.Scale(domain=["input", "output"], range=list(_COLOURS)),
        legend=alt.Legend(title=None, orient="top"),
    )


def _joint(figures: Mapping[str, Any]) -> Any:
    import altair as alt

    log = alt.Scale(type="log", nice=False)
    cells = alt.Chart(
        _data(figures["series"]["lengths"]),
        title="Output length by input length",
        width=_WIDTH - 60,
        height=_HEIGHT,
    )
    heat = cells.mark_rect().encode(
        x=alt.X("input_from:Q", title="input tokens", scale=log),
        x2="input_below:Q",
        y=alt.Y("output_from:Q", title="output tokens", scale=log),
        y2="output_below:Q",
        color=alt.Color("requests:Q", scale=alt.Scale(type="log", scheme="blues"), title="requests"),
    )
    middle = (
        alt.Chart(_data(_medians(figures)))
        .mark_line(color=_COLOURS[1], point=True)
        .encode(x=alt.X("input:Q", scale=log), y=alt.Y("output:Q", scale=log))
    )
    return alt.layer(heat, middle)


def _medians(figures: Mapping[str, Any]) -> list[dict[str, float]]:
    return [
        {"input": (row["input_from"] * row["input_below"]) ** 0.5, "output": row["output_p50"]}
        for row in figures["dependence"]["output_by_input"]
    ]
