"""`chunked` with a prompt budget of its own: fixed, or as large as a TPOT target allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .chunked import ChunkedPolicy

if TYPE_CHECKING:
    from stepline.sim.engine.contracts import Plan


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
        self._level = 0
        self._known: tuple[Any, ...] | None = None

    def plan(self, view: Any) -> Plan:
        """The next step; what was found stays known while it can only get slower (see `most_tokens`)."""
        self._level = -1
        plan = super().plan(view)
        chunks = plan.chunks
        if self._level < 0 or len(chunks) != 1 or plan.preempt:
            self._known = None
        else:
            seq = chunks[0][0]
            self._known = (view, view.step + 1, view.n_decoding, seq, seq.computed_tokens, self._level)
        return plan

    def most_tokens(self, view: Any) -> int:
        """The largest size whose step is in time; the prompt's history counts as that of the first one that runs.

        Step times rise with the chunk, with its history and with what decodes. In the step after one whose only chunk
        was of the same prompt, with as many decodes as then, both have only grown, and what was too slow still is.
        A size beyond all that is left to compute is not asked for.
        """
        most: int = view.max_num_batched_tokens
        if not view.n_decoding:
            return most
        least = self.min_chunk_tokens
        first = next(iter(view.prefilling), None)
        history = 0 if first is None else first.computed_tokens
        known = self._known
        if (
            known is not None
            and first is known[3]
            and known[2] == view.n_decoding
            and known[1] == view.step
            and known[0] is view
            and history > known[4]
        ):
            self._level = self._down(view, known[5], history)
            return least << self._level
        top = max(most // least, 1).bit_length() - 1
        if len(view.prefilling) + view.n_waiting == 1:
            only = first or view.waiting[0]
            enough = ((only.uncomputed_tokens - 1) // least).bit_length()  # the level that holds all of it
            if enough < top:
                level = self._down(view, enough, history)
                self._level = level if level < enough else -1
                return least << level
        self._level = level = self._search(view, top, history)
        return least << level

    def _search(self, view: Any, top: int, history: int) -> int:
        """From the middle of the powers of two, where most answers are, up or down."""
        least, target_s, step_s = self.min_chunk_tokens, self.tpot_s, view.step_s
        level = (top + 1) // 2
        if level and step_s(least << level, history) > target_s:
            return self._down(view, level - 1, history)
        while level < top and step_s(least << level + 1, history) <= target_s:
            level += 1
        return level

    def _down(self, view: Any, level: int, history: int) -> int:
        """The largest level up to this one whose step is in time."""
        least, target_s, step_s = self.min_chunk_tokens, self.tpot_s, view.step_s
        while level and step_s(least << level, history) > target_s:
            level -= 1
        return level
