"""Content lives for a fixed time after its last use."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepline.sim.engine.segment import Segment


class TtlPolicy:
    """LRU, and content unused for `ttl_s` seconds is gone even if there is room for it.

    Default 300 s: the prompt-cache lifetime of hosted APIs (Anthropic's prompt caching: 5 minutes, refreshed by use).
    """

    ignores_inserts = True

    def __init__(self, *, ttl_s: float = 300.0) -> None:
        if not ttl_s > 0:
            raise ValueError(f"ttl_s: got {ttl_s}, expected a number > 0")
        self.ttl_s = ttl_s
        self._released_s: OrderedDict[Segment, float] = OrderedDict()

    def on_insert(self, segment: Segment, now_s: float) -> None:
        """Nothing to note: the clock starts at release."""

    def on_hit(self, segment: Segment, now_s: float) -> None:
        """In use: the clock stops."""
        self._released_s.pop(segment, None)

    def on_release(self, segment: Segment, now_s: float) -> None:
        """The clock starts."""
        self._released_s[segment] = now_s

    def victim(self) -> Segment:
        """What was released longest ago."""
        return next(iter(self._released_s))

    def on_evict(self, segment: Segment) -> None:
        """Gone, by age or for room."""
        del self._released_s[segment]

    def expired(self, now_s: float) -> Iterator[Segment]:
        """Evictable segments unused for longer than the lifetime; the cache drops each before it asks for the next."""
        while self._released_s:
            segment, at_s = next(iter(self._released_s.items()))
            if now_s - at_s <= self.ttl_s:
                return
            yield segment
