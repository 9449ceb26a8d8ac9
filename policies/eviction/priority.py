"""Low-priority content goes first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import RankedEviction

if TYPE_CHECKING:
    from stepline.sim.engine.segment import Segment


class PriorityEvictionPolicy(RankedEviction):
    """Evicts the least important content, LRU among equals.

    A smaller `priority` is more important, as in vLLM's priority scheduling. A segment has the priority of the request
    that computed it. Compare TensorRT-LLM's `KvCacheRetentionConfig`, which ranks blocks by priority, then by use.
    """

    def rank(self, segment: Segment, now_s: float) -> int:
        """Most important last."""
        return -segment.priority
