"""Evictable segments in order of a rank, with lazy removal: what most eviction policies are made of."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepline.sim.engine.segment import Segment

SLACK = 64
"""Stale entries that are always tolerated before a heap is rebuilt."""


class LazyHeap:
    """A set of segments with ranks, lowest first; equal ranks in order of `push`.

    `push` and `first` cost O(log n) amortised, `discard` O(1): what was discarded is dropped when it surfaces, and
    all of it once it outnumbers what is left.

    >>> heap = LazyHeap()
    >>> heap.push("a", 2), heap.push("b", 1), heap.push("a", 0)
    (None, None, None)
    >>> heap.first(), len(heap)
    ('a', 2)
    """

    __slots__ = ("_count", "_entry", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int, Segment]] = []
        self._entry: dict[Segment, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._entry)

    def __contains__(self, segment: Segment) -> bool:
        return segment in self._entry

    def push(self, segment: Segment, rank: Any) -> None:
        """Put a segment in, or give it a new rank."""
        self._count += 1
        self._entry[segment] = self._count
        heappush(self._heap, (rank, self._count, segment))
        if len(self._heap) > 2 * len(self._entry) + SLACK:
            self._heap = [e for e in self._heap if self._entry.get(e[2]) == e[1]]
            heapify(self._heap)

    def discard(self, segment: Segment) -> bool:
        """Take a segment out; False if it was not in."""
        return self._entry.pop(segment, None) is not None

    def first(self) -> Segment | None:
        """The segment of the lowest rank, or None."""
        top = self._top()
        return None if top is None else top[2]

    def lowest(self) -> Any:
        """The lowest rank, or None."""
        top = self._top()
        return None if top is None else top[0]

    def _top(self) -> tuple[Any, int, Segment] | None:
        heap, entry = self._heap, self._entry
        while heap:
            if entry.get(heap[0][2]) == heap[0][1]:
                return heap[0]
            heappop(heap)
        return None
