"""Rows of executed steps and leaps, appended as tuples and handed on in blocks of columns."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .result import STEP_COLUMNS, Gaps

Columns = Mapping[str, NDArray[Any]]
FLUSH_ROWS = 32_768


class StepLog:
    """Collects step rows (tuples in the order of `names`) and passes them on as columns every FLUSH_ROWS rows.

    A model with several attention windows adds `context_tokens_<i>` and every window `context_growth_<i>`.
    """

    def __init__(self, n_windows: int, sinks: list[Callable[[Columns], None]]) -> None:
        extra = {f"context_tokens_{i}": np.int64 for i in range(1, n_windows)}
        growth = {f"context_growth_{i}": np.int64 for i in range(n_windows)}
        self.types: dict[str, type] = {**STEP_COLUMNS, **extra, **growth}
        self.rows: list[tuple[float, ...]] = []
        self.sinks = sinks
        self.steps = 0

    def append(self, row: tuple[float, ...]) -> None:
        """Add one row."""
        self.rows.append(row)
        if len(self.rows) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Hand all rows on."""
        if not self.rows:
            return
        table = np.array(self.rows, dtype=np.float64)
        self.rows.clear()
        columns = {name: table[:, i].astype(kind) for i, (name, kind) in enumerate(self.types.items())}
        self.steps += int(columns["n_steps"].sum())
        for sink in self.sinks:
            sink(columns)


class GapLog:
    """Inter-token gaps as arithmetic progressions with weights: 32 bytes a step or leap."""

    def __init__(self) -> None:
        self.first_s = array("d")
        self.delta_s = array("d")
        self.n = array("q")
        self.weight = array("q")

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
