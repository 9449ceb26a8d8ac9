"""One queue at the router: a request goes to a replica only when one has room for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError

from .base import LeastOf

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class CentralQueuePolicy(LeastOf):
    """First come first served over all replicas: nobody waits at one replica while another has room.

    A replica has room while it has fewer than `slots` requests (default: its max_num_seqs) and KV blocks for the
    prompt; an empty one always has. `slots=1` with one seat a replica is the M/M/c queue of the textbooks.
    """

    holds = True

    def __init__(self, *, slots: int | None = None) -> None:
        super().__init__()
        if slots is not None and (not isinstance(slots, int) or slots < 1):
            raise ConfigError(f"slots: got {slots!r}, expected an integer >= 1")
        self._slots = slots

    def choose(self, request: Sequence, replicas: list[Any]) -> int | None:
        """The replica with the fewest requests among those with room, or None: wait."""
        loads = [self.load(request, replica) for replica in replicas]
        return None if min(loads) == float("inf") else self.pick(loads)

    def load(self, request: Sequence, replica: Any) -> float:
        """Outstanding requests, infinite without room."""
        n: int = replica.n_outstanding
        if n == 0:
            return 0.0
        if n >= (self._slots or replica.max_num_seqs):
            return float("inf")
        wanted = request.prompt_tokens + replica.backlog_tokens
        return float(n) if wanted <= replica.free_blocks * replica.block_size else float("inf")
