"""ARC: recency and frequency share the cache as recent misses advise."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from stepline.traces.errors import InvariantError

from .ghosts import Ghosts

if TYPE_CHECKING:
    from stepline.sim.engine.segment import Segment
    from stepline.sim.engine.sequence import Sequence


class ArcPolicy:
    """Two LRU lists, of segments used once (T1) and more often (T2), and ghosts of what each has lost (B1, B2).

    A miss on a ghost moves the target size of T1 towards the list that lost it. The cache size c of the paper is the
    number of cached segments; pinned ones count in their list but cannot be chosen. Content without a key goes
    first. Room is made before the target moves (the paper: after), so that a key in B2 breaks no tie.
    Source: Megiddo & Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003, Figure 4.
    """

    def __init__(self) -> None:
        self._once: OrderedDict[Segment, None] = OrderedDict()
        self._often: OrderedDict[Segment, None] = OrderedDict()
        self._is_often: dict[Segment, bool] = {}
        self._n_often = 0
        self._once_ghosts = Ghosts()
        self._often_ghosts = Ghosts()
        self._target = 0.0

    @property
    def _n_once(self) -> int:
        return len(self._is_often) - self._n_often

    def on_insert(self, segment: Segment, now_s: float) -> None:
        """Used once, or again if a ghost remembers it: then the target adapts."""
        known = segment.key is not None and self._recall(segment.key)
        self._is_often[segment] = known
        self._n_often += known

    def on_admit(self, seq: Sequence) -> None:
        """Keys are looked up before the prompt makes room for itself."""
        self._once_ghosts.call(seq.hash_ids or ())
        self._often_ghosts.call(seq.hash_ids or ())

    def _recall(self, key: int) -> bool:
        once, often = self._once_ghosts, self._often_ghosts
        if key in once:
            self._target = min(len(self._is_often), self._target + max(1.0, len(often) / len(once)))
            once.pop(key)
            return True
        if key in often:
            self._target = max(0.0, self._target - max(1.0, len(once) / len(often)))
            often.pop(key)
            return True
        return False

    def on_hit(self, segment: Segment, now_s: float) -> None:
        """Pinned, and used more than once from now on."""
        if self._is_often[segment]:
            self._often.pop(segment, None)
            return
        self._once.pop(segment, None)
        self._is_often[segment] = True
        self._n_often += 1

    def on_release(self, segment: Segment, now_s: float) -> None:
        """To the young end of its list."""
        if self._is_often[segment]:
            self._often[segment] = None
        else:
            self._once[segment] = None

    def victim(self) -> Segment:
        """The old end of T1 while it is larger than its target, else of T2."""
        once_first = self._n_once > 0 and self._n_once > self._target
        lists = (self._once, self._often) if once_first else (self._often, self._once)
        for queue in lists:
            if queue:
                return next(iter(queue))
        raise InvariantError("ArcPolicy: asked for a victim, but nothing is evictable")

    def on_evict(self, segment: Segment) -> None:
        """Its key becomes a ghost."""
        often = self._is_often.pop(segment)
        self._n_often -= often
        (self._often if often else self._once).pop(segment, None)
        if segment.key is not None:
            (self._often_ghosts if often else self._once_ghosts).add(segment.key)
        self._trim()

    def _trim(self) -> None:
        """|T1| + |B1| <= c and all four lists together <= 2c, c counting the segment that has just gone."""
        size = len(self._is_often) + 1
        once, often = self._once_ghosts, self._often_ghosts
        once.trim(max(0, size - self._n_once))
        often.trim(max(0, 2 * size - len(self._is_often) - once.kept))
