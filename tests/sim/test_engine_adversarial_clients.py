"""Clients at odds with the engine: giving up, thinking, queueing for a slot."""

from __future__ import annotations

import numpy as np
import pytest
from stepline.policies.batching.chunked import ChunkedPolicy
from stepline.policies.batching.orca import OrcaPolicy
from stepline.policies.batching.static import StaticPolicy
from stepline.sim.cost.specs import EngineProfile

from .engine_kit import Affine, by_index, run, trace


def test_who_gives_up_before_the_engine_looks_leaves_when_it_gives_up():
    # one step 0-11 s; the second request arrives in it, at 1 s, and its client leaves at 6 s
    got = by_index(run([(0.0, 10, 1), (1.0, 1, 1)], Affine(1.0, 1.0), client_timeout_s=5.0))
    assert got["finish_s"].tolist() == [5.0, 6.0]
    assert got["status"].tolist() == [2, 2]
    assert got["first_token_s"].isna().all()


def test_the_next_turn_does_not_wait_for_the_server_to_notice():
    # the first turn's only step takes 11 s; its client gives up after 5 s and thinks for 1 s
    rows = [(0.0, 10, 1), (0.0, 1, 1)]
    t = trace(rows, session_id=["a", "a"], delay_s=[None, 1.0])
    got = by_index(run(t, Affine(1.0, 1.0), replay="closed", client_timeout_s=5.0))
    assert got["arrival_s"].tolist() == [0.0, 6.0]


def test_a_slot_is_free_when_its_client_gives_up():
    got = by_index(
        run([(0.0, 10, 1), (0.0, 1, 1)], Affine(1.0, 1.0), max_concurrency=1, client_timeout_s=5.0)
    )
    assert got["arrival_s"].tolist() == [0.0, 5.0]


def test_long_prompts_that_are_slow_to_ingest_time_out_in_their_own_time():
    # sent first, arrives last (4 s of ingest): its deadline is the first all the same
    engine = EngineProfile("x", request_ingest_per_token_s=0.1)
    got = by_index(run([(0.0, 40, 9), (1.0, 5, 9)], Affine(1.0), engine=engine, client_timeout_s=6.25))
    assert got["finish_s"].tolist() == [6.25, 7.25]


def test_ingest_longer_than_patience_ends_at_the_deadline():
    engine = EngineProfile("x", request_ingest_s=3.0)
    got = by_index(run([(0.0, 4, 2), (0.5, 4, 2)], Affine(1.0), engine=engine, client_timeout_s=2.0))
    assert got["finish_s"].tolist() == [2.0, 2.5]
    assert got["status"].tolist() == [2, 2]


def test_a_last_token_that_is_on_its_way_at_the_deadline_comes_too_late():
    engine = EngineProfile("x", output_delay_s=0.5)
    got = by_index(run([(0.0, 4, 2)], Affine(1.0), engine=engine, client_timeout_s=2.25))
    assert got.loc[0, ["status", "first_token_s", "finish_s"]].tolist() == [2, 1.5, 2.25]


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("limit", [1, 2, None])
def test_no_turn_is_lost_when_turns_are_rejected_or_time_out(depth, limit):
    rng = np.random.default_rng(7)
    rows = [(0.1 * i, int(rng.integers(1, 60)), int(rng.integers(1, 40))) for i in range(60)]
    t = trace(rows, session_id=[f"s{i % 7}" for i in range(60)], delay_s=[None, 0.0, 0.3] * 20)
    got = by_index(
        run(
            t,
            Affine(0.1, 0.01),
            depth=depth,
            replay="closed",
            max_concurrency=limit,
            client_timeout_s=3.1,
            max_model_len=80,
            max_num_seqs=3,
            block_size=4,
            kv_blocks=31,
        )
    )
    assert len(got) == 60
    assert {0, 1, 2} == set(got["status"])
    delays = np.array([d or 0.0 for d in [None, 0.0, 0.3] * 20])
    for session in range(7):
        mine = got.iloc[session::7]
        earliest = mine["finish_s"].to_numpy()[:-1] + delays[session::7][1:]
        if limit is None:
            np.testing.assert_allclose(mine["arrival_s"].to_numpy()[1:], earliest, rtol=1e-12)
        assert (mine["arrival_s"].to_numpy()[1:] >= earliest - 1e-9).all()
    events = sorted(
        [(t, 1) for t in got["arrival_s"]] + [(t, -1) for t in got["finish_s"]],
        key=lambda e: (round(e[0], 9), e[1]),
    )
    assert limit is None or max(np.cumsum([d for _, d in events])) <= limit


@pytest.mark.parametrize("policy", [ChunkedPolicy, StaticPolicy, OrcaPolicy])
def test_nobody_generates_more_than_was_asked_for(policy):
    # reserving policies hold 3 + 2 tokens each: 900 tokens would have been written into 2 blocks
    t = trace([(0.0, 3, 900)] * 20, max_output_tokens=[2] * 19 + [None])
    result = run(t, Affine(1.0), policy(), block_size=4, kv_blocks=240, max_model_len=950)
    got = by_index(result)
    assert got["output_tokens"].tolist() == [2] * 19 + [900]
    assert result.warnings == (
        "19 requests have an output_length over their max_output_length: they stop there",
    )
