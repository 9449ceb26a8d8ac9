"""vLLM V0: prefill-only steps first, else decode."""

from __future__ import annotations

from typing import Any

from stepline.sim.engine.contracts import Plan

from .base import BatchBase, Chunks, in_preemption_order, make_room, spare_block_need


class ContinuousPolicy(BatchBase):
    """Continuous batching with whole prompts that stall decodes, as vLLM V0 schedules it.

    While waiting prompts fit (token budget, seats, all blocks of the prompt with a watermark left over) a step computes
    prompts only; otherwise every running sequence decodes. Preempted sequences return to the head of the queue.
    A prompt beyond the token budget runs alone. `watermark_frac`: share of blocks kept free at admission
    (vLLM V0 `BlockSpaceManager`, watermark 0.01).
    """

    whole_prompts = True
    reservation = "prompt"
    spare_blocks = 1

    def __init__(self, *, watermark_frac: float = 0.01) -> None:
        self.watermark_frac = watermark_frac

    def plan(self, view: Any) -> Plan:
        """The next step."""
        chunks, blocked = admit_whole(view, self.watermark_frac, decodes=0)
        if chunks:
            return Plan(chunks, decode=False)
        tight = view.decode_blocks >= view.free_blocks
        gone = make_room(view, lambda out: spare_block_need(view, out)) if tight else set()
        return Plan([], preempt=in_preemption_order(view, gone), deaf=blocked)


def admit_whole(view: Any, watermark_frac: float, decodes: int) -> tuple[Chunks, bool]:
    """Whole waiting prompts in order of arrival while budget, seats and KV allow, and whether the head is blocked.

    `decodes`: tokens of the budget that are taken already.
    """
    budget = view.max_num_batched_tokens - decodes
    seats = view.max_num_seqs - view.n_running
    spare = int(watermark_frac * view.total_blocks) if view.n_running else 0
    free = view.free_blocks - (view.decode_blocks if decodes else 0)
    chunks: Chunks = []
    for seq in view.waiting:
        tokens = seq.prompt_tokens - view.cached_tokens(seq)
        need = view.blocks_needed(seq, tokens)
        fits = tokens <= budget or not chunks
        if not seats or not fits or need > free - spare:
            return chunks, True
        chunks.append((seq, tokens))
        budget -= tokens
        free -= need
        seats -= 1
        if budget <= 0:
            break
    return chunks, False
