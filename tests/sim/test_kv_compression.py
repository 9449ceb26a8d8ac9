"""Token-level KV compression: blocks held and context read are those of the budget, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.policies.batching.static import StaticPolicy
from stepline.policies.compression.budgets import H2O, SlidingWindow, SnapKv, StreamingLlm
from stepline.policies.preemption.last_in import LastInPolicy
from stepline.sim.engine.capped_decode_set import windowed_pairs
from stepline.sim.engine.plugins import load_plugin, plugin_names
from stepline.traces.errors import ConfigError

from ..policies.conformance import COMPRESSION, check, simulate, worlds
from .engine_kit import Affine, by_index, run

SOME = settings(max_examples=20, deadline=None, derandomize=True)
SMALL = ["sliding-window:window=11", "streaming-llm:sinks=2,recent=7", "h2o:budget=9", "snapkv:budget=6"]
HUGE = ["sliding-window:window=9999", "streaming-llm:recent=9999", "h2o:budget=9999", "snapkv:budget=9999"]
ALONE = {"block_size": 4, "record_steps": True, "max_num_batched_tokens": 16, "max_num_seqs": 2}


@given(done=st.integers(0, 40), chunk=st.integers(1, 20), window=st.integers(1, 30))
def test_windowed_pairs_count_each_token_s_keys(done, chunk, window):
    assert windowed_pairs(done, chunk, window) == sum(min(done + j, window) for j in range(1, chunk + 1))


def test_every_registered_compression_is_tried_here():
    assert {text.split(":")[0] for text in SMALL} == set(plugin_names(COMPRESSION))


def steps_of(compression):
    """One sequence of 10 + 20 tokens, step by step."""
    result = run([(0.0, 10, 20)], Affine(leaps=False), compression=compression, **ALONE)
    return result.steps


def test_a_fixed_budget_stops_growing_and_reading():
    steps = steps_of(H2O(budget=12))
    decode = steps[steps["n_decode"] > 0]
    assert decode["context_tokens"].tolist() == [11, *[12] * 18]
    assert decode["kv_used_blocks"].tolist() == [3] * 19
    assert steps["attention_pairs"].tolist()[0] == 55  # the prompt itself is computed with full attention


def test_a_budget_below_the_prompt_gives_blocks_back_once_it_is_computed():
    decode = steps_of(H2O(budget=5)).query("n_decode > 0")
    assert decode["context_tokens"].tolist() == [5] * 19
    assert decode["kv_used_blocks"].tolist() == [2] * 19


def test_snapkv_cuts_the_prompt_and_keeps_what_is_generated():
    decode = steps_of(SnapKv(budget=5)).query("n_decode > 0")
    assert decode["context_tokens"].tolist() == list(range(6, 25))
    assert decode["kv_used_blocks"].tolist() == [-(-t // 4) for t in range(6, 25)]


@pytest.mark.parametrize("compression", [SlidingWindow(window=6), StreamingLlm(sinks=1, recent=5)])
def test_windows_hold_in_the_prompt_too(compression):
    steps = steps_of(compression)
    assert steps["attention_pairs"].tolist()[0] == 21 + 4 * 6
    assert (steps.query("n_decode > 0")["context_tokens"] == 6).all()


@pytest.mark.parametrize("compression", SMALL)
@SOME
@given(world=worlds(caching=False))
def test_compressed_runs_serve_everybody_and_leap_like_stepping(compression, world):
    leapt, stepped = (simulate(world, compression=compression, leaps=x) for x in (True, False))
    check(world, leapt)
    np.testing.assert_allclose(by_index(leapt)["finish_s"], by_index(stepped)["finish_s"], rtol=1e-9)


@pytest.mark.parametrize("compression", HUGE)
@SOME
@given(world=worlds(caching=False))
def test_a_budget_beyond_every_context_changes_nothing(compression, world):
    with_budget, without = simulate(world, compression=compression), simulate(world)
    assert by_index(with_budget).equals(by_index(without))


@pytest.mark.parametrize("policy", ["continuous", "sarathi", "orca", "srpt"])
@SOME
@given(world=worlds(caching=False))
def test_other_batching_policies_go_with_a_budget(policy, world):
    check(world, simulate(world, policy, compression="h2o:budget=7"))


def test_a_budget_makes_room():
    """Where full contexts do not fit together and preempt each other, capped ones do not."""
    rows = [(0.0, 12, 60)] * 4
    limits = {"kv_blocks": 41, "block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 64}
    full, capped = (by_index(run(rows, Affine(), compression=c, **limits)) for c in (None, H2O(budget=16)))
    assert full["preemptions"].sum() > 0
    assert capped["preemptions"].sum() == 0


@pytest.mark.parametrize(
    ("kw", "says"),
    [
        ({"caching": True}, "cannot be shared by prefix; add --no-enable-prefix-caching"),
        ({"preemption": LastInPolicy(mode="swap")}, "cannot be combined with --preemption"),
        ({"policy": StaticPolicy()}, "cannot be combined with a padding policy"),
    ],
)
def test_what_does_not_go_together_is_refused(kw, says):
    with pytest.raises(ConfigError, match=says):
        run([(0.0, 5, 5)], compression=H2O(), **kw)


@pytest.mark.parametrize(
    "text", ["h2o:budget=0", "snapkv:budget=1.5", "streaming-llm:sinks=-1", "sliding-window:window=no"]
)
def test_wrong_budgets_are_refused(text):
    with pytest.raises(ConfigError, match="expected an integer"):
        load_plugin(COMPRESSION, text)
