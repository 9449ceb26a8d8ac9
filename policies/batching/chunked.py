"""vLLM V1: running sequences first, then waiting ones FCFS, under one token budget."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from stepline.sim.engine.contracts import Plan

from .base import BatchBase, Chunks, in_preemption_order, make_room

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence

NOBODY: Collection[Sequence] = ()


class ChunkedPolicy(BatchBase):
    """Chunked prefill as vLLM V1 schedules it.

    Decodes take one token of the budget each, unfinished prompts continue, then waiting prompts join in order of
    arrival while budget, seats and KV allow; a prompt that does not fit the budget is split. When KV runs out the
    preemption policy chooses who goes, and nobody is admitted in that step. Source: vLLM `v1/core/sched/scheduler.py`.
    """

    def plan(self, view: Any) -> Plan:
        """The next step."""
        budget = self.prompt_budget(view)
        free = view.free_blocks - view.decode_blocks
        chunks: Chunks = []
        if view.prefilling or free < 0:
            chunks = self._continue_prompts(view, budget, NOBODY)
            need = 0
            for seq, tokens in chunks:
                need += view.blocks_needed(seq, tokens)
                budget -= tokens
            if need > free and (gone := self._room(view, chunks)):
                kept = [
                    (seq, c) for seq, c in chunks if seq not in gone
                ]  # room was made for these, not for more
                return Plan(kept, preempt=in_preemption_order(view, gone))
            free -= need
        return Plan(chunks, deaf=self._admit(view, chunks, budget, free))

    def prompt_budget(self, view: Any) -> int:
        """Prompt tokens that the step may compute."""
        budget: int = view.max_num_batched_tokens - view.n_decoding
        return budget

    def _room(self, view: Any, chunks: Chunks) -> set[Sequence]:
        def needed(gone: set[Sequence]) -> int:
            decodes: int = view.decode_blocks - sum([view.decodes(s) and view.opens_block(s) for s in gone])
            prompts: int = sum([view.blocks_needed(s, c) for s, c in chunks if s not in gone])
            return decodes + prompts

        return make_room(view, needed, self._spared(view))

    def _spared(self, view: Any) -> Sequence | None:
        """Who is the last to be preempted for want of KV."""
        return None

    def _continue_prompts(self, view: Any, budget: int, gone: Collection[Sequence]) -> Chunks:
        """Next chunks of the prompts that have begun, `gone` left out."""
        cap = view.long_prefill_token_threshold or budget
        chunks: Chunks = []
        for seq in view.prefilling:
            if budget <= 0:
                break
            if seq not in gone:
                tokens = seq.prompt_tokens - seq.computed_tokens
                if tokens > budget:
                    tokens = budget
                if tokens > cap:
                    tokens = cap
                chunks.append((seq, tokens))
                budget -= tokens
        return chunks

    def _admit(self, view: Any, chunks: Chunks, budget: int, free: int) -> bool:
        """Append chunks of waiting prompts; True if a later arrival could not be admitted either."""
        seats = view.max_num_seqs - view.n_running
        cap = view.long_prefill_token_threshold or budget
        for seq in view.waiting:
            if seats <= 0 or budget <= 0:
                return True
            tokens = seq.prompt_tokens
            if seq.hash_ids is not None:
                tokens -= view.cached_tokens(seq)
            if tokens > budget:
                tokens = budget
            if tokens > cap:
                tokens = cap
            need = view.blocks_needed(seq, tokens)
            if need > free:
                return True
            chunks.append((seq, tokens))
            budget -= tokens
            free -= need
            seats -= 1
        return False
