"""What the eviction policies share: victims in order of a rank, perhaps leaves only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepline.traces.errors import InvariantError

from .lazy_heap import LazyHeap

if TYPE_CHECKING:
    from stepline.sim.engine.segment import Segment


class RankedEviction:
    """Evicts the segment of the lowest rank; a subclass says what the rank is.

    The rank is taken when a segment is released (and so becomes evictable); equal ranks go in order of release, which
    is tail first within a sequence. Content without a key (generated tokens that the trace does not identify) is
    ranked like any that was used once: a real engine cannot know that it will never be hit (see `outputs-first`).
    `leaves_only`: a segment is evictable only while no cached segment continues it, as in a radix tree; else the loss
    of a prompt's head leaves a tail that nothing can reach until the head is computed again.
    """

    leaves_only = False

    def __init__(self) -> None:
        self._heap = LazyHeap()
        self._children: dict[Segment, int] = {}
        self._inner: dict[Segment, Any] = {}

    # -- for subclasses ---------------------------------------------------------------------------------------------

    def rank(self, segment: Segment, now_s: float) -> Any:
        """Sort key of a segment that has just been released; the lowest goes first."""
        raise NotImplementedError

    def inserted(self, segment: Segment, now_s: float) -> None:
        """A segment is new."""

    def hit(self, segment: Segment, now_s: float) -> None:
        """A segment was hit."""

    def forget(self, segment: Segment) -> None:
        """A segment is gone."""

    # -- the contract -----------------------------------------------------------------------------------------------

    def on_insert(self, segment: Segment, now_s: float) -> None:
        """Note a new segment."""
        if self.leaves_only and segment.parent is not None:
            self._children[segment.parent] = self._children.get(segment.parent, 0) + 1
        self.inserted(segment, now_s)

    def on_hit(self, segment: Segment, now_s: float) -> None:
        """Pinned: no longer a candidate."""
        if not self._heap.discard(segment):
            self._inner.pop(segment, None)
        self.hit(segment, now_s)

    def on_release(self, segment: Segment, now_s: float) -> None:
        """A candidate at its rank."""
        if self._children.get(segment):
            self._inner[segment] = self.rank(segment, now_s)
        else:
            self._heap.push(segment, self.rank(segment, now_s))

    def victim(self) -> Segment:
        """The lowest rank."""
        segment = self._heap.first()
        while segment is not None and self._children.get(segment):
            self._inner[segment] = self._heap.lowest()  # something has grown on it since it was released
            self._heap.discard(segment)
            segment = self._heap.first()
        if segment is None:
            raise InvariantError(f"{type(self).__name__}: asked for a victim, but nothing is evictable")
        return segment

    def on_evict(self, segment: Segment) -> None:
        """Forget it; its parent may have become a leaf."""
        self._heap.discard(segment)
        if self.leaves_only:
            self._children.pop(segment, None)
            if segment.parent is not None:
                self._orphan(segment.parent)
        self.forget(segment)

    def _orphan(self, parent: Segment) -> None:
        left = self._children.get(parent, 0) - 1
        if left > 0:
            self._children[parent] = left
            return
        self._children.pop(parent, None)
        if parent in self._inner:
            self._heap.push(parent, self._inner.pop(parent))


class CountingEviction(RankedEviction):
    """A `RankedEviction` that knows how often each cached segment was used (its computation counts once)."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: dict[Segment, int] = {}

    def inserted(self, segment: Segment, now_s: float) -> None:
        """First use."""
        self.uses[segment] = 1

    def hit(self, segment: Segment, now_s: float) -> None:
        """One more."""
        self.uses[segment] += 1

    def forget(self, segment: Segment) -> None:
        """Frequency lasts as long as the content."""
        del self.uses[segment]
