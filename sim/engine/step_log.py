"""Rows of executed steps and leaps, appended as tuples and handed on in blocks of columns."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .result import Gaps

Columns = Mapping[str, NDArray[Any]]
FLUSH_ROWS = 32_768
LOGGED = (
    "replica", "start_s", "n_steps", "first_s", "delta_s", "prefill_tokens", "prefill_seqs", "attention_pairs",
    "prefill_kv_tokens", "n_decode", "context_tokens", "logits_rows", "n_running", "n_waiting", "kv_used_blocks",
    "n_live", "gap_weight",
)  # fmt: skip


class StepLog:
    """Collects step rows and passes them on as columns every FLUSH_ROWS rows.

    A row is the tuple LOGGED, for a model with several attention windows followed by the contexts and the growths of
    the further ones. The columns handed on are `STEP_COLUMNS`, plus `gap_weight`, `context_growth_0` and, for window
    i > 0, `context_tokens_<i>` and `context_growth_<i>`.
    """

    def __init__(self, n_windows: int, sinks: list[Callable[[Columns], None]]) -> None:
        further = range(1, n_windows)
        self.names = (
            *LOGGED,
            *[f"context_tokens_{i}" for i in further],
            *[f"context_growth_{i}" for i in further],
        )
        self.flat = array("d")
        self.rows = 0
        self.sinks = sinks
        self.extend = self.flat.extend

    def append(self, row: tuple[float, ...]) -> None:
        """Add one row."""
        self.extend(row)
        self.rows += 1
        if self.rows >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Hand all rows on."""
        if not self.rows:
            return
        table = np.array(self.flat, dtype=np.float64).reshape(self.rows, len(self.names)).T
        del self.flat[:]
        self.rows = 0
        columns: dict[str, NDArray[Any]] = dict(zip(self.names, np.ascontiguousarray(table), strict=True))
        n = columns["n_steps"]
        columns["duration_s"] = n * columns["first_s"] + columns["delta_s"] * (n * (n - 1) / 2)
        columns["context_growth_0"] = columns["n_decode"]
        finished_prompts = columns["logits_rows"] - columns["n_decode"]
        columns["emitted_tokens"] = columns.pop("n_live") * n * (columns["n_decode"] > 0) + finished_prompts
        for sink in self.sinks:
            sink(columns)


class GapLog:
    """Inter-token gaps as arithmetic progressions with weights: 32 bytes a step or leap."""

    def __init__(self) -> None:
        self.first_s = array("d")
        self.delta_s = array("d")
        self.n = array("q")
        self.weight = array("q")

    def take_steps(self, columns: Columns) -> None:
        """A sink of the step log: gaps that are just step durations."""
        rows = columns["gap_weight"] > 0
        self.first_s.frombytes(columns["first_s"][rows].tobytes())
        self.delta_s.frombytes(columns["delta_s"][rows].tobytes())
        self.n.frombytes(columns["n_steps"][rows].astype(np.int64).tobytes())
        self.weight.frombytes(columns["gap_weight"][rows].astype(np.int64).tobytes())

    def add(self, first_s: float, delta_s: float, n: int, weight: int) -> None:
        """`weight` sequences each saw the gaps first, first + delta, ... (n of them)."""
        self.first_s.append(first_s)
        self.delta_s.append(delta_s)
        self.n.append(n)
        self.weight.append(weight)

    def gaps(self) -> Gaps:
        """All gaps so far."""
        return Gaps(
            np.array(self.first_s, dtype=np.float64),
            np.array(self.delta_s, dtype=np.float64),
            np.array(self.n, dtype=np.int64),
            np.array(self.weight, dtype=np.int64),
        )
