"""By priority, then by arrival: vLLM's `--scheduling-policy priority`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .ordered import OrderedPolicy

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class PriorityOrder:
    """Ranks by priority (smaller first), then arrival."""

    def key(self, seq: Sequence) -> tuple[int, float]:
        """Priority and arrival."""
        return (seq.priority, seq.arrival_s)


class PriorityPolicy(OrderedPolicy):
    """Waiting prompts join by `priority`, smaller first, then by arrival; preempted ones are ranked like any.

    `preemptive`: a more important arrival takes the place of the least important running sequence when seats or KV
    lack (vLLM does so only when a running sequence needs KV: `--preemption lowest-priority`).
    Source: vLLM V1 `PriorityRequestQueue`, heap of (priority, arrival time).
    """

    preempted_first = False

    def __init__(self, *, preemptive: bool = False, patience_s: float | None = None) -> None:
        super().__init__(patience_s=patience_s)
        self.preemptive = preemptive

    def make_order(self) -> PriorityOrder:
        """By priority."""
        return PriorityOrder()
