"""Belady's optimum: what is needed again last goes first. Knows the future of the trace."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import RankedEviction
from .lazy_heap import LazyHeap

if TYPE_CHECKING:
    from stepline.sim.engine.segment import Segment
    from stepline.sim.engine.sequence import Sequence
    from stepline.traces.trace import Ragged

NEVER = 2**62


class OracleOptimalPolicy(RankedEviction):
    """Evicts the segment whose next request is farthest in the trace; among equals the one deepest in its prompt.

    Optimal for equal blocks accessed in trace order where new content may be refused (Belady 1966): a newcomer that is
    needed later than all others is the victim itself. That is over a whole replay, in whole blocks: in a measured part
    of one, or where last blocks are filled partly, another policy can be a block ahead. (Who is told which half is
    measured gets up to 1.2 points more on public traces; like the published optima, this one is not told.) In the engine
    it is a bound only as far as requests are admitted in the order of the trace, and a replica of several sees the
    requests of all.
    """

    oracle = True

    def __init__(self) -> None:
        super().__init__()
        self._rows: array[int] = array(
            "q"
        )  # rows of the trace by key: `_span[key]` cuts out those of one key
        self._span: dict[int | None, list[int]] = {}
        self._row = -1
        self._due = LazyHeap()  # the same segments by next use, soonest first: ranks that time has overtaken

    def foresee(self, hash_ids: Ragged | None) -> None:
        """Take in the ids of every request of the trace, in order."""
        if hash_ids is None or not len(hash_ids.values):
            return
        rows = np.repeat(np.arange(len(hash_ids)), np.diff(hash_ids.offsets))
        order = np.argsort(hash_ids.values, kind="stable")
        keys, first = np.unique(hash_ids.values[order], return_index=True)
        end = np.append(first[1:], len(order))
        self._rows = array("q", rows[order].astype(np.int64).tobytes())
        spans = zip(first.tolist(), end.tolist(), strict=True)
        self._span = {key: [a, b] for key, (a, b) in zip(keys.tolist(), spans, strict=True)}

    def on_admit(self, seq: Sequence) -> None:
        """The trace is read up to this request; what had been due by now is ranked anew."""
        self._row = max(self._row, seq.index)
        while (segment := self._due.first()) is not None and self._due.lowest() <= self._row:
            self._due.discard(segment)
            if self._heap.discard(segment):
                super().on_release(segment, 0.0)

    def next_row(self, key: int | None) -> int:
        """The first request after the last admitted one that has `key`; `NEVER` if none has."""
        span = self._span.get(key)
        if span is None:
            return NEVER
        while span[0] < span[1] and self._rows[span[0]] <= self._row:
            span[0] += 1
        return self._rows[span[0]] if span[0] < span[1] else NEVER

    def rank(self, segment: Segment, now_s: float) -> Any:
        """Farthest next use first, then deepest."""
        row = self.next_row(segment.key)
        if row < NEVER:
            self._due.push(segment, row)
        return (-row, -segment.start_blocks)

    def on_hit(self, segment: Segment, now_s: float) -> None:
        """Pinned."""
        self._due.discard(segment)
        super().on_hit(segment, now_s)

    def on_evict(self, segment: Segment) -> None:
        """Gone."""
        self._due.discard(segment)
        super().on_evict(segment)
