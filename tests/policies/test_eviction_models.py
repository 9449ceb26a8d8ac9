"""Eviction policies against naive models of the same rules, and the optimum against exhaustive search."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.sim.engine.plugins import plugin_factory
from stepline.sim.study.reuse import ceiling, reuse
from stepline.traces.trace import Ragged, Trace

from .conformance import EVICTION, chain, names

SOME = settings(max_examples=60, deadline=None, derandomize=True)
ACCESSES = st.lists(st.integers(0, 7), min_size=1, max_size=40)


def requests(chains, block=16, **columns):
    n = len(chains)
    tokens = np.array([block * len(c) for c in chains], dtype=np.int64)
    return Trace(
        np.arange(n, dtype=float),
        tokens,
        np.ones(n, dtype=np.int64),
        hash_ids=Ragged.from_rows(chains),
        block_size=np.full(n, block, dtype=np.int64),
        columns=columns,
    )


def hits(policy, keys, capacity, **columns):
    """Hits of single-block requests."""
    t = requests([[k] for k in keys], **columns)
    return round(reuse(t, [policy], [capacity])[0].hit_token_frac * len(keys))


def naive(keys, capacity, score):
    """Hits of a cache that evicts the least `score(key, history)`; history: numbers of past accesses by key."""
    cached, history, n_hits = set(), {}, 0
    entered = {}
    for t, key in enumerate(keys, start=1):
        n_hits += key in cached
        if key not in cached:
            entered[key] = t
        history.setdefault(key, []).append(t)
        cached.add(key)
        if len(cached) > capacity:
            cached.remove(min(cached, key=lambda k: score(k, history[k], entered[k])))
    return n_hits


MODELS = {
    "lru": lambda key, uses, entered: uses[-1],
    "radix-lru": lambda key, uses, entered: uses[-1],
    "fifo": lambda key, uses, entered: entered,
    "mru": lambda key, uses, entered: -uses[-1],
    "lfu": lambda key, uses, entered: (sum(u >= entered for u in uses), uses[-1]),
    "priority": lambda key, uses, entered: (-(key % 3), uses[-1]),
}


@pytest.mark.parametrize("policy", MODELS)
@SOME
@given(keys=ACCESSES, capacity=st.integers(1, 5))
def test_rules_agree_with_their_naive_models(policy, keys, capacity):
    assert hits(policy, keys, capacity, priority=[k % 3 for k in keys]) == naive(
        keys, capacity, MODELS[policy]
    )


@SOME
@given(keys=st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_lru_2_ranks_by_the_use_before_the_last(keys):
    """With one key more than fits, no history is ever forgotten."""
    assert hits("lru-k", keys, 3) == naive(
        keys, 3, lambda k, uses, e: (uses[-2] if len(uses) > 1 else 0, uses[-1])
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(keys=st.lists(st.integers(0, 4), min_size=1, max_size=10), capacity=st.integers(1, 3))
def test_the_oracle_finds_the_optimum_of_exhaustive_search(keys, capacity):
    @cache
    def best(t, cached):
        if t == len(keys):
            return 0
        pool = sorted(cached | {keys[t]})
        after = max(best(t + 1, frozenset(keep)) for keep in combinations(pool, min(capacity, len(pool))))
        return (keys[t] in cached) + after

    assert hits("oracle-optimal", keys, capacity) == best(0, frozenset())


@pytest.mark.parametrize("policy", [n for n in names(EVICTION) if n != "oracle-optimal"])
@SOME
@given(
    plan=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(1, 8)), min_size=1, max_size=30
    ),
    capacity=st.integers(1, 12),
)
def test_no_policy_beats_the_oracle_and_none_beats_unlimited_room(policy, plan, capacity):
    t = requests([chain(f, s, i, n) for i, (f, s, n) in enumerate(plan)], tenant=[str(f) for f, _, _ in plan])
    got, best = (p.hit_token_frac for p in reuse(t, [policy, "oracle-optimal"], [capacity]))
    assert got <= best + 1e-12
    assert best <= ceiling(t) + 1e-12


@pytest.mark.parametrize("policy", names(EVICTION))
def test_everything_fits_in_unlimited_room(policy):
    t = requests([chain(i % 3, 4, i, 6) for i in range(30)])
    policy = "ttl:ttl_s=1e9" if policy == "ttl" else policy
    (point,) = reuse(t, [policy], [10**6])
    assert point.hit_token_frac == pytest.approx(ceiling(t))


def test_a_scan_beyond_capacity_defeats_lru_and_not_mru():
    loop = list(range(10)) * 20
    assert hits("lru", loop, 8) == 0
    assert hits("mru", loop, 8) > 0.6 * len(loop)
    assert hits("oracle-optimal", loop, 8) >= hits("mru", loop, 8)


def test_one_time_scans_do_not_wash_out_what_is_used_again():
    """ARC, 2Q, S3-FIFO, LRU-K keep a hot set through scans that flush LRU."""
    rng = np.random.default_rng(7)
    keys, fresh = [], 100
    for _ in range(400):
        keys += rng.integers(0, 6, 4).tolist() + list(range(fresh, fresh + 8))
        fresh += 8
    plain = hits("lru", keys, 10)
    for policy in ("arc", "2q", "s3-fifo", "lru-k", "lfu"):
        assert hits(policy, keys, 10) > 1.3 * plain, policy


def test_content_older_than_its_lifetime_is_gone():
    assert (
        hits("ttl:ttl_s=5", [1, 2, 1, 3, 3, 3, 3, 3, 3, 1], 10) == 6
    )  # 1 is last used at 2 s and asked for at 9 s
    assert hits("ttl:ttl_s=50", [1, 2, 1, 3, 3, 3, 3, 3, 3, 1], 10) == 7


def test_tenants_share_evictable_room():
    """A tenant that floods the cache evicts its own content, not the other tenant's."""
    keys = [1, 2, *range(100, 140), 1, 2]
    tenants = ["quiet"] * 2 + ["loud"] * 40 + ["quiet"] * 2
    assert hits("tenant-share", keys, 8, tenant=tenants) == 2
    assert hits("lru", keys, 8, tenant=tenants) == 0


def test_deep_blocks_are_dearer_under_gdsf():
    """Of two prompts used alike, the one whose tail attends to more stays."""
    short, long = chain(0, 9, 0, 2), chain(1, 9, 1, 8)
    t = requests([short, long, chain(2, 0, 2, 3), short, long])
    policy = "gdsf:parity_blocks=1"
    (gdsf,) = reuse(t, [policy], [10])
    kept = gdsf.hit_token_frac * sum(t.input_tokens) / 16
    assert kept >= 8


@pytest.mark.parametrize(
    "text", ["lru-k:k=0", "2q:in_frac=2", "s3-fifo:small_frac=0", "ttl:ttl_s=0", "gdsf:parity_blocks=-1"]
)
def test_parameters_out_of_range_are_refused(text):
    from stepline.traces.errors import ConfigError

    with pytest.raises(ConfigError, match=r"--kv-eviction .*expected"):
        plugin_factory(EVICTION, text)()
