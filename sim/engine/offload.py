"""The tiers behind one replica's KV pool: what goes down, what can come back, and over which links."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from .kv_cache import Clock, Match, Stopped

if TYPE_CHECKING:
    from .channel import Channel
    from .segment import Segment
    from .sequence import Sequence
    from .tier import Tier

WriteRule = Literal["write-through", "on-evict"]
LoadRule = Literal["cost", "always"]
WRITES: tuple[str, ...] = get_args(WriteRule)
LOADS: tuple[str, ...] = get_args(LoadRule)


class Run(NamedTuple):
    """Blocks `first` to `end` of a prompt, of the segment `key` that starts at `start`.

    `tier`: where they are (None: on the GPU, behind a gap), `copy` the segment there.
    """

    tier: Tier | None
    copy: Segment
    key: int
    start: int
    first: int
    end: int

    @property
    def blocks(self) -> int:
        """Blocks to load."""
        return 0 if self.tier is None else self.end - self.first


@dataclass(frozen=True, slots=True)
class Rules:
    """write   write-through: content goes down when the sequence that computed it lets go; on-evict: when it is lost
    load       cost: it comes back if that is sooner than computing it again; always: whenever it is there
    stalls     steps wait for the transfers, as where they are issued on the stream that computes; else they run beside
    """

    write: WriteRule = "write-through"
    load: LoadRule = "cost"
    stalls: bool = False


class Offload:
    """Tiers, nearest first, behind the pool of one replica. The links to and from the GPU serve all of them.

    Each tier holds copies: what comes back to the GPU stays in the tier until the tier's own policy evicts it.
    """

    def __init__(self, tiers: tuple[Tier, ...], from_gpu: Channel, to_gpu: Channel, rules: Rules) -> None:
        self.tiers = tiers
        self.from_gpu, self.to_gpu = from_gpu, to_gpu
        self.rules = rules
        self.clock: Clock = Stopped()
        self.n_loads = 0
        self.load_s = 0.0
        self.until_s = 0.0
        self.stalled_s = 0.0
        if rules.write == "on-evict":
            for upper, lower in pairwise(tiers):
                upper.on_loss = partial(self._demote, lower)

    def wipe(self) -> None:
        """The machine has failed: everything is gone, links are idle."""
        for tier in self.tiers:
            tier.wipe()
            tier.read.free_s = tier.write.free_s = 0.0
        self.from_gpu.free_s = self.to_gpu.free_s = 0.0

    # -- on the way down --------------------------------------------------------------------------------------------

    def released(self, segments: Iterable[Segment], now_s: float) -> None:
        """Write through what nobody holds any more, head first, to every tier."""
        free = [s for s in segments if not s.refs]
        if self.rules.write == "write-through":
            self._write(free, now_s, self.tiers)
            return
        for segment in free:
            segment.went_down = False

    def evicted(self, segment: Segment, now_s: float) -> None:
        """Write to the nearest tier what is about to lose blocks, unless it was written when it lost its first."""
        if self.rules.write == "on-evict" and _is_first(segment):
            self._write([segment], now_s, self.tiers[:1])

    def _demote(self, lower: Tier, segment: Segment, now_s: float) -> None:
        if _is_first(segment):
            lower.store([segment], now_s, now_s, lower.write)

    def _write(self, segments: list[Segment], now_s: float, tiers: tuple[Tier, ...]) -> None:
        there_s = now_s
        for tier in tiers:
            tier.store(segments, now_s, there_s, tier.write)
            there_s = max(there_s, tier.write.free_s)
        self.until_s = max(self.until_s, self.from_gpu.free_s)

    # -- on the way up ----------------------------------------------------------------------------------------------

    def chain(
        self, seq: Sequence, match: Match, index: Mapping[int, Segment], block_size: int, now_s: float
    ) -> Iterator[Run]:
        """What continues the GPU's hit of a waiting sequence without a gap, a token left to compute."""
        for tier in self.tiers:
            tier.expire(now_s)
        cap = (seq.prompt_tokens - 1) // block_size
        hit, at = match.blocks, match.next_id
        start = seq.hash_ends[at - 1] if at else 0
        for key, end in islice(zip(seq.hash_ids or (), seq.hash_ends, strict=True), at, None):
            if end == start:
                continue
            run = self._run(key, start, hit, min(end, cap), index, now_s)
            if run is None:
                return
            yield run
            hit = run.end
            if hit < end:
                return
            start = end

    def _run(
        self, key: int, start: int, hit: int, end: int, index: Mapping[int, Segment], now_s: float
    ) -> Run | None:
        """What there is of one segment beyond block `hit`, on the GPU or else in the nearest tier that has any."""
        here = index.get(key)
        if here is not None and start + here.blocks > hit and hit < end:
            return Run(None, here, key, start, hit, min(end, start + here.blocks))
        if here is not None and here.refs:
            return None  # somebody is computing it, or has computed part of it
        for tier in self.tiers:
            copy = tier.find(key, now_s)
            have = 0 if copy is None else min(end, start + copy.readable(now_s))
            if copy is not None and have > hit:
                return Run(tier, copy, key, start, hit, have)
        return None

    def due_s(self, runs: Iterable[Run], now_s: float) -> float:
        """When they would be on the GPU."""
        return self._there_s(runs, now_s, send=False)

    def send(self, runs: Iterable[Run], now_s: float) -> float:
        """Load them; returns when they are on the GPU."""
        there_s = self._there_s(runs, now_s, send=True)
        self.n_loads += 1
        self.load_s += there_s - now_s
        self.until_s = max(self.until_s, there_s)
        return there_s

    def _there_s(self, runs: Iterable[Run], now_s: float, *, send: bool) -> float:
        """A slower tier's blocks pass through host memory piece by piece: the last one has the GPU's link before it."""
        counts = dict.fromkeys(self.tiers, 0)
        for run in runs:
            if run.tier is not None:
                counts[run.tier] += run.blocks
        link = self.to_gpu
        there_s = (link.send if send else link.due_s)(sum(counts.values()), now_s)
        for tier, blocks in counts.items():
            if blocks and tier.read is not link:
                read_s = (tier.read.send if send else tier.read.due_s)(blocks, now_s)
                there_s = max(there_s, read_s + link.block_s + link.latency_s)
        return there_s

    def promote(self, runs: Iterable[Run], now_s: float) -> None:
        """What has come from further down has passed through the nearest tier, and stays there."""
        nearest = self.tiers[0]
        nearest.store([r.copy for r in runs if r.tier not in (None, nearest)], now_s, now_s)

    def admitted(self, seq: Sequence, hit_blocks: int) -> None:
        """Count what an admitted sequence has got from each tier."""
        for tier in self.tiers:
            tier.admitted(seq)
        for run in seq.loaded or ():
            if run.tier is not None:
                run.tier.hit_blocks += max(0, min(hit_blocks, run.end) - run.first)
        seq.loaded = None

    # -- transfers that steps wait for ------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether a step that starts now has transfers to wait for."""
        return self.rules.stalls and self.until_s > self.clock.now_s

    def stretch(self, step_s: float) -> float:
        """How long that step lasts."""
        waits_s = self.until_s - self.clock.now_s
        self.stalled_s += waits_s
        return step_s + waits_s

    # -- the end ----------------------------------------------------------------------------------------------------

    def figures(self, block_size: int) -> dict[str, dict[str, float]]:
        """What each tier has done, by name: counts of blocks, hit tokens, seconds that its links were busy."""
        return {tier.name: tier.figures(block_size) for tier in self.tiers}

    def check(self) -> None:
        """Raise InvariantError unless every tier's counts are sane and nothing is left pinned."""
        for tier in self.tiers:
            tier.check()


def _is_first(segment: Segment) -> bool:
    """Whether this loss of blocks is its first since it was last held: it goes down whole then."""
    first, segment.went_down = not segment.went_down, True
    return first
