"""Swapping: what is moved is not computed again, moving takes link time, a full swap space means recomputing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from stepline.policies.preemption.last_in import LastInPolicy
from stepline.sim.engine.plugins import load_plugin
from stepline.sim.engine.swap import HostLink, SwapSpace
from stepline.traces.errors import ConfigError

from ..policies.conformance import PREEMPTION, check, names, simulate, worlds
from .engine_kit import GPU, Affine, by_index, run, spec

FEW = settings(max_examples=12, deadline=None, derandomize=True)
BLOCK_S = 1024 / GPU.pcie_bytes_per_s
"""A block of 4 tokens of the toy model: 2 layers x 2 (K and V) x 2 heads x 16 x 2 bytes x 4."""

# Two sequences of 8 + 12 tokens in 7 usable blocks of 4: they fit until the 17th block-border token.
TIGHT = {
    "kv_blocks": 8,
    "block_size": 4,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 64,
    "record_steps": True,
}
ROWS = [(0.0, 8, 12), (0.0, 8, 12)]


def swapping(**how):
    return LastInPolicy(mode="swap", **how)


def test_a_block_takes_its_bytes_over_the_link():
    space = spec(preemption=swapping(copy_s=0.5), block_size=4).replicas[0].swap_space()
    assert space.link.block_s == pytest.approx(BLOCK_S + 0.5)
    assert space.capacity_blocks == 4 * 2**30 // 1024


def test_swapped_sequences_compute_no_prompt_token_twice():
    recomputed, swapped = (run(ROWS, Affine(), preemption=p, **TIGHT) for p in (LastInPolicy(), swapping()))
    for result in (recomputed, swapped):
        assert by_index(result)["preemptions"].sum() == 1
        assert by_index(result)["output_tokens"].tolist() == [12, 12]
    assert recomputed.steps["prefill_tokens"].sum() > 16 + 1
    assert (
        swapped.steps["prefill_tokens"].sum() == 16 + 1
    )  # the token emitted last is computed when it resumes


def test_the_step_waits_for_the_link_and_the_time_is_booked_as_communication():
    slow = 0.25  # seconds a block, far above the step's second per handful of blocks
    result = run(ROWS, Affine(1.0), preemption=swapping(copy_s=slow), **TIGHT)
    plain = run(ROWS, Affine(1.0), preemption=swapping(copy_s=0.0), **TIGHT)
    moved = 2 * 3  # it holds three blocks when it is preempted: out and in again
    extra = result.steps["duration_s"].sum() - plain.steps["duration_s"].sum()
    assert extra == pytest.approx(moved * slow)
    assert result.totals.seconds["comm"]["comm"] == pytest.approx(moved * (slow + BLOCK_S))
    assert sum(sum(b.values()) for b in result.totals.seconds.values()) == pytest.approx(result.totals.busy_s)


def test_overlapped_transfers_cost_only_what_outlasts_the_step():
    link = HostLink(0.5, overlap=True)
    link.in_blocks, link.out_blocks = 3, 1
    assert link.stretch(1.0) == 1.5
    link.out_blocks = 1
    assert link.stretch(1.0) == 1.0
    assert link.moved_blocks == 5
    assert link.stalled_s == 0.5


def test_without_room_victims_are_recomputed():
    space = SwapSpace(2, HostLink(1.0))
    assert not space.put(3)
    assert space.put(2)
    assert not space.put(1)
    space.take(2)
    assert space.put(1)
    tiny = swapping(swap_gib=1024 * 2 / 2**30)  # two blocks: the victim holds three
    result = run(ROWS, Affine(), preemption=tiny, **TIGHT)
    reference = run(ROWS, Affine(), preemption=LastInPolicy(), **TIGHT)
    assert by_index(result)["finish_s"].tolist() == by_index(reference)["finish_s"].tolist()


def test_a_client_that_gives_up_while_swapped_out_frees_the_space():
    """Nothing is left behind: a later victim finds the whole swap space."""
    rows = [(0.0, 8, 12), (0.0, 8, 12), (30.0, 8, 12), (30.0, 8, 12)]
    three_blocks = swapping(swap_gib=1024 * 3 / 2**30, copy_s=1e-6)
    result = run(rows, Affine(), preemption=three_blocks, client_timeout_s=10.5, **TIGHT)
    assert result.steps["prefill_tokens"].sum() <= 4 * 8 + 4
    assert (by_index(result)["status"] != 0).any()


@pytest.mark.parametrize("policy", ["chunked", "continuous", "sarathi", "srpt", "mlfq"])
@FEW
@given(world=worlds())
def test_swapping_serves_everybody_and_leaps_like_stepping(policy, world):
    results = [
        simulate(world, policy, preemption="last-in:mode=swap,copy_s=0.01", leaps=x) for x in (True, False)
    ]
    for result in results:
        check(world, result)
    leapt, stepped = (by_index(r) for r in results)
    np.testing.assert_allclose(leapt["finish_s"], stepped["finish_s"], rtol=1e-9)


@pytest.mark.parametrize("rule", names(PREEMPTION))
@FEW
@given(world=worlds(max_requests=8))
def test_every_victim_rule_can_swap(rule, world):
    check(world, simulate(world, preemption=f"{rule}:mode=swap,overlap=true"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("last-in:mode=swop", "mode: got 'swop', expected one of recompute, swap"),
        ("last-in:mode=swap,swap_gib=0", "swap_gib: got 0, expected a number > 0"),
        ("slo-slack:copy_s=-1", "copy_s: got -1, expected a number >= 0"),
    ],
)
def test_wrong_parameters_are_refused(text, says):
    with pytest.raises(ConfigError, match=says):
        load_plugin(PREEMPTION, text)
