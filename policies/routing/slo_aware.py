"""Where latency objectives are most likely to be met."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError

from .base import LeastOf

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class SloAwarePolicy(LeastOf):
    """Predicts TTFT and TPOT of the request on each replica and takes the one that is furthest within its objectives.

    TTFT: the prompts before it and its own, computed in full steps beside the sequences that decode; TPOT: a decode
    step of today's batch. What is compared is the larger of TTFT / `ttft_s` and TPOT / `tpot_s`. The router prices
    steps as the engine does, from the signals it has; it knows no output lengths.
    """

    def __init__(self, *, ttft_s: float = 0.5, tpot_s: float = 0.05) -> None:
        super().__init__()
        for name, value in (("ttft_s", ttft_s), ("tpot_s", tpot_s)):
            if not value > 0:
                raise ConfigError(f"{name}: got {value!r}, expected seconds > 0")
        self._ttft_s, self._tpot_s = ttft_s, tpot_s

    def load(self, request: Sequence, replica: Any) -> float:
        """The worse of predicted TTFT and TPOT, as a share of its objective."""
        tokens = replica.backlog_tokens + request.prompt_tokens
        room = max(1, replica.max_num_batched_tokens - replica.n_decoding)
        steps = ceil(tokens / room)
        ttft = steps * replica.step_s(min(tokens, room))
        tpot = replica.step_s(0) if replica.n_decoding else 0.0
        return float(max(ttft / self._ttft_s, tpot / self._tpot_s))
