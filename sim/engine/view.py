"""The live, read-only view of a replica that policies are shown."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from .sequence import DECODING, PREFILLING, WAITING

if TYPE_CHECKING:
    from .contracts import PreemptionPolicy
    from .decode_set import DecodeSet
    from .replica import Replica
    from .sequence import Sequence


class ReplicaView:
    """See `contracts.View` for the meaning of each name; routers see it too."""

    __slots__ = (
        "_decode", "_kv", "_leaving", "_plain", "_replica", "_seats", "block_size", "long_prefill_token_threshold", "max_model_len",
        "max_num_batched_tokens", "max_num_seqs", "preemption", "prefilling", "running", "step_s", "total_blocks", "waiting",
    )  # fmt: skip

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._decode: DecodeSet = replica.decode
        self._kv = replica.kv
        self._plain = replica.seats.paged
        self._seats = replica.seats
        self._leaving = replica.seats.leaving
        self.waiting: Collection[Sequence] = replica.waiting
        self.running: Collection[Sequence] = replica.running
        self.prefilling: Collection[Sequence] = replica.prefilling
        limits = replica.limits
        self.max_num_seqs = limits.max_num_seqs
        self.max_num_batched_tokens = limits.max_num_batched_tokens
        self.max_model_len = limits.max_model_len
        self.long_prefill_token_threshold = limits.long_prefill_token_threshold
        self.block_size = replica.kv.block_size
        self.total_blocks = replica.kv.usable
        self.preemption: PreemptionPolicy = replica.preemption
        self.step_s = replica.price

    @property
    def now_s(self) -> float:
        """Simulated time of the plan."""
        return self._replica.now_s

    @property
    def step(self) -> int:
        """Steps taken so far."""
        return self._replica.steps

    @property
    def n_waiting(self) -> int:
        """How many wait (those that just arrived and are not yet visible to the planner excluded)."""
        return len(self._replica.waiting)

    @property
    def n_outstanding(self) -> int:
        """Requests sent here and not yet finished: waiting, running, and just arrived."""
        replica = self._replica
        return len(replica.waiting) + len(replica.running) + len(replica.unheard())

    @property
    def n_running(self) -> int:
        """Seats taken (with an async pipeline, those of sequences that have just finished too)."""
        return len(self.running) + len(self._leaving)

    @property
    def n_decoding(self) -> int:
        """Rows of the decode set."""
        return self._decode.n

    @property
    def decode_steps(self) -> int:
        """Decode steps taken since the decode set was last empty."""
        decode = self._decode
        return decode.counter - decode.since if decode.n else 0

    @property
    def emits_one(self) -> bool:
        """Whether each sequence that decodes emits just one token a step (not with speculation)."""
        return self._decode.emits_one

    @property
    def free_blocks(self) -> int:
        """KV blocks that can be taken now, evictable cached ones included."""
        kv = self._kv
        return kv.free + kv.evictable

    @property
    def decode_blocks(self) -> int:
        """New blocks that the next decode step takes."""
        decode = self._decode
        return decode.borders[decode.counter % decode.cycle]

    @property
    def backlog_tokens(self) -> int:
        """Prompt tokens still to be computed of all requests sent here: waiting, just arrived, or begun."""
        replica = self._replica
        queued = sum([seq.prompt_tokens for seq in replica.waiting])
        arrived = sum([seq.prompt_tokens for _, seq in replica.unheard() if not seq.aborted])
        return queued + arrived + sum([seq.uncomputed_tokens for seq in replica.prefilling])

    def generated_tokens(self, seq: Sequence) -> int:
        """Tokens that this sequence has emitted so far."""
        if seq.state != DECODING:
            return seq.generated_tokens
        return self._decode.generated(seq, self._seats.outputs[seq.index])

    def oracle_output_tokens(self, seq: Sequence) -> int:
        """Tokens that it will emit in all; only for policies that say `oracle = True`."""
        return self._replica.true_output_tokens(seq)

    def newest_first(self) -> Iterable[Sequence]:
        """Running sequences, last admitted first."""
        return reversed(self._replica.running)

    def cached_tokens(self, seq: Sequence) -> int:
        """Prompt tokens of a waiting sequence that the prefix cache, or its swap space, holds now."""
        if seq.swapped_tokens:
            return seq.swapped_tokens
        kv = self._kv
        return kv.match(seq).blocks * kv.block_size

    def blocks_needed(self, seq: Sequence, tokens: int) -> int:
        """Blocks taken from `free_blocks` if `tokens` more of the prompt are computed (admission included)."""
        if self._plain:  # the seats' answer to what is asked most, without asking them
            if seq.state == PREFILLING:
                done = seq.computed_tokens
                return -(-(done + tokens) // self.block_size) + -done // self.block_size
            if seq.hash_ids is None and seq.state == WAITING and not seq.swapped_tokens:
                return -(-tokens // self.block_size)
        return self._seats.blocks_needed(seq, tokens)

    def admission_blocks(self, seq: Sequence, tokens: int) -> int:
        """Blocks taken by admitting a waiting sequence with room for `tokens` in all."""
        kv = self._kv
        match = kv.match(seq)
        return kv.blocks_for(tokens) - match.blocks + match.pins

    def held_blocks(self, seq: Sequence) -> int:
        """Blocks that come back if this running sequence is preempted."""
        return self._seats.held_blocks(seq)

    def decodes(self, seq: Sequence) -> bool:
        """Whether this sequence emits a token in every step that decodes."""
        return seq.state == DECODING

    def opens_block(self, seq: Sequence) -> bool:
        """Whether this decoding sequence's next step takes a new block."""
        return self._decode.opens_block(seq)
