"""A wrong plan is a `PolicyError` that names policy, step and sequence; a right one never livelocks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.policies.batching.chunked import ChunkedPolicy
from stepline.sim.engine.contracts import Plan
from stepline.traces.errors import PolicyError

from ..sim.engine_kit import Affine, by_index, run, trace
from .conformance import PREEMPTION, World, names, simulate, worlds

ROWS = [(0.0, 20, 5), (0.0, 30, 5), (0.5, 10, 3)]


class Wrong(ChunkedPolicy):
    """Right, until the step at which it goes wrong."""

    def __init__(self, at, how):
        self.at, self.how = at, how

    def plan(self, view):
        plan = super().plan(view)
        if view.step < self.at:
            return Plan(plan.chunks, plan.decode, plan.preempt, ask_every_step=True)
        return self.how(view, plan)


def more_than_budget(view, plan):
    return Plan([(seq, 100) for seq in view.waiting])


def empty_chunk(view, plan):
    return Plan([(next(iter(view.waiting)), 0)])


def chunk_of_a_decoding_one(view, plan):
    return Plan([(seq, 1) for seq in view.running if view.decodes(seq)][:1])


def preempts_who_waits(view, plan):
    return Plan([], preempt=(next(iter(view.waiting)),))


def preempts_twice(view, plan):
    seq = next(iter(view.running))
    return Plan([], preempt=(seq, seq))


def too_many_seats(view, plan):
    return Plan([(seq, 1) for seq in view.waiting])


def idles(view, plan):
    return Plan([], decode=False)


def admits_beyond_kv(view, plan):
    return Plan([(seq, 10) for seq in view.waiting])


class PeeksAtTheFuture(ChunkedPolicy):
    def plan(self, view):
        for seq in view.waiting:
            view.oracle_output_tokens(seq)
        return super().plan(view)


CASES = {
    "exceed the budget": (Wrong(0, more_than_budget), {}),
    "chunk of 0 tokens": (Wrong(0, empty_chunk), {}),
    "no prompt left to compute": (Wrong(2, chunk_of_a_decoding_one), {}),
    "cannot be preempted": (Wrong(0, preempts_who_waits), {}),
    "cannot be preempted: it is not running": (Wrong(2, preempts_twice), {}),
    "no seat left": (Wrong(0, too_many_seats), {"max_num_seqs": 1}),
    "idle while there is work that fits": (Wrong(0, idles), {}),
    "KV blocks, ": (Wrong(0, admits_beyond_kv), {"kv_blocks": 6, "block_size": 8}),
    "must say `oracle = True`": (PeeksAtTheFuture(), {}),
}


@pytest.mark.parametrize("says", CASES)
def test_wrong_plans_are_policy_errors(says):
    policy, limits = CASES[says]
    kw = {"max_num_batched_tokens": 40, "max_num_seqs": 8, "record_steps": True} | limits
    with pytest.raises(
        PolicyError, match=rf"^{type(policy).__name__}: replica 0, step \d+, sequence \d+: .*"
    ) as caught:
        run(ROWS, Affine(1.0), policy, **kw)
    assert says in str(caught.value)


TIGHT = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.mark.parametrize("preemption", names(PREEMPTION))
@pytest.mark.parametrize(
    "policy", ["chunked", "continuous", "sarathi", "srpt", "mlfq", "priority:preemptive=true"]
)
@TIGHT
@given(world=worlds(max_requests=8))
def test_no_livelock_and_no_token_lost(policy, preemption, world):
    """However tight the cache, every sequence emits each of its tokens once, in a bounded number of steps."""
    result = simulate(world, policy, preemption=preemption)
    q = by_index(result)
    outputs = sum(o for _, _, o in world.rows)
    prompts = sum(i for _, i, _ in world.rows)
    assert q["output_tokens"].sum() == result.steps["emitted_tokens"].sum() == outputs
    # every step emits a token or computes a token of a prompt, and a prompt is computed at most once per token emitted
    assert result.steps["n_steps"].sum() <= outputs + (prompts + outputs) * (
        1 + q["preemptions"].max()
    ) + len(q)


class Bounded(Affine):
    """Ends a run that goes on and on."""

    asked = 0

    def step_s(self, work):
        self.asked += 1
        assert self.asked < 3000, "no progress"
        return super().step_s(work)


@pytest.mark.parametrize("preemption", names(PREEMPTION))
@pytest.mark.parametrize("policy", ["chunked", "sjf", "chunked-slo", "sarathi", "mlfq"])
def test_prompts_in_small_chunks_that_exceed_the_cache_together_all_finish(policy, preemption):
    """Without a cache, who is preempted in the middle of a prompt loses all: two must not take turns in it for ever."""
    n = 4
    world = World(
        [(0.0, 60, 5)] * n, [[i] for i in range(n)], [None] * n, [0] * n, 23, n, 40, 0, caching=False
    )
    result = simulate(world, policy, preemption=preemption, cost=Bounded(1.0), long_prefill_token_threshold=2)
    assert (by_index(result)["status"] == 0).all()


@given(outputs=st.lists(st.integers(20, 40), min_size=3, max_size=6))
@TIGHT
def test_preempted_sequences_keep_their_tokens(outputs):
    """Recomputation recomputes; it does not generate anew: decode work is that of the outputs, less first tokens."""
    n = len(outputs)
    world = World(
        [(0.0, 8, o) for o in outputs], [[i] for i in range(n)], [None] * n, [0] * n, 16, n, 64, 0, False
    )
    result = simulate(world)
    steps = result.steps
    emitted_by_decode = (steps["n_decode"] * steps["n_steps"]).sum()
    restarts = by_index(result)["preemptions"].sum()
    assert emitted_by_decode == sum(outputs) - n - restarts


def test_arrivals_are_not_starved_by_a_shortest_first_queue_with_patience():
    """A long prompt among a flood of short ones: SJF makes it wait for the end, patience does not."""
    rows = [(0.0, 40, 1)] * 2 + [(0.3 * i, 400, 1) for i in (1,)] + [(0.9 * i, 40, 1) for i in range(1, 60)]
    rows = trace(sorted(rows))
    long = int(rows.input_tokens.argmax())

    def wait(text):
        from stepline.sim.engine.plugins import load_plugin

        result = run(rows, Affine(0.0, 0.025), load_plugin("stepline.batch_policies", text), max_num_batched_tokens=64,
                     max_num_seqs=1)  # fmt: skip
        q = by_index(result)
        return q["first_token_s"][long] - q["arrival_s"][long]

    assert wait("sjf") > 3 * wait("sjf:patience_s=5")
