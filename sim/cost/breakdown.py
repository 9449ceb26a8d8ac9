"""Breakdowns of steps, {kernel: {bound: seconds}}: of one step from those of many, and sums of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .forms import Array, Split
from .work import StepCost, StepWork, context_column

Explain = Callable[[Mapping[str, Any]], tuple[Mapping[str, Mapping[str, Any]], Any, Any]]
"""`work.CostModel.explain_many`."""


def explained(explain_many: Explain, work: StepWork) -> StepCost:
    """The breakdown of one step, by a cost model that is asked for many; entries of 0 s are left out."""
    seconds, flops, moved = explain_many(columns_of(work))
    plain = {k: {b: float(s[0]) for b, s in split.items() if s[0]} for k, split in seconds.items()}
    return StepCost({k: split for k, split in plain.items() if split}, float(flops[0]), float(moved[0]))


def columns_of(work: StepWork) -> dict[str, Array]:
    """One step as columns of one row."""
    columns = {
        name: np.array([float(value)]) for name, value in work._asdict().items() if name != "context_tokens"
    }
    return columns | {context_column(i): np.array([float(c)]) for i, c in enumerate(work.context_tokens)}


def add_seconds(
    seconds: dict[str, Split], more: Mapping[str, Mapping[str, Array]], times: Array | None = None
) -> None:
    """Add a breakdown to another one, in place, each row so many `times` (None: once)."""
    for kernel, split in more.items():
        book = seconds.setdefault(kernel, {})
        for bound, s in split.items():
            added = s if times is None else s * times
            book[bound] = book[bound] + added if bound in book else added
