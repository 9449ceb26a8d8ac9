"""Pictures of a fit: predicted against measured seconds, residuals over shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .fit_data import AXIS_TITLES, error_table, residual_map, sampled
from .theme import styled

if TYPE_CHECKING:
    import pandas as pd

REGIME_COLOURS = ("#41347c", "#2f7f9b", "#3fae72", "#d99a2b")
KERNEL_TITLES = {
    "gemm": "GEMM",
    "attention_prefill": "prefill attention, grouped heads",
    "attention_prefill_mha": "prefill attention, MHA",
    "attention_decode": "decode attention, grouped heads",
}


def title_of(kernel: str) -> str:
    """A kernel's name for people."""
    return KERNEL_TITLES.get(kernel) or kernel.replace("_", "-")


def scatter(found: pd.DataFrame, subtitle: str) -> Any:
    """Predicted over measured microseconds of each kernel, coloured by regime, with the 10 % band."""
    import altair as alt

    errors = error_table(found).query("regime == 'all'").set_index("kernel")
    panels = []
    for kernel in dict.fromkeys(found["kernel"]):
        part = sampled(found[found["kernel"] == kernel])
        mean = float(errors.loc[kernel, "formula"])
        panels.append(_one_scatter(part, f"{title_of(kernel)}: {mean:.1%}"))
    grid = alt.concat(*panels, columns=3).resolve_scale(color="independent")
    title = alt.TitleParams("Predicted against measured", subtitle=[subtitle, "title: mean error of the formula over all "
                            "shapes · band: ±10 %"])  # fmt: skip
    return styled(grid.properties(title=title))


def _one_scatter(part: pd.DataFrame, title: str) -> Any:
    import altair as alt
    import pandas as pd

    low, high = float(part["measured_us"].min()) / 1.3, float(part["measured_us"].max()) * 1.3
    scale = alt.Scale(type="log", domain=(low, high), nice=False)
    axis = alt.Axis(format="~s", tickCount=5)
    x = alt.X("measured_us:Q", title="measured, µs", scale=scale, axis=axis)
    band = pd.DataFrame(
        {"at": [low, high], "lower": [low * 0.9, high * 0.9], "upper": [low * 1.1, high * 1.1]}
    )
    area = alt.Chart(band).mark_area(color="#000", opacity=0.1, clip=True).encode(
        x=alt.X("at:Q", scale=scale), y=alt.Y("lower:Q", scale=scale), y2="upper:Q"
    )  # fmt: skip
    regimes = list(dict.fromkeys(part.sort_values("x")["regime"]))
    dots = alt.Chart(part).mark_circle(size=9 if len(part) > 200 else 34, opacity=0.6, clip=True).encode(
        x=x, y=alt.Y("predicted_us:Q", title="predicted, µs", scale=scale, axis=axis),
        color=alt.Color("regime:N", title=None, sort=regimes,
                        scale=alt.Scale(domain=regimes, range=list(REGIME_COLOURS[: len(regimes)])),
                        legend=alt.Legend(orient="bottom", columns=2, symbolOpacity=1, symbolSize=60)),
        tooltip=["shape", alt.Tooltip("measured_us:Q", format=",.4~g"), alt.Tooltip("predicted_us:Q", format=",.4~g"),
                 alt.Tooltip("error:Q", format="+.1%")],
    )  # fmt: skip
    return (area + dots).properties(width=230, height=230, title=title)


def residual_maps(found: pd.DataFrame, subtitle: str) -> Any | None:
    """Median signed error over shapes for each kernel that has a map; None if none has."""
    import altair as alt

    panels = [
        _one_map(residual_map(found, kernel), kernel)
        for kernel in dict.fromkeys(found["kernel"])
        if kernel in AXIS_TITLES
    ]
    if not panels:
        return None
    title = alt.TitleParams("Where the formula is off", subtitle=[subtitle, "median of predicted over measured, less 1; "
                            "red: too slow, blue: too fast; ends of the scale: 25 % and beyond"])  # fmt: skip
    return styled(alt.concat(*panels, columns=2).properties(title=title))


def _one_map(cells: pd.DataFrame, kernel: str) -> Any:
    import altair as alt

    across, along = AXIS_TITLES[kernel]
    edges = {a: (float(cells[a].min()), float(cells[f"{a}2"].max())) for a in ("x", "y")}
    axes: dict[str, dict[str, Any]] = {
        a: {"scale": alt.Scale(type="log", domain=edges[a], nice=False), "title": t,
            "axis": alt.Axis(format="~s", tickCount=6, grid=False)}
        for a, t in (("x", across), ("y", along))
    }  # fmt: skip
    return (
        alt.Chart(cells)
        .mark_rect(stroke="white", strokeWidth=0.4)
        .encode(
            x=alt.X("x:Q", **axes["x"]), x2="x2:Q", y=alt.Y("y:Q", **axes["y"]), y2="y2:Q",
            color=alt.Color("error:Q", title="error", legend=alt.Legend(format="+.0%", tickCount=5),
                            scale=alt.Scale(scheme="redblue", domain=(-0.25, 0.25), reverse=True, clamp=True)),
            tooltip=[alt.Tooltip("error:Q", format="+.1%"), "shapes", alt.Tooltip("x:Q", format=",.4~g", title=across),
                     alt.Tooltip("y:Q", format=",.4~g", title=along)],
        )
        .properties(width=330, height=230, title=title_of(kernel))
    )  # fmt: skip
