"""A run of KV blocks that live and die together."""

from __future__ import annotations

from typing import Protocol


class Owner(Protocol):
    """Whoever computed a segment: what eviction policies may care about."""

    tenant: str | None
    priority: int


class Segment:
    """A run of cached or held engine blocks.

    key           the chained id that finds it (None: content that nothing can hit)
    blocks        full blocks with content; of an unkeyed segment all its blocks
    refs          sequences that hold it (0: evictable)
    start_blocks  blocks of the prefix before it (what a recompute would have to attend to)
    parent        the segment that it continues (None: the head of a prompt)
    tenant, priority  of the sequence that computed it, for eviction policies that care
    went_down     copied to the tier below when it lost its first block since it was last held
    """

    __slots__ = ("blocks", "key", "parent", "priority", "refs", "start_blocks", "tenant", "went_down")

    def __init__(
        self, key: int | None, blocks: int, start_blocks: int, owner: Owner, parent: Segment | None = None
    ) -> None:
        self.key = key
        self.blocks = blocks
        self.refs = 1
        self.start_blocks = start_blocks
        self.parent = parent
        self.tenant = owner.tenant
        self.priority = owner.priority
        self.went_down = False

    def __repr__(self) -> str:
        return f"Segment(key={self.key}, blocks={self.blocks}, refs={self.refs})"
