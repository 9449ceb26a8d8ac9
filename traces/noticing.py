"""What a reader notices about a trace while it goes by, and says as warnings instead of guessing."""

from __future__ import annotations

import numpy as np

from .errors import ConfigError
from .formats import Context, Format
from .ticks import MIN_ROWS, Ticks
from .trace import Trace
from .wording import counted

FAST_PER_S = 200.0
"""Rates above this are rare for one service (Azure 2023: 5.5/s, Mooncake: 3.3/s) and usual for seconds read as ms."""

LATE_S = 86_400.0
"""A first arrival this late (a day) is more likely a wall clock than a quiet day."""


class Noticed:
    """Counts over all rows of one file, in file order."""

    def __init__(self, context: Context, trace_format: Format) -> None:
        self._context, self._format = context, trace_format
        self._declared_closed = int(context.meta.pop("closed_loop_rows", 0) or 0)
        self.rows = 0
        self.hashed = False
        self._first_s = np.inf
        self._last_s = -np.inf
        self._late = 0
        self._ticks = Ticks()

    def look(self, trace: Trace) -> None:
        """Take in the next rows."""
        arrival_s = trace.arrival_s
        self.hashed = self.hashed or trace.hash_ids is not None
        before = np.maximum.accumulate(np.concatenate([[self._last_s], arrival_s]))
        self._late += int((arrival_s < before[:-1]).sum())
        self._first_s = min(self._first_s, float(arrival_s.min()))
        self._last_s = float(before[-1])
        self._ticks.add(arrival_s)
        self.rows += len(trace)

    @property
    def quantum_s(self) -> float | None:
        """The tick of the trace's clock in seconds where it is coarse enough to make false bursts."""
        stated = self._context.meta.get("timestamp_quantum_ms")
        return self._ticks.quantum_s if stated is None else float(stated) / 1e3

    def rebased(self, first_s: float) -> None:
        """The clock was moved so that the first request, at `first_s`, arrives at 0."""
        meta = self._context.meta
        if "origin" in meta:
            moved = np.datetime64(meta["origin"], "ns") + np.timedelta64(round(first_s * 1e9), "ns")
            meta["origin"] = str(moved)
        elif not self._format.absolute:
            self._context.remark(
                f"timestamps are a wall clock (the first one is {first_s:.0f} s): counted from the first request on"
            )

    def finish(self, sha256: str | None) -> None:
        """Say what was noticed, once all rows have been seen."""
        context, meta = self._context, self._context.meta
        if context.options.request_rate is not None and not context.timeless:
            raise ConfigError(
                f"--request-rate: {context.name} has arrival times; --rate-scale changes their rate"
            )
        context.count("row", "behind a later one; sorted by arrival", self._late)
        closed = meta.get("closed_loop_rows", self._declared_closed)
        if closed:
            meta["closed_loop_rows"] = closed
            context.remark(
                f"{counted(closed, 'turn')} {'has' if closed == 1 else 'have'} a delay and no timestamp: placed that "
                "long after the previous turn's arrival; "
                "use --replay closed"
            )
        self._clock()
        if context.options.hash_block_size is not None and not self.hashed:
            context.remark("--hash-block-size is not used: no row has hash_ids")
        if sha256 and meta.get("sha256") not in (None, sha256):
            context.remark("the content is not the one the sidecar describes (sha256 differs)")
        if isinstance(meta.get("rows"), int) and meta["rows"] != self.rows and not context.counts:
            context.remark(f"the sidecar speaks of {counted(meta['rows'], 'row')}, the file has {self.rows}")

    def _clock(self) -> None:
        if (quantum_s := self.quantum_s) is not None and self._last_s > self._first_s:
            self._context.remark(
                f"timestamps tick every {quantum_s:g} s, {self._ticks.per_tick:.1f} requests a tick: "
                "replayed as they are they make false bursts; "
                "--spread-quantum spreads each tick's requests over it"
            )
        if self._format.absolute:
            return
        span_s = self._last_s - self._first_s
        seconds_said = "time_unit" in self._context.meta or self._format.name != "native"
        if self.rows >= MIN_ROWS and 0 < span_s < self.rows / FAST_PER_S and not seconds_said:
            self._context.remark(
                f"read as milliseconds this is {self.rows / span_s:.0f} requests/s: if the timestamps are seconds, "
                "say --trace-format timed_trace (or time_unit s in the sidecar)"
            )
        elif LATE_S < self._first_s <= 1e8:
            self._context.remark(
                f"the first request arrives only after {self._first_s:.0f} s: perhaps a wall clock"
            )
