"""Early rejection of what would come too late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class SloRejectPolicy:
    """Turns a request away when its first token is not to be expected within `ttft_s`.

    Expectation: the prompt tokens before it and its own, over `prefill_tokens_per_s`, in order of arrival. Serving a
    request that misses its objective anyway only delays others. Source: Qin et al., "Mooncake", FAST 2025, early
    rejection (section 7). Defaults: 2 s (MLPerf Inference llama2-70b Server) and 20 000 tokens/s (see `SlackPolicy`).
    """

    def __init__(self, *, ttft_s: float = 2.0, prefill_tokens_per_s: float = 20_000.0) -> None:
        for name, value in (("ttft_s", ttft_s), ("prefill_tokens_per_s", prefill_tokens_per_s)):
            if not value > 0:
                raise ValueError(f"{name}: got {value}, expected a number > 0")
        self.ttft_s, self.prefill_tokens_per_s = ttft_s, prefill_tokens_per_s

    def admit(self, view: Any, seq: Sequence, now_s: float) -> bool:
        """Whether it would be in time."""
        tokens = view.backlog_tokens + seq.prompt_tokens
        return bool(tokens / self.prefill_tokens_per_s <= self.ttft_s)
