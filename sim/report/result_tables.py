"""The tables of a run directory, made from a result."""

from __future__ import annotations

import numpy as np
import pandas as pd
from stepline.sim.engine.result import STATUSES, RunResult

from ..engine.step_bins import empty_frame
from .gap_bins import gap_bins
from .observed import measured


def request_table(result: RunResult) -> pd.DataFrame:
    """`requests.parquet`: one row a request in the order of the trace; absent values are null."""
    rows = result.requests.sort_values("request_index", kind="stable").reset_index(drop=True)
    index = rows["request_index"].to_numpy()
    names = [name for name in ("request_id", "session_id", "tenant") if name in result.trace_columns]
    labels = {name: [result.trace_columns[name][i] for i in index] for name in names}
    replica = rows["replica"]
    table = {
        "request_id": labels.get("request_id", [str(i) for i in index]),
        "session_id": labels.get("session_id", [None] * len(rows)),
        "replica": replica.astype("Int32").mask(replica < 0),
        **{name: rows[name] for name in _REQUEST_COLUMNS},
        "status": np.array(STATUSES, dtype=object)[rows["status"].to_numpy(np.int64)],
    }
    index = rows["request_index"].to_numpy()
    for metric, seconds in measured(result).items():
        table[f"observed_{metric}_s"] = seconds[index]
    if "tenant" in labels:
        table["tenant"] = labels["tenant"]
    return pd.DataFrame(table)


_REQUEST_COLUMNS = (
    "arrival_s", "scheduled_s", "first_token_s", "finish_s", "input_tokens", "output_tokens", "cached_tokens",
    "preemptions",
)  # fmt: skip


def histogram_table(result: RunResult) -> pd.DataFrame:
    """`histograms.parquet`: the step bins of the run and, as `what` = "itl", its inter-token gaps."""
    parts = [part for part in (result.totals.step_bins, gap_bins(result.gaps)) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else empty_frame()


def preemption_table(result: RunResult) -> pd.DataFrame:
    """`preemptions.parquet`: request_id, replica, preempted_s, resumed_s."""
    return _with_ids(result, result.preemptions)


def chunk_table(result: RunResult) -> pd.DataFrame | None:
    """`chunks.parquet`: request_id, replica, start_s, duration_s, tokens; None where steps were not recorded."""
    return None if result.chunks is None else _with_ids(result, result.chunks)


def _with_ids(result: RunResult, table: pd.DataFrame) -> pd.DataFrame:
    ids = result.trace_columns.get("request_id")
    index = table["request_index"].to_numpy()
    names = [str(i) if ids is None else ids[i] for i in index]
    table = table.rename(columns={"request_index": "request_id"})
    return table.assign(request_id=pd.Series(names, index=table.index, dtype=object))
