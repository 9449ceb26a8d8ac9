"""The cache's short ways: LRU's queue used without asking, and ids that fill no engine block of their own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from stepline.policies.eviction.lru import LruPolicy
from stepline.sim.engine.block_watch import BlockLog, WatchedEviction
from stepline.sim.engine.kv_cache import KVCache
from stepline.sim.engine.sequence import Sequence

from ..policies.conformance import simulate, worlds


class Asked(LruPolicy):
    """The same rule, asked by its methods."""

    victims = 0

    def victim(self):
        Asked.victims += 1
        return super().victim()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(world=worlds(caching=True))
def test_a_queue_used_directly_decides_as_its_methods_do(world):
    short = simulate(world, eviction="lru")
    asked = simulate(world, eviction=f"{__name__}:Asked")
    assert short.requests.equals(asked.requests)
    assert short.kv["evicted_blocks"] == asked.kv["evicted_blocks"]
    assert Asked.victims or not asked.kv["evicted_blocks"]


def test_only_lru_itself_lends_its_queue():
    assert LruPolicy().queue is not None
    assert Asked().queue is None
    assert WatchedEviction(LruPolicy(), BlockLog()).queue is None


@pytest.mark.parametrize("chunks", [(192,), (100, 150, 192)])
def test_ids_of_small_trace_blocks_continue_the_segment_before_them(chunks):
    """Four ids of 16 tokens end in each block of 64: every fourth makes a segment, and each continues the last."""
    kv = KVCache(20, 64, LruPolicy())
    seq = Sequence(0, 0.0, 0.0, 16 * 12, 1)
    seq.hash_ids, seq.hash_ends = tuple(range(12)), tuple((i + 1) // 4 for i in range(12))
    kv.admit(seq)
    kv.take(3)
    for tokens in chunks:
        kv.commit(seq, tokens)
    made = list(seq.held_segments)
    assert [s.key for s in made] == [3, 7, 11]
    assert [s.blocks for s in made] == [1, 1, 1]
    assert [s.parent for s in made] == [None, *made[:2]]
    again = Sequence(1, 0.0, 0.0, 16 * 12 + 1, 1)
    again.hash_ids, again.hash_ends = (*range(12), 99), (*seq.hash_ends, 3)
    assert kv.match(again).blocks == 3
