"""A run as a Chrome trace: open it at ui.perfetto.dev or in chrome://tracing.

One process a replica. Its threads: `steps` (each engine step, or leap of pure-decode steps, with its work), then one
lane a seat: requests from admission to their end, with prefill (chunk by chunk), decode and preempted inside. Counters:
running, waiting, KV blocks. Format: "Trace Event Format" (JSON array form), timestamps in µs. Events are written as
they are made, so that memory does not grow with the file.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import pandas as pd

Event = dict[str, Any]

STEPS_THREAD = 1
FIRST_LANE = 2
_BUFFERED = 4096  # events joined into one write


def write_perfetto(
    path: Path,
    requests: pd.DataFrame,
    steps: Iterable[pd.DataFrame],
    chunks: pd.DataFrame,
    preemptions: pd.DataFrame,
) -> int:
    """Write the trace (gzip-compressed if the name ends in .gz); returns the number of events.

    `requests`, `chunks`, `preemptions`: the tables of a run directory; `steps`: its step table, in parts.
    """
    count = 0
    with _opened(path) as out:
        out.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
        for lines in _joined(_events(requests, steps, chunks, preemptions)):
            out.write(b",\n" if count else b"")
            out.write(b",\n".join(lines))
            count += len(lines)
        out.write(b"\n]}\n")
    return count


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return io.BufferedWriter(gzip.GzipFile(path, "wb", compresslevel=5, mtime=0))
    return path.open("wb")


def _joined(events: Iterator[Event]) -> Iterator[list[bytes]]:
    lines: list[bytes] = []
    for event in events:
        lines.append(orjson.dumps(event))
        if len(lines) >= _BUFFERED:
            yield lines
            lines = []
    if lines:
        yield lines


def _events(
    requests: pd.DataFrame, steps: Iterable[pd.DataFrame], chunks: pd.DataFrame, preemptions: pd.DataFrame
) -> Iterator[Event]:
    served = requests[requests["scheduled_s"].notna() & requests["replica"].notna()]
    for replica in sorted(served["replica"].unique().tolist()):
        yield _name("process_name", replica, 0, f"replica {replica}")
        yield _name("thread_name", replica, STEPS_THREAD, "steps")
    for part in steps:
        yield from _step_events(part)
    yield from _request_events(served, _by_request(chunks), _by_request(preemptions))


def _name(kind: str, replica: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": replica, "tid": thread, "args": {"name": name}}


def _slice(
    name: str, replica: int, thread: int, begin_s: float, end_s: float, args: Event | None = None
) -> Event:
    event = {
        "ph": "X",
        "name": name,
        "pid": replica,
        "tid": thread,
        "ts": begin_s * 1e6,
        "dur": (end_s - begin_s) * 1e6,
    }
    return {**event, "args": args} if args else event


_STEP_ARGS = (
    "n_steps", "prefill_tokens", "prefill_seqs", "n_decode", "context_tokens", "emitted_tokens", "kv_used_blocks",
)  # fmt: skip


def _step_events(steps: pd.DataFrame) -> Iterator[Event]:
    names = ("replica", "start_s", "duration_s", "n_running", "n_waiting", *_STEP_ARGS)
    for row in zip(*[steps[name].tolist() for name in names], strict=True):
        replica, start_s, lasts_s, running, waiting, *values = row
        args = dict(zip(_STEP_ARGS, values, strict=True))
        yield _slice(_step_name(args), replica, STEPS_THREAD, start_s, start_s + lasts_s, args)
        yield _counter("sequences", replica, start_s, {"running": running, "waiting": waiting})
        yield _counter("KV blocks", replica, start_s, {"used": args["kv_used_blocks"]})


def _step_name(args: Event) -> str:
    if not args["prefill_tokens"]:
        return "decode" if args["n_steps"] == 1 else f"decode ×{args['n_steps']}"
    return "prefill + decode" if args["n_decode"] else "prefill"


def _counter(name: str, replica: int, time_s: float, values: Event) -> Event:
    return {"ph": "C", "name": name, "pid": replica, "ts": time_s * 1e6, "args": values}


def _by_request(table: pd.DataFrame) -> dict[Any, list[list[Any]]]:
    """Rows after the id and the replica, by request."""
    found: dict[Any, list[list[Any]]] = {}
    for row in table.to_numpy().tolist():
        found.setdefault(row[0], []).append(row[2:])
    return found


def _request_events(
    served: pd.DataFrame, chunks: dict[Any, list[list[Any]]], away: dict[Any, list[list[Any]]]
) -> Iterator[Event]:
    lanes: dict[int, tuple[list[int], list[tuple[float, int]], int]] = {}
    for row in served.sort_values("scheduled_s", kind="stable").to_dict("records"):
        replica = int(row["replica"])
        lane, is_new = _lane(lanes, replica, row["scheduled_s"], row["finish_s"])
        if is_new:
            yield _name("thread_name", replica, lane, f"seat {lane - FIRST_LANE + 1}")
        yield from _life(
            row, replica, lane, chunks.get(row["request_id"], []), away.get(row["request_id"], [])
        )


def _lane(lanes: dict[int, Any], replica: int, begin_s: float, end_s: float) -> tuple[int, bool]:
    """The lowest lane that is free from `begin_s` on."""
    free, busy, made = lanes.setdefault(replica, ([], [], 0))
    while busy and busy[0][0] <= begin_s:
        heappush(free, heappop(busy)[1])
    is_new = not free
    lane = FIRST_LANE + made if is_new else heappop(free)
    heappush(busy, (end_s, lane))
    lanes[replica] = (free, busy, made + is_new)
    return lane, is_new


def _life(
    row: Any, replica: int, lane: int, chunks: list[list[Any]], away: list[list[Any]]
) -> Iterator[Event]:
    """A request's slice, and what happened inside it."""
    begin_s, end_s, first_s = row["scheduled_s"], row["finish_s"], row["first_token_s"]
    args = {
        name: row[name]
        for name in ("input_tokens", "cached_tokens", "output_tokens", "preemptions", "status")
    }
    args |= {
        "queue_s": begin_s - row["arrival_s"],
        "ttft_s": None if np.isnan(first_s) else first_s - row["arrival_s"],
    }
    yield _slice(f"#{row['request_id']}", replica, lane, begin_s, end_s, args)
    for start_s, lasts_s, tokens in chunks:
        stop_s = min(start_s + lasts_s, end_s)
        yield _slice("prefill", replica, lane, start_s, stop_s, {"tokens": tokens})
    spans = [(a, b if b == b else end_s) for a, b in away]
    for begin, end in spans:
        yield _slice("preempted", replica, lane, begin, end)
    yield from _decodes(replica, lane, end_s, chunks, spans)


def _decodes(
    replica: int, lane: int, end_s: float, chunks: list[list[Any]], away: list[tuple[float, float]]
) -> Iterator[Event]:
    """From the end of each completed prompt (the last chunk before a preemption or the end) to what follows it."""
    ends = sorted([a for a, _ in away] + [end_s])
    stops = sorted([start_s + lasts_s for start_s, lasts_s, _ in chunks])
    place = 0
    for end in ends:
        last = None
        while place < len(stops) and stops[place] <= end + 1e-12:
            last, place = stops[place], place + 1
        if last is not None and end > last:
            yield _slice("decode", replica, lane, last, end)
