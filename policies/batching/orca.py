"""Orca: iteration-level scheduling with whole prompts and contiguous KV reservations."""

from __future__ import annotations

from typing import Any

from stepline.sim.engine.contracts import Plan

from .base import BatchBase
from .continuous import admit_whole


class OrcaPolicy(BatchBase):
    """Every step holds one iteration of each admitted sequence: whole prompts of new ones, a token of the others.

    KV is reserved for prompt + max_output_tokens when a sequence is admitted (max_model_len when the trace states no
    maximum), so nothing is ever preempted. Source: Yu et al., OSDI 2022, Algorithm 1 (`n_rsrv + req.max_tokens`).
    """

    whole_prompts = True
    reservation = "contiguous"

    def plan(self, view: Any) -> Plan:
        """The next step."""
        chunks, blocked = admit_whole(view, 0.0, decodes=view.n_decoding)
        return Plan(chunks, deaf=blocked)
