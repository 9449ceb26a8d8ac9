"""Request-level batching: a batch runs until its longest member is done."""

from __future__ import annotations

from typing import Any

from stepline.sim.engine.contracts import Plan

from .base import BatchBase
from .continuous import admit_whole


class StaticPolicy(BatchBase):
    """A batch forms from what waits when the engine is free, with KV for the longest outputs; nobody joins once it decodes.

    Prompts of a step are padded to its longest, rows that have finished are computed on until the whole batch is done,
    and KV is reserved for prompt + max_output_tokens. Tokens still stream to their clients as they are made. As
    FasterTransformer-style servers do; baseline of Orca (OSDI 2022) and vLLM (SOSP 2023).
    """

    whole_prompts = True
    pads = True
    reservation = "contiguous"

    def plan(self, view: Any) -> Plan:
        """The next step."""
        if view.decode_steps:
            return Plan([], deaf=True)
        chunks, blocked = admit_whole(view, 0.0, decodes=0)
        return Plan(chunks, decode=not chunks, deaf=True if not chunks else blocked)
