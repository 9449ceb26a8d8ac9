"""The replica with the fewest requests, waiting or running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import LeastOf

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class LeastRequestsPolicy(LeastOf):
    """Fewest outstanding requests, those in service too.

    Queueing theory calls it join-the-shortest-queue; load balancers call it least connections.
    """

    def choose(self, request: Sequence, replicas: list[Any]) -> int:
        """The least loaded replica."""
        return self.pick([r.n_outstanding for r in replicas])
