"""Paged KV of one replica: block counts, and an index of cached prefixes in segments.

A *segment* is a run of engine blocks that live and die together: those of one trace block id, or the private rest of a
sequence. Freed blocks stay as cached, evictable segments until
their room is needed; eviction takes blocks from a segment's tail, as vLLM V1 frees tail-first, so what is left of a
segment is always a prefix of it. All work is O(ids touched), never O(blocks).

Trace blocks of any size map on engine blocks exactly as far as ids tell: trace block i stands for the engine blocks
that *end* inside it, because its chained id vouches for the whole prefix up to there. If the engine's block is not a
divisor or multiple of the trace's, an engine block that two prompts share but that ends inside a trace block they do
not share is missed (the stated rule: never a false hit).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from stepline.traces.errors import ConfigError, InvariantError

from .segment import Segment

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Callable, Iterable

    from .contracts import EvictionPolicy
    from .sequence import Sequence


class Match(NamedTuple):
    """Prefix-cache hit of a waiting sequence: whole blocks, and how many evictable blocks pinning it would take.

    `next_id`: the first trace id that is not wholly used. `tail`: blocks used of the last segment; the others are used whole.
    """

    blocks: int
    pins: int
    segments: tuple[Segment, ...]
    next_id: int
    version: int
    tail: int = 0


NO_MATCH = Match(0, 0, (), 0, -1)


class Clock(Protocol):
    """Whoever knows the time."""

    now_s: float


class Stopped:
    """A clock that stands, for a cache outside a simulation."""

    now_s = 0.0


class Generated(NamedTuple):
    """Ids of the trace blocks that a request's decoding completes: `ends` as of a sequence, after `n_prompt` ids of its prompt."""

    n_prompt: int
    ids: tuple[int, ...]
    ends: tuple[int, ...]


class Below(Protocol):
    """What is behind the GPU's pool, and told of what leaves it (see `offload.Offload`)."""

    def released(self, segments: Iterable[Segment], now_s: float) -> None:
        """A sequence has let go of these, head first; those that nobody else holds may be lost from now on."""
        ...

    def evicted(self, segment: Segment, now_s: float) -> None:
        """A segment is about to lose blocks."""
        ...

    def admitted(self, seq: Sequence, hit_blocks: int) -> None:
        """A sequence has been admitted with that many cached blocks."""
        ...


class KVCache:
    """Blocks of one replica.

    `blocks` as vLLM counts them: block 0 is the null block, so `blocks - 1` are usable. `eviction` None: no prefix
    caching. `generated(seq)`: ids of what it generates, where the trace has them. Invariant: free + held + evictable =
    usable, each >= 0.
    """

    def __init__(self, blocks: int, block_size: int, eviction: EvictionPolicy | None = None) -> None:
        if blocks < 2:
            raise ConfigError(
                f"--num-gpu-blocks-override: got {blocks}, expected >= 2 (block 0 is the null block)"
            )
        self.block_size = block_size
        self.usable = blocks - 1
        self.free = self.usable
        self.evictable = 0
        self.index: dict[int, Segment] = {}
        self.version = 0
        self.clock: Clock = Stopped()
        self.below: Below | None = None
        self.generated: Callable[[Sequence], Generated | None] | None = None
        self._ask(eviction)
        self.private_keys = 0
        self.evicted_blocks = 0
        self.hit_tokens = 0
        self.query_tokens = 0
        self.least_available = self.usable

    def wipe(self, eviction: EvictionPolicy | None) -> None:
        """Everything is gone: the memory was lost. `eviction`: a fresh policy (None: no caching); counts go on."""
        self.free, self.evictable = self.usable, 0
        self.index.clear()
        self.version += 1
        self._ask(eviction)

    def _ask(self, eviction: EvictionPolicy | None) -> None:
        """Look up once what a policy has (`contracts.EvictionPolicy`)."""
        self.eviction = eviction
        self._on_insert = (
            None if eviction is None or getattr(eviction, "ignores_inserts", False) else eviction.on_insert
        )
        self._on_admit = getattr(eviction, "on_admit", None)
        self._expired = getattr(eviction, "expired", None)
        self._queue: OrderedDict[Segment, None] | None = None
        if vars(type(eviction)).get("in_order_of_release", False):
            self._queue = getattr(eviction, "queue")  # noqa: B009 - not in the protocol

    # -- questions --------------------------------------------------------------------------------------------------

    @property
    def available(self) -> int:
        """Blocks that can be taken now: empty ones and evictable ones."""
        return self.free + self.evictable

    @property
    def held(self) -> int:
        """Blocks that sequences hold."""
        return self.usable - self.free - self.evictable

    @property
    def peak_held(self) -> int:
        """The most blocks that sequences have held at a time."""
        return self.usable - self.least_available

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens`."""
        return -(-tokens // self.block_size)

    def match(self, seq: Sequence) -> Match:
        """The longest cached prefix of a waiting sequence, in whole blocks, at least one token left to compute."""
        if seq.hash_ids is None or self.eviction is None:
            return NO_MATCH
        if self._expired is not None:
            self._expire()
        found = seq.match
        if found is None or found.version != self.version:
            found = seq.match = self._match(seq, seq.hash_ids)
        return found

    def _match(self, seq: Sequence, ids: tuple[int, ...]) -> Match:
        cap = (seq.prompt_tokens - 1) // self.block_size
        index, ends = self.index, seq.hash_ends
        segments: list[Segment] = []
        hit = pins = next_id = used = 0
        for next_id, (key, end) in enumerate(zip(ids, ends, strict=True)):  # noqa: B007 - where it stopped matters
            if hit == end:
                continue
            if hit >= cap or (segment := index.get(key)) is None:
                break
            segments.append(segment)
            blocks = segment.blocks
            used = (end if end < cap else cap) - hit  # a token must be left to compute
            if blocks < used:
                used = blocks
            hit += used
            if not segment.refs:
                pins += used
            if hit < end or used < blocks:
                break  # partly evicted, or its end is not used: nothing after it can be
        else:
            next_id = len(ids)
        return Match(hit, pins, tuple(segments), next_id, self.version, used)

    # -- changes ----------------------------------------------------------------------------------------------------

    def take(self, blocks: int) -> None:
        """Take blocks, evicting cached ones as needed; the caller has checked `available`."""
        self.free -= blocks
        if self.free < 0:
            self._evict(-self.free)
            self.free = 0
        left = self.free + self.evictable
        if left < self.least_available:
            self.least_available = left

    def vacate(self, blocks: int) -> None:
        """Evict what taking `blocks` next will evict, if that many can be taken at all.

        vLLM V1 gives running sequences their blocks before it looks waiting prompts up: these must not be planned on
        a prefix that the decodes of the same step are about to overwrite.
        """
        short = blocks - self.free
        if 0 < short <= self.evictable:
            self._evict(short)
            self.free = blocks

    def _evict(self, blocks: int) -> None:
        eviction = self.eviction
        if eviction is None or blocks > self.evictable:
            raise InvariantError(f"evict {blocks} blocks: only {self.evictable} can be")
        self.version += 1
        self.evicted_blocks += blocks
        self.evictable -= blocks
        victim, on_evict, index, below = eviction.victim, eviction.on_evict, self.index, self.below
        queue = self._queue
        while blocks > 0:
            segment = next(iter(queue)) if queue is not None else victim()
            if below is not None:
                below.evicted(segment, self.clock.now_s)
            left = segment.blocks - blocks
            if left > 0:
                segment.blocks = left
                return
            blocks = -left
            segment.blocks = 0
            if queue is not None:
                del queue[segment]
            else:
                on_evict(segment)
            if segment.key is not None:
                del index[segment.key]

    def _expire(self) -> None:
        """Drop content whose time is over (for policies that give it one)."""
        eviction = self.eviction
        if eviction is None or self._expired is None:
            return
        for segment in self._expired(self.clock.now_s):
            self.version += 1
            self.evicted_blocks += segment.blocks
            self.evictable -= segment.blocks
            self.free += segment.blocks
            segment.blocks = 0
            eviction.on_evict(segment)
            if segment.key is not None:
                del self.index[segment.key]

    def admit(self, seq: Sequence) -> int:
        """Pin the cached prefix of a waiting sequence and return its tokens (0: nothing cached)."""
        if self.eviction is None:
            return 0
        if seq.hash_ids is None:
            self.query_tokens += seq.prompt_tokens
            return 0
        self.query_tokens += seq.prompt_tokens
        found = self.match(seq)
        if self._on_admit is not None:
            self._on_admit(seq)
        seq.next_id = seq.path_blocks = 0
        seq.own_segment = None
        seq.held_segments = []
        if self.below is not None:
            self.below.admitted(seq, found.blocks)
        if not found.blocks:
            return 0
        self.hold(found.segments)
        seq.held_segments = list(found.segments)
        seq.next_id, seq.path_blocks = found.next_id, found.blocks
        last = found.segments[-1]
        if last.refs == 1:
            self._trim(last, found.tail)
        if found.next_id < len(seq.hash_ends) and last.refs == 1 and last.key == seq.hash_ids[found.next_id]:
            seq.own_segment = last  # partly evicted and held by nobody else: this sequence completes it
        tokens = found.blocks * self.block_size
        self.hit_tokens += tokens
        return tokens

    def hold(self, segments: Iterable[Segment]) -> None:
        """Pin cached segments, which is a use of each."""
        if self.eviction is None:
            return
        on_hit, now_s, queue = self.eviction.on_hit, self.clock.now_s, self._queue
        for segment in segments:
            if queue is not None:
                queue.pop(segment, None)
            else:
                on_hit(segment, now_s)
            if not segment.refs:
                self.evictable -= segment.blocks
            segment.refs += 1
        self.version += 1

    def unhold(self, segments: Iterable[Segment]) -> None:
        """Let go of pinned segments, in this order."""
        if self.eviction is None:
            return
        on_release, now_s, queue = self.eviction.on_release, self.clock.now_s, self._queue
        for segment in segments:
            segment.refs -= 1
            if not segment.refs:
                self.evictable += segment.blocks
                if queue is not None:
                    queue[segment] = None
                else:
                    on_release(segment, now_s)
        self.version += 1

    def insert(self, segment: Segment) -> None:
        """Content that was computed elsewhere, in blocks that were taken for it, becomes findable; it is held."""
        if segment.key is not None:
            self.index[segment.key] = segment
        if self._on_insert is not None:
            self._on_insert(segment, self.clock.now_s)

    def give_back(self, blocks: int) -> None:
        """Blocks that a running sequence no longer needs are empty."""
        self.free += blocks

    def readmit(self, seq: Sequence, blocks: int) -> None:
        """Take `blocks` for a sequence whose KV comes back from elsewhere: private content, nothing to find or pin."""
        seq.held_segments = []
        seq.own_segment = None
        seq.path_blocks = 0
        seq.next_id = len(seq.hash_ids or ())
        self.take(blocks)

    def _trim(self, segment: Segment, used: int) -> None:
        """Free the end of a segment that its only holder does not use: it is about to compute it anew."""
        self.free += segment.blocks - used
        segment.blocks = used

    def commit(self, seq: Sequence, computed_tokens: int) -> None:
        """Make the whole blocks of the first `computed_tokens` findable under the sequence's ids.

        vLLM V1 does so when a chunk is scheduled: a prompt admitted later in the same step can hit them.
        """
        if self.eviction is None or seq.hash_ids is None or seq.next_id >= len(seq.hash_ids):
            return
        full = computed_tokens // self.block_size
        ids, ends, index, held = seq.hash_ids, seq.hash_ends, self.index, seq.held_segments
        segment, path, grown = seq.own_segment, seq.path_blocks, 0
        on_insert = self._on_insert
        i = seq.next_id
        start = ends[i - 1] if i else 0
        n, now_s, parent = len(ids), self.clock.now_s, held[-1] if held else None
        while i < n:
            end = ends[i]
            if segment is None and start < end <= full:  # most ids: a whole new segment
                if path + grown <= start and (key := ids[i]) not in index:
                    parent = index[key] = Segment(key, end - start, start, seq, parent)
                    held.append(parent)  # type: ignore[union-attr]  # admitted with ids: a list
                    grown += end - start
                    if on_insert is not None:
                        on_insert(parent, now_s)
                start = end
                i += 1
                continue
            if start >= full and end > start:
                break
            whole = end if end < full else full
            if segment is not None:  # begun before: it grows
                grown += whole - start - segment.blocks
                segment.blocks = whole - start
            elif whole > start and path + grown <= start and ids[i] not in index:
                key = ids[i]
                segment = index[key] = Segment(key, whole - start, start, seq, parent)
                held.append(segment)  # type: ignore[union-attr]  # admitted with ids: a list
                grown += whole - start
                if on_insert is not None:
                    on_insert(segment, now_s)
            # else nothing whole yet, or somebody else has it: these blocks stay unkeyed duplicates
            if full < end:
                break
            segment = None
            start = end
            i += 1
        seq.next_id, seq.own_segment = i, segment
        if grown:
            seq.path_blocks = path + grown
            self.version += 1

    def release(self, seq: Sequence, kv_tokens: int, *, keep: bool = False) -> None:
        """Give back what a sequence holds, tail first; with `keep` (preempted) it can find its own tokens again."""
        total = -(-kv_tokens // self.block_size)
        if seq.reserved_blocks:
            self.free += seq.reserved_blocks - total
            seq.reserved_blocks = 0
        if self.generated is not None and seq.hash_ids and self.eviction is not None:
            self._key_generated(seq, kv_tokens)
        if self.eviction is None or not (self.index or keep or seq.held_segments):
            self.free += total  # nothing is findable, so the order in which blocks are reused does not matter
            return
        if keep:
            self._key_private(seq, kv_tokens // self.block_size)
        rest = total - seq.path_blocks
        if rest > 0:
            parent = seq.held_segments[-1] if seq.held_segments else None
            segment = Segment(None, rest, seq.path_blocks, seq, parent)
            if self._on_insert is not None:
                self._on_insert(segment, self.clock.now_s)
            seq.held_segments = [*seq.held_segments, segment]
        self.unhold(reversed(seq.held_segments))
        if self.below is not None:
            self.below.released(seq.held_segments, self.clock.now_s)
        seq.held_segments = ()
        seq.own_segment = None

    def _key_generated(self, seq: Sequence, kv_tokens: int) -> None:
        """Make the blocks that decoding has filled findable, by as many of its ids as it has reached."""
        found = None if self.generated is None else self.generated(seq)
        if found is None or seq.hash_ids is None:
            return
        at, full = len(seq.hash_ids) - found.n_prompt, kv_tokens // self.block_size
        while at < len(found.ids) and seq.hash_ends[-1] < full:
            seq.hash_ids = (*seq.hash_ids, found.ids[at])
            seq.hash_ends = (*seq.hash_ends, found.ends[at])
            at += 1
        self.commit(seq, kv_tokens)

    def _key_private(self, seq: Sequence, full_blocks: int) -> None:
        """Give the whole blocks after the sequence's ids an id of its own, if nothing before them is a duplicate."""
        covered = seq.hash_ends[-1] if seq.hash_ends else 0
        if seq.path_blocks != covered or full_blocks <= covered:
            return
        self.private_keys -= 1
        held = seq.held_segments
        segment = Segment(self.private_keys, full_blocks - covered, covered, seq, held[-1] if held else None)
        self.index[self.private_keys] = segment
        seq.held_segments = [*held, segment]
        if self._on_insert is not None:
            self._on_insert(segment, self.clock.now_s)
        seq.path_blocks = full_blocks
        seq.hash_ids = (*(seq.hash_ids or ()), self.private_keys)
        seq.hash_ends = (*seq.hash_ends, full_blocks)

    def check(self) -> None:
        """Raise InvariantError unless the three counts are sane."""
        if self.free < 0 or self.evictable < 0 or self.held < 0:
            raise InvariantError(f"kv: free {self.free}, evictable {self.evictable}, held {self.held}")


def block_ends(n_ids: int, trace_block: int, block_size: int, input_tokens: int) -> tuple[int, ...]:
    """For each trace block id: whole engine blocks that end at or before its end.

    >>> block_ends(3, 512, 16, 1100)
    (32, 64, 68)
    """
    last = input_tokens // block_size
    if trace_block % block_size:
        ends = [(i + 1) * trace_block // block_size for i in range(n_ids)]
    else:
        step = trace_block // block_size
        ends = list(range(step, step * n_ids + 1, step))
    for i in range(n_ids - 1, -1, -1):
        if ends[i] <= last:
            break
        ends[i] = last
    return tuple(ends)
