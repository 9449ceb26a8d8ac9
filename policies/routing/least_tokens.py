"""The replica with the fewest prompt tokens on its hands, or the most free KV."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import LeastOf

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class LeastTokensPolicy(LeastOf):
    """Fewest prompt tokens of outstanding requests: what the router itself can count, whatever the engine shows."""

    def load(self, request: Sequence, replica: Any) -> float:
        """Prompt tokens of the requests sent there and not yet ended."""
        return float(replica.outstanding_tokens)


class LeastKvPolicy(LeastOf):
    """Smallest share of KV blocks held, counting the prompts that wait for theirs.

    Without what waits, a replica whose KV is full looks no worse however long its queue is.
    """

    def load(self, request: Sequence, replica: Any) -> float:
        """Blocks held and asked for, as a share of all."""
        held = replica.total_blocks - replica.free_blocks
        return float(held + replica.backlog_tokens / replica.block_size) / float(replica.total_blocks)
