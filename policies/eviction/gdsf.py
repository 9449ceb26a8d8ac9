"""GreedyDual-Size-Frequency: keep what is expensive to compute again and often used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import CountingEviction

if TYPE_CHECKING:
    from stepline.sim.engine.segment import Segment


class GdsfPolicy(CountingEviction):
    """Evicts the lowest age + uses × recompute cost per block.

    The cost of computing a block again grows with the prefix it attends to: 1 + start / `parity_blocks`, in units of a
    block's linear layers, with the mean start of the segment's blocks. `parity_blocks`: the prefix at which attention
    costs as much as the linear layers, 2·P = 4·L·H·d·context; for Llama-3.1-8B (P = 7.5e9 without embeddings,
    L = 32, H·d = 4096) 28.6 k tokens, 1 790 blocks of 16. Only leaves go: losing a head would lose all behind it.
    Source: Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching policy", 1998.
    """

    leaves_only = True

    def __init__(self, *, parity_blocks: float = 1790.0) -> None:
        super().__init__()
        if not parity_blocks > 0:
            raise ValueError(f"parity_blocks: got {parity_blocks}, expected a number > 0")
        self.parity_blocks = parity_blocks
        self._age = 0.0

    def rank(self, segment: Segment, now_s: float) -> float:
        """Age of the cache when it was used, plus its own worth."""
        start = segment.start_blocks + segment.blocks / 2
        return self._age + self.uses[segment] * (1.0 + start / self.parity_blocks)

    def on_evict(self, segment: Segment) -> None:
        """The cache ages to the rank of its victim."""
        if segment in self._heap:
            self._age = max(self._age, self._heap.lowest())
        super().on_evict(segment)
