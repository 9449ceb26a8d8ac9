"""Sarathi-Serve: stall-free batches of all decodes and prompt chunks up to a token budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepline.sim.engine.contracts import Plan

from .base import BatchBase, Chunks, in_preemption_order, make_room, spare_block_need

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class SarathiPolicy(BatchBase):
    """Decodes first, then chunks of running prompts, then new ones, `chunk_tokens` in all (stall-free batching).

    All blocks of a prompt are taken at admission with a watermark left over; out of blocks, the latest-arrived running
    sequence is restarted with what it generated as prompt. Source: Agrawal et al., OSDI 2024, Algorithm 3; the Sarathi
    scheduler of the Vidur simulator (chunk 512, watermark 1 %).
    """

    reservation = "prompt"
    spare_blocks = 1

    def __init__(self, *, chunk_tokens: int = 512, watermark_frac: float = 0.01) -> None:
        self.chunk_tokens = chunk_tokens
        self.watermark_frac = watermark_frac

    def plan(self, view: Any) -> Plan:
        """The next step."""
        gone: set[Sequence] = set()
        decoding, opened, free = view.n_decoding, view.decode_blocks, view.free_blocks
        if opened >= free:
            gone = make_room(view, lambda out: spare_block_need(view, out))
            decoding -= sum([view.decodes(s) for s in gone])
        most: int = view.max_num_batched_tokens
        budget = (self.chunk_tokens if self.chunk_tokens < most else most) - decoding
        chunks: Chunks = []
        for seq in view.prefilling:
            if budget > 0 and seq not in gone:
                tokens = seq.prompt_tokens - seq.computed_tokens
                if tokens > budget:
                    tokens = budget
                chunks.append((seq, tokens))
                budget -= tokens
        if gone:
            return Plan(chunks, preempt=in_preemption_order(view, gone))
        return Plan(chunks, deaf=self._admit(view, chunks, budget, free - opened))

    def _admit(self, view: Any, chunks: Chunks, budget: int, free: int) -> bool:
        if budget <= 0:
            return bool(view.waiting)
        n_running = view.n_running
        spare = int(self.watermark_frac * view.total_blocks) if n_running else 0
        seats = view.max_num_seqs - n_running
        for seq in view.waiting:
            if budget <= 0 or not seats:
                return True
            tokens = min(seq.prompt_tokens - view.cached_tokens(seq), budget)
            need = view.blocks_needed(seq, tokens)
            if need > free - spare:
                return True
            chunks.append((seq, tokens))
            budget -= tokens
            free -= need
            seats -= 1
        return False
