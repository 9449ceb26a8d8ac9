"""The sequence that can best afford it gives way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import ScoredVictim

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class SloSlackPolicy(ScoredVictim):
    """Preempts the sequence with most slack until its next token is due.

    The first token is due `ttft_s` after arrival, the n-th one `tpot_s` per token after the first. Defaults: MLPerf
    Inference llama2-70b Server, TTFT 2 s and TPOT 200 ms.
    """

    def __init__(self, *, ttft_s: float = 2.0, tpot_s: float = 0.2, **how: Any) -> None:
        super().__init__(**how)
        for name, value in (("ttft_s", ttft_s), ("tpot_s", tpot_s)):
            if not value > 0:
                raise ValueError(f"{name}: got {value}, expected a number > 0")
        self.ttft_s, self.tpot_s = ttft_s, tpot_s

    def score(self, view: Any, seq: Sequence) -> float:
        """Seconds until the next token is due."""
        if seq.first_token_s is None:
            return float(seq.arrival_s + self.ttft_s - view.now_s)
        return float(seq.first_token_s + self.tpot_s * view.generated_tokens(seq) - view.now_s)
