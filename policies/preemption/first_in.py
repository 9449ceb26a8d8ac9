"""The sequence admitted first gives way: a negative control."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .base import VictimRule

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class FirstInPolicy(VictimRule):
    """Preempts the sequence admitted first: it throws away the most work. Deliberately bad, to compare others with."""

    def victim(self, view: Any, candidates: Iterable[Sequence], blocks_needed: int) -> Sequence | None:
        """The last candidate: they come last admitted first."""
        last = None
        for last in candidates:  # noqa: B007 - the last one is wanted
            pass
        return last
