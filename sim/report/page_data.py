"""What a page is drawn from: tables small enough to travel in one file, whatever the length of the run.

Time is cut into at most `MAX_BINS` bins; requests, gaps and steps are counted in (time bin x value bin) grids, so that a
browser can redraw every panel for any window of time. Only the slowest requests of each bin travel one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..cost.work import KERNELS
from ..engine.step_bins import bin_borders, log_bin
from .metrics import latencies
from .run_tables import RunTables
from .slo import Slo, parse_slo

Floats = NDArray[np.float64]

MAX_BINS = 256
"""Time bins of one run; runs of a comparison share them (see `bins_a_run`)."""

LATENCY_PER_DECADE = 40
"""Value bins a factor of ten: 6 % wide, so a quantile read off the curve is within 3 %."""

SLOWEST = 12
"""Requests drawn one by one in a window."""

_UNITS = ((7200.0, 3600.0, "h"), (600.0, 60.0, "min"), (0.0, 1.0, "s"))


@dataclass(frozen=True, slots=True, eq=False)
class PageData:
    """Tables by name (a column `run` holds the run's label), and the axis of time.

    `begin`, `end`, `step`: the first and last border of time bins and their width, in `unit` (s, min or h), counted
    from the start of the trace.
    """

    labels: tuple[str, ...]
    unit: str
    begin: float
    end: float
    step: float
    tables: dict[str, pd.DataFrame]


def bins_a_run(n_runs: int) -> int:
    """Time bins of each of so many runs: the page stays small.

    >>> bins_a_run(1), bins_a_run(3), bins_a_run(64)
    (256, 256, 32)
    """
    return max(32, min(MAX_BINS, 1024 // n_runs))


def page_data(runs: Sequence[RunTables]) -> PageData:
    """Aggregate the tables of some runs of the same trace."""
    begin_s = min(run.span_s[0] for run in runs)
    end_s = max(max(run.span_s[1] for run in runs), begin_s + 1e-6)
    scale, unit = next((s, u) for least, s, u in _UNITS if end_s >= least)
    grid = _Grid(_width_s(runs, end_s, bins_a_run(len(runs))), scale)
    makers = {
        "series": _series,
        "latency": _latency,
        "steps": _steps,
        "roofline": _roofline,
        "slow": _slow,
        "observed": _observed,
    }
    tables = {name: _stack([(run.label, make(run, grid)) for run in runs]) for name, make in makers.items()}
    tables["runs"] = _stack([(run.label, _figures(run)) for run in runs])
    first, last = math.floor(begin_s / grid.width_s), math.ceil(end_s / grid.width_s)
    step = grid.width_s / scale
    return PageData(tuple(run.label for run in runs), unit, first * step, last * step, step, tables)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Time bins of `width_s` seconds; `scale` seconds are one unit of the axis."""

    width_s: float
    scale: float

    def index(self, time_s: Any) -> NDArray[np.int64]:
        """Bin of each time."""
        return np.floor(np.asarray(time_s, dtype=np.float64) / self.width_s).astype(np.int64)

    def axis(self, time_s: Any) -> Floats:
        """Times on the axis."""
        return np.asarray(time_s, dtype=np.float64) / self.scale

    def start(self, index: Any) -> Floats:
        """Begin of bins, on the axis."""
        return self.axis(np.asarray(index) * self.width_s)


def _width_s(runs: Sequence[RunTables], end_s: float, n_bins: int) -> float:
    """The width of the bins: a power of two no finer than any table's."""
    width = 1 / 16
    while end_s > width * n_bins:
        width *= 2
    for run in runs:
        if len(run.series):
            width = max(width, float(run.series["width_s"].iloc[0]))
    return width


def _stack(parts: list[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    frames = [frame.assign(run=label) for label, frame in parts if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"run": []})


# -- one line a time bin


_MEANS = ("running", "waiting", "kv_used_frac", "busy_frac")
_SUMS = ("prefill_tokens", "emitted_tokens", "steps", *[f"kernel_{k}_s" for k in KERNELS])


def _series(run: RunTables, grid: _Grid) -> pd.DataFrame:
    """Means of levels, rates a second of counts, seconds a second of kernels; one row a bin of the whole run."""
    series = run.series
    n = int(grid.index(run.span_s[1]).max()) + 1
    t = grid.index(series["t_s"])
    kept = t < n
    t, width = t[kept], series["width_s"].to_numpy()[kept]
    covered = np.maximum(np.bincount(t, width, n), 1e-12)
    out: dict[str, Any] = {"t": grid.start(np.arange(n)), "t2": grid.start(np.arange(1, n + 1))}
    for name in _MEANS:
        out[name] = np.bincount(t, series[name].to_numpy()[kept] * width, n) / covered
    for name in _SUMS:
        out[name.removesuffix("_s") if name.startswith("kernel") else name] = (
            np.bincount(t, series[name].to_numpy()[kept], n) / covered
        )
    return pd.DataFrame(out | _arrivals(run, grid, n, covered))


def _arrivals(run: RunTables, grid: _Grid, n: int, covered: Floats) -> dict[str, Floats]:
    requests = run.requests
    arrived = np.clip(grid.index(requests["arrival_s"]), 0, n - 1)
    begun = requests["scheduled_s"].notna()
    at = np.clip(grid.index(requests["scheduled_s"][begun]), 0, n - 1)
    hits = np.bincount(at, requests["cached_tokens"][begun], n)
    prompts = np.bincount(at, requests["input_tokens"][begun], n)
    gone = np.clip(grid.index(run.preemptions["preempted_s"]), 0, n - 1)
    return {
        "arrived": np.bincount(arrived, minlength=n) / covered,
        "hit_frac": np.where(prompts > 0, hits / np.maximum(prompts, 1), np.nan),
        "preempted": np.bincount(gone, minlength=n) / covered,
    }


# -- counts by time and value


def _latency(run: RunTables, grid: _Grid) -> pd.DataFrame:
    """Requests by arrival and latency, gaps by emission and size; x in ms, the lower border of a bin.

    TTFT, E2E, ITL and SLO: what the page draws; others would only make it longer.
    """
    done = run.requests[run.requests["status"] == "finished"]
    arrival, first, finish = (done[name].to_numpy() for name in ("arrival_s", "first_token_s", "finish_s"))
    t = grid.index(arrival)
    values = {"TTFT": first - arrival, "E2E": finish - arrival}
    frames = [_counted(name, t, seconds) for name, seconds in values.items()]
    gaps = run.histograms[run.histograms["what"] == "itl"]
    frames.append(_counted("ITL", grid.index(gaps["t_s"]), gaps["x"].to_numpy(), gaps["steps"].to_numpy()))
    if text := run.config.get("slo"):
        frames.append(_objectives(run, grid, parse_slo(text)))
    table = pd.concat(frames, ignore_index=True)
    return table.assign(t=grid.start(table["t"]))


def _objectives(run: RunTables, grid: _Grid, slo: Slo) -> pd.DataFrame:
    """Every request by arrival and by x: how many times its limits it took; one that got no answer takes for ever."""
    ratios = slo.ratios(latencies(run.requests))
    lost = (run.requests["status"] != "finished").to_numpy()
    # the axis counts thousandths, as that of seconds does
    return _counted("SLO", grid.index(run.requests["arrival_s"]), np.where(lost, 1e6, ratios) / 1000)


def _counted(
    metric: str, t: NDArray[np.int64], seconds: Floats, weight: Floats | None = None
) -> pd.DataFrame:
    kept = np.isfinite(seconds)
    # a queue of 0 s has no logarithm: it counts as 1 µs, the left end of the axis
    x = np.floor(np.log10(np.maximum(seconds[kept], 1e-6)) * LATENCY_PER_DECADE + 1e-9).astype(np.int64)
    weights = np.ones(len(x)) if weight is None else weight[kept]
    cells, where = np.unique((t[kept] << 12) + x + 1024, return_inverse=True)
    bins = (cells & 4095) - 1024
    low, high = (1000 * 10.0 ** ((bins + more) / LATENCY_PER_DECADE) for more in (0, 1))
    n = np.bincount(where, weights, len(cells))
    return pd.DataFrame({"metric": metric, "t": cells >> 12, "x": low, "x2": high, "n": n})


def _steps(run: RunTables, grid: _Grid) -> pd.DataFrame:
    """Steps and their seconds by time and batch size (`what` "batch") or duration in ms ("duration").

    x, x2: borders of the bin; those of batch sizes lie halfway between whole numbers.
    """
    table = run.histograms[run.histograms["what"].isin(["batch", "duration"])]
    what = table["what"].to_numpy()
    low, high = np.empty(len(table)), np.empty(len(table))
    for kind, scale in (("batch", 1.0), ("duration", 1000.0)):
        rows = what == kind
        borders = bin_borders(log_bin(table["x"].to_numpy()[rows], kind), kind)
        low[rows], high[rows] = borders[0] * scale, borders[1] * scale
    frame = pd.DataFrame({"what": what, "t": grid.index(table["t_s"]), "x": low, "x2": high})
    frame = frame.assign(steps=table["steps"].to_numpy(), seconds=table["seconds"].to_numpy())
    summed = frame.groupby(["what", "t", "x", "x2"], as_index=False).sum()
    return summed.assign(t=grid.start(summed["t"]))


def _roofline(run: RunTables, grid: _Grid) -> pd.DataFrame:
    """Seconds of steps by time, FLOP per HBM byte (x) and TFLOP/s (y)."""
    table = run.histograms[run.histograms["what"] == "roofline"]
    coarse = grid.index(table["t_s"]) // 4 * 4  # a quarter of the bins: this table is the largest
    frame = pd.DataFrame({"t": coarse, "x": table["x"].to_numpy(), "y": table["y"].to_numpy() / 1e12})
    frame = frame.assign(steps=table["steps"].to_numpy(), seconds=table["seconds"].to_numpy())
    summed = frame.groupby(["t", "x", "y"], as_index=False).sum()
    return summed.assign(t=grid.start(summed["t"]))


def _figures(run: RunTables) -> pd.DataFrame:
    """One row: p99 latencies of the whole run in ms, tokens a second, price."""
    p99 = {name: run.summary[f"{name}_s"]["p99"] for name in ("ttft", "tpot", "e2e")}
    row = {name: np.nan if value is None else 1000 * value for name, value in p99.items()}
    usd = run.summary["cost"]["usd_per_million_output_tokens"]
    return pd.DataFrame(
        [
            row
            | {
                "usd": np.nan if usd is None else usd,
                "tokens": run.summary["throughput"]["output_tokens_per_s"],
                "completed": run.summary["requests"]["completed"],
            }
        ]
    )


# -- requests one by one


def _slow(run: RunTables, grid: _Grid) -> pd.DataFrame:
    """The slowest requests of each time bin, by end-to-end latency and by TTFT, with borders of their phases.

    queue, prefill, end: seconds from arrival to the end of each phase; away: [from, to] of each preemption; chunks:
    [from, to] of each chunk of the prompt, where recorded.
    """
    done = run.requests[run.requests["status"] == "finished"]
    e2e = (done["finish_s"] - done["arrival_s"]).to_numpy()
    ttft = (done["first_token_s"] - done["arrival_s"]).to_numpy()
    t = grid.index(done["arrival_s"])
    rows = np.unique(np.concatenate([_most(t, e2e), _most(t, ttft)]))
    few = done.iloc[rows]
    arrival = few["arrival_s"].to_numpy()
    return pd.DataFrame(
        {
            "id": few["request_id"].astype(str).to_numpy(),
            "t": grid.axis(arrival),
            "ttft": ttft[rows],
            "e2e": e2e[rows],
            "queue": few["scheduled_s"].to_numpy() - arrival,
            "input": few["input_tokens"].to_numpy(),
            "cached": few["cached_tokens"].to_numpy(),
            "output": few["output_tokens"].to_numpy(),
            "away": _spans(few, run.preemptions, "preempted_s", "resumed_s"),
            "chunks": _spans(few, _with_end(run.chunks), "start_s", "end_s"),
        }
    )


def _most(t: NDArray[np.int64], values: Floats) -> NDArray[np.int64]:
    """Rows of the `SLOWEST` largest values of each bin."""
    order = np.lexsort((-values, t))
    place = np.arange(len(t)) - np.searchsorted(t[order], t[order])
    return order[place < SLOWEST]


def _with_end(chunks: pd.DataFrame | None) -> pd.DataFrame | None:
    return None if chunks is None else chunks.assign(end_s=chunks["start_s"] + chunks["duration_s"])


def _spans(few: pd.DataFrame, spans: pd.DataFrame | None, begin: str, end: str) -> list[list[list[float]]]:
    """For each request the list of its spans, seconds since its arrival."""
    found: dict[str, list[list[float]]] = {}
    if spans is not None and len(spans):
        arrival = dict(zip(few["request_id"], few["arrival_s"], strict=True))
        mine = spans[spans["request_id"].isin(list(arrival))].dropna(subset=[end])
        for name, a, b in zip(mine["request_id"], mine[begin], mine[end], strict=True):
            found.setdefault(name, []).append([a - arrival[name], b - arrival[name]])
    return [found.get(name, []) for name in few["request_id"]]


def _observed(run: RunTables, grid: _Grid) -> pd.DataFrame:
    """Measured latencies of the trace and the simulated ones of the same requests; empty where it holds none."""
    requests = run.requests
    t = grid.index(requests["arrival_s"])
    frames = []
    for metric, measured, end in (
        ("TTFT", "observed_ttft_s", "first_token_s"),
        ("E2E", "observed_e2e_s", "finish_s"),
    ):
        if measured not in requests or not requests[measured].notna().any():
            continue
        known = requests[measured].notna().to_numpy() & (requests["status"] == "finished").to_numpy()
        simulated = np.where(known, requests[end] - requests["arrival_s"], np.nan)
        values = {"measured": np.where(known, requests[measured], np.nan), "simulated": simulated}
        frames += [_counted(metric, t, seconds).assign(source=name) for name, seconds in values.items()]
    if not frames:
        return pd.DataFrame()
    table = pd.concat(frames, ignore_index=True)
    return table.assign(t=grid.start(table["t"]))
