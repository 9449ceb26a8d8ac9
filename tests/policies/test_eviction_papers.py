"""Eviction policies against their papers' algorithms, written anew on plain keys with a fixed capacity.

Order is the engine's: a request's key is looked up, then room is made, then its content comes in.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.sim.engine.plugins import load_plugin
from stepline.sim.engine.segment import Segment

from .conformance import EVICTION

NOBODY = SimpleNamespace(tenant=None, priority=0)


class Cache:
    """Single-block contents under a policy of ours; a request is a list of keys, of which the last need not be cached."""

    def __init__(self, text, capacity):
        self.policy, self.capacity, self.segments = load_plugin(EVICTION, text), capacity, {}
        self.on_admit = getattr(self.policy, "on_admit", lambda request: None)

    def access(self, *keys):
        """Serve a prompt that makes room for all its keys before any comes in; returns how many were there."""
        policy, here = self.policy, self.segments
        self.on_admit(SimpleNamespace(hash_ids=keys))
        found = [key for key in keys if key in here]
        for key in found:
            policy.on_hit(here[key], 0.0)
        while len(here) + len(keys) - len(found) > self.capacity:
            victim = policy.victim()
            policy.on_evict(victim)
            del here[victim.key]
        for key in keys:
            if key not in here:
                here[key] = Segment(key, 1, 0, NOBODY)
                policy.on_insert(here[key], 0.0)
        for key in reversed(keys):
            policy.on_release(here[key], 0.0)
        return len(found)


class TwoQ:
    """Johnson & Shasha 1994, the full version: Kin = c / 4, Kout = c / 2."""

    def __init__(self, c):
        self.c, self.main, self.probation, self.out = c, OrderedDict(), OrderedDict(), OrderedDict()

    def reclaim(self):
        if len(self.main) + len(self.probation) < self.c:
            return
        if len(self.probation) > self.c / 4 or not self.main:
            self.out[self.probation.popitem(last=False)[0]] = None
            if len(self.out) > self.c / 2:
                self.out.popitem(last=False)
        else:
            self.main.popitem(last=False)

    def access(self, x):
        if x in self.main:
            self.main.move_to_end(x)
            return True
        if x in self.probation:
            return True
        known = x in self.out
        if known:
            del self.out[x]
        self.reclaim()
        (self.main if known else self.probation)[x] = None
        return False


class S3Fifo:
    """Yang et al. 2023, Algorithm 1: small queue c / 10, ghosts as many as the main queue holds, two bits of use."""

    def __init__(self, c):
        self.c, self.small_cap = c, 0.1 * c
        self.small, self.main, self.ghost, self.uses = OrderedDict(), OrderedDict(), OrderedDict(), {}

    def evict_small(self):
        while self.small:
            t, _ = self.small.popitem(last=False)
            if self.uses[t] > 1:
                self.main[t], self.uses[t] = None, 0
                continue
            self.ghost[t] = None
            del self.uses[t]
            while len(self.ghost) > self.c - self.small_cap:
                self.ghost.popitem(last=False)
            return True
        return False

    def evict_main(self):
        while True:
            t, _ = self.main.popitem(last=False)
            if not self.uses[t]:
                del self.uses[t]
                return
            self.uses[t] -= 1
            self.main[t] = None

    def access(self, x):
        if x in self.uses:
            self.uses[x] = min(3, self.uses[x] + 1)
            return True
        known = x in self.ghost
        if known:
            del self.ghost[x]
        if len(self.uses) >= self.c:
            small = len(self.small) >= self.small_cap or not self.main
            if not (small and self.evict_small()):
                self.evict_main()
        (self.main if known else self.small)[x] = None
        self.uses[x] = 0
        return False


class LruK:
    """O'Neil et al. 1993, K = 2: backward K-distance, LRU among those without; history of c lost keys is retained."""

    def __init__(self, c):
        self.c, self.uses, self.cached, self.lost, self.t = c, {}, set(), OrderedDict(), 0

    def access(self, x):
        self.t += 1
        if x in self.cached:
            self.uses[x].append(self.t)
            return True
        self.lost.pop(x, None)
        if len(self.cached) >= self.c:
            y = min(
                self.cached,
                key=lambda y: (self.uses[y][0] if len(self.uses[y]) == 2 else 0, self.uses[y][-1]),
            )
            self.cached.remove(y)
            self.lost[y] = None
            if len(self.lost) > self.c:
                del self.uses[self.lost.popitem(last=False)[0]]
        self.uses.setdefault(x, deque(maxlen=2)).append(self.t)
        self.cached.add(x)
        return False


class Gdsf:
    """Cherkasova 1998: H = L + frequency · cost / size, here of equal cost and size; L is the last victim's H."""

    def __init__(self, c):
        self.c, self.age, self.uses, self.worth, self.last, self.t = c, 0.0, {}, {}, {}, 0

    def access(self, x):
        self.t += 1
        hit = x in self.worth
        if not hit and len(self.worth) >= self.c:
            y = min(self.worth, key=lambda y: (self.worth[y], self.last[y]))
            self.age = self.worth.pop(y)
            del self.uses[y]
        self.uses[x] = self.uses.get(x, 0) + 1
        self.worth[x], self.last[x] = self.age + self.uses[x], self.t
        return hit


class LfuDa(Gdsf):
    """Arlitt et al. 2000: LFU with dynamic aging is GDSF of equal cost and size."""


class Arc:
    """Megiddo & Modha 2003, Figure 4, but that room is made before the target p moves: a key in B2 breaks no tie."""

    def __init__(self, c):
        self.c, self.p = c, 0.0
        self.t1, self.t2, self.b1, self.b2 = OrderedDict(), OrderedDict(), OrderedDict(), OrderedDict()

    def replace(self, x):
        if (self.t1 and len(self.t1) > self.p) or not self.t2:
            self.b1[self.t1.popitem(last=False)[0]] = None
        else:
            self.b2[self.t2.popitem(last=False)[0]] = None
        self.trim(self.b1, self.c - len(self.t1), x)
        self.trim(self.b2, self.c + 1 - len([k for k in self.b1 if k != x]), x)

    def trim(self, ghosts, most, x):
        """|T1| + |B1| <= c, all four lists <= 2c; x itself has been looked up."""
        others = [k for k in ghosts if k != x]
        for k in others[: max(0, len(others) - max(0, most))]:
            del ghosts[k]

    def access(self, x):
        if x in self.t1 or x in self.t2:
            self.t1.pop(x, None)
            self.t2[x] = None
            self.t2.move_to_end(x)
            return True
        if len(self.t1) + len(self.t2) == self.c:
            self.replace(x)
        b1, b2 = len(self.b1), len(self.b2)
        if x in self.b1:
            self.p = min(len(self.t1) + len(self.t2), self.p + max(1.0, b2 / b1))
            del self.b1[x]
            self.t2[x] = None
        elif x in self.b2:
            self.p = max(0.0, self.p - max(1.0, b1 / b2))
            del self.b2[x]
            self.t2[x] = None
        else:
            self.t1[x] = None
        return False


PAPERS = {
    "2q": TwoQ,
    "s3-fifo": S3Fifo,
    "lru-k": LruK,
    "gdsf:parity_blocks=1e300": Gdsf,
    "lfu:aging=true": LfuDa,
    "arc": Arc,
}


def agree(policy, keys, capacity):
    ours, paper = Cache(policy, capacity), PAPERS[policy](capacity)
    assert [ours.access(k) == 1 for k in keys] == [paper.access(k) for k in keys]


@pytest.mark.parametrize("policy", PAPERS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(keys=st.lists(st.integers(0, 12), min_size=1, max_size=120), capacity=st.integers(1, 9))
def test_a_policy_is_its_papers(policy, keys, capacity):
    agree(policy, keys, capacity)


@pytest.mark.parametrize("policy", PAPERS)
@pytest.mark.parametrize("capacity", [10, 40])
def test_a_policy_is_its_papers_on_long_workloads(policy, capacity):
    rng = np.random.default_rng(3)
    hot = rng.zipf(1.2, 3000) % 500
    scans = [
        k for i in range(300) for k in [*(rng.zipf(1.3, 6) % 60), *range(10_000 + 4 * i, 10_004 + 4 * i)]
    ]
    moving = [k + 200 * (i // 500) for i, k in enumerate(rng.zipf(1.3, 3000) % 200)]
    for keys in (hot, scans, moving, list(range(60)) * 40):
        agree(policy, [int(k) for k in keys], capacity)


@pytest.mark.parametrize("policy", ["2q", "s3-fifo", "arc", "lru-k"])
def test_a_prompt_does_not_push_its_own_keys_out_of_what_is_remembered(policy):
    """A prompt of 10 keys is lost to another and comes back; what both lose on the way fills the list of ghosts."""
    cache = Cache(policy, 12)
    first, second = range(10), range(100, 110)
    cache.access(*first)
    cache.access(*second)
    remembered = [key for key in first if knows(cache.policy, key)]
    assert remembered
    cache.access(*first)
    again = [
        key
        for key in remembered
        if key in cache.segments and counts_as_known(cache.policy, cache.segments[key])
    ]
    assert again == remembered


def knows(policy, key):
    lists = ("_ghosts", "_lost", "_once_ghosts", "_often_ghosts")
    return any([key in getattr(policy, name) for name in lists if hasattr(policy, name)])


def counts_as_known(policy, segment):
    """Whether what came in is treated as seen before."""
    name = type(policy).__name__
    if name == "TwoQPolicy":
        return segment not in policy._place
    if name == "S3FifoPolicy":
        return segment not in policy._is_small
    if name == "ArcPolicy":
        return policy._is_often[segment]
    return len(policy._uses[segment.key]) == 2


def test_what_was_called_and_never_came_is_forgotten_in_time():
    """Prompts that are admitted and given up leave nothing that grows."""
    cache = Cache("2q", 8)
    for i in range(200):
        cache.access(*range(8 * i, 8 * i + 8))
        cache.on_admit(SimpleNamespace(hash_ids=range(8 * i - 8, 8 * i)))
    assert len(cache.policy._ghosts) <= 16
