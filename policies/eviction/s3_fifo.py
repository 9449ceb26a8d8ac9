"""S3-FIFO: three FIFO queues, quick demotion of what is used once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepline.traces.errors import InvariantError

from .ghosts import Ghosts
from .lazy_heap import LazyHeap

if TYPE_CHECKING:
    from stepline.sim.engine.segment import Segment
    from stepline.sim.engine.sequence import Sequence

MAX_USES = 3
"""Uses are counted in two bits (section 4 of the paper)."""


class S3FifoPolicy:
    """A small FIFO for new content, a main FIFO for what was used again, and a ghost queue of keys lost from the small.

    Leaving the small queue, a segment used more than once since it came moves to the main one, others are evicted
    and remembered; leaving the main queue, a used one goes round again with one use less. `small_frac`: the small
    queue's share of the cached segments (the paper's 10 %); the ghosts are as many as the main one may hold. Place in a
    queue is by first release, so that a prompt's tail leaves before its head. A key is looked up before room is made for it
    (the paper: after), since a whole prompt makes room at once.
    Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023, Algorithm 1.
    """

    def __init__(self, *, small_frac: float = 0.1) -> None:
        if not 0 < small_frac < 1:
            raise ValueError(f"small_frac: got {small_frac}, expected a fraction in (0, 1)")
        self.small_frac = small_frac
        self._small, self._main = LazyHeap(), LazyHeap()
        self._uses: dict[Segment, int] = {}
        self._place: dict[Segment, int] = {}
        self._is_small: dict[Segment, None] = {}
        self._ghosts = Ghosts()
        self._count = 0

    def on_insert(self, segment: Segment, now_s: float) -> None:
        """Into the small queue, or the main one if its key is remembered."""
        self._uses[segment] = 0
        if not self._ghosts.pop(segment.key):
            self._is_small[segment] = None

    def on_admit(self, seq: Sequence) -> None:
        """Keys are looked up before the prompt makes room for itself."""
        self._ghosts.call(seq.hash_ids or ())

    def on_hit(self, segment: Segment, now_s: float) -> None:
        """Pinned; one use more."""
        self._uses[segment] = min(self._uses[segment] + 1, MAX_USES)
        self._small.discard(segment)
        self._main.discard(segment)

    def on_release(self, segment: Segment, now_s: float) -> None:
        """Back to its place."""
        place = self._place.get(segment) or self._next()
        self._place[segment] = place
        (self._small if segment in self._is_small else self._main).push(segment, place)

    def victim(self) -> Segment:
        """The first unused segment of the small queue while that is crowded, else of the main one."""
        if len(self._is_small) >= self.small_frac * len(self._uses) or not len(self._main):
            while (segment := self._small.first()) is not None:
                if self._uses[segment] <= 1:
                    return segment
                self._promote(segment)
        while (segment := self._main.first()) is not None:
            if not self._uses[segment]:
                return segment
            self._uses[segment] -= 1
            self._requeue(segment)
        raise InvariantError("S3FifoPolicy: asked for a victim, but nothing is evictable")

    def _promote(self, segment: Segment) -> None:
        self._small.discard(segment)
        del self._is_small[segment]
        self._uses[segment] = 0
        self._requeue(segment)

    def _requeue(self, segment: Segment) -> None:
        self._place[segment] = place = self._next()
        self._main.push(segment, place)

    def _next(self) -> int:
        self._count += 1
        return self._count

    def on_evict(self, segment: Segment) -> None:
        """Keys lost from the small queue are remembered, as many as the main queue may hold."""
        del self._uses[segment]
        self._place.pop(segment, None)
        self._main.discard(segment)
        self._small.discard(segment)
        if segment in self._is_small:
            del self._is_small[segment]
            if segment.key is not None:
                self._ghosts.add(segment.key)
            self._ghosts.trim((1.0 - self.small_frac) * (len(self._uses) + 1))
