"""Cached KV outside the GPU: host memory, an SSD. Counts are the engine's KV blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from stepline.traces.errors import InvariantError

from .segment import Segment

if TYPE_CHECKING:
    from .channel import Channel
    from .contracts import EvictionPolicy
    from .sequence import Sequence


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
        self.refused_blocks = self.peak_blocks = self.wiped_blocks = 0
        self.free = capacity_blocks
        self._make_eviction = eviction
        self.wipe()

    def wipe(self) -> None:
        """Everything is gone; counts go on."""
        self.wiped_blocks += self.used
        self.eviction = self._make_eviction()
        self._expired = getattr(self.eviction, "expired", None)
        self._on_admit = getattr(self.eviction, "on_admit", None)
        self._leaves_only = getattr(self.eviction, "leaves_only", False)
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

    def admitted(self, seq: Sequence) -> None:
        """A sequence has been admitted to the GPU (for policies that read along)."""
        if self._on_admit is not None:
            self._on_admit(seq)

    def pin(self, segment: Segment, now_s: float, pinned: dict[Segment, None]) -> None:
        """Use one, which cannot be lost until `unpin`; `pinned` takes it in, after what it continues in the tier.

        A policy that evicts leaves only could not evict that either.
        """
        chain: list[Segment] = []
        above: Segment | None = segment
        while above is not None and above not in pinned:
            chain.append(above)
            above = above.parent if self._leaves_only else None
        for part in reversed(chain):
            if not part.refs:
                self.evictable -= part.blocks
            self.eviction.on_hit(part, now_s)
            part.refs += 1
            pinned[part] = None

    def unpin(self, pinned: dict[Segment, None], now_s: float) -> None:
        """They may be lost from now on, tails first, unless somebody else uses them too."""
        for segment in reversed(pinned):
            segment.refs -= 1
            if not segment.refs:
                segment.went_down = False
                self.evictable += segment.blocks
                self.eviction.on_release(segment, now_s)

    def store(
        self, segments: Iterable[Segment], now_s: float, ready_s: float, write: Channel | None = None
    ) -> None:
        """Take in segments of one prompt, head first, as far as there is room; what is here already is used.

        The write begins at `ready_s`; `write`: the channel (None: what arrives has paid its way).
        """
        pinned: dict[Segment, None] = {}
        for segment in segments:
            copy = None if segment.key is None else self.index.get(segment.key)
            if copy is not None:
                self.pin(copy, now_s, pinned)
            missing = segment.blocks - (0 if copy is None else copy.blocks)
            if missing > 0:
                self._write(segment, copy, missing, (now_s, ready_s, write), pinned)
        self.unpin(pinned, now_s)

    def _write(
        self,
        segment: Segment,
        copy: TierSegment | None,
        blocks: int,
        when: tuple[float, float, Channel | None],
        pinned: dict[Segment, None],
    ) -> None:
        """The blocks that the tier lacks of a segment; refused, and counted, if there is no room for them."""
        now_s, ready_s, write = when
        above = segment.parent
        parent = None if above is None or above.key is None else self.index.get(above.key)
        if parent is not None and self._leaves_only:
            self.pin(parent, now_s, pinned)
        if not self._make_room(blocks, now_s):
            self.refused_blocks += blocks
            return
        if copy is None:
            copy = self._new(segment, parent, now_s)
            pinned[copy] = None
        copy.grow(segment.blocks, now_s, ready_s if write is None else write.send(blocks, ready_s))
        self.free -= blocks
        self.stored_blocks += blocks
        self.peak_blocks = max(self.peak_blocks, self.used)

    def _new(self, segment: Segment, parent: TierSegment | None, now_s: float) -> TierSegment:
        """An empty copy, held."""
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

    def figures(self, block_size: int) -> dict[str, float]:
        """What it has done; tokens, blocks, seconds."""
        return {
            "capacity_blocks": self.capacity_blocks,
            "peak_used_blocks": self.peak_blocks,
            "hit_tokens": self.hit_blocks * block_size,
            "loaded_blocks": self.loaded_blocks,
            "stored_blocks": self.stored_blocks,
            "evicted_blocks": self.evicted_blocks,
            "refused_blocks": self.refused_blocks,
            "read_busy_s": self.read.busy_s,
            "write_busy_s": self.write.busy_s,
        }

    def check(self) -> None:
        """Raise InvariantError unless, after a run, everything used is evictable and was stored and not lost."""
        if self.free < 0 or self.used != self.evictable:
            raise InvariantError(
                f"tier {self.name}: free {self.free}, {self.used} used, {self.evictable} evictable"
            )
        if self.stored_blocks - self.evicted_blocks - self.wiped_blocks != self.used:
            raise InvariantError(
                f"tier {self.name}: {self.stored_blocks} stored, {self.evicted_blocks} evicted, {self.used} used"
            )
        keyed = sum([s.blocks for s in self.index.values()])
        if keyed > self.used:
            raise InvariantError(f"tier {self.name}: {keyed} blocks with ids, {self.used} used")
