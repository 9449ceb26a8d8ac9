"""Every registered policy serves every random world, leaping or stepping alike, run after run the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from stepline.sim.engine.plugins import load_plugin_class, parse_plugin

from ..sim.engine_kit import by_index
from .conformance import ADMISSION, BATCH, EVICTION, PREEMPTION, World, check, names, simulate, worlds

FEW = settings(max_examples=15, deadline=None, derandomize=True)
PAIRS = [(b, p) for b in ("chunked", "continuous", "sarathi") for p in names(PREEMPTION)]


@pytest.mark.parametrize("policy", names(BATCH))
@FEW
@given(world=worlds())
def test_batching_policies_serve_everybody(policy, world):
    check(world, simulate(world, policy))


@pytest.mark.parametrize("policy", names(BATCH))
@FEW
@given(world=worlds())
def test_leaping_and_stepping_agree(policy, world):
    leapt, stepped = (by_index(simulate(world, policy, leaps=leaps)) for leaps in (True, False))
    for column in ("first_token_s", "finish_s", "preemptions", "cached_tokens"):
        np.testing.assert_allclose(leapt[column], stepped[column], rtol=1e-9)


@pytest.mark.parametrize(
    ("rows", "who", "limits"),
    [
        # b comes while the steps of one of a are taken in one go: its counter starts where a's stands then
        ([(0, 1, 1), (0, 1, 3), (0, 1, 1), (3, 1, 1)], "aaab", (23, 1, 4)),
        # a's counter passes b's while one of a decodes and the other is too large to join
        ([(0, 60, 18), (0, 51, 8), (3, 16, 1), (3, 57, 2)], "aabb", (23, 5, 30)),
    ],
)
def test_tenants_counters_that_move_within_a_leap_are_looked_at_within_it(rows, who, limits):
    blocks, seats, budget = limits
    world = World(
        rows, [None] * len(rows), list(who), [0] * len(rows), blocks, seats, budget, depth=0, caching=False
    )
    leapt, stepped = (by_index(simulate(world, "fair", leaps=leaps)) for leaps in (True, False))
    np.testing.assert_allclose(leapt["finish_s"], stepped["finish_s"], rtol=1e-9)


@pytest.mark.parametrize("eviction", names(EVICTION))
@FEW
@given(world=worlds(caching=True))
def test_eviction_policies_serve_everybody(eviction, world):
    result = simulate(world, "chunked", eviction)
    check(world, result)
    assert result.kv["hit_tokens"] <= result.kv["query_tokens"]


@pytest.mark.parametrize(("policy", "preemption"), PAIRS)
@FEW
@given(world=worlds())
def test_victim_rules_serve_everybody(policy, preemption, world):
    check(world, simulate(world, policy, preemption=preemption))


@pytest.mark.parametrize("admission", names(ADMISSION))
@FEW
@given(world=worlds())
def test_admission_policies_lose_nobody(admission, world):
    check(world, simulate(world, admission=admission), rejects=True)


@pytest.mark.parametrize("group", [BATCH, EVICTION, PREEMPTION, ADMISSION])
def test_oracles_say_so_in_their_names(group):
    for text in names(group):
        cls = load_plugin_class(group, parse_plugin(text, "").target)
        assert ("oracle" in text) == bool(getattr(cls, "oracle", False))
        assert (cls.__doc__ or "").strip()
