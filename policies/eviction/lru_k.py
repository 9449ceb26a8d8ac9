"""LRU-K: recency of the K-th last use."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .base import RankedEviction
from .ghosts import Ghosts

if TYPE_CHECKING:
    from stepline.sim.engine.segment import Segment
    from stepline.sim.engine.sequence import Sequence


class LruKPolicy(RankedEviction):
    """Evicts the segment whose K-th last use is longest ago; those used less than K times go first, LRU among them.

    Uses are counted across evictions: history is kept for as many lost keys as there are cached ones (the retained
    information period). Source: O'Neil, O'Neil & Weikum, SIGMOD 1993; K = 2 is theirs.
    """

    def __init__(self, *, k: int = 2) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k: got {k}, expected an integer >= 1")
        self.k = k
        self._count = 0
        self._uses: dict[int | Segment, deque[int]] = {}
        self._lost = Ghosts(self._uses.pop)
        self._live = 0

    def inserted(self, segment: Segment, now_s: float) -> None:
        """A use, perhaps not its first."""
        self._live += 1
        self._lost.pop(segment.key)
        self._use(segment)

    def on_admit(self, seq: Sequence) -> None:
        """Histories are looked up before the prompt makes room for itself."""
        self._lost.call(seq.hash_ids or ())

    def hit(self, segment: Segment, now_s: float) -> None:
        """A use."""
        self._use(segment)

    def _use(self, segment: Segment) -> None:
        self._count += 1
        self._uses.setdefault(name(segment), deque(maxlen=self.k)).append(self._count)

    def rank(self, segment: Segment, now_s: float) -> int:
        """Number of the K-th last use; 0 if there were fewer."""
        uses = self._uses[name(segment)]
        return uses[0] if len(uses) == self.k else 0

    def forget(self, segment: Segment) -> None:
        """Content is lost, history is kept for a while."""
        self._live -= 1
        if segment.key is None:
            del self._uses[segment]
            return
        self._lost.add(segment.key)
        self._lost.trim(self._live + 1)


def name(segment: Segment) -> int | Segment:
    """What its history is kept under: its key, or itself where it has none."""
    return segment if segment.key is None else segment.key
