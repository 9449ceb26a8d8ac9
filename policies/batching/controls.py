"""Deliberately bad policies: negative controls that every comparison should rank last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepline.sim.engine.contracts import Plan

from .chunked import ChunkedPolicy
from .ordered import OrderedPolicy

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class LatestOrder:
    """Ranks by arrival, latest first."""

    def key(self, seq: Sequence) -> float:
        """Minus the arrival."""
        return -seq.arrival_s


class LargestOrder:
    """Ranks by prompt, longest first."""

    def key(self, seq: Sequence) -> int:
        """Minus the prompt."""
        return -seq.prompt_tokens


class LifoPolicy(OrderedPolicy):
    """Negative control: last come, first served."""

    def make_order(self) -> LatestOrder:
        """By arrival, backwards."""
        return LatestOrder()


class LongestFirstPolicy(OrderedPolicy):
    """Negative control: the longest prompt first, the opposite of `sjf`."""

    def make_order(self) -> LargestOrder:
        """By prompt, backwards."""
        return LargestOrder()


class SerialPolicy(ChunkedPolicy):
    """Negative control: one sequence at a time, whatever the batch could hold."""

    def plan(self, view: Any) -> Plan:
        """The running sequence's step, or the first of the queue."""
        if view.prefilling or view.n_decoding:
            return Plan(self._continue_prompts(view, self.prompt_budget(view), ()), deaf=True)
        for seq in view.waiting:
            tokens = min(seq.prompt_tokens - view.cached_tokens(seq), view.max_num_batched_tokens)
            if view.blocks_needed(seq, tokens) <= view.free_blocks and view.n_running < view.max_num_seqs:
                return Plan([(seq, tokens)], deaf=True)
            break
        return Plan([])
