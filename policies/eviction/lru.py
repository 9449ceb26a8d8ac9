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
    in_order_of_release = True

    def __init__(self) -> None:
        self.queue: OrderedDict[Segment, None] = OrderedDict()

    def on_insert(self, segment: Segment, now_s: float) -> None:
        """Nothing to note: order is by release."""

    def on_hit(self, segment: Segment, now_s: float) -> None:
        """Pinned: out of the queue."""
        self.queue.pop(segment, None)

    def on_release(self, segment: Segment, now_s: float) -> None:
        """To the end of the queue."""
        self.queue[segment] = None

    def victim(self) -> Segment:
        """The head of the queue."""
        return next(iter(self.queue))

    def on_evict(self, segment: Segment) -> None:
        """Out of the queue."""
        del self.queue[segment]
