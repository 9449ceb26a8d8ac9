"""A plan for people and programs: tables on the terminal, `plan.csv`, `plan.json`, `plan.svg` and `plan.html`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.wording import counted

from ..report.plan_page import plan_page
from ..report.run_dir import MANIFEST, atomic_dir, json_bytes, versions, write_json
from ..report.units import seconds_text

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType
    from rich.table import Table

    from .plan_types import PlanResult, Row

COLUMNS = (
    "label", "status", "replicas", "gpus", "usd_per_hour", "usd_per_million_tokens", "usd_per_million_output_tokens",
    "kwh_per_million_tokens", "rate_per_s", "low_per_s", "high_per_s", "replications", "bound_per_s", "goodput_per_s",
    "usd_per_million_tokens_full", "pareto", "why",
)  # fmt: skip
AT_LOAD = ("ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99", "e2e_p99", "busy_frac", "good_frac")
SHOWN = 24
"""Candidates on the terminal; all are in the files."""


def frame(plan: PlanResult) -> pd.DataFrame:
    """One row a candidate: its settings, `COLUMNS`, and latencies under the planned load (`load_<name>`)."""
    import pandas as pd

    rows = []
    for row in plan.rows:
        at_load = {f"load_{name}": row.at_load.get(name) for name in AT_LOAD}
        rows.append({**{name: getattr(row, name) for name in COLUMNS}, **at_load, **row.settings})
    return pd.DataFrame(rows)


def as_dict(plan: PlanResult) -> dict[str, Any]:
    """The whole plan, JSON-able; without wall time, so that the same plan has the same bytes."""
    return {
        "schema_version": 1,
        "answer": answer(plan),
        "details": details(plan),
        "load": {
            "requests_per_s": plan.load_per_s,
            "tokens_per_request": plan.tokens_per_request,
            "output_tokens_per_request": plan.output_tokens_per_request,
        },
        "slo": plan.slo,
        "winner": None if plan.winner is None else asdict(plan.winner),
        "fleets": [asdict(fleet) for fleet in plan.fleets],
        "candidates": [asdict(row) for row in plan.rows],
        "load_sensitivity": plan.load_sensitivity.to_dict(orient="records"),
        "calibration_sensitivity": plan.cost_sensitivity.to_dict(orient="records"),
        "settings": dict(plan.settings),
        "effort": dict(plan.effort),
    }


def as_json(plan: PlanResult) -> str:
    """`as_dict` as text."""
    return json_bytes(as_dict(plan)).decode()


def write_plan(plan: PlanResult, target: Path, command: str) -> None:
    """Write the directory of a plan, whole or not at all. Raises `ConfigError`."""
    with atomic_dir(target) as work:
        frame(plan).to_csv(work / "plan.csv", index=False)
        (work / "plan.json").write_text(as_json(plan), encoding="utf-8")
        svg = picture(plan)
        (work / "plan.svg").write_text(svg, encoding="utf-8")
        page = plan_page(json.loads(as_json(plan)), answer(plan), command)
        (work / "plan.html").write_text(page, encoding="utf-8")
        manifest = {"schema_version": 1, "kind": "plan", "command": command, "versions": versions()}
        write_json(work / MANIFEST, {**manifest, "wall_s": plan.wall_s})


# -- the terminal -------------------------------------------------------------------------------------------------------


def plan_view(plan: PlanResult) -> RenderableType:
    """The answer, the candidates, what happens at other loads."""
    from rich.console import Group
    from rich.text import Text

    simulated = [row for row in plan.rows if row.status == "simulated"]
    others = [row for row in plan.rows if row.status != "simulated"]
    parts: list[Any] = [Text(""), Text(answer(plan), style="bold"), Text(details(plan)), Text("")]
    if simulated:
        parts += [_candidates(simulated[:SHOWN]), Text(_left_out(simulated, others), style="dim")]
    elif others:
        parts += [Text(f"{row.label}: {row.why}", style="dim") for row in others[:SHOWN]]
    if plan.winner is not None:
        parts += [Text(""), _at_loads(plan)]
    if len(plan.cost_sensitivity):
        parts += [Text(""), _at_draws(plan)]
    return Group(*parts)


def answer(plan: PlanResult) -> str:
    """What to buy, in a sentence."""
    load = f"{plan.load_per_s:.2f} requests/s of {plan.tokens_per_request:,.0f} tokens"
    slo = f" within {plan.slo}" if plan.slo else ""
    best = plan.winner
    if best is None:
        return f"No candidate carries {load}{slo} with at most {counted(plan.settings['max_replicas'], 'replica')}."
    price = "" if best.usd_per_hour is None else f", ${best.usd_per_hour:.2f}/h"
    return f"Buy {best.replicas} × {best.label} ({_gpus(best.gpus)}{price}): it carries {load}{slo}."


def details(plan: PlanResult) -> str:
    """What the plan costs a token, and its latencies when the whole load is simulated on it; empty without a plan."""
    if plan.winner is None:
        return ""
    f = plan.winner.figures
    usd = f.get("usd_per_million_tokens")
    price = "" if usd is None else f"${usd:.3f} and "
    tails = ", ".join(
        f"{name} p99 {seconds_text(f[key])}"
        for name, key in (("TTFT", "ttft_p99"), ("TPOT", "tpot_p99"), ("E2E", "e2e_p99"))
        if f.get(key) is not None
    )
    return f"{price}{f['kwh_per_million_tokens']:.3f} kWh per million tokens; the whole load simulated on it: {tails}."


def _gpus(n: int) -> str:
    return f"{counted(n, 'GPU')}"


def _candidates(rows: Sequence[Row]) -> Table:
    """The candidates in columns that a terminal of 80 holds; energy, intervals and the rest are in the files."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("candidate", overflow="fold", min_width=16)
    for name in ("req/s\nof one", "fleet", "GPUs", "$/h", "$/M\ntok", "TTFT\np99", "TPOT\np99"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("limit", min_width=10)
    for row in rows:
        table.add_row(
            f"{'*' if row.pareto else ' '} {row.label}", _number(row.rate_per_s),
            _number(row.replicas, 0), _number(row.gpus, 0), _number(row.usd_per_hour),
            _number(row.usd_per_million_tokens, 3), _ms(row.at_load.get("ttft_p99"), 0), _ms(row.at_load.get("tpot_p99"), 1),
            row.why,
        )  # fmt: skip
    return table


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or value != value else f"{value:,.{digits}f}"


def _ms(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{1e3 * value:,.{digits}f} ms"


def _left_out(simulated: Sequence[Row], others: Sequence[Row]) -> str:
    more = f"{len(simulated) - SHOWN} more in plan.csv; " if len(simulated) > SHOWN else ""
    count = {status: sum(row.status == status for row in others) for status in ("pruned", "infeasible")}
    reasons = dict.fromkeys(f"{row.label}: {row.why}" for row in others)
    shown = "".join(f"\n  {reason}" for reason in list(reasons)[:6])
    return (
        f"{more}* on the front of price, TTFT and TPOT; latencies are of one replica at its share of the load; "
        f"{count['pruned']} left out by price bounds, {count['infeasible']} infeasible{shown}"
        f"{' …' if len(reasons) > 6 else ''}"
    )


def _at_loads(plan: PlanResult) -> Table:
    return _plain("at other loads: the cheapest by the rate of one replica, not simulated", plan.load_sensitivity, {
        "load_factor": "× load", "load_per_s": "req/s", "label": "candidate", "replicas": "replicas", "gpus": "GPUs",
        "usd_per_hour": "$/h",
    })  # fmt: skip


def _at_draws(plan: PlanResult) -> Table:
    return _plain("rates under other constants that the calibration allows", plan.cost_sensitivity, {
        "label": "candidate", "rate_per_s": "req/s", "lowest_per_s": "lowest", "highest_per_s": "highest",
        "draws": "draws", "most_replicas": "replicas at most",
    })  # fmt: skip


def _plain(title: str, table: pd.DataFrame, names: Mapping[str, str]) -> Table:
    from rich import box
    from rich.table import Table

    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="dim")
    for name in names.values():
        out.add_column(name, justify="left" if name == "candidate" else "right")
    for row in table[list(names)].to_dict(orient="records"):
        out.add_row(*[_cell(v) for v in row.values()])
    return out


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return _number(value, 0 if value == int(value) and value >= 10 else 2) if value == value else "–"
    return "–" if value is None else str(value)


# -- pictures -----------------------------------------------------------------------------------------------------------


def picture(plan: PlanResult) -> str:
    """An SVG of price against TTFT p99 at the load, one mark a candidate; the front is joined, the winner is ringed."""
    import vl_convert

    text: str = vl_convert.vegalite_to_svg(_chart(plan))
    return text


def _chart(plan: PlanResult) -> dict[str, Any]:
    winner = plan.winner.label if plan.winner else None
    values = [
        {
            "candidate": row.label, "gpu": str(row.settings["gpu"]), "usd": row.usd_per_hour,
            "ttft": 1e3 * row.at_load["ttft_p99"], "gpus": row.gpus, "pareto": row.pareto, "wins": row.label == winner,
        }
        for row in plan.rows
        if row.usd_per_hour is not None and row.at_load
    ]  # fmt: skip
    x = {"field": "usd", "type": "quantitative", "title": "$ per hour for the load", "scale": {"zero": False}}
    y = {
        "field": "ttft",
        "type": "quantitative",
        "title": "TTFT p99 at the load, ms",
        "scale": {"type": "log"},
    }
    text = {"field": "candidate"}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": 640, "height": 380, "background": "white", "data": {"values": values},
        "encoding": {"x": x, "y": y},
        "layer": [
            {"mark": {"type": "point", "filled": True, "opacity": 0.8, "size": 70},
             "encoding": {"color": {"field": "gpu", "type": "nominal", "title": "GPU"}}},
            {"transform": [{"filter": "datum.wins"}],
             "mark": {"type": "point", "size": 260, "color": "black", "strokeWidth": 1.5}},
            {"transform": [{"filter": "datum.pareto"}],
             "mark": {"type": "text", "dx": 9, "align": "left", "fontSize": 10}, "encoding": {"text": text}},
        ],
    }  # fmt: skip
