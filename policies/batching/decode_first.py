"""Decodes never wait for prompts: new ones join in steps of their own, when few sequences are left decoding."""

from __future__ import annotations

from typing import Any

from stepline.sim.engine.contracts import Plan

from .chunked import ChunkedPolicy


class DecodeFirstPolicy(ChunkedPolicy):
    """A decode-prioritising scheduler: a batch of prompts is computed only when fewer than `refill_below` decode.

    Decode steps then hold nothing else, so inter-token gaps are short; the prompts of the next batch stall what is
    left of the last one. `refill_below` 1: the batch runs dry first. Source: the decode-prioritising schedules of
    Agrawal et al. (Sarathi-Serve, OSDI 2024, section 3), FasterTransformer's without its padding.
    """

    def __init__(self, *, refill_below: int = 1) -> None:
        if refill_below < 1:
            raise ValueError(f"refill_below: got {refill_below}, expected an integer >= 1")
        self.refill_below = refill_below

    def plan(self, view: Any) -> Plan:
        """Decode, unless prompts have begun or the batch is nearly dry."""
        if view.prefilling or view.n_decoding < self.refill_below:
            plan = super().plan(view)
            if plan.chunks and not plan.preempt:
                return Plan(plan.chunks, decode=False)
            if plan.preempt or not view.n_decoding:
                return plan
        if view.decode_blocks > view.free_blocks:
            return super().plan(view)
        return Plan([], deaf=True)
