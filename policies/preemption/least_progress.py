"""The sequence that loses least gives way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import ScoredVictim

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class LeastProgressPolicy(ScoredVictim):
    """Preempts the sequence with the fewest tokens in the KV cache: the least to compute again.

    Prompt tokens computed (or found cached) plus tokens generated. It bounds the work thrown away per preemption, and
    may need more victims than `most-blocks` to free the same room.
    """

    def score(self, view: Any, seq: Sequence) -> float:
        """Minus its progress in tokens."""
        return -float(seq.computed_tokens + view.generated_tokens(seq) - seq.generated_tokens)
