"""Cached KV outside the GPU: host memory, an SSD. Counts are the engine's KV blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from stepline.traces.errors import InvariantError

from .segment import Segment

if TYPE_CHECKING:
    from .channel import Channel
    from .contracts import EvictionPolicy


class TierSegment(Segment):
    """A segment's copy in a tier. What was written last is readable from `ready_s` on, `ready_blocks` of it before."""

    __slots__ = ("ready_blocks", "ready_s")

    def __init__(self, source: Segment, parent: Segment | None) -> None:
        super().__init__(source.key, 0, source.start_blocks, source, parent)
        self.refs = 0
        self.ready_s = 0.0
        self.ready_blocks = 0

    def readable(self, now_s: float) -> int:
        """Blocks, from its start, that are there."""
        return self.blocks if self.ready_s <= now_s else min(self.ready_blocks, self.blocks)

    def grow(self, blocks: int, now_s: float, ready_s: float) -> None:
        """Have `blocks` in all once a transfer ends at `ready_s`."""
        self.ready_blocks = self.readable(now_s)
        self.blocks, self.ready_s = blocks, ready_s


class Tier:
    """Segments under an eviction policy of its own, the same classes as the GPU's.

    `on_loss(segment, now_s)`: called before one loses blocks (the next tier may take it in). A segment with `refs` is
    being read or written and cannot be lost. Invariant: free + blocks of all segments = capacity, free >= 0.
    """

    def __init__(
        self,
        name: str,
        capacity_blocks: int,
        eviction: Callable[[], EvictionPolicy],
        write: Channel,
        read: Channel,
    ) -> None:
        self.name = name
        self.capacity_blocks = capacity_blocks
        self.write, self.read = write, read
        self.on_loss: Callable[[Segment, float], None] | None = None
        self.hit_blocks = self.loaded_blocks = self.stored_blocks = self.evicted_blocks = 0
        self.refused_blocks = self.peak_blocks = 0
        self._make_eviction = eviction
        self.wipe()

    def wipe(self) -> None:
        """Everything is gone; counts go on."""
        self.eviction = self._make_eviction()
        self._expired = getattr(self.eviction, "expired", None)
        self.index: dict[int, TierSegment] = {}
        self.free = self.capacity_blocks
        self.evictable = 0

    # -- questions --------------------------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Blocks with content, or being written."""
        return self.capacity_blocks - self.free

    def find(self, key: int, now_s: float) -> TierSegment | None:
        """The copy of a segment, if any of it is readable."""
        found = self.index.get(key)
        return found if found is not None and found.readable(now_s) else None

    # -- changes ----------------------------------------------------------------------------------------------------

    def expire(self, now_s: float) -> None:
        """Drop content whose time is over (for policies that give it one)."""
        for segment in () if self._expired is None else self._expired(now_s):
            self._lose(segment, segment.blocks, now_s)

    def hold(self, segment: Segment, now_s: float) -> None:
        """Pin one: it is used, and cannot be lost meanwhile."""
        if not segment.refs:
            self.evictable -= segment.blocks
        self.eviction.on_hit(segment, now_s)
        segment.refs += 1

    def unhold(self, segment: Segment, now_s: float) -> None:
        """It may be lost from now on, unless somebody else uses it too."""
        segment.refs -= 1
        if not segment.refs:
            self.evictable += segment.blocks
            self.eviction.on_release(segment, now_s)

    def store(
        self, segments: Iterable[Segment], now_s: float, ready_s: float, write: Channel | None = None
    ) -> None:
        """Take in segments of one prompt, head first, as far as there is room; what is here already is used.

        The write begins at `ready_s`; `write`: the channel (None: what arrives has paid its way).
        """
        held = [copy for s in segments if (copy := self._take_in(s, now_s, ready_s, write)) is not None]
        for copy in reversed(held):  # a tail is lost before its head
            self.unhold(copy, now_s)

    def _take_in(
        self, segment: Segment, now_s: float, ready_s: float, write: Channel | None
    ) -> TierSegment | None:
        """A held copy of the segment; None, and counted, if there is no room for it."""
        copy = None if segment.key is None else self.index.get(segment.key)
        if copy is not None:
            self.hold(copy, now_s)
        missing = segment.blocks - (0 if copy is None else copy.blocks)
        if missing <= 0:
            return copy
        if not self._make_room(missing, now_s):
            self.refused_blocks += missing
            return copy
        if copy is None:
            copy = self._new(segment, now_s)
        there_s = ready_s if write is None else write.send(missing, ready_s)
        copy.grow(segment.blocks, now_s, there_s)
        self.free -= missing
        self.stored_blocks += missing
        self.peak_blocks = max(self.peak_blocks, self.used)
        return copy

    def _new(self, segment: Segment, now_s: float) -> TierSegment:
        above = segment.parent
        parent = None if above is None or above.key is None else self.index.get(above.key)
        copy = TierSegment(segment, parent)
        copy.refs = 1
        if segment.key is not None:
            self.index[segment.key] = copy
        self.eviction.on_insert(copy, now_s)
        return copy

    def _make_room(self, blocks: int, now_s: float) -> bool:
        """Evict until `blocks` are free; False, and nothing happens, if so many cannot be."""
        short = blocks - self.free
        if short > self.evictable:
            return False
        while short > 0:
            segment = self.eviction.victim()
            if self.on_loss is not None:
                self.on_loss(segment, now_s)
            lost = min(short, segment.blocks)
            self._lose(segment, lost, now_s)
            short -= lost
        return True

    def _lose(self, segment: Segment, blocks: int, now_s: float) -> None:
        segment.blocks -= blocks
        self.free += blocks
        self.evictable -= blocks
        self.evicted_blocks += blocks
        if not segment.blocks:
            self.eviction.on_evict(segment)
            if segment.key is not None:
                del self.index[segment.key]

    def check(self) -> None:
        """Raise InvariantError unless the counts are those of the segments."""
        if self.free < 0 or self.evictable < 0 or self.used < self.evictable:
            raise InvariantError(f"tier {self.name}: free {self.free}, evictable {self.evictable}")
        keyed = sum([s.blocks for s in self.index.values()])
        if keyed > self.used:
            raise InvariantError(f"tier {self.name}: {keyed} blocks with ids, {self.used} used")
