"""Routing policies: every registered one serves random worlds; each does what it says."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.policies.routing.central_queue import CentralQueuePolicy
from stepline.policies.routing.least_requests import LeastRequestsPolicy
from stepline.policies.routing.least_tokens import LeastKvPolicy, LeastTokensPolicy
from stepline.policies.routing.prefix_affinity import PrefixAffinityPolicy, _Index
from stepline.policies.routing.random_choice import PowerOfTwoPolicy, RandomPolicy
from stepline.policies.routing.round_robin import RoundRobinPolicy
from stepline.policies.routing.session_sticky import SessionStickyPolicy
from stepline.policies.routing.shortest_queue import ShortestQueuePolicy
from stepline.policies.routing.slo_aware import SloAwarePolicy
from stepline.sim.cluster.autoscaler import Autoscaling
from stepline.sim.cluster.handoff import Disaggregation
from stepline.sim.cluster.outages import Outages
from stepline.sim.engine.plugins import load_plugin, plugin_names
from stepline.traces.errors import ConfigError, PolicyError

from ..sim.engine_kit import Affine, by_index, run
from .conformance import chain, check, simulate, worlds

ROUTING = "stepline.routing_policies"


@given(
    world=worlds(),
    name=st.sampled_from(sorted(plugin_names(ROUTING))),
    replicas=st.integers(1, 3),
    interval=st.sampled_from([0.0, 2.5]),
)
@settings(max_examples=75, deadline=None)
def test_every_policy_serves_everybody(world, name, replicas, interval):
    policy = load_plugin(ROUTING, name)
    again = load_plugin(ROUTING, name)
    result = simulate(world, routing=policy, n_replicas=replicas, scrape_interval_s=interval)
    check(world, result)
    twin = simulate(world, routing=again, n_replicas=replicas, scrape_interval_s=interval)
    assert result.requests.equals(twin.requests)


@given(
    world=worlds(), name=st.sampled_from(sorted(plugin_names(ROUTING))), patience=st.sampled_from([3.0, 30.0])
)
@settings(max_examples=60, deadline=None)
def test_impatient_clients_are_counted_wherever_they_wait(world, name, patience):
    result = simulate(world, routing=load_plugin(ROUTING, name), n_replicas=2, client_timeout_s=patience)
    assert len(result.requests) == len(world.rows)
    assert set(result.requests["status"]) <= {0, 2}
    gone = result.requests[result.requests["status"] == 2]
    assert ((gone["finish_s"] - gone["arrival_s"]) >= patience - 1e-9).all()


@given(world=worlds(), replicas=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_leaping_and_stepping_agree_behind_a_router(world, replicas):
    leapt, stepped = (
        simulate(world, routing=LeastRequestsPolicy(), n_replicas=replicas, leaps=leaps)
        for leaps in (True, False)
    )
    a, b = by_index(leapt), by_index(stepped)
    for name in ("first_token_s", "finish_s"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-9)
    assert (a["replica"] == b["replica"]).all()


# -- one by one ---------------------------------------------------------------------------------------------------------


def seen(index=0, n=0, **figures):
    """A replica as a router sees it."""
    base = {
        "index": index, "n_outstanding": n, "outstanding_tokens": 100 * n, "n_waiting": 0, "n_running": n,
        "n_decoding": n, "backlog_tokens": 0, "free_blocks": 100, "total_blocks": 100, "block_size": 16,
        "max_num_seqs": 4, "max_num_batched_tokens": 64, "step_s": lambda prompt, history=0: 1.0 + prompt / 100,
    }  # fmt: skip
    return SimpleNamespace(**{**base, **figures})


def request(tokens=10, ids=None, session=None):
    ends = tuple(range(1, len(ids) + 1)) if ids else ()
    return SimpleNamespace(
        prompt_tokens=tokens,
        input_tokens=tokens,
        hash_ids=ids and tuple(ids),
        hash_ends=ends,
        session_id=session,
    )


def test_equals_take_turns():
    policy = LeastRequestsPolicy()
    assert [policy.choose(request(), [seen(0), seen(1), seen(2)]) for _ in range(4)] == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("policy", "replicas", "chosen"),
    [
        (LeastRequestsPolicy(), [seen(n=3), seen(n=1)], 1),
        (LeastTokensPolicy(), [seen(outstanding_tokens=9), seen(outstanding_tokens=8)], 1),
        (LeastKvPolicy(), [seen(free_blocks=50), seen(free_blocks=60)], 1),
        (LeastKvPolicy(), [seen(free_blocks=50), seen(free_blocks=60, backlog_tokens=320)], 0),
        (ShortestQueuePolicy(), [seen(n=1, n_waiting=1), seen(n=9)], 1),
        (ShortestQueuePolicy(), [seen(n=8), seen(n=7)], 1),
        (PowerOfTwoPolicy(choices=2), [seen(n=3), seen(n=1)], 1),
        (SloAwarePolicy(), [seen(backlog_tokens=500), seen()], 1),
        (SloAwarePolicy(tpot_s=0.01), [seen(n=4), seen(n=0, backlog_tokens=64)], 1),
    ],
)  # fmt: skip
def test_the_less_loaded_replica_is_chosen(policy, replicas, chosen):
    assert policy.choose(request(), replicas) == chosen


def test_central_queue_waits_for_a_seat_and_for_kv():
    policy = CentralQueuePolicy()
    assert policy.choose(request(), [seen(n=4), seen(n=3)]) == 1
    assert policy.choose(request(), [seen(n=4), seen(n=4)]) is None
    assert policy.choose(request(tokens=1700), [seen(n=1)]) is None
    assert policy.choose(request(tokens=1700), [seen(n=0)]) == 0  # nothing will ever be freer
    assert CentralQueuePolicy(slots=1).choose(request(), [seen(n=1), seen(n=1)]) is None


def test_sessions_stick_and_move_only_when_their_replica_is_gone():
    policy = SessionStickyPolicy()
    home = policy.choose(request(session="a"), [seen(0, 1), seen(1, 0)])
    assert home == 1
    assert policy.choose(request(session="a"), [seen(0, 0), seen(1, 9)]) == 1
    assert policy.choose(request(session="a"), [seen(0, 0), seen(2, 9)]) == 0
    assert policy.choose(request(session="a"), [seen(0, 5), seen(1, 0), seen(2, 0)]) == 0
    assert policy.choose(request(), [seen(0, 5), seen(1, 0)]) == 1


def test_prefixes_attract_until_the_balance_is_lost():
    policy = PrefixAffinityPolicy(balance_abs=4, balance_rel=1.5)
    assert policy.choose(request(ids=[1, 2, 3]), [seen(0, 1), seen(1, 0)]) == 1
    assert policy.choose(request(ids=[1, 2, 9]), [seen(0, 0), seen(1, 3)]) == 1
    assert policy.choose(request(ids=[1, 5, 6, 7, 8]), [seen(0, 0), seen(1, 3)]) == 0  # a fifth is too little
    assert policy.choose(request(ids=[1, 2, 9]), [seen(0, 0), seen(1, 5)]) == 0  # out of balance
    assert policy.choose(request(ids=[1, 2, 9]), [seen(0, 2), seen(1, 2)]) in (0, 1)


def test_a_router_forgets_what_no_longer_fits_the_replica():
    policy = PrefixAffinityPolicy()
    replicas = [seen(0, 0, total_blocks=3), seen(1, 1, total_blocks=3)]
    assert policy.choose(request(ids=[1, 2]), replicas) == 0
    assert policy.choose(request(ids=[3, 4, 5]), replicas) == 0  # pushes 1 and 2 out
    assert policy.choose(request(ids=[1, 2]), [seen(0, 1), seen(1, 0)]) == 1


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 3), st.integers(1, 6)), max_size=40
    ),
    st.integers(3, 12),
)
@settings(max_examples=60, deadline=None)
def test_what_a_router_believes_is_a_least_recently_sent_list_per_replica(sent, room):
    """The shared index against one list per replica, searched id by id."""
    index, lists = _Index(), [[] for _ in range(3)]
    for request_, (number, family, shared, n) in enumerate(sent):
        ids = tuple(chain(family, shared, request_, n))
        hits = [next((i for i, k in enumerate(ids) if k not in known), n) for known in lists]
        longest, holders = index.match(ids, 0b111)
        assert longest == max(hits)
        assert not longest or [i for i in range(3) if holders >> i & 1] == [
            i for i, hit in enumerate(hits) if hit == longest
        ]
        index.add(seen(number, total_blocks=room), ids, tuple(range(1, n + 1)))
        known = lists[number]
        known[:] = [k for k in known if k not in ids] + list(reversed(ids))
        del known[: max(0, len(known) - room)]


def test_random_choices_are_even_and_repeatable():
    draws = [RandomPolicy(seed=3).choose(request(), [seen()] * 4) for _ in range(2)]
    assert draws[0] == draws[1]
    policy = RandomPolicy(seed=1)
    counts = np.bincount([policy.choose(request(), [seen()] * 4) for _ in range(8000)])
    assert (abs(counts - 2000) < 4 * np.sqrt(8000 * 0.25 * 0.75)).all()


def test_two_choices_never_take_the_worst_of_three():
    policy = PowerOfTwoPolicy()
    chosen = {policy.choose(request(), [seen(0, 0), seen(1, 1), seen(2, 2)]) for _ in range(200)}
    assert chosen == {0, 1}


@pytest.mark.parametrize(
    "text",
    ["power-of-two:choices=0", "central-queue:slots=0", "prefix-affinity:threshold=2", "slo-aware:ttft_s=0"],
)
def test_parameters_out_of_range_are_refused(text):
    with pytest.raises(ConfigError):
        load_plugin(ROUTING, text)


# -- through the engine -------------------------------------------------------------------------------------------------


class Wrong:
    def choose(self, request, replicas):
        return 7


class Never:
    holds = True

    def choose(self, request, replicas):
        return None


@pytest.mark.parametrize(
    ("policy", "what"), [(Wrong(), "chose replica 7 of 2"), (Never(), "1 request waits")]
)
def test_a_wrong_routing_policy_is_named(policy, what):
    with pytest.raises(PolicyError, match=f"{type(policy).__name__}.*sequence 0.*{what}"):
        run([(0.0, 1, 1)], routing=policy, n_replicas=2)


ROUND_ROBIN = RoundRobinPolicy()


@pytest.mark.parametrize(
    "fleet",
    [
        {"routing": Never()},
        {"routing": Never(), "scrape_interval_s": 0.5},
        {"routing": Never(), "autoscaling": Autoscaling(least=1, most=2, interval_s=5.0)},
        {"routing": Never(), "outages": Outages(mtbf_s=50.0, mttr_s=5.0)},
        {"routing": ROUND_ROBIN, "decode_routing": Never(), "disaggregation": Disaggregation(1)},
        {
            "routing": ROUND_ROBIN,
            "decode_routing": Never(),
            "disaggregation": Disaggregation(1),
            "scrape_interval_s": 0.5,
        },
    ],
)
def test_a_router_that_keeps_its_requests_for_ever_is_told_whatever_else_ticks_on(fleet):
    """Scrapes, scaling and failures are events without end: the run must not be one."""
    with pytest.raises(PolicyError, match="Never: routing of sequence 0: 2 requests wait and every"):
        run([(0.0, 10, 2), (3.0, 10, 2)], n_replicas=2, **fleet)


@pytest.mark.parametrize("policy", ["central-queue", "least-kv"])
@pytest.mark.parametrize("interval", [0.0, 0.5, 40.0])
def test_who_waits_between_the_pools_is_asked_again_when_a_scrape_shows_room(policy, interval):
    """One seat on the decode side: the second and third request wait for it, and old figures say that it is taken."""
    rows = [(0.0, 16, 5), (0.0, 16, 5), (1.0, 16, 5)]
    result = run(
        rows, n_replicas=2, routing=load_plugin(ROUTING, policy), disaggregation=Disaggregation(1), scrape_interval_s=interval,
        max_num_seqs=1, max_num_batched_tokens=64, kv_blocks=9, block_size=8, max_model_len=30,
    )  # fmt: skip
    assert by_index(result)["output_tokens"].tolist() == [5, 5, 5]


def test_a_long_pause_is_no_standstill():
    """Tens of thousands of scrapes before the last request comes: as many replicas take turns as without them."""
    rows = [(0.0, 10, 2), (20_000.0, 10, 2)]
    scraped = run(rows, n_replicas=2, routing=ROUND_ROBIN, scrape_interval_s=0.5)
    plain = run(rows, n_replicas=2, routing=ROUND_ROBIN)
    assert by_index(scraped)["finish_s"].tolist() == by_index(plain)["finish_s"].tolist()


def test_central_queue_keeps_order_and_uses_every_replica():
    rows = [(0.0, 1, 4), (0.0, 1, 9), (0.0, 1, 1), (0.0, 1, 1)]
    got = by_index(run(rows, Affine(1.0), routing=CentralQueuePolicy(), n_replicas=2, max_num_seqs=1))
    assert got["scheduled_s"].tolist() == [0.0, 0.0, 4.0, 5.0]
    assert got["replica"].tolist() == [0, 1, 0, 0]


def test_old_signals_make_a_herd():
    """Between two scrapes the router believes what it saw: all but the first burst go to one replica."""
    rows = [(0.0, 1, 50), (0.1, 1, 50), *[(1.0 + i / 10, 1, 50) for i in range(6)]]
    fresh = run(rows, Affine(1.0), routing=LeastRequestsPolicy(), n_replicas=2)
    assert np.bincount(by_index(fresh)["replica"]).tolist() == [4, 4]

    class Shown(LeastRequestsPolicy):
        def choose(self, request, replicas):
            loads = [r.n_outstanding for r in replicas]
            return loads.index(min(loads))

    old = by_index(run(rows, Affine(1.0), routing=Shown(), n_replicas=2, scrape_interval_s=0.5))
    assert old["replica"].tolist() == [0, 0, *[1] * 5, 0]


def test_a_policy_is_copied_for_each_run():
    policy = RoundRobinPolicy()
    runs = [by_index(run([(0.0, 1, 1)] * 3, routing=policy, n_replicas=2)) for _ in range(2)]
    assert runs[0]["replica"].tolist() == runs[1]["replica"].tolist() == [0, 1, 0]
