"""2Q: a probation queue keeps one-time content from washing out what is used again."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from stepline.traces.errors import InvariantError

from .ghosts import Ghosts
from .lazy_heap import LazyHeap

if TYPE_CHECKING:
    from stepline.sim.engine.segment import Segment
    from stepline.sim.engine.sequence import Sequence


class TwoQPolicy:
    """New content waits in a FIFO (A1in); only keys that return after leaving it enter the LRU list (Am).

    `in_frac`: share of the cached segments that A1in may hold before it is the one that gives way; `ghost_frac`: keys
    remembered after leaving A1in (A1out), as a share of the cached segments.
    Source: Johnson & Shasha, "2Q", VLDB 1994, the full version with Kin = 25 % and Kout = 50 %. Order in A1in is that
    of release, so that a prompt's tail leaves before its head.
    """

    def __init__(self, *, in_frac: float = 0.25, ghost_frac: float = 0.5) -> None:
        for name, value in (("in_frac", in_frac), ("ghost_frac", ghost_frac)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value}, expected a fraction in [0, 1]")
        self.in_frac, self.ghost_frac = in_frac, ghost_frac
        self._probation = LazyHeap()
        self._main: OrderedDict[Segment, None] = OrderedDict()
        self._place: dict[
            Segment, int
        ] = {}  # of those on probation: order of first release (0: not released yet)
        self._ghosts = Ghosts()
        self._live = 0
        self._count = 0

    def on_insert(self, segment: Segment, now_s: float) -> None:
        """On probation, unless the key was seen not long ago."""
        self._live += 1
        if not self._ghosts.pop(segment.key):
            self._place[segment] = 0

    def on_admit(self, seq: Sequence) -> None:
        """Keys are looked up before the prompt makes room for itself."""
        self._ghosts.call(seq.hash_ids or ())

    def on_hit(self, segment: Segment, now_s: float) -> None:
        """Pinned; a hit on probation changes nothing else."""
        if self._place.get(segment) is None:
            self._main.pop(segment, None)
        else:
            self._probation.discard(segment)

    def on_release(self, segment: Segment, now_s: float) -> None:
        """Back to its place on probation, or to the young end of the main list."""
        place = self._place.get(segment)
        if place is None:
            self._main[segment] = None
            return
        self._count += 1
        self._place[segment] = place = place or self._count
        self._probation.push(segment, place)

    def victim(self) -> Segment:
        """The oldest on probation while those are too many, else the oldest of the main list."""
        segment = None
        if not self._main or len(self._place) > self.in_frac * self._live:
            segment = self._probation.first()
        if segment is None:
            segment = next(iter(self._main), None)
        if segment is None:
            raise InvariantError("TwoQPolicy: asked for a victim, but nothing is evictable")
        return segment

    def on_evict(self, segment: Segment) -> None:
        """Keys that leave probation are remembered for a while."""
        self._live -= 1
        if self._place.pop(segment, None) is None:
            self._main.pop(segment, None)
            return
        self._probation.discard(segment)
        if segment.key is not None:
            self._ghosts.add(segment.key)
            self._ghosts.trim(self.ghost_frac * (self._live + 1))
