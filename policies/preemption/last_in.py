"""The last admitted sequence gives way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .base import VictimRule

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class LastInPolicy(VictimRule):
    """Preempt the sequence admitted last.

    Source: vLLM V1 `Scheduler.schedule` pops the last of `running` under FCFS.
    """

    lets_finish = True  # who was admitted first goes only when alone

    def victim(self, view: Any, candidates: Iterable[Sequence], blocks_needed: int) -> Sequence | None:
        """The first candidate: they come last admitted first."""
        return next(iter(candidates), None)
