"""Hit rate of a trace by cache size and eviction policy, without timing: a cache-only replay in whole trace blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from stepline.traces.continuing import carried_on
from stepline.traces.errors import ConfigError, PolicyError

from ..engine.plugins import plugin_factory
from ..engine.segment import Segment
from ..engine.sequence import Sequence as Request

if TYPE_CHECKING:
    import pandas as pd
    from stepline.traces.trace import Trace

    from ..engine.contracts import EvictionPolicy

GROUP = "stepline.eviction_policies"
ENGINE_BLOCK = 16
"""Tokens of an engine block: a segment of the replay counts as many as fill a trace block, for policies that weigh."""


@dataclass(frozen=True, slots=True)
class ReusePoint:
    """Share of the measured prompt tokens that a cache of `capacity_blocks` trace blocks serves under `policy`."""

    policy: str
    capacity_blocks: int
    hit_token_frac: float


def reuse(
    trace: Trace,
    policies: Sequence[str] = ("lru", "fifo", "oracle-optimal"),
    capacities: Sequence[int] = (),
    warmup_frac: float = 0.0,
) -> list[ReusePoint]:
    """Replay the block ids of `trace` through caches of `capacities` blocks under each eviction policy.

    Requests come in order of arrival, one at a time, and hold nothing. A request hits the blocks at its start that are
    all cached when it comes (a last, partly filled block with the tokens it has). Its blocks then pass through the
    cache one by one: a cached one counts as used, any other is put in, and if there are now more than the capacity the
    policy names a victim, which may be the newcomer: that is how a policy refuses to admit. Blocks pass tail first,
    as an engine releases them, or head first if the policy says so (`EvictionPolicy`). Blocks that decoding completed and a
    later prompt goes on with (`output_hash_ids`) pass through behind those of the prompt. The first
    `int(warmup_frac * n)` requests fill the caches and are not measured. Without `capacities`: `default_capacities`.

    Raises:
        ConfigError: no ids in the trace, several block sizes, a wrong policy, capacity or fraction.
        PolicyError: a policy names a victim that is not cached.
    """
    _check(trace, capacities, warmup_frac)
    factories = {text: plugin_factory(GROUP, text) for text in policies}
    rows = _Rows(trace, int(warmup_frac * len(trace)))
    sizes = capacities or default_capacities(trace)
    return [
        ReusePoint(text, capacity, rows.hit_frac(_foreseeing(build, trace), capacity))
        for text, build in factories.items()
        for capacity in sizes
    ]


def ceiling(trace: Trace, warmup_frac: float = 0.0) -> float:
    """Hit share of a cache that never loses anything."""
    _check(trace, (), warmup_frac)
    rows = _Rows(trace, int(warmup_frac * len(trace)))
    return rows.hit_frac(_foreseeing(plugin_factory(GROUP, "lru"), trace), 2**62)


def default_capacities(trace: Trace) -> list[int]:
    """Powers of two up to the number of distinct blocks, at most eight of them, and that number itself."""
    distinct = 0 if trace.hash_ids is None else len(np.unique(trace.hash_ids.values))
    powers = [2**i for i in range(distinct.bit_length()) if 2**i < distinct]
    return [*powers[-8:], distinct]


def frame(points: Sequence[ReusePoint]) -> pd.DataFrame:
    """One row a policy and capacity: columns policy, capacity_blocks, hit_token_frac."""
    import pandas as pd

    names = list(ReusePoint.__dataclass_fields__)
    return pd.DataFrame([[getattr(p, n) for n in names] for p in points], columns=names)


def _check(trace: Trace, capacities: Sequence[int], warmup_frac: float) -> None:
    if trace.hash_ids is None or trace.block_size is None or not len(trace.hash_ids.values):
        raise ConfigError(f"{trace.source}: no request has hash_ids, expected a trace with block ids")
    sizes = np.unique(trace.block_size[np.diff(trace.hash_ids.offsets) > 0]).tolist()
    if len(sizes) > 1:
        raise ConfigError(f"{trace.source}: got block sizes {sizes}, expected one: capacity is in blocks")
    if not 0 <= warmup_frac < 1:
        raise ConfigError(f"--warmup-frac: got {warmup_frac}, expected a fraction in [0, 1)")
    for capacity in capacities:
        if capacity < 1:
            raise ConfigError(f"--capacity-blocks: got {capacity}, expected integers >= 1")


def _foreseeing(build: Callable[[], EvictionPolicy], trace: Trace) -> EvictionPolicy:
    policy = build()
    foresee = getattr(policy, "foresee", None)
    if foresee is not None:
        foresee(trace.hash_ids)
    return policy


class _Rows:
    """The trace as the replay reads it, shared by all caches."""

    def __init__(self, trace: Trace, warmup: int) -> None:
        self.trace = trace
        self.warmup = warmup
        self.measured_tokens = int(trace.input_tokens[warmup:].sum())
        self.carried = carried_on(trace)
        self.labels = {k: trace.columns[k] for k in ("tenant", "priority") if k in trace.columns}

    def __iter__(self) -> Iterator[tuple[Request, tuple[int, ...], int]]:
        """Each request, its ids and their block size."""
        trace = self.trace
        sizes = [] if trace.block_size is None else trace.block_size.tolist()
        times, inputs = trace.arrival_s.tolist(), trace.input_tokens.tolist()
        for i, (now_s, tokens) in enumerate(zip(times, inputs, strict=True)):
            request = Request(i, now_s, now_s, tokens, 1)
            for name, column in self.labels.items():
                if column[i] is not None:
                    setattr(request, name, column[i])
            request.hash_ids = self._ids(i, tokens)
            yield request, request.hash_ids or (), sizes[i]

    def _ids(self, i: int, tokens: int) -> tuple[int, ...] | None:
        """Those of the prompt, and of what is generated where a later prompt goes on with it: the last block is whole then."""
        trace = self.trace
        ids = None if trace.hash_ids is None else trace.hash_ids.row(i)
        if (
            self.carried is None
            or not self.carried[i]
            or trace.output_hash_ids is None
            or trace.block_size is None
        ):
            return ids
        return (*(ids or ())[: tokens // int(trace.block_size[i])], *(trace.output_hash_ids.row(i) or ()))

    def hit_frac(self, policy: EvictionPolicy, capacity: int) -> float:
        """Share of the measured tokens that hit."""
        cache = _Cache(policy, capacity)
        hit = 0
        for request, ids, block_size in self:
            tokens = cache.serve(request, ids, block_size)
            if request.index >= self.warmup:
                hit += tokens
        return hit / self.measured_tokens


class _Cache:
    """Trace blocks under one policy, nothing pinned."""

    def __init__(self, policy: EvictionPolicy, capacity: int) -> None:
        self.policy = policy
        self.capacity = capacity
        self.segments: dict[int, Segment] = {}
        self.head_first = getattr(policy, "head_first", False)
        self.on_admit: Callable[[Any], None] | None = getattr(policy, "on_admit", None)
        self.expired: Callable[[float], Iterator[Segment]] | None = getattr(policy, "expired", None)

    def serve(self, request: Request, ids: tuple[int, ...], block_size: int) -> int:
        """Pass a request's blocks through the cache; returns the prompt tokens it hits."""
        if self.expired is not None:
            for segment in self.expired(request.arrival_s):
                self._drop(segment)
        tokens = self._hit_tokens(ids, block_size, request.input_tokens)
        if self.on_admit is not None:
            self.on_admit(request)
        path = self._path(request, ids, max(1, block_size // ENGINE_BLOCK))
        for segment in path if self.head_first else reversed(path):
            self._use(segment, request.arrival_s)
        return tokens

    def _hit_tokens(self, ids: tuple[int, ...], block_size: int, input_tokens: int) -> int:
        segments = self.segments
        hit = 0
        for key in ids:
            if key not in segments:
                break
            hit += 1
        return min(hit * block_size, input_tokens)

    def _path(self, request: Request, ids: tuple[int, ...], blocks: int) -> list[Segment]:
        """The segments of a prompt, head first, new ones where none is cached."""
        path: list[Segment] = []
        parent = None
        for place, key in enumerate(ids):
            segment = self.segments.get(key)
            if segment is None:
                segment = Segment(key, blocks, place * blocks, request, parent)
                segment.refs = 0
            path.append(segment)
            parent = segment
        return path

    def _use(self, segment: Segment, now_s: float) -> None:
        policy, segments = self.policy, self.segments
        key = segment.key
        if key in segments:
            policy.on_hit(segments[key], now_s)
            policy.on_release(segments[key], now_s)
            return
        if key is not None:
            segments[key] = segment
        policy.on_insert(segment, now_s)
        policy.on_release(segment, now_s)
        if len(segments) > self.capacity:
            self._drop(self._victim())

    def _victim(self) -> Segment:
        """The policy's choice. Raises PolicyError if it is not cached."""
        victim = self.policy.victim()
        if self.segments.get(victim.key) is not victim:  # type: ignore[arg-type]  # every segment of a trace has a key
            raise PolicyError(
                f"{type(self.policy).__name__}: victim: got {victim!r}, expected a cached segment"
            )
        return victim

    def _drop(self, segment: Segment) -> None:
        if segment.key is not None:
            del self.segments[segment.key]
        self.policy.on_evict(segment)
