"""Pictures of a model's steps: roofline, tokens/s over batch with its knee, traffic and time over batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .theme import CLASS_COLOURS, CONTEXT_COLOURS, PART_COLOURS, styled

if TYPE_CHECKING:
    import pandas as pd
    from stepline.sim.cost.specs import GpuSpec

    from .step_data import Knee


INTENSITIES = (0.4, 8000.0)
"""Ends of the intensity axis: left of every elementwise kernel, right of every GEMM of a long prompt."""

DECADES = [10**i for i in range(4)]
RATES = [10**i for i in range(6, 17)]


def roofline(points: pd.DataFrame, gpu: GpuSpec, dtype: str, subtitle: str) -> Any:
    """Kernels under the roof of a GPU for `dtype`, one panel a step; a point's area is its share of the step's time."""
    import altair as alt

    seen = points[points["time_frac"] > 5e-4]
    low = 10 ** math.floor(math.log10(float(seen["flop_per_s"].min())))
    roofs = _peaks(gpu, dtype, points)
    scales = {
        "x": alt.Scale(type="log", domain=INTENSITIES, nice=False),
        "y": alt.Scale(type="log", domain=(low, 2.5 * max(gpu.peak_flops[d] for d in roofs)), nice=False),
    }
    colour = _named(CLASS_COLOURS, points["class"])
    panels = [
        alt.layer(*(_roof(gpu, d, scales) for d in roofs), *_kernels(part, scales, colour)).properties(
            width=330, height=250, title=str(step)
        )
        for step, part in points.groupby("step", sort=False)
    ]
    title = alt.TitleParams("Every kernel under the roof", subtitle=subtitle)
    return styled(alt.concat(*panels, columns=2).properties(title=title))


def _kernels(part: pd.DataFrame, scales: dict[str, Any], colour: Any) -> list[Any]:
    import altair as alt

    x = alt.X(
        "flop_per_byte:Q", title="FLOP per byte", scale=scales["x"], axis=alt.Axis(format="~g", tickCount=5)
    )
    y = alt.Y("flop_per_s:Q", title="FLOP/s", scale=scales["y"], axis=alt.Axis(format="~s", values=RATES))
    sizes = alt.Legend(format=".0%", values=[0.05, 0.2, 0.5])
    dots = (
        alt.Chart(part)
        .mark_point(filled=True, opacity=0.85, stroke="white", strokeWidth=0.6, clip=True)
        .encode(
            x=x,
            y=y,
            color=alt.Color("class:N", title="kernel", scale=colour),
            size=alt.Size(
                "time_frac:Q",
                title="share of the step",
                legend=sizes,
                scale=alt.Scale(range=(18, 420), domain=(0, 0.6)),
            ),
            tooltip=[
                "kernel:N",
                alt.Tooltip("flop_per_byte:Q", format=",.3~g"),
                alt.Tooltip("flop_per_s:Q", format=".3~s"),
                alt.Tooltip("roof_frac:Q", format=".0%"),
                alt.Tooltip("time_us:Q", format=",.4~g", title="µs in the step"),
                alt.Tooltip("time_frac:Q", format=".1%"),
            ],
        )
    )
    labels = _labels(part)
    names = [
        alt.Chart(labels[labels["class"] == name])
        .mark_text(fontSize=10.5, **LABEL_PLACES[name])
        .encode(x=x, y=y, text="label:N", color=alt.Color("class:N", scale=colour))
        for name in labels["class"]
    ]
    return [dots, *names]


LABEL_PLACES: dict[str, dict[str, Any]] = {
    "linear": {"dy": 20},
    "attention": {"dy": 34, "align": "right", "dx": 30},
    "experts": {"dy": 48},
    "elementwise": {"dx": 12, "dy": 8, "align": "left"},
}
"""Where the label of a class stands from its heaviest kernel, in pixels: apart, also where the points coincide."""


def _labels(part: pd.DataFrame) -> pd.DataFrame:
    """One label a class of kernels: its share of the step, below its heaviest kernel."""
    heaviest = part.sort_values("time_frac", ascending=False).drop_duplicates("class")
    shares = part.groupby("class")["time_frac"].sum()
    labels = [f"{name} {shares[name]:.0%}" for name in heaviest["class"]]
    return heaviest.assign(label=labels)


def _peaks(gpu: GpuSpec, dtype: str, points: pd.DataFrame) -> list[str]:
    """Types whose roofs are drawn: bf16 (fp32 for an fp32 model), and that of the weights where kernels go beyond."""
    base = "fp32" if dtype == "fp32" else "bf16"
    own = dtype in gpu.peak_flops and float(points["flop_per_s"].max()) > gpu.peak_flops[base]
    return [base, dtype] if own and dtype != base else [base]


def _roof(gpu: GpuSpec, dtype: str, scales: dict[str, Any]) -> Any:
    import altair as alt
    import pandas as pd

    peak, ridge = gpu.peak_flops[dtype], gpu.peak_flops[dtype] / gpu.hbm_bytes_per_s
    low, high = INTENSITIES
    frame = pd.DataFrame({"x": [low, ridge, high], "y": [low * gpu.hbm_bytes_per_s, peak, peak]})
    x, y = alt.X("x:Q", scale=scales["x"]), alt.Y("y:Q", scale=scales["y"])
    line = alt.Chart(frame).mark_line(color="#555", strokeWidth=1.4, clip=True).encode(x=x, y=y)
    rate = f"{peak / 1e12:.4g} TFLOP/s" if peak >= 1e12 else f"{peak / 1e9:.4g} GFLOP/s"
    text = f"{rate} {dtype} · ridge {ridge:.0f}"
    label = alt.Chart(frame.tail(1)).mark_text(align="right", dy=-7, fontSize=10, color="#555", text=text)
    return line + label.encode(x=x, y=y)


def decode_rate(curve: pd.DataFrame, knees: list[Knee], subtitle: str) -> Any:
    """Tokens/s over batch for several contexts, the bandwidth ceiling dashed, the knee of each marked."""
    import altair as alt
    import pandas as pd

    known = curve.assign(context=curve["context"].astype(int).astype(str) + " tokens")
    order = list(dict.fromkeys(known["context"]))
    colour = alt.Color("context:N", title="context", sort=order,
                       scale=alt.Scale(domain=order, range=list(CONTEXT_COLOURS[: len(order)])))  # fmt: skip
    x = alt.X("batch:Q", title="sequences in the batch", scale=alt.Scale(type="log", base=2, domain=(1, 1024)),
              axis=alt.Axis(values=[2**i for i in range(0, 11, 2)], format="d"))  # fmt: skip
    scale = alt.Scale(type="log")
    fields = [
        "context",
        "batch",
        alt.Tooltip("rate:Q", format=",.0f"),
        alt.Tooltip("bandwidth:Q", format=",.0f"),
    ]
    digits = "~s" if float(known["rate"].max()) > 1000 else "~g"
    lines = (
        alt.Chart(known).mark_line(strokeWidth=2.2).encode(
            x=x, y=alt.Y("rate:Q", title="output tokens/s of one replica", scale=scale, axis=alt.Axis(format=digits)),
            color=colour, tooltip=fields,
        )
    )  # fmt: skip
    ceiling = (
        alt.Chart(known).mark_line(strokeDash=[5, 4], strokeWidth=1.3, opacity=0.8)
        .encode(x=x, y=alt.Y("bandwidth:Q", scale=scale), color=colour)
    )  # fmt: skip
    marks = pd.DataFrame(
        [
            {"context": f"{k.context} tokens", "batch": k.batch, "rate": k.plateau_tok_per_s / 2}
            | {"label": f"knee {k.batch}", "why": k.why}
            for k in knees
        ]
    )
    points = (
        alt.Chart(marks)
        .mark_point(filled=True, size=90, opacity=1)
        .encode(x=x, y="rate:Q", color=colour, tooltip="why")
    )
    labels = alt.Chart(marks).mark_text(align="left", dx=4, dy=15, fontSize=11).encode(
        x=x, y="rate:Q", text="label", color=colour
    )  # fmt: skip
    full = _capacities(knees, known)
    chart = alt.layer(ceiling, lines, points, labels, *full).properties(
        width=560, height=330,
        title=alt.TitleParams("Decode rate over batch", subtitle=[subtitle, "dashed: what the memory's bandwidth alone "
                              "would allow · dot: half the plateau · bar: the memory is full"]),
    )  # fmt: skip
    return styled(chart)


def _capacities(knees: list[Knee], curve: pd.DataFrame) -> list[Any]:
    """A short bar on each curve at the batch that fills the memory."""
    import altair as alt
    import numpy as np
    import pandas as pd

    rows = []
    for knee in knees:
        part = curve[curve["context"] == f"{knee.context} tokens"]
        if 1 <= knee.capacity <= float(part["batch"].max()):
            rate = float(np.interp(knee.capacity, part["batch"], part["rate"]))
            rows.append(
                {
                    "context": f"{knee.context} tokens",
                    "batch": knee.capacity,
                    "low": rate / 1.25,
                    "high": rate * 1.25,
                }
            )
    if not rows:
        return []
    return [alt.Chart(pd.DataFrame(rows)).mark_rule(strokeWidth=3).encode(
        x="batch:Q", y="low:Q", y2="high:Q", color="context:N", tooltip=["context", "batch"])]  # fmt: skip


def traffic(shares: pd.DataFrame, subtitle: str) -> Any:
    """Bytes of a decode step over batch: weights, KV, activations; absolute and as shares."""
    import altair as alt

    order = list(PART_COLOURS)
    ranked = shares.assign(rank=shares["part"].map(order.index))
    parts_scale = _named(PART_COLOURS, shares["part"])
    x = alt.X("batch:O", title="sequences in the batch", axis=alt.Axis(labelAngle=0, labelOverlap=True))
    base = alt.Chart(ranked).encode(
        x=x, order="rank:Q", color=alt.Color("part:N", title=None, sort=order, scale=parts_scale),
        tooltip=["batch", "part", alt.Tooltip("gigabytes:Q", format=",.3~g")],
    ).properties(width=360, height=260)  # fmt: skip
    amounts = base.mark_bar().encode(y=alt.Y("gigabytes:Q", title="GB read and written in a step"))
    parts = base.mark_bar().encode(
        y=alt.Y("gigabytes:Q", stack="normalize", title="share", axis=alt.Axis(format="%"))
    )
    title = alt.TitleParams("What a decode step moves", subtitle=subtitle)
    return styled(alt.hconcat(amounts, parts).properties(title=title))


def breakdown(frame: pd.DataFrame, subtitle: str) -> Any:
    """Milliseconds of a decode step by kernel class over batch."""
    import altair as alt

    order = ["gemm", "moe", "attention_decode", "elementwise", "lm_head", "comm", "host"]
    colours = {
        "gemm": "#2f6db5", "moe": "#7a4fa3", "attention_decode": "#d1495b", "elementwise": "#8a9199",
        "lm_head": "#6fa8dc", "comm": "#e0a030", "host": "#4d4d4d",
    }  # fmt: skip
    used = [k for k in order if frame.loc[frame["kernel"] == k, "ms"].sum() > 0]
    ranked = frame[frame["kernel"].isin(used)].assign(rank=frame["kernel"].map(order.index))
    chart = (
        alt.Chart(ranked)
        .mark_bar()
        .encode(
            x=alt.X("batch:O", title="sequences in the batch", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("ms:Q", title="milliseconds a step"),
            color=alt.Color(
                "kernel:N",
                title=None,
                sort=used,
                scale=alt.Scale(domain=used, range=[colours[k] for k in used]),
            ),
            order="rank:Q",
            tooltip=["batch", "kernel", alt.Tooltip("ms:Q", format=",.3~g")],
        )
        .properties(
            width=560, height=260, title=alt.TitleParams("Where a decode step's time goes", subtitle=subtitle)
        )
    )
    return styled(chart)


def _named(colours: dict[str, str], used: pd.Series) -> Any:
    import altair as alt

    names = [name for name in colours if name in set(used)]
    return alt.Scale(domain=names, range=[colours[n] for n in names])
