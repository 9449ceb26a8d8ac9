"""Least recently used, tail first: vLLM V1's free queue."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepline.sim.engine.segment import Segment


class LruPolicy:
    """Evicts what was released longest ago; a sequence releases its tail before its head.

    Source: vLLM V1 `FreeKVCacheBlockQueue` and `KVCacheManager.free` (blocks appended in reverse order).
    """

    ignores_inserts = True

    def __init__(self) -> None:
        self._queue: OrderedDict[Segment, None] = OrderedDict()

    @property
    def queue(self) -> OrderedDict[Segment, None] | None:
        """The queue itself, for a cache to use in place of the methods below (None: a subclass may have others)."""
        return self._queue if type(self) is LruPolicy else None

    def on_insert(self, segment: Segment, now_s: float) -> None:
        """Nothing to note: order is by release."""

    def on_hit(self, segment: Segment, now_s: float) -> None:
        """Pinned: out of the queue."""
        self._queue.pop(segment, None)

    def on_release(self, segment: Segment, now_s: float) -> None:
        """To the end of the queue."""
        self._queue[segment] = None

    def victim(self) -> Segment:
        """The head of the queue."""
        return next(iter(self._queue))

    def on_evict(self, segment: Segment) -> None:
        """Out of the queue."""
        del self._queue[segment]
