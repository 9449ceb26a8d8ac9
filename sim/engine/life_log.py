"""What befalls sequences between admission and end: preemptions always, chunks of prompts where steps are recorded."""

from __future__ import annotations

from array import array
from math import nan
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .result import CHUNK_COLUMNS, PREEMPTION_COLUMNS

if TYPE_CHECKING:
    from .sequence import Sequence


class LifeLog:
    """Rows of `PREEMPTION_COLUMNS`, and of `CHUNK_COLUMNS` if `with_chunks`. Shared by all replicas."""

    def __init__(self, *, with_chunks: bool = False) -> None:
        self.with_chunks = with_chunks
        self._preempted = array("d")
        self._chunks = array("d")
        self._away: dict[Sequence, int] = {}

    def preempted(self, seq: Sequence, replica: int, now_s: float) -> None:
        """A sequence gives way."""
        self._away[seq] = len(self._preempted)
        self._preempted.extend((seq.index, replica, now_s, nan))

    def resumed(self, seq: Sequence, now_s: float) -> None:
        """It is admitted again (on another replica without having given way: nothing to note)."""
        row = self._away.pop(seq, None)
        if row is not None:
            self._preempted[row + 3] = now_s

    def chunks(
        self, chunks: list[tuple[Sequence, int]], replica: int, start_s: float, duration_s: float
    ) -> None:
        """The chunks of a step."""
        for seq, tokens in chunks:
            self._chunks.extend((seq.index, replica, start_s, duration_s, tokens))

    def preemption_table(self) -> pd.DataFrame:
        """One row a preemption, in order of time."""
        return _table(self._preempted, PREEMPTION_COLUMNS, "preempted_s")

    def chunk_table(self) -> pd.DataFrame | None:
        """One row a chunk, in order of its step's start; None unless `with_chunks`."""
        if not self.with_chunks:
            return None
        return _table(self._chunks, CHUNK_COLUMNS, "start_s")


def _table(flat: array[float], columns: dict[str, type], by: str) -> pd.DataFrame:
    """Rows in order of column `by`, equal ones as they came."""
    rows = np.array(flat, dtype=np.float64).reshape(-1, len(columns))
    rows = rows[np.argsort(rows[:, list(columns).index(by)], kind="stable")]
    return pd.DataFrame({name: rows[:, i].astype(kind) for i, (name, kind) in enumerate(columns.items())})
