"""Leaves of the prefix tree, least recently used first: SGLang's radix cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import RankedEviction

if TYPE_CHECKING:
    from stepline.sim.engine.segment import Segment


class RadixLruPolicy(RankedEviction):
    """Evicts the leaf whose last use (hit or release) is longest ago; a parent becomes a leaf when its last child goes.

    Source: SGLang `RadixCache.evict` (a heap of leaves by `last_access_time`) and `RadixCache.match_prefix`, which
    touches every node on the path. Nodes there are runs between branches, here the segments of one trace id.
    """

    leaves_only = True

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def rank(self, segment: Segment, now_s: float) -> int:
        """Time of its last use, as a count of uses."""
        self._count += 1
        return self._count
