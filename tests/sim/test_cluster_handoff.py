"""Prefill and decode on different replicas: timelines by hand, contention, backpressure, nothing lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.policies.batching.static import StaticPolicy
from stepline.policies.routing.least_requests import LeastRequestsPolicy
from stepline.policies.routing.round_robin import RoundRobinPolicy
from stepline.sim.cluster.handoff import Disaggregation
from stepline.sim.cluster.links import Link, Ports
from stepline.sim.engine.plugins import load_plugin
from stepline.traces.errors import ConfigError

from ..policies.conformance import simulate as simulate_world
from ..policies.conformance import worlds
from .engine_kit import Affine, by_index, run

BLOCK_BYTES = 2 * 2 * 2 * 16 * 2 * 16  # K and V, layers, KV heads, head size, bytes, tokens of the toy model
SLOW = Link("test", BLOCK_BYTES, 0.5)  # a block a second


def pair(rows, *, link=SLOW, prefill=1, n_replicas=2, routing=None, **kw):
    rule = {k: kw.pop(k) for k in ("overlap", "first_token", "hop_s") if k in kw}
    return run(
        rows,
        kw.pop("cost", Affine(1.0)),
        n_replicas=n_replicas,
        routing=routing or RoundRobinPolicy(),
        disaggregation=Disaggregation(prefill, link, **rule),
        **kw,
    )


def times(result):
    q = by_index(result)
    return q[["scheduled_s", "first_token_s", "finish_s"]].to_numpy().tolist()


def test_the_decode_server_gives_the_first_token():
    """Prompt 0-1, a block 1-2 and half a second, its last token again 2.5-3.5, two decodes."""
    assert times(pair([(0.0, 10, 3)])) == [[0.0, 3.5, 5.5]]


def test_the_prefill_server_gives_the_first_token():
    result = pair([(0.0, 10, 3)], first_token="prefill")
    assert times(result) == [[0.0, 1.0, 4.5]]
    gaps = result.gaps
    assert sorted(np.repeat(gaps.first_s, gaps.n * gaps.weight)) == [1.0, 2.5]


def test_a_single_token_needs_no_decode_server():
    result = pair([(0.0, 10, 1)], first_token="prefill")
    assert times(result) == [[0.0, 1.0, 1.0]]
    assert result.fleet["disaggregation"]["transfers"] == 0
    assert times(pair([(0.0, 10, 1)])) == [[0.0, 3.5, 3.5]]


def test_transfers_wait_for_the_port():
    """Two prompts done at 1: the second's block goes over the wire when the first's has."""
    result = pair([(0.0, 10, 1), (0.0, 10, 1)])
    assert times(result) == [[0.0, 3.5, 3.5], [0.0, 4.5, 4.5]]
    assert result.fleet["disaggregation"]["mean_transfer_s"] == 2.0


def test_the_hop_runs_beside_the_transfer():
    assert times(pair([(0.0, 10, 1)], hop_s=4.0)) == [[0.0, 6.0, 6.0]]
    assert times(pair([(0.0, 10, 1)], hop_s=0.2)) == [[0.0, 3.5, 3.5]]


def test_layers_overlap_with_the_prompt():
    """Of one block a second, half (one of two layers) is left when the one-second prompt is done."""
    assert times(pair([(0.0, 10, 1)], overlap=True)) == [[0.0, 3.0, 3.0]]
    slower = Link("test", BLOCK_BYTES / 4, 0.0)  # 4 s, of which 1 s is hidden
    assert times(pair([(0.0, 10, 1)], overlap=True, link=slower)) == [[0.0, 5.0, 5.0]]


def test_prompts_do_not_disturb_decodes():
    """A long prompt arrives while another request decodes: its tokens keep their pace, on one replica they do not."""
    rows = [(0.0, 10, 30), (9.0, 1000, 1)]
    cost = Affine(1.0, 0.01)
    fast = Link("test", 1e12, 0.0)
    apart = by_index(pair(rows, cost=cost, link=fast, max_num_batched_tokens=2000))
    together = by_index(run(rows, cost, max_num_batched_tokens=2000))
    assert apart["finish_s"][0] < together["finish_s"][0] - 8


def test_kv_stays_on_the_prefill_side_until_a_decode_server_has_room():
    """One seat to decode, three blocks to prefill: the third prompt waits for blocks that the second still holds."""
    result = pair([(0.0, 30, 8)] * 3, max_num_seqs=1, kv_blocks=4, link=Link("test", 1e12, 0.0))
    q = by_index(result)
    assert q["finish_s"].tolist() == pytest.approx([9.0, 17.0, 25.0])
    assert q["scheduled_s"].tolist() == pytest.approx([0.0, 1.0, 9.0])
    assert result.fleet["disaggregation"]["mean_wait_s"] > 4


@pytest.mark.parametrize("patience", [None, 30.0])
def test_long_requests_are_rejected_at_the_door(patience):
    """Whose client, if it would give up, does not do so later on."""
    q = by_index(pair([(0.0, 50, 60), (0.0, 50, 10)], kv_blocks=6, client_timeout_s=patience))
    assert q["status"].tolist() == [1, 0]


def test_pools_are_routed_within():
    rows = [(0.0, 10, 5)] * 6
    q = by_index(pair(rows, prefill=1, n_replicas=3, decode_routing=LeastRequestsPolicy()))
    assert sorted(q["replica"].tolist()) == [1, 1, 1, 2, 2, 2]


@given(
    world=worlds(),
    prefill=st.integers(1, 2),
    decode=st.integers(1, 2),
    first=st.sampled_from(["decode", "prefill"]),
    overlap=st.booleans(),
    policy=st.sampled_from(["chunked", "sarathi", "continuous"]),
    patience=st.sampled_from([None, 4.0, 30.0]),
    leaps=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost(world, prefill, decode, first, overlap, policy, patience, leaps):
    result = simulate_world(
        world,
        load_plugin("stepline.batch_policies", policy),
        leaps=leaps,
        n_replicas=prefill + decode,
        routing=LeastRequestsPolicy(),
        client_timeout_s=patience,
        disaggregation=Disaggregation(prefill, Link("test", BLOCK_BYTES / 8, 0.3), overlap, first),
    )
    q = by_index(result)
    assert len(q) == len(world.rows)
    done = q[q["status"] == 0]
    if patience is None:
        assert len(done) == len(q)
    outputs = np.array([o for _, _, o in world.rows])[done["request_index"]]
    assert (done["output_tokens"].to_numpy() == outputs).all()
    assert (done["scheduled_s"] < done["first_token_s"]).all()
    assert (done["first_token_s"] <= done["finish_s"]).all()
    late = (outputs > 1) | (first == "decode")
    assert (done["replica"].to_numpy()[late] >= prefill).all()
    if patience is None:
        assert (result.gaps.n * result.gaps.weight).sum() == (outputs - 1).sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefill": 2}, "prefill: got 2 of 2 replicas"),
        ({"policy": StaticPolicy()}, "StaticPolicy pads or reserves"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        pair([(0.0, 1, 1)], **changes)


def test_links_are_named_with_care():
    assert Link.named("ib-ndr").bytes_per_s == 50e9
    assert Link.named("ib-ndr", bytes_per_s=1e9, latency_s=0.0) == Link("ib-ndr", 1e9, 0.0)
    with pytest.raises(ConfigError, match="unknown name 'ib'"):
        Link.named("ib")
    with pytest.raises(ConfigError, match="bandwidth: got 0"):
        Link.named("nvlink", bytes_per_s=0)


def test_ports_are_taken_in_order():
    ports = Ports(3)
    assert ports.send(0, 1, 10, 10, 0.0) == 1.0
    assert ports.send(0, 2, 10, 10, 0.0) == 2.0  # the way out is busy
    assert ports.send(2, 1, 10, 10, 0.5) == 2.0  # the way in is busy until 1
    assert ports.busy_s == 3.0
