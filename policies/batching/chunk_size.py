"""`chunked` with a prompt budget of its own: fixed, or as large as a TPOT target allows."""

from __future__ import annotations

from typing import Any

from .chunked import ChunkedPolicy


class LimitedPromptPolicy(ChunkedPolicy):
    """`chunked` whose steps compute at most `most_tokens(view)` prompt tokens, decodes not counted."""

    def most_tokens(self, view: Any) -> int:
        """Prompt tokens that the next step may compute, whatever the engine's budget."""
        raise NotImplementedError

    def prompt_budget(self, view: Any) -> int:
        """The lesser of this and the engine's."""
        budget: int = view.max_num_batched_tokens - view.n_decoding
        most = self.most_tokens(view)
        return most if most < budget else budget


class FixedChunkPolicy(LimitedPromptPolicy):
    """At most `chunk_tokens` prompt tokens a step beside the decodes.

    Default 512, Sarathi-Serve's for a strict TBT objective (OSDI 2024, section 5.1).
    """

    def __init__(self, *, chunk_tokens: int = 512) -> None:
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens: got {chunk_tokens}, expected an integer >= 1")
        self.chunk_tokens = chunk_tokens

    def most_tokens(self, view: Any) -> int:
        """The same in every step."""
        return self.chunk_tokens


class SloChunkPolicy(LimitedPromptPolicy):
    """As many prompt tokens a step as keep it within `tpot_s`, by the engine's own cost model; all when nobody decodes.

    At least `min_chunk_tokens`, so that prompts are never starved by a target below the decode step itself. Sizes are
    powers of two times that. Default 50 ms: the interactive TPOT of DistServe's chatbot study is 0.1 s, MLPerf's
    interactive targets are 15–80 ms.
    """

    def __init__(self, *, tpot_s: float = 0.05, min_chunk_tokens: int = 64) -> None:
        if not tpot_s > 0:
            raise ValueError(f"tpot_s: got {tpot_s}, expected a number > 0")
        if min_chunk_tokens < 1:
            raise ValueError(f"min_chunk_tokens: got {min_chunk_tokens}, expected an integer >= 1")
        self.tpot_s, self.min_chunk_tokens = tpot_s, min_chunk_tokens

    def most_tokens(self, view: Any) -> int:
        """The largest size whose step is in time; the prompt's history counts as that of the first one that runs."""
        most: int = view.max_num_batched_tokens
        return self._search(view, most) if view.n_decoding else most

    def _search(self, view: Any, most: int) -> int:
        """From the middle of the powers of two, where most answers are, up or down: step times rise with the chunk."""
        history = next((seq.computed_tokens for seq in view.prefilling), 0)
        least, target_s, step_s = self.min_chunk_tokens, self.tpot_s, view.step_s
        top = max(most // least, 1).bit_length() - 1
        level = (top + 1) // 2
        if level and step_s(least << level, history) > target_s:
            level -= 1
            while level and step_s(least << level, history) > target_s:
                level -= 1
        else:
            while level < top and step_s(least << level + 1, history) <= target_s:
                level += 1
        return least << level
