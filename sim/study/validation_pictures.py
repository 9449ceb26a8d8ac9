"""Pictures of a validation: predicted against measured, errors beside peers, distributions of logged runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from .validate import Validation
    from .validation_runs import Outcome

NAMES = {"ttft_mean": "TTFT mean", "tpot_mean": "TPOT mean", "e2e_mean": "E2E mean", "e2e_p99": "E2E p99"}
OURS = "stepline"
CURVE_POINTS = 60
"""Quantiles a curve is drawn with."""
SCALE = 0.5
"""Pixels a point: pictures that are small enough to be kept with the source."""


def draw(result: Validation, folder: Path) -> list[Path]:
    """Write `scatter.png`, `errors.png` and `ecdf.png` (where the data for them is there); returns what was written."""
    charts = {"scatter": _scatter(result), "errors": _errors(result), "ecdf": _ecdf(result)}
    written = []
    for name, chart in charts.items():
        if chart is not None:
            path = folder / f"{name}.png"
            chart.save(str(path), scale_factor=SCALE)
            written.append(path)
    return written


def _scatter(result: Validation) -> Any:
    """Predicted against measured, one point a stage, with the diagonal."""
    import altair as alt

    values = result.values[result.values["metric"].isin(NAMES)]
    values = values[(values["measured"] > 0) & (values["predicted"] > 0)]
    if values.empty:
        return None
    rows = []
    for metric, title in NAMES.items():
        part = values[values["metric"] == metric]
        if part.empty:
            continue
        low = float(part[["measured", "predicted"]].min().min()) * 0.8
        high = float(part[["measured", "predicted"]].max().max()) * 1.25
        scale = alt.Scale(type="log", domain=[low, high], nice=False)
        points = (
            alt.Chart(part[["measured", "predicted", "group", "exp_key"]])
            .mark_circle(size=30)
            .encode(
                x=alt.X("measured:Q", scale=scale, title=f"measured {title}, s", axis=alt.Axis(format="~g")),
                y=alt.Y("predicted:Q", scale=scale, title="predicted, s", axis=alt.Axis(format="~g")),
                color=alt.Color("group:N", title=None, legend=alt.Legend(orient="bottom", columns=3)),
            )
        )
        line = alt.Chart(_frame({"x": [low, high]})).mark_line(color="black", strokeWidth=1)
        line = line.encode(x=alt.X("x:Q", scale=scale), y=alt.Y("x:Q", scale=scale))
        rows.append((line + points).properties(width=240, height=240, title=title))
    grid = alt.vconcat(*[alt.hconcat(*rows[i : i + 2]) for i in range(0, len(rows), 2)])
    return grid.properties(title="Predicted against measured; the line is equality")


def _errors(result: Validation) -> Any:
    """Mean absolute error by group, ours and each peer's that predicted at least half of the group."""
    import altair as alt

    table = _error_rows(result)
    if table.empty:
        return None
    return alt.hconcat(*[_metric_errors(table, metric) for metric in table["metric"].unique()]).properties(
        title="Error by group, beside other simulators on the same runs"
    )


def _metric_errors(table: pd.DataFrame, metric: str) -> Any:
    """Bars of one metric, the groups that have it below each other."""
    import altair as alt

    return (
        alt.Chart(table[table["metric"] == metric], width=120, height=alt.Step(15), title=metric)
        .mark_bar()
        .encode(
            x=alt.X("error:Q", title="mean absolute error, %", scale=alt.Scale(type="symlog", constant=5),
                    axis=alt.Axis(values=[2, 5, 10, 50, 1000], grid=True)),
            y=alt.Y("by:N", title=None, sort=alt.EncodingSortField("rank", order="ascending")),
            color=alt.condition(alt.datum.by == OURS, alt.value("#1b6ca8"), alt.value("#b9b9b9")),
            row=alt.Row("group:N", title=None, header=alt.Header(labelOrient="top", labelAnchor="start")),
        )
        .resolve_scale(y="independent")
    )  # fmt: skip


def _error_rows(result: Validation) -> pd.DataFrame:
    groups = result.groups()
    rows = []
    for group, means in groups.iterrows():
        rows += [_bar(str(group), OURS, 0, m, means[m]) for m in NAMES if m in means]
    against = result.against_peers()
    if not against.empty:
        pairs: Any = against.iterrows()
        for (group, peer), means in pairs:
            enough = group in groups.index and means["n"] >= 0.5 * groups.loc[group, "n"]
            if not str(peer).startswith(" ") and enough:
                rows += [_bar(str(group), str(peer), 1, m, means[m]) for m in NAMES if m in means]
    table = _frame({name: [row[name] for row in rows] for name in ("group", "by", "rank", "metric", "error")})
    return table[table["error"].notna() & (table["group"] != "overload")]


def _bar(group: str, by: str, rank: int, metric: str, error: float) -> dict[str, Any]:
    return {"group": group, "by": by, "rank": rank, "metric": NAMES[metric], "error": 100 * error}


def _ecdf(result: Validation) -> Any:
    """Distributions of TTFT and E2E of every logged run and stage, measured and predicted."""
    import altair as alt
    import pandas as pd

    frames = [frame for outcome in result.outcomes for frame in _curves(outcome)]
    if not frames:
        return None
    table = pd.concat(frames, ignore_index=True)
    charts = []
    for run in table["run"].unique():
        pair = []
        for metric in ("TTFT", "E2E"):
            part = table[(table["run"] == run) & (table["metric"] == metric)]
            pair.append(
                alt.Chart(part, width=150, height=80, title=alt.Title(f"{run}: {metric}", fontSize=9))
                .mark_line(strokeWidth=1.8)
                .encode(
                    x=alt.X(
                        "value:Q",
                        title="s",
                        scale=alt.Scale(type="log", nice=False),
                        axis=alt.Axis(format="~g", tickCount=3, grid=False),
                    ),
                    y=alt.Y("share:Q", title=None, axis=alt.Axis(tickCount=2, grid=False)),
                    color=alt.Color("by:N", title=None, scale=alt.Scale(range=["#222222", "#e4572e"])),
                    strokeDash=alt.StrokeDash("by:N", title=None),
                )
            )
        charts.append(alt.hconcat(*pair))
    rows = [alt.hconcat(*charts[i : i + 2]) for i in range(0, len(charts), 2)]
    return alt.vconcat(*rows).properties(title="Share of requests below, measured and predicted")


def _curves(outcome: Outcome) -> list[pd.DataFrame]:
    frames = []
    for stage, (ours, theirs) in (outcome.samples or {}).items():
        about = outcome.experiment
        name = f"{about.model.rsplit('/', 1)[-1]} TP{about.tp} {about.workload}"
        name += f" {stage}" if len(about.stages) > 1 else ""
        for column, metric in enumerate(("TTFT", "E2E")):
            for by, sample in (("measured", theirs), ("predicted", ours)):
                curve = _quantiles(sample[:, column])
                if len(curve):
                    share = np.linspace(0, 1, len(curve))
                    frames.append(
                        _frame({"value": curve, "share": share}).assign(run=name, metric=metric, by=by)
                    )
    return frames


def _quantiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    found = values[np.isfinite(values)]
    return np.quantile(found, np.linspace(0.0, 0.999, CURVE_POINTS)) if len(found) > 1 else found[:0]


def _frame(columns: dict[str, Any]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(columns)
