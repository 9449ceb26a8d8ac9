"""Contracts between a replica and its plug-ins: what policies see (`View`), what they answer (`Plan`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, SupportsIndex

if TYPE_CHECKING:
    from .segment import Segment
    from .sequence import Sequence

Reservation = Literal["paged", "prompt", "contiguous"]
"""How KV blocks are taken at admission: those of the chunk; of the whole prompt; of prompt + max_output_tokens."""


@dataclass(slots=True)
class Plan:
    """What a policy wants of the next step.

    chunks           (sequence, prompt tokens to compute now); a waiting sequence is thereby admitted
    decode           whether the decoding sequences emit a token in this step
    preempt          sequences to take off the replica first: their blocks are freed, their tokens recomputed later
    ask_every_step   False: a pure-decode plan stays valid until something changes, so the engine may leap
    deaf             an arrival cannot change this plan (say, the head of a FCFS queue is blocked)
    """

    chunks: list[tuple[Sequence, int]]
    decode: bool = True
    preempt: tuple[Sequence, ...] = ()
    ask_every_step: bool = False
    deaf: bool = False


class View(Protocol):
    """A replica as policies see it: live and read-only. Token counts are tokens, KV counts are blocks.

    The true output length is not on it, unless the policy class says `oracle = True` (then `oracle_output_tokens`).
    """

    now_s: float
    step: int
    waiting: Iterable[Sequence]
    n_waiting: int
    running: Iterable[Sequence]
    n_running: int
    prefilling: Iterable[Sequence]
    n_decoding: int
    decode_steps: int
    emits_one: bool
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    long_prefill_token_threshold: int
    total_blocks: int
    free_blocks: int
    decode_blocks: int
    preemption: PreemptionPolicy

    @property
    def backlog_tokens(self) -> int:
        """Prompt tokens still to be computed of all requests sent here: waiting, just arrived, or begun."""
        ...

    def step_s(self, prompt_tokens: int, history_tokens: int = 0) -> float:
        """Seconds of a step in which all decode and that many tokens of one prompt are computed after a history."""
        ...

    def generated_tokens(self, seq: Sequence) -> int:
        """Tokens that this sequence has emitted so far."""
        ...

    def newest_first(self) -> Iterable[Sequence]:
        """Running sequences, last admitted first."""
        ...

    def cached_tokens(self, seq: Sequence) -> int:
        """Prompt tokens of a waiting sequence that the prefix cache holds now."""
        ...

    def blocks_needed(self, seq: Sequence, tokens: int) -> int:
        """Blocks taken from `free_blocks` if `tokens` more of the prompt are computed (admission included)."""
        ...

    def admission_blocks(self, seq: Sequence, tokens: int) -> int:
        """Blocks taken from `free_blocks` by admitting with that many tokens in all reserved, cached ones included."""
        ...

    def held_blocks(self, seq: Sequence) -> int:
        """Blocks that come back if this running sequence is preempted (shared ones do not)."""
        ...

    def decodes(self, seq: Sequence) -> bool:
        """Whether this sequence emits a token in every step that decodes."""
        ...

    def opens_block(self, seq: Sequence) -> bool:
        """Whether this sequence's next decode step takes a new block."""
        ...


class BatchPolicy(Protocol):
    """Decides what a step computes. `plan` is pure; keyword-only parameters go to the constructor.

    `reservation`: see `Reservation`. `pads`: request-level batching, finished rows are computed until all are done.
    `whole_prompts`: never splits a prompt, so one beyond the token budget runs as a step's only chunk.
    `spare_blocks`: it wants to be asked before a decode step would leave fewer free blocks than this.
    `oracle`: reads true output lengths; then its registered name must contain "oracle".
    A policy may have `make_queue() -> WaitingQueue`, the order in which its replicas keep what waits (without: FCFS).
    """

    reservation: Reservation
    pads: bool
    whole_prompts: bool
    spare_blocks: int
    oracle: bool

    def plan(self, view: Any) -> Plan:
        """The next step for this view; an empty plan (no chunks, nobody decodes) means: nothing fits."""
        ...


class WaitingQueue(Protocol):
    """What waits at a replica, in the order in which it should be admitted; a deque is one (FCFS).

    It may have `attach(view)`, called once, and `ended(seq)`, called when a sequence of the replica has ended (its
    `generated_tokens` are final then): counters that an order needs are its own.
    """

    def append(self, seq: Sequence, /) -> None:
        """A request arrives."""
        ...

    def appendleft(self, seq: Sequence, /) -> None:
        """A preempted sequence returns."""
        ...

    def popleft(self) -> Sequence:
        """The first one is admitted."""
        ...

    def remove(self, seq: Sequence, /) -> None:
        """One is admitted out of turn, or has been aborted (`seq.aborted`)."""
        ...

    def __getitem__(self, index: SupportsIndex, /) -> Sequence:
        """The first one (index 0; nothing else is asked for)."""
        ...

    def __contains__(self, seq: object, /) -> bool: ...

    def __iter__(self) -> Iterator[Sequence]: ...

    def __len__(self) -> int: ...


class KvCompression(Protocol):
    """Bounds what a sequence holds in the cache and reads of it. Counts are tokens of one sequence.

    cap_tokens      the most it holds while it decodes (None: it grows with what it generates)
    prefill_window  the most that a prompt token attends to (None: all before it)
    """

    cap_tokens: int | None
    prefill_window: int | None

    def kept_tokens(self, prompt_tokens: int) -> int:
        """Tokens held once a prompt of that length is computed: at most that length, and at most `cap_tokens`."""
        ...


class AdmissionPolicy(Protocol):
    """Decides at the door. One instance a replica; what it turns away is counted as rejected."""

    def admit(self, view: Any, seq: Sequence, now_s: float) -> bool:
        """Whether the request that arrives at `now_s` may queue. `view.now_s` is older: the last plan's."""
        ...


class PreemptionPolicy(Protocol):
    """Chooses who gives way when KV blocks run out.

    It may have `mode` ("recompute", the default, or "swap") and, for swapping, `swap_gib`, `copy_s`, `overlap`: see
    `policies.preemption.base.VictimRule`. `lets_finish = True`: whoever was admitted first is its choice only when alone;
    without it, batching policies keep the prompt that has run longest out of the candidates while there are others.
    """

    def victim(self, view: Any, candidates: Iterable[Sequence], blocks_needed: int) -> Sequence | None:
        """One of `candidates` (running sequences, last admitted first), or None if nobody should go."""
        ...


class EvictionPolicy(Protocol):
    """Chooses which cached blocks lose their content. Each method O(log n) or better in the number of segments.

    A segment becomes evictable with `on_release` and stops being so with `on_hit` (a hit pins it) or `on_evict`.
    Segments without a key (`Segment.key` None) hold what nothing can hit; they are released and evicted, never hit.

    A policy may have more, each looked up once:
    `on_admit(seq)`: a sequence is admitted, its hits follow.
    `expired(now_s) -> Iterator[Segment]`: evictable segments whose time is over, asked before each look-up; each is
    dropped (`on_evict`) before the next is asked for.
    `foresee(hash_ids)`: the ids of all requests of the trace (`traces.Ragged`), told before the run; only for a class
    with `oracle = True`, whose registered name must contain "oracle".
    `leaves_only = True`: a segment that a cached one continues is never the victim (tiers below the GPU ask: what is
    being read there keeps all that it continues).
    `ignores_inserts = True`: `on_insert` does nothing, and need not be called.
    `in_order_of_release = True` in the body of the class itself (a subclass may do more): all that its methods do is keep
    the evictable segments in `queue`, an `OrderedDict`, first to go first; the engine then does that itself.
    `head_first = True`: a cache-only replay (`simulate trace reuse`) hands it a prompt's blocks head first, the order
    of computation; else tail first, the order of release.
    """

    def on_insert(self, segment: Segment, now_s: float) -> None:
        """A segment has been computed for the first time (and is held)."""
        ...

    def on_hit(self, segment: Segment, now_s: float) -> None:
        """A sequence found the segment and holds it from now on (it may have been held already)."""
        ...

    def on_release(self, segment: Segment, now_s: float) -> None:
        """Nobody holds the segment any more."""
        ...

    def victim(self) -> Segment:
        """The evictable segment that loses its last blocks next; it stays evictable until `on_evict`."""
        ...

    def on_evict(self, segment: Segment) -> None:
        """The segment has lost its last block: forget it."""
        ...


class RouterView(Protocol):
    """What a router knows of a replica, now or as of its last scrape. Tokens are tokens, KV counts blocks.

    `index` names the replica for as long as the run lasts, whatever others come and go. `n_outstanding` and
    `outstanding_tokens` (of their prompts): requests sent there and not yet ended. `n_waiting` have no seat,
    `n_running` have one, `n_decoding` of them are past their prompt. `backlog_tokens`: prompt tokens still to be
    computed. `free_blocks`: held by nobody (cached content may be in them).
    """

    index: int
    n_outstanding: int
    outstanding_tokens: int
    n_waiting: int
    n_running: int
    n_decoding: int
    backlog_tokens: int
    free_blocks: int
    total_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int

    def step_s(self, prompt_tokens: int, history_tokens: int = 0) -> float:
        """Seconds of a step in which all decode and that many tokens of one prompt are computed after a history."""
        ...


class RoutingPolicy(Protocol):
    """Chooses a replica for each request as it arrives. `replicas[i]`: a `RouterView` of one that takes requests.

    A policy that may answer None says so with `holds = True`. Each run works on a copy of the policy it was given.
    """

    def choose(self, request: Sequence, replicas: list[Any]) -> int | None:
        """Index into `replicas`, never an empty list; None: wait at the router until there is room."""
        ...
