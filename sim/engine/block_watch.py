"""How long cached blocks live: what vLLM's `vllm:kv_block_*` histograms count, seen from beside an eviction policy."""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .result import BlockTimes

if TYPE_CHECKING:
    from .contracts import EvictionPolicy
    from .kv_cache import KVCache
    from .segment import Segment

ACCESSES_KEPT = 4
"""Accesses of a block that are remembered, as in vLLM V1 `BlockMetricsState` (vllm/v1/core/kv_cache_metrics.py)."""


class BlockLog:
    """Seconds and numbers of evicted blocks, of all replicas."""

    def __init__(self) -> None:
        self.rows = {name: array("d") for name in ("lifetime", "idle", "reuse_gap")}

    def add(self, name: str, seconds: float, blocks: int) -> None:
        """`blocks` blocks have this value."""
        self.rows[name].extend((seconds, blocks))

    def times(self) -> BlockTimes:
        """What was logged."""
        return BlockTimes(*[_pairs(self.rows[name]) for name in ("lifetime", "idle", "reuse_gap")])


def _pairs(flat: array[float]) -> NDArray[np.float64]:
    return np.array(flat, dtype=np.float64).reshape(-1, 2)


class _Life:
    __slots__ = ("accesses", "birth_s", "blocks", "last_s")

    def __init__(self, now_s: float) -> None:
        self.birth_s = self.last_s = now_s
        self.accesses: deque[float] = deque(maxlen=ACCESSES_KEPT)
        self.blocks = 0


class WatchedEviction:
    """An eviction policy with somebody looking over its shoulder: decides as `inner` does, and logs to `log`.

    Definitions (vLLM V1): lifetime from computation to eviction; idle from the last access (computation, or a prefix
    hit) to eviction; reuse gap between consecutive hits, of the last `ACCESSES_KEPT`. Each evicted block counts once,
    where vLLM samples some.
    """

    ignores_inserts = False  # whatever the inner policy does: lives begin with them
    queue = None  # nor may a cache go past it to the inner policy's

    def __init__(self, inner: EvictionPolicy, log: BlockLog) -> None:
        self._inner = inner
        self._log = log
        self._lives: dict[Segment, _Life] = {}
        self._losing: Segment | None = None
        self._cache: KVCache | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)  # optional hooks: on_admit, expired, foresee

    def attach(self, cache: KVCache) -> None:
        """Told once which cache it serves (its clock is the time)."""
        self._cache = cache

    def on_insert(self, segment: Segment, now_s: float) -> None:
        """Born."""
        self._settle()
        self._lives[segment] = _Life(now_s)
        self._inner.on_insert(segment, now_s)

    def on_hit(self, segment: Segment, now_s: float) -> None:
        """Accessed."""
        self._settle()
        life = self._lives[segment]
        life.accesses.append(now_s)
        life.last_s = now_s
        self._inner.on_hit(segment, now_s)

    def on_release(self, segment: Segment, now_s: float) -> None:
        """Evictable: from here on it may lose blocks."""
        self._settle()
        self._lives[segment].blocks = segment.blocks
        self._inner.on_release(segment, now_s)

    def victim(self) -> Segment:
        """The inner policy's choice; what it loses is counted when the next call comes."""
        self._settle()
        self._losing = self._inner.victim()
        return self._losing

    def on_evict(self, segment: Segment) -> None:
        """Gone."""
        self._losing = segment
        self._settle()
        del self._lives[segment]
        self._inner.on_evict(segment)

    def _settle(self) -> None:
        """Count the blocks that the last victim has lost."""
        segment, self._losing = self._losing, None
        if segment is None or self._cache is None:
            return
        life = self._lives[segment]
        gone = life.blocks - segment.blocks
        life.blocks = segment.blocks
        if gone <= 0:
            return
        now_s = self._cache.clock.now_s
        self._log.add("lifetime", now_s - life.birth_s, gone)
        self._log.add("idle", now_s - life.last_s, gone)
        before: float | None = None
        for access in life.accesses:
            if before is not None:
                self._log.add("reuse_gap", access - before, gone)
            before = access
