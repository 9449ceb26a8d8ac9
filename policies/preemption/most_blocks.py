"""The sequence that frees most gives way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import ScoredVictim

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class MostBlocksPolicy(ScoredVictim):
    """Preempts the sequence whose blocks come back in the greatest number (shared ones do not): the fewest victims."""

    def score(self, view: Any, seq: Sequence) -> float:
        """Blocks that come back."""
        return float(view.held_blocks(seq))
