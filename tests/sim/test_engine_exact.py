"""Exact oracles: queueing recursions, hand-drawn timelines, leap = step, conservation, determinism."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.policies.batching.chunked import ChunkedPolicy
from stepline.policies.batching.continuous import ContinuousPolicy
from stepline.policies.batching.orca import OrcaPolicy
from stepline.policies.batching.sarathi import SarathiPolicy
from stepline.policies.batching.static import StaticPolicy
from stepline.sim.cost.specs import EngineProfile

from .engine_kit import Affine, by_index, run, trace

POLICIES = {
    "static": StaticPolicy,
    "orca": OrcaPolicy,
    "continuous": ContinuousPolicy,
    "chunked": ChunkedPolicy,
    "sarathi": SarathiPolicy,
}


def poisson(n, rate, seed, lengths=(1, 40), outputs=(1, 30)):
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, n))
    return list(
        zip(
            arrivals,
            rng.integers(*lengths, n, endpoint=True),
            rng.integers(*outputs, n, endpoint=True),
            strict=True,
        )
    )


# -- queueing theory ----------------------------------------------------------------------------------------------


def test_one_seat_and_constant_steps_follow_the_lindley_recursion():
    rows = poisson(2000, 0.02, 1)
    got = by_index(run(rows, Affine(1.0), max_num_seqs=1))
    free = 0.0
    starts, ends = [], []
    for arrival, _, output in rows:
        start = max(arrival, free)
        free = start + output  # one step a token, the prompt's last chunk yields the first
        starts.append(start)
        ends.append(free)
    np.testing.assert_allclose(got["scheduled_s"], starts, rtol=1e-9)
    np.testing.assert_allclose(got["finish_s"], ends, rtol=1e-9)


@pytest.mark.parametrize("name", POLICIES)
def test_littles_law_holds_on_a_drained_run(name):
    result = run(
        poisson(500, 0.3, 2), Affine(0.3, 0.01, 1e-4), POLICIES[name](), max_num_seqs=16, max_model_len=500
    )
    got = result.requests
    times = pd.concat([got["arrival_s"], got["finish_s"]]).to_numpy()
    change = np.repeat([1, -1], len(got))
    order = np.argsort(times, kind="stable")
    in_system = np.cumsum(change[order])[:-1]
    area = float(np.sum(in_system * np.diff(times[order])))
    assert area == pytest.approx(float((got["finish_s"] - got["arrival_s"]).sum()), rel=1e-9)
    # and the engine's own account of who was there agrees: waiting + running over its steps
    assert result.totals.busy_s <= times.max() - times.min() + 1e-9


# -- hand-drawn timelines -----------------------------------------------------------------------------------------


def test_a_long_prompt_is_cut_into_chunks_of_the_budget():
    # 25 tokens at budget 10: steps of 10, 10, 5 tokens, one second a token
    got = by_index(run([(0.0, 25, 3)], Affine(0.0, 1.0), max_num_batched_tokens=10, max_num_seqs=10))
    assert got.loc[0, ["scheduled_s", "first_token_s", "finish_s"]].tolist() == [0.0, 25.0, 27.0]


def test_decodes_take_their_token_before_chunks():
    # B arrives while A decodes: each step holds A's token and 9 of B's prompt, until B is done after 2 steps
    rows = [(0.0, 4, 6), (4.5, 18, 1)]
    got = by_index(run(rows, Affine(1.0, 0.0), max_num_batched_tokens=10, max_num_seqs=10))
    assert got["first_token_s"].tolist() == [1.0, 7.0]  # seen at t=5, chunks end at 6 and 7
    assert got["finish_s"].tolist() == [6.0, 7.0]


def test_async_pipeline_delays_an_arrival_by_one_planned_step():
    rows = [(0.0, 4, 20), (4.5, 4, 1)]
    cost = Affine(1.0)
    sync = by_index(run(rows, cost, depth=0))
    late = by_index(run(rows, cost, depth=1))
    assert sync.loc[1, "first_token_s"] == 6.0  # seen at 5, own step ends at 6
    assert late.loc[1, "first_token_s"] == 7.0  # the step 5-6 was planned at 4
    assert late.loc[0, "finish_s"] == sync.loc[0, "finish_s"] == 20.0


def test_async_pipeline_frees_a_seat_one_plan_later():
    rows = [(0.0, 1, 3), (0.5, 1, 3), (0.5, 1, 2)]
    got = by_index(run(rows, Affine(1.0), depth=1, max_num_seqs=2))
    # 0 runs 0-3; 1 is seen at 2 (step 1-2 was planned at 0), runs 2-5; 2 waits for 0's seat, freed by the plan after 3
    assert got["first_token_s"].tolist() == [1.0, 3.0, 5.0]


def test_whole_prompts_stall_decodes_and_chunks_do_not():
    rows = [(0.0, 2, 5), (2.5, 40, 1)]
    cost = Affine(1.0, 0.1)
    stalled = run(rows, cost, ContinuousPolicy())
    # A's token after its third waits for B's prompt step: 1.1 + 1 + 4.0 s
    assert stalled.gaps.first_s.max() == pytest.approx(1.0 + 4.0 + 1.1)
    smooth = run(rows, cost, ChunkedPolicy(), max_num_batched_tokens=10, max_num_seqs=4)
    assert smooth.gaps.first_s.max() == pytest.approx(2.0)


def test_out_of_blocks_the_last_admitted_is_recomputed_with_its_tokens_kept():
    # 3 usable blocks of 4 tokens: both prompts take one; A opens a second at its 2nd decode, then B wants one too
    rows = [(0.0, 3, 6), (0.0, 3, 6)]
    got = by_index(run(rows, Affine(1.0), block_size=4, kv_blocks=4, max_num_seqs=4))
    assert got["preemptions"].tolist() == [0, 1]
    assert got["output_tokens"].tolist() == [6, 6]
    # t=0-1 prompts; 1-2 both write token 4; at 2 both need a block and one is free: B goes (2 tokens kept).
    # A finishes at 6 with blocks for 8 tokens; B (5 tokens, 2 blocks) cannot return before.
    assert got["finish_s"].tolist() == [6.0, 10.0]


def test_a_prefix_hit_skips_whole_blocks_and_leaves_a_token():
    ids = [(1, 2), (1, 2), (1, 3)]
    rows = [(0.0, 8, 1), (100.0, 8, 1), (200.0, 8, 1)]
    got = by_index(run(trace(rows, ids, 4), Affine(0.0, 1.0), caching=True, block_size=4))
    assert got["cached_tokens"].tolist() == [
        0,
        4,
        4,
    ]  # all 8 match for the second, but one token must be left
    assert (got["first_token_s"] - got["arrival_s"]).tolist() == [8.0, 4.0, 4.0]


def test_two_equal_prompts_of_one_step_share_blocks():
    got = by_index(
        run(
            trace([(0.0, 9, 1), (0.0, 9, 1)], [(1, 2, 3), (1, 2, 4)], 4),
            Affine(0.0, 1.0),
            caching=True,
            block_size=4,
        )
    )
    assert got["cached_tokens"].tolist() == [0, 8]


def test_static_batches_wait_for_their_longest_member():
    rows = [(0.0, 4, 2), (0.0, 4, 6), (1.5, 4, 1)]
    got = by_index(run(rows, Affine(1.0), StaticPolicy(), max_model_len=100))
    assert got["finish_s"].tolist() == [2.0, 6.0, 7.0]


def test_orca_admits_into_a_running_batch_but_reserves_the_maximum():
    rows = [(0.0, 4, 4), (0.5, 4, 4)]
    limits = {"max_output_tokens": [12, 12]}
    roomy = by_index(run(trace(rows, **limits), Affine(1.0), OrcaPolicy(), block_size=4, kv_blocks=9))
    tight = by_index(run(trace(rows, **limits), Affine(1.0), OrcaPolicy(), block_size=4, kv_blocks=8))
    assert roomy["finish_s"].tolist() == [4.0, 5.0]
    assert tight["finish_s"].tolist() == [4.0, 8.0]  # 4 blocks each: the second must wait for the first


# -- clients ------------------------------------------------------------------------------------------------------


def test_clients_that_give_up_are_counted_and_free_their_blocks():
    rows = [(0.0, 4, 50), (1.0, 4, 50), (10.0, 4, 5)]
    result = run(rows, Affine(1.0), max_num_seqs=1, client_timeout_s=20.0)
    got = by_index(result)
    assert got["status"].tolist() == [2, 2, 0]
    assert got["finish_s"].tolist() == [20.0, 21.0, pytest.approx(got.loc[2, "first_token_s"] + 4)]
    assert got.loc[0, "output_tokens"] == 20


def test_closed_replay_sends_a_turn_after_the_previous_one():
    rows = [(0.0, 4, 3), (0.0, 4, 3), (1.0, 4, 2)]
    t = trace(rows, session_id=["a", "a", None], delay_s=[None, 10.0, None])
    got = by_index(run(t, Affine(1.0), replay="closed"))
    assert got["arrival_s"].tolist() == [0.0, 13.0, 1.0]


def test_concurrency_limit_holds_requests_back():
    got = by_index(run([(0.0, 1, 4)] * 4, Affine(1.0), max_concurrency=2))
    assert got["arrival_s"].tolist() == [0.0, 0.0, 4.0, 4.0]


def test_requests_longer_than_the_cache_or_the_model_are_rejected_and_counted():
    got = by_index(run([(0.0, 50, 5), (0.0, 5, 60), (0.0, 5, 5)], Affine(1.0), block_size=4, kv_blocks=11))
    assert got["status"].tolist() == [1, 1, 0]
    got = by_index(run([(0.0, 50, 5), (0.0, 5, 5)], Affine(1.0), max_model_len=54))
    assert got["status"].tolist() == [1, 0]


def test_ingest_and_output_delays_are_on_the_clock():
    engine = EngineProfile("x", request_ingest_s=0.25, request_ingest_per_token_s=0.01, output_delay_s=0.5)
    got = by_index(run([(1.0, 25, 3)], Affine(1.0), engine=engine))
    assert got.loc[0, ["arrival_s", "scheduled_s", "first_token_s", "finish_s"]].tolist() == [
        1.0,
        1.5,
        3.0,
        5.0,
    ]


# -- laws over random traces --------------------------------------------------------------------------------------

cases = st.builds(
    dict,
    seed=st.integers(0, 10_000),
    name=st.sampled_from(sorted(POLICIES)),
    depth=st.sampled_from([0, 1]),
    blocks=st.sampled_from([14, 20, 40, 4000]),
    seats=st.sampled_from([2, 5, 64]),
    budget=st.sampled_from([64, 8192]),
    caching=st.booleans(),
    rate=st.sampled_from([0.05, 0.5, 5.0]),
    timeout=st.sampled_from([None, 25.3]),
    replicas=st.sampled_from([1, 1, 2]),
)


def simulate(case, leaps=True, rows=60, **kw):
    rng = np.random.default_rng(case["seed"])
    requests = poisson(rows, case["rate"], case["seed"])
    ids = [[int(rng.integers(0, 3)) * 100 + j for j in range(-(-int(r[1]) // 8))] for r in requests]
    t = trace(requests, ids, 8) if case["caching"] else trace(requests)
    return run(
        t,
        Affine(0.11, 0.0123, 3.1e-4, 1.7e-5, leaps=leaps),
        POLICIES[case["name"]](),
        depth=case["depth"],
        caching=case["caching"],
        block_size=8,
        kv_blocks=case["blocks"],
        max_num_seqs=case["seats"],
        max_num_batched_tokens=case["budget"],
        max_model_len=96,
        client_timeout_s=case["timeout"],
        n_replicas=case["replicas"],
        record_steps=True,
        routing=RoundRobin(),
        **kw,
    )


class RoundRobin:
    def __init__(self):
        self.n = 0

    def choose(self, request, replicas):
        self.n += 1
        return self.n % len(replicas)


def stepwise(result):
    """The step table with every leap taken apart, in order."""
    s = result.steps.sort_values(["replica", "start_s"])
    rows = s.loc[s.index.repeat(s["n_steps"])]
    j = rows.groupby(level=0, sort=False).cumcount()
    rows = rows.assign(
        start_s=rows["start_s"] + j * rows["first_s"] + rows["delta_s"] * j * (j - 1) / 2,
        duration_s=rows["first_s"] + j * rows["delta_s"],
        context_tokens=rows["context_tokens"] + j * rows["n_decode"],
    )
    return rows[
        [
            "replica",
            "start_s",
            "duration_s",
            "prefill_tokens",
            "attention_pairs",
            "n_decode",
            "context_tokens",
        ]
    ]


def all_gaps(result):
    g = result.gaps
    return np.sort(
        np.concatenate(
            [
                np.repeat(f + d * np.arange(n), w)
                for f, d, n, w in zip(g.first_s, g.delta_s, g.n, g.weight, strict=True)
            ]
            or [np.zeros(0)]
        )
    )


@settings(max_examples=60, deadline=None)
@given(cases)
def test_leaping_and_stepping_give_the_same_tables(case):
    leapt, stepped = simulate(case), simulate(case, leaps=False)
    pd.testing.assert_frame_equal(by_index(leapt), by_index(stepped), rtol=1e-9, atol=1e-9)
    a, b = stepwise(leapt), stepwise(stepped)
    np.testing.assert_allclose(a.to_numpy(), b.to_numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(all_gaps(leapt), all_gaps(stepped), rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_feeding_arrivals_and_telling_of_them_give_the_same_tables(case):
    """Clients with endless patience need events of their own, so that arrivals come by the clock and cut leaps."""
    case = {**case, "replicas": 1, "timeout": None}
    fed, told = simulate(case), simulate({**case, "timeout": 1e9})
    assert fed.simulator["events"] <= told.simulator["events"]
    pd.testing.assert_frame_equal(by_index(fed), by_index(told), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(stepwise(fed).to_numpy(), stepwise(told).to_numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(all_gaps(fed), all_gaps(told), rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_nothing_is_lost_and_time_runs_forward(case):
    result = simulate(case)
    got = by_index(result)
    assert len(got) == 60
    done = got[got["status"] == 0]
    assert (done["arrival_s"] <= done["scheduled_s"]).all()
    assert (done["scheduled_s"] < done["first_token_s"]).all()
    assert (done["first_token_s"] <= done["finish_s"]).all()
    # every token after a sequence's first makes one gap, preempted ones included; aborted ones emitted what they did
    emitted = int(got["output_tokens"].sum())
    firsts = int((got["output_tokens"] > 0).sum())
    assert len(all_gaps(result)) == emitted - firsts
    if case["timeout"] is None:
        assert emitted == int(result.steps["emitted_tokens"].sum())
        mine = int((done["input_tokens"] - done["cached_tokens"]).sum())
        if not got["preemptions"].any() and case["name"] != "static":
            assert int(result.steps["prefill_tokens"].sum()) == mine
    # a replica's steps do not overlap
    for _, steps in result.steps.groupby("replica"):
        ends = (steps["start_s"] + steps["duration_s"]).to_numpy()
        assert (steps["start_s"].to_numpy()[1:] >= ends[:-1] - 1e-9).all()


@settings(max_examples=15, deadline=None)
@given(cases)
def test_the_same_run_gives_the_same_bytes(case):
    one, two = simulate(case), simulate(case)
    for a, b in (
        (one.requests, two.requests),
        (one.steps, two.steps),
        (one.totals.series, two.totals.series),
    ):
        assert a.to_numpy().tobytes() == b.to_numpy().tobytes()


@settings(max_examples=25, deadline=None)
@given(cases)
def test_no_replica_idles_while_somebody_could_run(case):
    """Between a replica's steps there is a gap only when nobody it was given is in the system."""
    if case["timeout"] is not None:
        return
    result = simulate(case)
    for replica, steps in result.steps.groupby("replica"):
        mine = result.requests[result.requests["replica"] == replica]
        ends = (steps["start_s"] + steps["duration_s"]).to_numpy()[:-1]
        for end, start in zip(ends, steps["start_s"].to_numpy()[1:], strict=True):
            if start > end + 1e-9:
                middle = (start + end) / 2
                assert not (
                    (mine["arrival_s"] < middle) & (mine["finish_s"] > middle) & (mine["status"] == 0)
                ).any()


def test_more_bandwidth_never_lengthens_a_burst():
    burst = [(0.0, i, o) for _, i, o in poisson(200, 1.0, 5)]
    ends = [
        float(run(burst, Affine(0.01, 1e-3, c), max_num_seqs=32).requests["finish_s"].max())
        for c in (4e-4, 2e-4, 1e-4)
    ]
    assert ends[0] >= ends[1] >= ends[2]


def test_an_infinite_budget_equals_whole_prompts():
    rows = poisson(200, 0.5, 6)
    a = by_index(run(rows, Affine(0.1, 0.01), ChunkedPolicy(), max_num_batched_tokens=10**9))
    b = by_index(
        run(rows, Affine(0.1, 0.01), SarathiPolicy(chunk_tokens=10**9), max_num_batched_tokens=10**9)
    )
    pd.testing.assert_frame_equal(a, b)
