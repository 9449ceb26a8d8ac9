"""Most recently used goes first: right for loops larger than the cache, wrong for almost everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import RankedEviction

if TYPE_CHECKING:
    from stepline.sim.engine.segment import Segment


class MruPolicy(RankedEviction):
    """Evicts what was released last, tail first within a sequence.

    Best for a cyclic scan beyond capacity, where LRU hits nothing (Chou & DeWitt, "An evaluation of buffer management
    strategies for relational database systems", VLDB 1985): what was cached first stays and is hit once a cycle.
    """

    leaves_only = True

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._request = 0

    def on_admit(self, request: object) -> None:
        """Segments of one request rank together."""
        self._request += 1

    def rank(self, segment: Segment, now_s: float) -> tuple[int, int]:
        """The newest request first, and its tail before its head."""
        self._count += 1
        return (-self._request, self._count)
