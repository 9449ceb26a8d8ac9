"""What a router knows of a replica: counts it keeps itself, and figures the replica shows, live or as last scraped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cost.work import StepWork

if TYPE_CHECKING:
    from ..cost.work import CostModel
    from ..engine.replica import Replica


class LiveSignals:
    """A replica as it is now (see `engine.contracts.RouterView`)."""

    __slots__ = (
        "_replica", "block_size", "index", "max_num_batched_tokens", "max_num_seqs", "n_outstanding",
        "outstanding_tokens", "total_blocks",
    )  # fmt: skip

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.index = replica.index
        self.max_num_seqs = replica.limits.max_num_seqs
        self.max_num_batched_tokens = replica.limits.max_num_batched_tokens
        self.total_blocks = replica.kv.usable
        self.block_size = replica.kv.block_size
        self.n_outstanding = 0
        self.outstanding_tokens = 0

    @property
    def n_waiting(self) -> int:
        """Requests sent there that have no seat yet."""
        replica = self._replica
        return len(replica.waiting) + sum([not seq.aborted for _, seq in replica.inbox])

    @property
    def n_running(self) -> int:
        """Sequences with a seat."""
        return len(self._replica.running)

    @property
    def n_decoding(self) -> int:
        """Sequences past their prompt."""
        return self._replica.decode.n

    @property
    def backlog_tokens(self) -> int:
        """Prompt tokens still to be computed of all requests sent there."""
        return self._replica.view.backlog_tokens

    @property
    def free_blocks(self) -> int:
        """KV blocks that nobody holds (evictable cached ones included), by the step in progress."""
        replica = self._replica
        return replica.kv.available - replica.decode.blocks_in(replica.steps_done())

    def step_s(self, prompt_tokens: int, history_tokens: int = 0) -> float:
        """Seconds of a step in which all decode and that many tokens of one prompt are computed after a history."""
        return self._replica.price(prompt_tokens, history_tokens)


class ScrapedSignals:
    """A replica as it was when it was last scraped; the same names as `LiveSignals`."""

    __slots__ = (
        "_contexts", "_cost", "_generated", "backlog_tokens", "block_size", "free_blocks", "index",
        "max_num_batched_tokens", "max_num_seqs", "n_decoding", "n_outstanding", "n_running", "n_waiting",
        "outstanding_tokens", "total_blocks",
    )  # fmt: skip

    def __init__(self, live: LiveSignals) -> None:
        self.index = live.index
        self.max_num_seqs = live.max_num_seqs
        self.max_num_batched_tokens = live.max_num_batched_tokens
        self.total_blocks = live.total_blocks
        self.block_size = live.block_size
        self.n_outstanding = live.n_outstanding
        self.outstanding_tokens = live.outstanding_tokens
        self.n_waiting = live.n_waiting
        self.n_running = live.n_running
        self.n_decoding = live.n_decoding
        self.backlog_tokens = live.backlog_tokens
        self.free_blocks = live.free_blocks
        replica = live._replica
        self._cost: CostModel = replica.cost
        self._contexts = replica.decode.context_tokens() if replica.decode.n else replica.decode.no_context()
        self._generated = replica.decode.generated_tokens()

    def step_s(self, prompt_tokens: int, history_tokens: int = 0) -> float:
        """As of the scrape, see `LiveSignals.step_s`."""
        c, n = prompt_tokens, self.n_decoding
        pairs = c * history_tokens + c * (c + 1) // 2
        kv_tokens, generated = history_tokens + c, self._generated
        return self._cost.step_s(StepWork(c, int(c > 0), pairs, kv_tokens, n, self._contexts, n, generated))
