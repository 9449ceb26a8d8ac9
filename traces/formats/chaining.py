"""Prefix-chained block ids for prompts whose content is known."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


class ChainedIds:
    """Gives equal ids to equal beginnings: an id is the pair of the block before it and the block's content."""

    def __init__(self) -> None:
        self._ids: dict[tuple[int, Hashable], int] = {}

    def of(self, blocks: Sequence[Hashable]) -> list[int]:
        """The ids of a prompt cut into `blocks`, numbered from 0 in order of first appearance.

        >>> chains = ChainedIds()
        >>> chains.of(["a", "b"]), chains.of(["a", "c"]), chains.of(["b"])
        ([0, 1], [0, 2], [3])
        """
        out, before = [], -1
        for block in blocks:
            before = self._ids.setdefault((before, block), len(self._ids))
            out.append(before)
        return out
