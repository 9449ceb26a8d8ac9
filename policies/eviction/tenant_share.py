"""The tenant that caches most for its weight gives way."""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from stepline.traces.errors import InvariantError

if TYPE_CHECKING:
    from stepline.sim.engine.segment import Segment


class TenantSharePolicy:
    """Evicts from the tenant with the most evictable blocks, LRU within it, so that none crowds the others out.

    Requests without a tenant are one tenant together. The max-min share of the cache that this converges to is the
    one of Pu et al., "FairRide: Near-Optimal, Fair Cache Sharing", NSDI 2016, without its blocking.
    """

    ignores_inserts = True

    def __init__(self) -> None:
        self._queues: dict[str | None, OrderedDict[Segment, int]] = {}
        self._blocks: dict[str | None, int] = {}
        self._heap: list[tuple[int, int, str | None]] = []
        self._count = 0

    def on_insert(self, segment: Segment, now_s: float) -> None:
        """Nothing to note: shares are of evictable blocks."""

    def on_hit(self, segment: Segment, now_s: float) -> None:
        """Pinned: out of its tenant's queue."""
        self._remove(segment)

    def on_release(self, segment: Segment, now_s: float) -> None:
        """To the end of its tenant's queue."""
        self._queues.setdefault(segment.tenant, OrderedDict())[segment] = segment.blocks
        self._add(segment.tenant, segment.blocks)

    def victim(self) -> Segment:
        """The head of the queue of the tenant with most blocks."""
        heap = self._heap
        while heap:
            blocks, _, tenant = heap[0]
            if blocks == -self._blocks[tenant] and self._queues[tenant]:
                return self._settled(tenant)
            heappop(heap)
        raise InvariantError("TenantSharePolicy: asked for a victim, but nothing is evictable")

    def on_evict(self, segment: Segment) -> None:
        """Out of its tenant's queue."""
        self._remove(segment)

    def _settled(self, tenant: str | None) -> Segment:
        """The tenant's oldest segment; blocks that it has lost since it was released are written off."""
        segment, noted = next(iter(self._queues[tenant].items()))
        if noted != segment.blocks:
            self._queues[tenant][segment] = segment.blocks
            self._add(tenant, segment.blocks - noted)
            return self.victim()
        return segment

    def _remove(self, segment: Segment) -> None:
        queue = self._queues.get(segment.tenant)
        noted = None if queue is None else queue.pop(segment, None)
        if noted is not None:
            self._add(segment.tenant, -noted)

    def _add(self, tenant: str | None, blocks: int) -> None:
        self._blocks[tenant] = now = self._blocks.get(tenant, 0) + blocks
        self._count += 1
        heappush(self._heap, (-now, self._count, tenant))
        if len(self._heap) > 2 * len(self._blocks) + 64:
            self._heap = []
            for name, held in self._blocks.items():
                self._count += 1
                heappush(self._heap, (-held, self._count, name))
