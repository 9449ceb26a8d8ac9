"""What the routing policies share: the least of something, ties by turn."""

from __future__ import annotations

from collections.abc import Sequence as Indexable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class LeastOf:
    """The replica with the least `load`; among equals each in turn, so that no replica is favoured."""

    def __init__(self) -> None:
        self._next = 0

    def load(self, request: Sequence, replica: Any) -> float:
        """What to keep small, of one replica."""
        raise NotImplementedError

    def choose(self, request: Sequence, replicas: list[Any]) -> int | None:
        """The least loaded replica."""
        return self.pick([self.load(request, replica) for replica in replicas])

    def pick(self, loads: Indexable[float]) -> int:
        """Index of the least of `loads`; the search starts behind the last choice."""
        least, n = min(loads), len(loads)
        chosen = self._next % n
        while loads[chosen] > least:
            chosen = (chosen + 1) % n
        self._next = chosen + 1
        return chosen
