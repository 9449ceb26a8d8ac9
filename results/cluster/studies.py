"""The cluster studies: `python results/cluster/studies.py [NAME ...]` writes NAME.csv and NAME.svg here.

Every replica is Llama-3.1-8B on one H100 with the defaults of `simulate`, unless the study says otherwise; loads are made
here from a seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from stepline.sim import simulate, summary
from stepline.traces.random_streams import stream
from stepline.traces.synth import synth
from stepline.traces.trace import Trace
from stepline.traces.transform import rate_scale

HERE = Path(__file__).parent
WIDTH, HEIGHT = 300, 220


def figures(trace: Trace, **settings: Any) -> dict[str, Any]:
    """The figures of one run that these studies speak of: seconds, fractions of 1, dollars."""
    s = summary(simulate(trace, **settings))
    found = {
        "ttft_mean_s": s["ttft_s"]["mean"],
        "ttft_p99_s": s["ttft_s"]["p99"],
        "tpot_mean_s": s["tpot_s"]["mean"],
        "tpot_p99_s": s["tpot_s"]["p99"],
        "hit_frac": s["kv"]["prefix_hit_token_frac"],
        "gpu_hours": s["cost"]["gpu_hours"],
    }
    return found | ({"good_frac": s["slo"]["attainment_frac"]} if "slo" in s else {})


def poisson(n: int, rate: float, inputs: int, outputs: int, seed: int = 0) -> Trace:
    """n requests at `rate` per second, lengths exponential around these means (at least a tenth of them)."""
    rng = stream(seed, "cluster-studies")
    arrivals = np.cumsum(rng.exponential(1 / rate, n))
    lengths = [np.maximum(rng.exponential(mean, n), mean / 10).astype(np.int64) for mean in (inputs, outputs)]
    return Trace(arrivals, *lengths)


# -- the studies --------------------------------------------------------------------------------------------------------


def prefix_affinity() -> tuple[pd.DataFrame, Any]:
    """Agents' turns on four replicas: where the next turn goes decides whether its prompt is cached."""
    load = synth("claude_code", seed=1, n_requests=1200)
    rows = []
    for rate in (0.5, 1.0, 1.5, 2.0):
        at = rate_scale(load, rate)
        for routing in ("round-robin", "least-requests", "session-sticky", "prefix-affinity"):
            found = figures(at, replicas=4, routing=routing, replay="closed", max_num_batched_tokens=16384)
            rows.append({"routing": routing, "rate_scale": rate, "requests": len(at), **found})
    found = pd.DataFrame(rows)
    base = alt.Chart(found.assign(hit_percent=100 * found["hit_frac"]), width=WIDTH, height=HEIGHT).mark_line(
        point=True
    )
    x = alt.X("rate_scale:Q", title="load, times the trace's")
    color = alt.Color(
        "routing:N", title=None, sort=["round-robin", "least-requests", "session-sticky", "prefix-affinity"]
    )
    hits = base.encode(x=x, color=color, y=alt.Y("hit_percent:Q", title="prompt tokens cached, %"))
    wait = base.encode(
        x=x, color=color, y=alt.Y("ttft_mean_s:Q", title="mean TTFT, s", scale=alt.Scale(type="log"))
    )
    return found, alt.hconcat(hits, wait)


LOADS = {
    "long prompts": {"inputs": 6000, "outputs": 200, "slo": "ttft_p99<3,tpot_p99<15ms", "rates": (2, 4, 6, 8, 10, 12)},
    "short prompts": {"inputs": 250, "outputs": 400, "slo": "ttft_p99<3,tpot_p99<15ms", "rates": (20, 40, 60, 80, 100, 120)},
}  # fmt: skip
SETUPS = ("none", "prefill=1,decode=3", "prefill=2,decode=2", "prefill=3,decode=1")


def disaggregation() -> tuple[pd.DataFrame, Any]:
    """Four replicas, together or as pools: which share of requests meets TTFT < 3 s and TPOT < 15 ms."""
    rows = []
    for name, load in LOADS.items():
        for rate in load["rates"]:
            trace = poisson(60 * rate, rate, load["inputs"], load["outputs"])
            for setup in SETUPS:
                found = figures(
                    trace,
                    replicas=4,
                    routing="least-requests",
                    disaggregate=None if setup == "none" else setup,
                    slo=load["slo"],
                )
                label = (
                    "mixed"
                    if setup == "none"
                    else setup.replace("prefill=", "").replace(",decode=", "P + ") + "D"
                )
                rows.append({"load": name, "setup": label, "requests_per_s": rate, **found})
    found = pd.DataFrame(rows)
    line = alt.Chart(found.assign(good=100 * found["good_frac"]), width=WIDTH, height=HEIGHT).mark_line(
        point=True
    )
    return found, line.encode(
        x=alt.X("requests_per_s:Q", title="requests/s on four GPUs"),
        y=alt.Y("good:Q", title="requests within both limits, %"),
        color=alt.Color("setup:N", title=None, sort=["mixed"]),
        column=alt.Column("load:N", title=None),
    ).resolve_scale(x="independent")


def outage() -> tuple[pd.DataFrame, Any]:
    """One of four replicas fails for a minute: TTFT of what arrives around it, and when all that it had is done."""
    rows = []
    for rate in (40, 70, 90):
        trace = poisson(rate * 240, rate, 800, 200)
        result = simulate(trace, replicas=4, routing="least-requests", failures="replica=0,at=60,for=60")
        figures_ = result.fleet["failures"]
        q = result.requests
        ttft, bins = q["first_token_s"] - q["arrival_s"], (q["arrival_s"] // 5 * 5).rename("t_s")
        for t_s, p99 in ttft.groupby(bins).quantile(0.99).items():
            rows.append({
                "requests_per_s": rate, "t_s": t_s, "ttft_p99_s": p99, "retried": figures_["retried_requests"],
                "recovered_s": figures_["longest_recovery_s"],
            })  # fmt: skip
    found = pd.DataFrame(rows)
    line = alt.Chart(found, width=WIDTH * 1.5, height=HEIGHT).mark_line()
    down = (
        alt.Chart(pd.DataFrame([{"a": 60, "b": 120}]))
        .mark_rect(opacity=0.15, color="gray")
        .encode(x="a:Q", x2="b:Q")
    )
    return found, down + line.encode(
        x=alt.X("t_s:Q", title="arrival, s (grey: replica 0 is down)"),
        y=alt.Y("ttft_p99_s:Q", title="p99 TTFT in 5 s, s", scale=alt.Scale(type="log")),
        color=alt.Color("requests_per_s:N", title="requests/s"),
    )


def autoscaling() -> tuple[pd.DataFrame, Any]:
    """A load that rises to four times as much and falls again: what a start-up delay costs, against a fixed fleet."""
    rng = stream(1, "autoscaling-study")
    minutes = np.concatenate(
        [np.linspace(8, 100, 10), np.full(5, 100), np.linspace(100, 8, 10), np.full(5, 8)]
    )
    arrivals = np.concatenate([60 * i + np.sort(60 * rng.random(int(60 * r))) for i, r in enumerate(minutes)])
    trace = Trace(
        arrivals,
        np.maximum(rng.exponential(500, len(arrivals)), 20).astype(np.int64),
        np.maximum(rng.exponential(100, len(arrivals)), 5).astype(np.int64),
    )
    rows = []
    for label, settings in {
        "six replicas throughout": {"replicas": 6},
        **{
            f"1 to 6, start-up {startup} s": {
                "autoscale": f"min=1,max=6,metric=outstanding,target=24,startup={startup},scale-in=120"
            }
            for startup in (15, 60, 240)
        },
    }.items():
        rows.append({"fleet": label, **figures(trace, routing="least-requests", **settings)})
    found = pd.DataFrame(rows)
    dots = alt.Chart(found, width=WIDTH * 1.5, height=HEIGHT).mark_point(filled=True, size=80)
    return found, dots.encode(
        x=alt.X("gpu_hours:Q", title="GPU hours"),
        y=alt.Y("ttft_p99_s:Q", title="p99 TTFT, s", scale=alt.Scale(type="log")),
        color=alt.Color("fleet:N", title=None, sort=found["fleet"].tolist()),
    )


STUDIES: dict[str, Callable[[], tuple[pd.DataFrame, Any]]] = {
    f.__name__: f for f in (prefix_affinity, disaggregation, outage, autoscaling)
}


def main() -> None:
    """Run the studies that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*STUDIES, []], metavar="NAME", help=", ".join(STUDIES))
    for name in parser.parse_args().names or STUDIES:
        found, chart = STUDIES[name]()
        found.to_csv(HERE / f"{name}.csv", index=False, float_format="%.5g")
        chart.save(HERE / f"{name}.svg")
        print(f"{name}\n{found.to_string(index=False)}\n")


if __name__ == "__main__":
    main()
