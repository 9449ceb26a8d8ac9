"""What the victim rules share: the candidate of the highest score goes, the newest among equals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class ScoredVictim:
    """Preempts the candidate with the highest `score`; each call looks at every running sequence once."""

    def score(self, view: Any, seq: Sequence) -> Any:
        """How well this sequence would do as the victim; any sort key."""
        raise NotImplementedError

    def victim(self, view: Any, candidates: Iterable[Sequence], blocks_needed: int) -> Sequence | None:
        """The first of the highest score: candidates come last admitted first."""
        return max(candidates, key=lambda seq: self.score(view, seq), default=None)
