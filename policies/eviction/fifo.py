"""First in, first out: what was computed first goes first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import RankedEviction

if TYPE_CHECKING:
    from stepline.sim.engine.segment import Segment


class FifoPolicy(RankedEviction):
    """Evicts in order of computation, whatever was hit since.

    A prompt is computed head first, so its head goes first too and leaves a tail that cannot be reached: FIFO is a
    lower bound to compare with, not a choice.
    """

    head_first = True

    def __init__(self) -> None:
        super().__init__()
        self._order: dict[Segment, int] = {}
        self._count = 0

    def inserted(self, segment: Segment, now_s: float) -> None:
        """Its place in the queue."""
        self._count += 1
        self._order[segment] = self._count

    def rank(self, segment: Segment, now_s: float) -> int:
        """The place it got when it was computed."""
        return self._order[segment]

    def forget(self, segment: Segment) -> None:
        """Out of the queue."""
        del self._order[segment]
