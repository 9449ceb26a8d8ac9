"""The replica with the shortest waiting queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import LeastOf

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class ShortestQueuePolicy(LeastOf):
    """Fewest requests without a seat; among those the fewest requests in all.

    An engine batches what has a seat, so only the seatless wait; vLLM exports the figure as `num_requests_waiting`.
    """

    def choose(self, request: Sequence, replicas: list[Any]) -> int:
        """The least loaded replica."""
        return self.pick([(r.n_waiting, r.n_outstanding) for r in replicas])  # type: ignore[misc]  # tuples order too
