"""A request's life on a replica."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .kv_cache import Match
    from .offload import Run
    from .segment import Segment

WAITING, PREFILLING, DECODING, DONE = range(4)
"""States of a `Sequence`; policies compare, only the replica assigns."""


class Sequence:
    """One request on one replica, as policies see it. Only the replica writes to it.

    The true output length is not here: it is an oracle that the replica keeps to itself. While a sequence decodes, its
    progress lives in the `DecodeSet`'s aggregates, so `computed_tokens` and `generated_tokens` are those at joining.

    index              row of the trace (also the tie-breaker wherever order matters)
    arrival_s          when it reached the replica
    input_tokens       prompt length
    max_output_tokens  what the client allows (absent in the trace: max_model_len - input)
    prompt_tokens      tokens to compute before the next token can be emitted: the input, plus what had been
                       generated when it was last preempted
    computed_tokens    of those, computed (or found in the prefix cache)
    generated_tokens   emitted so far
    """

    __slots__ = (
        "aborted", "adapter", "arrival_s", "cached_tokens", "computed_tokens", "deadline_s", "decode_offset", "epoch",
        "finish_step", "first_token_s", "generated_tokens", "hash_ends", "hash_ids", "held_segments", "index",
        "input_tokens", "last_token_s", "loaded", "match", "max_output_tokens", "next_id", "own_segment", "path_blocks",
        "preemptions", "priority", "prompt_tokens", "reserved_blocks", "scheduled_s", "sent_s", "session_id",
        "slo_class", "state", "swapped_tokens", "tenant",
    )  # fmt: skip

    def __init__(
        self, index: int, sent_s: float, arrival_s: float, input_tokens: int, max_output_tokens: int
    ) -> None:
        self.index = index
        self.sent_s = sent_s
        self.arrival_s = arrival_s
        self.input_tokens = input_tokens
        self.prompt_tokens = input_tokens
        self.max_output_tokens = max_output_tokens
        self.state = WAITING
        self.computed_tokens = self.generated_tokens = self.preemptions = self.cached_tokens = 0
        self.scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.deadline_s: float | None = None
        self.last_token_s = 0.0
        self.aborted = False
        self.priority = 0
        self.tenant: str | None = None
        self.session_id: str | None = None
        self.slo_class: str | None = None
        self.adapter: str | None = None
        # decode aggregates: KV tokens = decode_offset + the set's step counter; `epoch` voids stale heap entries
        self.decode_offset = self.finish_step = self.epoch = 0
        # KV: segments held, the blocks of them in use, the id being filled and its segment if this sequence fills it
        self.hash_ids: tuple[int, ...] | None = None
        self.hash_ends: tuple[int, ...] = ()
        self.held_segments: list[Segment] | tuple[()] = ()
        self.own_segment: Segment | None = None
        self.path_blocks = self.reserved_blocks = self.next_id = 0
        self.swapped_tokens = 0  # of them in host memory since the preemption
        self.match: Match | None = None
        self.loaded: tuple[Run, ...] | None = None  # from tiers below the GPU, for the admission to come

    def start_over(self, now_s: float, hash_ids: tuple[int, ...] | None, hash_ends: tuple[int, ...]) -> None:
        """All that was computed is lost: it arrives (now) as if for the first time, with the ids that its row has."""
        self.arrival_s = now_s
        self.state = WAITING
        self.prompt_tokens = self.input_tokens
        self.computed_tokens = self.generated_tokens = self.cached_tokens = 0
        self.scheduled_s = self.first_token_s = None
        self.epoch += 1
        self.hash_ids, self.hash_ends = hash_ids, hash_ends
        self.held_segments, self.own_segment, self.match, self.loaded = (), None, None, None
        self.path_blocks = self.reserved_blocks = self.next_id = self.swapped_tokens = 0

    @property
    def uncomputed_tokens(self) -> int:
        """Prompt tokens (recomputed ones included) still to be computed."""
        return self.prompt_tokens - self.computed_tokens

    @property
    def patient_until_s(self) -> float:
        """When its client gives up (inf: never)."""
        return inf if self.deadline_s is None else self.deadline_s

    def __repr__(self) -> str:
        return f"Sequence({self.index}, {self.input_tokens} in, {self.generated_tokens} out)"
