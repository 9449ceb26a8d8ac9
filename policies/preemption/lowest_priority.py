"""The least important sequence gives way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import ScoredVictim

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class LowestPriorityPolicy(ScoredVictim):
    """Preempts the sequence with the largest `priority` value (smaller is more important), the newest among equals.

    Source: vLLM V1 `Scheduler.schedule` under `--scheduling-policy priority`: max of (priority, arrival time).
    """

    def score(self, view: Any, seq: Sequence) -> tuple[int, float]:
        """Priority, then arrival."""
        return (seq.priority, seq.arrival_s)
