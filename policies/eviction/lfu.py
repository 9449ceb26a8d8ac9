"""Least frequently used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import CountingEviction

if TYPE_CHECKING:
    from stepline.sim.engine.segment import Segment


class LfuPolicy(CountingEviction):
    """Evicts what was used least often since it was computed; among equals what was released longest ago.

    `aging`: a segment's rank is its uses plus the rank of the last victim at the time, so that old fame fades
    (LFU with dynamic aging: Arlitt et al., "Evaluating content management techniques for Web proxy caches", 2000).
    """

    def __init__(self, *, aging: bool = False) -> None:
        super().__init__()
        self.aging = aging
        self._age = 0

    def rank(self, segment: Segment, now_s: float) -> int:
        """Uses, plus the age of the cache."""
        return self.uses[segment] + self._age

    def on_evict(self, segment: Segment) -> None:
        """The cache ages by its victims."""
        if self.aging and segment in self._heap:
            self._age = max(self._age, self._heap.lowest())
        super().on_evict(segment)
