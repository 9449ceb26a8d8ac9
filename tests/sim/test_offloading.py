"""KV tiers: content outlives the GPU's pool, comes back over links that queue, and only where that is sooner."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.policies.eviction.lru import LruPolicy
from stepline.policies.routing.round_robin import RoundRobinPolicy
from stepline.sim import simulate as run_study
from stepline.sim.cluster.offloading import COPY_LATENCY_S, SSDS, Offloading
from stepline.sim.engine.channel import Channel
from stepline.sim.engine.segment import Segment
from stepline.sim.engine.sequence import Sequence
from stepline.sim.engine.tier import Tier
from stepline.traces.errors import ConfigError

from ..policies.conformance import BATCH, EVICTION, PREEMPTION, TRACE_BLOCK, check, names, simulate, worlds
from .engine_kit import Affine, by_index, run, spec, trace

FEW = settings(max_examples=5, deadline=None, derandomize=True)
BLOCK_BYTES = 1024
"""Of a block of 4 tokens of the toy model: 2 layers x 2 (K and V) x 2 heads x 16 x 2 bytes x 4."""
GIB = 2**30 / BLOCK_BYTES
"""Such blocks in a GiB."""

SMALL = {"kv_blocks": 12, "block_size": 4, "max_num_seqs": 1, "max_num_batched_tokens": 64, "caching": True}
A, B = [1, 2, 3, 4], [5, 6, 7, 8]
ABA = trace([(0.0, 32, 1), (10.0, 32, 1), (20.0, 32, 1)], [A, B, A], 8)
"""Prompts of 8 blocks in a pool of 11: the second evicts five blocks of the first, tail first."""


def offloading(blocks=1000, ssd=None, **how):
    """Tiers of that many blocks, a block a second on the host link unless said otherwise."""
    how = {"pcie_gb_per_s": BLOCK_BYTES / 1e9} | how
    return Offloading(cpu_gib=blocks / GIB, ssd_gib=None if ssd is None else ssd / GIB, **how)


def times(result, column="first_token_s"):
    return by_index(result)[column].tolist()


# -- one block after the other --------------------------------------------------------------------------------------


def test_without_tiers_what_was_evicted_is_computed_again():
    result = run(ABA, Affine(0.0, 1.0), **SMALL)
    assert by_index(result)["cached_tokens"].tolist() == [0, 0, 12]
    assert times(result) == [32.0, 64.0, 64.0 + 20]


@pytest.mark.parametrize("write", ["write-through", "on-evict"])
def test_a_prompt_waits_for_the_blocks_that_it_has_below_and_computes_the_rest(write):
    """Three of A's blocks are on the GPU, four of the other five come back (a token must be left), one a second."""
    result = run(ABA, Affine(0.0, 1.0), offloading=offloading(write=write), **SMALL)
    assert by_index(result)["cached_tokens"].tolist() == [0, 0, 28]
    assert times(result)[2] == pytest.approx(64.0 + 4 + 4 + COPY_LATENCY_S)
    assert result.kv["hit_tokens"] == 28
    assert result.tiers["cpu"]["hit_tokens"] == 16
    assert result.tiers["cpu"]["loaded_blocks"] == 4


def test_loading_that_lasts_longer_than_computing_is_left():
    slow = {"pcie_gb_per_s": BLOCK_BYTES / 5e9}  # five seconds a block that four computes
    late = trace([(0.0, 32, 1), (100.0, 32, 1), (300.0, 32, 1)], [A, B, A], 8)
    computed = run(late, Affine(0.0, 1.0), **SMALL)
    by_cost = run(late, Affine(0.0, 1.0), offloading=offloading(**slow), **SMALL)
    always = run(late, Affine(0.0, 1.0), offloading=offloading(load="always", **slow), **SMALL)
    assert times(by_cost) == times(computed) == [32.0, 132.0, 320.0]
    assert times(always)[2] == pytest.approx(300.0 + 20 + 4 + COPY_LATENCY_S)


def test_others_are_computed_while_one_loads():
    rows = trace([(0.0, 32, 1), (40.0, 32, 1), (80.0, 32, 1), (80.0, 8, 4)], [A, B, A, [9]], 8)
    parts = SMALL | {"max_num_seqs": 2, "kv_blocks": 15}
    result = run(rows, Affine(0.0, 1.0), offloading=offloading(2000), **parts)
    first, last = times(result)[2:]
    assert last == 88.0  # not held up
    assert first > 88.0


def test_the_link_serves_one_load_after_the_other():
    link = Channel(0.5, latency_s=0.25)
    assert link.send(4, 10.0) == 12.25
    assert link.due_s(2, 10.0) == 13.25
    assert link.send(2, 10.0) == 13.25
    assert link.send(0, 99.0) == 99.0
    assert link.send(1, 20.0) == 20.75
    assert link.busy_s == 3.5


def test_steps_wait_where_transfers_are_on_their_stream():
    beside, stalling = (
        run(ABA, Affine(0.0, 1.0), offloading=offloading(load="always", stall=x), record_steps=True, **SMALL)
        for x in (False, True)
    )
    # A is written through before B's step; B is while A comes back (two copy engines); then A's last block is computed
    assert times(stalling)[2] == pytest.approx(32 + 8 + 32 + 8 + 4, abs=1e-3)
    assert stalling.totals.seconds["comm"]["comm"] == pytest.approx(8 + 8, abs=1e-3)
    assert "comm" not in beside.totals.seconds


def test_what_host_memory_loses_is_found_on_the_ssd():
    """Two blocks of host memory, a fast link: all else has to come from the SSD, at its rate."""
    read, _, latency_s = SSDS["nvme-gen4"]
    tiers = offloading(2, ssd=1000, write="on-evict", pcie_gb_per_s=1e3)
    result = run(ABA, Affine(0.0, 1.0), offloading=tiers, **SMALL)
    assert by_index(result)["cached_tokens"].tolist() == [0, 0, 28]
    assert result.tiers["ssd"]["hit_tokens"] + result.tiers["cpu"]["hit_tokens"] == 16
    assert result.tiers["ssd"]["hit_tokens"] >= 8
    assert result.tiers["ssd"]["read_busy_s"] == pytest.approx(
        result.tiers["ssd"]["loaded_blocks"] * BLOCK_BYTES / read
    )
    assert 64 + 4 + latency_s < times(result)[2] < 64 + 4 + 2 * latency_s


def test_preempted_tokens_come_back_from_the_tier():
    """Two sequences outgrow the pool; what the victim had is evicted by the other and loaded when it returns."""
    rows = trace([(0.0, 8, 12), (0.0, 8, 12)], [[1], [2]], 8)
    tight = {
        "kv_blocks": 8,
        "block_size": 4,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 64,
        "caching": True,
    }
    plain = run(rows, Affine(), record_steps=True, **tight)
    tiered = run(
        rows, Affine(), record_steps=True, offloading=offloading(load="always", pcie_gb_per_s=1.0), **tight
    )
    for result in (plain, tiered):
        assert by_index(result)["preemptions"].sum() == 1
        assert by_index(result)["output_tokens"].tolist() == [12, 12]
    assert tiered.steps["prefill_tokens"].sum() < plain.steps["prefill_tokens"].sum()
    assert tiered.tiers["cpu"]["hit_tokens"] > 0


def test_a_client_that_gives_up_while_its_blocks_come_leaves_nothing_behind():
    rows = trace([(0.0, 32, 1), (200.0, 32, 1), (400.0, 32, 1), (600.0, 32, 1)], [A, B, A, A], 8)
    slow = offloading(load="always", pcie_gb_per_s=BLOCK_BYTES / 10e9)
    result = run(rows, Affine(0.0, 1.0), offloading=slow, client_timeout_s=35.0, **SMALL)
    assert by_index(result)["status"].tolist() == [0, 0, 2, 0]
    assert by_index(result)["cached_tokens"].tolist()[3] == 28  # what was loaded for nobody is cached


# -- laws -----------------------------------------------------------------------------------------------------------

STEPPING = """
from stepline.policies.batching.chunked import ChunkedPolicy

class Stepping(ChunkedPolicy):
    def plan(self, view):
        plan = super().plan(view)
        plan.ask_every_step = True
        return plan
"""


@pytest.mark.parametrize("write", ["write-through", "on-evict"])
def test_priced_on_the_roofline_leaps_with_tiers_are_steps(write, tmp_path):
    """The cost model whose leaps are lines, so that they may be taken in one loop (the fast lane)."""
    (tmp_path / "stepping.py").write_text(STEPPING)
    rows = [(0.3 * i, 640, 60 + 7 * (i % 9)) for i in range(60)]
    requests = trace(rows, [[100 * (i % 12) + b for b in range(10)] for i in range(60)], 64)
    leaping, stepping = (
        run_study(
            requests,
            policy=policy,
            num_gpu_blocks_override=400,
            kv_offloading_size=1.0,
            kv_offloading_backend=f"native:write={write}",
        )
        for policy in ("chunked", f"{tmp_path / 'stepping.py'}:Stepping")
    )
    assert leaping.kv["loads"] > 0
    for column in ("scheduled_s", "first_token_s", "finish_s"):
        np.testing.assert_allclose(
            by_index(leaping)[column].to_numpy(float), by_index(stepping)[column].to_numpy(float), rtol=1e-9
        )


def test_a_leap_that_evicts_writes_each_block_at_its_own_time(tmp_path):
    """A long decode evicts a prompt's cached blocks one by one, slowly written down a thin link, and the prompt comes
    again as soon as the decode is done. One leap over all of it would have queued their writes at its start, so that they
    were below by then: the prompt would load them (three seconds) and not compute what is not there yet.
    """
    (tmp_path / "stepping.py").write_text(STEPPING)
    rows = [(0.0, 640, 1), (1.0, 64, 1200), (9.3, 640, 4)]
    requests = trace(rows, [list(range(10)), [100], list(range(10))], 64)
    leaping, stepping = (
        run_study(
            requests,
            policy=policy,
            num_gpu_blocks_override=90,
            max_model_len=2048,
            kv_offloading_size=1.0,
            kv_offloading_backend="native:write=on-evict,load=always,pcie_gb_per_s=0.02",
        )
        for policy in ("chunked", f"{tmp_path / 'stepping.py'}:Stepping")
    )
    assert leaping.kv["evicted_blocks"] >= 25
    assert leaping.totals.steps == stepping.totals.steps
    for result in (leaping, stepping):
        assert times(result)[2] < 9.4, "computed, not loaded"
        assert by_index(result)["cached_tokens"].tolist() == [0, 0, 160]
    np.testing.assert_allclose(times(leaping, "finish_s"), times(stepping, "finish_s"), rtol=1e-9)


@pytest.mark.parametrize("write", ["write-through", "on-evict"])
@FEW
@given(world=worlds(caching=True))
def test_a_boundless_fast_tier_loses_nothing(write, world):
    """One request at a time, links without a wait: hits are those of a cache that never evicts."""
    full = [
        max(1, tokens // TRACE_BLOCK) for _, tokens, _ in world.rows
    ]  # a part of a block would have another id
    rows = [
        (1000.0 * i, n * TRACE_BLOCK, row[2]) for i, (n, row) in enumerate(zip(full, world.rows, strict=True))
    ]
    ids = [row[:n] for n, row in zip(full, world.hash_ids, strict=True)]
    world = replace(world, rows=rows, hash_ids=ids, depth=0, max_num_seqs=1)
    fast = offloading(10**6, write=write, load="always", pcie_gb_per_s=1e9)
    small = simulate(world, offloading=fast)
    large = simulate(replace(world, kv_blocks=100_000))
    assert small.kv["hit_tokens"] == large.kv["hit_tokens"]
    assert times(small, "cached_tokens") == times(large, "cached_tokens")


def tiers(draw):
    """Tiers of a few blocks, links of odd rates."""
    return offloading(
        draw(st.integers(1, 40)),
        ssd=draw(st.sampled_from([None, 1, 30])),
        write=draw(st.sampled_from(["write-through", "on-evict"])),
        load=draw(st.sampled_from(["cost", "always"])),
        stall=draw(st.booleans()),
        eviction=draw(st.sampled_from(["lru", "arc", "lfu"])),
        pcie_gb_per_s=draw(st.sampled_from([0.71, 7.3, 1e6])) * BLOCK_BYTES / 1e9,
    )


@pytest.mark.parametrize("policy", names(BATCH))
@FEW
@given(world=worlds(caching=True), data=st.data())
def test_every_batching_policy_serves_everybody_and_leaps_like_stepping(policy, world, data):
    """The run itself checks that tiers hold what was stored and not lost, and that nothing stays pinned."""
    behind = tiers(data.draw)
    leapt, stepped = (simulate(world, policy, leaps=leaps, offloading=behind) for leaps in (True, False))
    for result in (leapt, stepped):
        check(world, result)
        assert sum(t["hit_tokens"] for t in result.tiers.values()) <= result.kv["hit_tokens"]
    for column in ("first_token_s", "finish_s", "cached_tokens"):
        np.testing.assert_allclose(times(leapt, column), times(stepped, column), rtol=1e-9)


@pytest.mark.parametrize("eviction", names(EVICTION))
@FEW
@given(world=worlds(caching=True))
def test_every_eviction_policy_can_keep_a_tier(eviction, world):
    check(
        world,
        simulate(world, eviction=eviction, offloading=offloading(20, 20, eviction=eviction, load="always")),
    )


@pytest.mark.parametrize("rule", names(PREEMPTION))
@FEW
@given(world=worlds(caching=True, max_requests=8))
def test_every_victim_rule_goes_with_tiers(rule, world):
    check(world, simulate(world, preemption=rule, offloading=offloading(20, load="always")))


@FEW
@given(world=worlds(caching=True))
def test_replicas_have_tiers_of_their_own(world):
    parts = {"routing": RoundRobinPolicy(), "n_replicas": 2}
    check(world, simulate(world, offloading=offloading(30, load="always"), **parts))


# -- a tier by itself -----------------------------------------------------------------------------------------------


def tier(capacity, **links):
    free = Channel(0.0)
    return Tier("cpu", capacity, LruPolicy, links.get("write", free), links.get("read", free))


def path(*blocks, first_key=1):
    """Segments of one prompt that nobody holds."""
    owner, parts, start = Sequence(0, 0.0, 0.0, 1, 1), [], 0
    for i, n in enumerate(blocks):
        parts.append(Segment(first_key + i, n, start, owner, parts[-1] if parts else None))
        start += n
    return parts


def test_a_tier_loses_tails_first_and_refuses_what_is_larger_than_itself():
    small = tier(6)
    small.store(path(4, 4), 0.0, 0.0)
    assert {k: s.blocks for k, s in small.index.items()} == {
        1: 4
    }  # no room for the second while the first is written
    assert small.refused_blocks == 4
    small.store(path(2, 2, first_key=10), 1.0, 1.0)
    assert {k: s.blocks for k, s in small.index.items()} == {1: 2, 10: 2, 11: 2}
    small.check()


def test_content_is_readable_when_it_has_been_written():
    slow = Channel(1.0)
    behind = tier(100, write=slow)
    behind.store(path(3), 0.0, 0.0, slow)
    assert behind.find(1, 2.9) is None
    assert behind.find(1, 3.0).readable(3.0) == 3
    longer = path(5)
    behind.store(longer, 10.0, 10.0, slow)
    assert behind.find(1, 11.0).readable(11.0) == 3
    assert behind.find(1, 12.0).readable(12.0) == 5


# -- what does not go together --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nativ", "--kv-offloading-backend: unknown name 'nativ'; did you mean 'native'"),
        ("native:writ=on-evict", "unknown parameter 'writ'; did you mean 'write'"),
        ("native:write=later", "write: got 'later', expected one of write-through, on-evict"),
        ("native:load=maybe", "load: got 'maybe', expected one of cost, always"),
        ("native:ssd=tape", "ssd: got 'tape', expected one of nvme-gen4, nvme-gen5"),
        ("native:copy_s=-1", "copy_s: got -1, expected a number >= 0"),
        ("native:pcie_gb_per_s=0", "pcie_gb_per_s: got 0, expected a number > 0"),
        ("native:stall=2", "stall: got 2, expected true or false"),
        ("native:eviction=radix-lru,write=on-evict", "eviction=radix-lru: needs write=write-through"),
        ("native:eviction=lruu", "unknown name 'lruu'"),
    ],
)
def test_wrong_backends_are_refused(text, says):
    with pytest.raises(ConfigError, match=says):
        Offloading.parse(text, 1.0, None)


def test_an_ssd_needs_host_memory_before_it():
    assert Offloading.parse("native", None, None) is None
    with pytest.raises(ConfigError, match="--kv-offloading-ssd-size: needs --kv-offloading-size"):
        Offloading.parse("native", None, 10.0)
    with pytest.raises(ConfigError, match="--kv-offloading-backend: needs --kv-offloading-size"):
        Offloading.parse("native:load=always", None, None)


def test_tiers_need_prefixes_and_no_swap_space():
    with pytest.raises(ConfigError, match="needs prefix caching"):
        spec(offloading=offloading()).check()
    from stepline.policies.preemption.last_in import LastInPolicy

    with pytest.raises(ConfigError, match="cannot be combined with --preemption"):
        spec(offloading=offloading(), caching=True, preemption=LastInPolicy(mode="swap")).check()


# -- what users see -------------------------------------------------------------------------------------------------


def test_the_summary_says_how_much_came_from_where():
    from stepline.sim.report.summary import summary

    result = run(ABA, Affine(0.0, 1.0), offloading=offloading(), **SMALL)
    kv = summary(result)["kv"]
    assert kv["prefix_hit_token_frac"] == pytest.approx(28 / 96)
    assert kv["gpu_hit_token_frac"] == pytest.approx(12 / 96)
    assert kv["tiers"]["cpu"]["hit_token_frac"] == pytest.approx(16 / 96)
    assert kv["loads"] == 1
    assert kv["mean_load_s"] == pytest.approx(4.0, abs=1e-3)
    assert "tiers" not in summary(run(ABA, Affine(0.0, 1.0), **SMALL))["kv"]


def test_sizes_are_those_of_the_whole_tp_group(tmp_path, capsys):
    """8 GiB of 2 MiB blocks (128 KiB a token of Llama-3.1-8B): 4096 blocks, whatever the TP."""
    from stepline.sim.cli.main import main

    rows = ['{"timestamp": 0, "input_length": 100, "output_length": 2, "hash_ids": [1]}'] * 2
    (tmp_path / "two.jsonl").write_text("\n".join(rows) + "\n")
    for tp in ("1", "4"):
        flags = [
            "--kv-offloading-size",
            "8",
            "--kv-offloading-ssd-size",
            "80",
            "--tp",
            tp,
            "--no-save",
            "--json",
        ]
        assert (
            main(["--trace", str(tmp_path / "two.jsonl"), "--hash-block-size", "512", "--quiet", *flags]) == 0
        )
        import json

        found = json.loads(capsys.readouterr().out)["kv"]["tiers"]
        assert {name: tier["blocks_total"] for name, tier in found.items()} == {"cpu": 4096, "ssd": 40960}
