"""All turns of a session on one replica."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import LeastOf

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class SessionStickyPolicy(LeastOf):
    """The first turn of a session goes to the replica with the fewest requests, later ones follow it.

    If that replica is gone the session moves, and stays there. Requests without a session go to the fewest requests.
    """

    def __init__(self) -> None:
        super().__init__()
        self._home: dict[str, int] = {}

    def choose(self, request: Sequence, replicas: list[Any]) -> int:
        """The session's replica."""
        session = request.session_id
        if session is None:
            return self._least(replicas)
        home = self._home.get(session)
        for i, replica in enumerate(replicas):
            if replica.index == home:
                return i
        chosen = self._least(replicas)
        self._home[session] = replicas[chosen].index
        return chosen

    def _least(self, replicas: list[Any]) -> int:
        return self.pick([r.n_outstanding for r in replicas])
