"""Which requests belong to one conversation, stated by `session_id` or inferred from prefix-chained hash ids."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .trace import Ragged, Trace

CONTINUED_FRAC = 0.5
"""A prompt continues an earlier one where it repeats at least this share of it; less is a shared system prompt."""


def conversation_numbers(trace: Trace) -> NDArray[np.int64]:
    """A number per row, int64 (n,), equal within a conversation, counted from 0 in order of first appearance.

    Rows with a `session_id` belong to it. A row without one belongs to the latest earlier row whose prompt it
    continues (it repeats at least `CONTINUED_FRAC` of that prompt's blocks, and the deepest block they share was last
    used there); a row that continues none is a conversation of its own.
    """
    sessions = trace.columns.get("session_id")
    numbers: dict[Any, int] = {}
    parents = None if trace.hash_ids is None else _continued(trace.hash_ids)
    out = np.empty(len(trace), dtype=np.int64)
    for i in range(len(trace)):
        session = None if sessions is None else sessions[i]
        if session is not None:
            out[i] = numbers.setdefault(("session", session), len(numbers))
        elif parents is not None and parents[i] >= 0:
            out[i] = out[parents[i]]
        else:
            out[i] = numbers.setdefault(("row", i), len(numbers))
    return out


def _continued(ids: Ragged) -> list[int]:
    """Row that each row continues, -1 where none."""
    owner: dict[int, int] = {}
    parents = []
    counts = np.diff(ids.offsets).tolist()
    for i in range(len(ids)):
        row = ids.row(i) or ()
        deepest = _deepest(row, owner)
        parent = owner[row[deepest]] if deepest >= 0 else -1
        continues = parent >= 0 and deepest + 1 >= CONTINUED_FRAC * counts[parent]
        parents.append(parent if continues else -1)
        owner.update(dict.fromkeys(row, i))
    return parents


def _deepest(row: tuple[int, ...], owner: dict[int, int]) -> int:
    """Place of the last leading id that was seen before; ids are prefix-chained, so halving finds it."""
    low, high = -1, len(row) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if row[middle] in owner else (low, middle - 1)
    return low
