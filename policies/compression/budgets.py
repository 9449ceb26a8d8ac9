"""Token-level KV compression: how many tokens of a sequence stay in the cache, and how many a new one attends to.

What is modelled is capacity and bandwidth: blocks held, context read. What the dropped tokens would have meant to the
answer is not.
"""

from __future__ import annotations


class _Budget:
    """Checks and keeps a number of tokens."""

    def __init__(self, name: str, tokens: int) -> None:
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise ValueError(f"{name}: got {tokens!r}, expected an integer >= 1")
        self.tokens = tokens

    def kept_tokens(self, prompt_tokens: int) -> int:
        """Tokens held once a prompt is computed."""
        return min(prompt_tokens, self.tokens)


class SlidingWindow(_Budget):
    """The last `window` tokens, in prefill and decode: local attention in every layer.

    Default 4096, Mistral-7B's (Jiang et al. 2023, section 2).
    """

    def __init__(self, *, window: int = 4096) -> None:
        super().__init__("window", window)
        self.cap_tokens: int | None = window
        self.prefill_window: int | None = window


class StreamingLlm(_Budget):
    """The first `sinks` tokens and the last `recent` ones (attention sinks).

    Defaults 4 and 2044, a cache of 2048. Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks",
    ICLR 2024, sections 3.2 and 4.
    """

    def __init__(self, *, sinks: int = 4, recent: int = 2044) -> None:
        if isinstance(sinks, bool) or not isinstance(sinks, int) or sinks < 0:
            raise ValueError(f"sinks: got {sinks!r}, expected an integer >= 0")
        super().__init__("recent", recent)
        self.tokens = sinks + recent
        self.cap_tokens: int | None = self.tokens
        self.prefill_window: int | None = self.tokens


class H2O(_Budget):
    """A fixed `budget` of heavy hitters and recent tokens; the prompt is computed with full attention, then cut to it.

    Which tokens stay changes as it decodes, how many does not. Default 1024. Source: Zhang et al., "H2O: Heavy-Hitter
    Oracle for Efficient Generative Inference of LLMs", NeurIPS 2023, Algorithm 1 (budget k, half heavy, half recent).
    """

    def __init__(self, *, budget: int = 1024) -> None:
        super().__init__("budget", budget)
        self.cap_tokens: int | None = budget
        self.prefill_window: int | None = None


class SnapKv(_Budget):
    """The prompt is computed with full attention and cut to `budget` tokens; what is generated is all kept.

    Default 1024. Source: Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024, section
    4 (budgets of 1024, 2048, 4096).
    """

    def __init__(self, *, budget: int = 1024) -> None:
        super().__init__("budget", budget)
        self.cap_tokens: int | None = None
        self.prefill_window: int | None = None
