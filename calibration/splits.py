"""Ways to hold rows out: what a fit is scored on is always something it never saw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .task import families

if TYPE_CHECKING:
    import pandas as pd

    from .tasks import Task

Mask = NDArray[np.bool_]

HELD_OUT_FRAC = 0.2
"""Share of rows (or shape families) held out by each split."""

LARGE_NK_FRAC = 0.8
"""Share of the rows with large n and k that a seed holds out."""

MIN_HELD_OUT, MIN_LEFT = 5, 8
"""Fewer rows than these say nothing, or fit nothing."""

SPLITS = ("random", "unseen", "largest", "large-nk", "wider")
"""random rows; whole shape families ((n, k) of a GEMM, (heads, KV heads) of attention); the largest m, longest prompt
or context; GEMMs with both n and k large; the widest GEMMs of all (n above a fourth of the largest)."""

SEEDLESS = ("largest", "wider")
"""Splits without a random choice: every seed holds out the same rows."""

WIDER_RATIO = 4.0
"""How far `wider` goes beyond what is left: a vocabulary of 256 k over the 65536 columns of the widest table."""


def held_out(rows: pd.DataFrame, task: Task, split: str, seed: int) -> Mask | None:
    """True where a row is held out; None where the split has no meaning for this kernel or leaves too little.

    Args:
        rows: merged rows of the task.
        task: names the shape families and sizes.
        split: one of `SPLITS`.
        seed: of the random choices; see `SEEDLESS`.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    if split == "random":
        held = rng.random(len(rows)) < HELD_OUT_FRAC
    elif split == "unseen":
        held = _families(rows, task, rng)
    elif split == "largest":
        held = _upper(rows[task.size].to_numpy(float), 1 - HELD_OUT_FRAC)
    elif split == "wider":
        held = _widest(rows, task)
    else:
        held = _large_weights(rows, task) & (rng.random(len(rows)) < LARGE_NK_FRAC)
    return held if MIN_HELD_OUT <= held.sum() <= len(rows) - MIN_LEFT else None


def _families(rows: pd.DataFrame, task: Task, rng: np.random.Generator) -> Mask:
    family = families(rows, task)
    n = int(family.max()) + 1
    chosen = rng.permutation(n)[: max(1, round(HELD_OUT_FRAC * n))]
    return np.isin(family, chosen)


def _upper(values: NDArray[np.float64], quantile: float) -> Mask:
    """Rows whose value is among the distinct values above a quantile of them."""
    distinct = np.unique(values)
    return np.asarray(values >= distinct[min(int(np.ceil(quantile * len(distinct))), len(distinct) - 1)])


def _widest(rows: pd.DataFrame, task: Task) -> Mask:
    """Rows whose first wide column is above the largest over `WIDER_RATIO`."""
    if not task.wide:
        return np.zeros(len(rows), dtype=bool)
    width = rows[task.wide[0]].to_numpy(float)
    return np.asarray(width > width.max() / WIDER_RATIO)


def _large_weights(rows: pd.DataFrame, task: Task) -> Mask:
    """Rows whose every wide column lies in the upper 40 % of its distinct values."""
    if not task.wide:
        return np.zeros(len(rows), dtype=bool)
    return np.asarray(np.logical_and.reduce([_upper(rows[name].to_numpy(float), 0.6) for name in task.wide]))
