"""One direction of a link over which KV blocks move."""

from __future__ import annotations


class Channel:
    """Transfers one after the other, first come first served, each at the link's full rate.

    block_s    seconds a block occupies the link
    latency_s  seconds from the last byte sent to the block's use, which occupy nothing
    """

    __slots__ = ("block_s", "free_s", "latency_s", "moved_blocks")

    def __init__(self, block_s: float, latency_s: float = 0.0) -> None:
        self.block_s = block_s
        self.latency_s = latency_s
        self.free_s = 0.0
        self.moved_blocks = 0

    def due_s(self, blocks: int, ready_s: float) -> float:
        """When a transfer that could begin at `ready_s` would be there (`ready_s` for nothing to send)."""
        if not blocks:
            return ready_s
        return max(ready_s, self.free_s) + blocks * self.block_s + self.latency_s

    def send(self, blocks: int, ready_s: float) -> float:
        """Send it; returns when it is there."""
        there_s = self.due_s(blocks, ready_s)
        if blocks:
            self.free_s = there_s - self.latency_s
            self.moved_blocks += blocks
        return there_s

    @property
    def busy_s(self) -> float:
        """Seconds that it has been, or will have been, occupied by what was sent."""
        return self.moved_blocks * self.block_s
