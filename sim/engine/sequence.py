"""A request's life on a replica."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .kv_cache import Match, Segment

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

    # What most sequences never change lives on the class: an arrival then sets a handful of attributes.
    computed_tokens = 0
    generated_tokens = 0
    state = WAITING
    preemptions = 0
    cached_tokens = 0
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s = 0.0
    deadline_s: float | None = None
    aborted = False
    priority = 0
    tenant: str | None = None
    session_id: str | None = None
    slo_class: str | None = None
    # Decode aggregates: KV tokens = decode_offset + the set's step counter; `epoch` voids stale heap entries.
    decode_offset = 0
    finish_step = 0
    epoch = 0
    # KV: segments held, the blocks of them in use, the id being filled and its segment if this sequence fills it.
    hash_ids: tuple[int, ...] | None = None
    hash_ends: tuple[int, ...] = ()
    held_segments: list[Segment] | tuple[()] = ()
    own_segment: Segment | None = None
    path_blocks = 0
    reserved_blocks = 0
    swapped_tokens = 0  # of them in host memory since the preemption
    next_id = 0
    match: Match | None = None

    def __init__(
        self, index: int, sent_s: float, arrival_s: float, input_tokens: int, max_output_tokens: int
    ) -> None:
        self.index = index
        self.sent_s = sent_s
        self.arrival_s = arrival_s
        self.input_tokens = input_tokens
        self.prompt_tokens = input_tokens
        self.max_output_tokens = max_output_tokens

    @property
    def uncomputed_tokens(self) -> int:
        """Prompt tokens (recomputed ones included) still to be computed."""
        return self.prompt_tokens - self.computed_tokens

    def __repr__(self) -> str:
        return f"Sequence({self.index}, {self.input_tokens} in, {self.generated_tokens} out)"
