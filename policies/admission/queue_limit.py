"""A limit on the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class QueueLimitPolicy:
    """Turns a request away when `max_outstanding` are already queued or running on the replica.

    As the HTTP 429/503 of servers with a bounded queue (TGI's `--max-concurrent-requests`, default 128).
    """

    def __init__(self, *, max_outstanding: int = 128) -> None:
        if max_outstanding < 1:
            raise ValueError(f"max_outstanding: got {max_outstanding}, expected an integer >= 1")
        self.max_outstanding = max_outstanding

    def admit(self, view: Any, seq: Sequence, now_s: float) -> bool:
        """Whether there is room."""
        return bool(view.n_outstanding < self.max_outstanding)
