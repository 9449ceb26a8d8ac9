"""Each replica in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class RoundRobinPolicy:
    """Replica 0, 1, 2, ... in order of arrival, whatever their load."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, request: Sequence, replicas: list[Any]) -> int:
        """The next replica."""
        chosen = self._next % len(replicas)
        self._next = chosen + 1
        return chosen
