"""Chunked prefill whose waiting prompts join in another order than that of arrival."""

from __future__ import annotations

from collections.abc import Collection
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from stepline.sim.engine.contracts import Plan

from .base import Chunks
from .chunked import ChunkedPolicy
from .ordered_queue import Order, OrderedQueue

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class OrderedPolicy(ChunkedPolicy):
    """`chunked` with a queue order; a subclass says which.

    preempted_first  who was preempted for want of KV goes before all who wait
    preemptive       the first in the queue may take the seat and KV of running sequences that rank behind it
    moves            ranks of running sequences change as they run: a preemptive policy is then asked every step
    """

    preempted_first = True
    preemptive = False
    moves = False

    def __init__(self, *, patience_s: float | None = None) -> None:
        if patience_s is not None and not patience_s >= 0:
            raise ValueError(f"patience_s: got {patience_s}, expected a number >= 0")
        self.patience_s = patience_s

    def make_order(self) -> Order:
        """The order of one replica's queue."""
        raise NotImplementedError

    def make_queue(self) -> OrderedQueue:
        """A queue in that order."""
        return OrderedQueue(
            self.make_order(), preempted_first=self.preempted_first, patience_s=self.patience_s
        )

    def plan(self, view: Any) -> Plan:
        """The next step; if nobody could join, perhaps at the cost of running ones."""
        plan = super().plan(view)
        if not self.preemptive or not view.n_waiting or plan.preempt:
            return plan
        plan.ask_every_step = self.moves and not plan.chunks
        head = view.waiting[0]
        if any([seq is head for seq, _ in plan.chunks]) or not self._lacks_room(view, head, plan.chunks):
            return plan
        return self._displace(view, head) or plan

    def _spared(self, view: Any) -> Sequence | None:
        """Who ranks first of a preemptive order: it gets its chunk before all others, so it must not pay for it.

        Else what it has computed is lost each time, and nobody gets any further.
        """
        return min(view.running, key=view.waiting.order.key, default=None) if self.preemptive else None

    def _continue_prompts(self, view: Any, budget: int, gone: Collection[Sequence]) -> Chunks:
        """As `chunked`; a preemptive order goes by rank, and leaves the budget that the first who waits comes before."""
        if not self.preemptive or not view.n_waiting:
            return super()._continue_prompts(view, budget, gone)
        order = view.waiting.order
        head = view.waiting[0]
        rank, wanted = order.key(head), head.prompt_tokens - view.cached_tokens(head)
        if self._lacks_room(view, head, []):
            wanted = 0
        cap = view.long_prefill_token_threshold or budget
        chunks: Chunks = []
        for seq in sorted(view.prefilling, key=order.key):
            if wanted and order.key(seq) > rank:
                budget, wanted = budget - wanted, 0
            tokens = min(seq.uncomputed_tokens, budget, cap)
            if tokens > 0 and seq not in gone:
                chunks.append((seq, tokens))
                budget -= tokens
        return chunks

    def _lacks_room(self, view: Any, head: Sequence, chunks: Chunks) -> bool:
        """Whether `head` lacks a seat or KV for a first chunk beside `chunks` (and not just tokens of the budget)."""
        if view.n_running >= view.max_num_seqs:
            return True
        budget = view.max_num_batched_tokens - view.n_decoding
        tokens = min(
            head.prompt_tokens - view.cached_tokens(head), view.long_prefill_token_threshold or budget, budget
        )
        free = view.free_blocks - view.decode_blocks - sum([view.blocks_needed(s, c) for s, c in chunks])
        return bool(view.blocks_needed(head, max(tokens, 1)) > free)

    def _admit(self, view: Any, chunks: Chunks, budget: int, free: int) -> bool:
        """As `chunked`; an arrival may rank before what is blocked, so only a full house is deaf."""
        before = len(chunks)
        blocked = super()._admit(view, chunks, budget, free)
        seats = view.max_num_seqs - view.n_running - len(chunks) + before
        return blocked and seats <= 0 and not self.preemptive

    def _displace(self, view: Any, head: Sequence) -> Plan | None:
        """A plan in which `head` joins in place of running sequences that rank behind it; None if that is too few."""
        key = view.waiting.order.key
        rank = key(head)
        behind = [(k, seq) for seq in view.newest_first() if (k := key(seq)) > rank]
        behind.sort(key=itemgetter(0), reverse=True)
        gone: set[Sequence] = set()
        for _, victim in behind:
            gone.add(victim)
            chunks = self._continue_prompts(view, self.prompt_budget(view), gone)
            plan = self._with(view, head, chunks, gone)
            if plan is not None:
                return plan
        return None

    def _with(self, view: Any, head: Sequence, chunks: Chunks, gone: set[Sequence]) -> Plan | None:
        """The plan without `gone` and with `head`, if it then fits."""
        decoding = view.n_decoding - sum([view.decodes(s) for s in gone])
        budget = view.max_num_batched_tokens - decoding - sum([c for _, c in chunks])
        decode_blocks = view.decode_blocks - sum([view.decodes(s) and view.opens_block(s) for s in gone])
        free = view.free_blocks + sum([view.held_blocks(s) for s in gone]) - decode_blocks
        free -= sum([view.blocks_needed(s, c) for s, c in chunks])
        cap = view.long_prefill_token_threshold or budget
        tokens = min(head.prompt_tokens - view.cached_tokens(head), budget, cap)
        seats = view.max_num_seqs - view.n_running + len(gone)
        if tokens <= 0 or seats <= 0 or view.blocks_needed(head, tokens) > free:
            return None
        victims = tuple([s for s in view.newest_first() if s in gone])
        return Plan([*chunks, (head, tokens)], preempt=victims)
