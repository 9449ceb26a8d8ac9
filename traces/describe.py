"""What a trace asks of a service, in figures: rates, burstiness, lengths, their dependence, reuse, sessions, clock."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .checking import Checker
from .errors import TraceError
from .reading import UnsortedError, iter_trace, read_trace
from .reuse import Reuse
from .sessions import Sessions
from .tallies import Curve, IntegerTally, JointTally, TimeTally, WindowTally
from .ticks import Ticks
from .trace import OPTIONAL_COLUMNS, Trace

WINDOWS_S = (1.0, 10.0, 60.0)
"""Widths at which burstiness is measured: the time scales of a step, of a queue and of an autoscaler."""


def describe(trace: Trace | Iterable[Trace]) -> dict[str, Any]:
    """Figures of `trace`, or of its consecutive chunks in one pass and bounded memory.

    Keys: source, trace_format, sha256, requests, span_s, rate (per second), gap_s, windows (index of dispersion of
    the arrivals in 1, 10 and 60 s), input_tokens, output_tokens, dependence, reuse (None: no ids), sessions (None),
    quantum_s (None: fine enough), columns (rows that have each optional field), warnings, series (for pictures).
    Times are seconds, `_frac` is in 0..1; burstiness needs two whole windows. Raises: TraceError without any row.
    """
    running = _Running()
    for chunk in (trace,) if isinstance(trace, Trace) else trace:
        if len(chunk):
            running.add(chunk)
    return running.figures()


def describe_file(path: str | Path, **options: Any) -> dict[str, Any]:
    """`describe` of the trace at `path`, streamed; read whole only where it is too unsorted for that.

    `options` are those of `read_trace`. Raises: TraceError, ConfigError.
    """
    try:
        return describe(iter_trace(path, **options))
    except UnsortedError:
        return describe(read_trace(path, **options))


def check(path: str | Path, **options: Any) -> dict[str, Any]:
    """Read every row of the trace at `path` and report what is odd: source, trace_format, requests, warnings.

    Beyond what every reader refuses, it looks for ids that are not prefix-chained, request ids used twice, turns out
    of order, outputs longer than their stated limit. `options` are those of `read_trace`.

    Raises: TraceError (`file:line: field: got ..., expected ...`) for the first row that is wrong.
    """
    try:
        return _checked(iter_trace(path, **options))
    except UnsortedError:
        return _checked([read_trace(path, **options)])


def _checked(chunks: Iterable[Trace]) -> dict[str, Any]:
    checker, rows, last = Checker(), 0, None
    for chunk in chunks:
        checker.add(chunk)
        rows += len(chunk)
        last = chunk
    if last is None:
        raise TraceError("no requests, expected at least one")
    return {
        "source": last.source,
        "trace_format": last.meta.get("trace_format"),
        "requests": rows,
        "sha256": last.sha256,
        "warnings": [*last.warnings, *checker.warnings()],
    }


class _Running:
    """All tallies of one pass."""

    def __init__(self) -> None:
        self.rows = 0
        self.first_s = self.last_s = 0.0
        self.columns: dict[str, int] = {}
        self.gaps_s = TimeTally()
        self.windows = [WindowTally(width_s) for width_s in WINDOWS_S]
        self.input_tokens, self.output_tokens = IntegerTally(), IntegerTally()
        self.joint, self.curve, self.ticks = JointTally(), Curve(), Ticks()
        self.reuse, self.sessions = Reuse(), Sessions()
        self.final: Trace | None = None

    def add(self, trace: Trace) -> None:
        """Take in the next chunk, not empty."""
        arrival_s = trace.arrival_s
        if self.rows:
            self.gaps_s.add(np.diff(arrival_s, prepend=self.last_s))
        else:
            self.first_s = float(arrival_s[0])
            self.gaps_s.add(np.diff(arrival_s))
        since_s = arrival_s - self.first_s
        for window in self.windows:
            window.add(since_s)
        self.curve.add(since_s, trace.input_tokens, trace.output_tokens)
        self.input_tokens.add(trace.input_tokens)
        self.output_tokens.add(trace.output_tokens)
        self.joint.add(trace.input_tokens, trace.output_tokens)
        self.ticks.add(arrival_s)
        self.reuse.add(trace)
        self.sessions.add(trace)
        self._count_columns(trace)
        self.rows += len(trace)
        self.last_s = float(arrival_s[-1])
        self.final = trace

    def _count_columns(self, trace: Trace) -> None:
        for name in OPTIONAL_COLUMNS:
            column = trace.columns.get(name)
            if isinstance(column, list):
                present = len(column) - column.count(None)
                self.columns[name] = self.columns.get(name, 0) + present

    def figures(self) -> dict[str, Any]:
        """See `describe`."""
        if self.final is None:
            raise TraceError("no requests, expected at least one")
        span_s = self.last_s - self.first_s
        n_in, n_out = self.input_tokens.figures(), self.output_tokens.figures()
        per_s = self.rows / span_s if span_s else None
        return {
            "source": self.final.source,
            "trace_format": self.final.meta.get("trace_format"),
            "sha256": self.final.sha256,
            "requests": self.rows,
            "span_s": span_s,
            "rate": {
                "requests_per_s": per_s,
                "input_tokens_per_s": n_in["mean"] * per_s if per_s else None,
                "output_tokens_per_s": n_out["mean"] * per_s if per_s else None,
            },
            "gap_s": self.gaps_s.figures(),
            "windows": [figures for w in self.windows if (figures := w.figures()) is not None],
            "input_tokens": n_in,
            "output_tokens": n_out,
            "dependence": {
                "rank_correlation": self.joint.rank_correlation(),
                "output_by_input": self.joint.output_by_input(),
            },
            "reuse": self.reuse.figures(),
            "sessions": self.sessions.figures(),
            "quantum_s": self.ticks.quantum_s,
            "columns": self.columns,
            "warnings": list(self.final.warnings),
            "series": {
                "over_time": self.curve.table(span_s),
                "input_tokens": self.input_tokens.curve(),
                "output_tokens": self.output_tokens.curve(),
                "lengths": self.joint.cells(),
            },
        }
