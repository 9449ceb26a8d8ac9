"""Fleets that change: failures with retries, autoscaling, stragglers; timelines by hand, nothing lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.policies.routing.least_requests import LeastRequestsPolicy
from stepline.policies.routing.round_robin import RoundRobinPolicy
from stepline.sim.cluster.autoscaler import Autoscaling
from stepline.sim.cluster.cluster import run_cluster
from stepline.sim.cluster.outages import IN_VAIN, Outages
from stepline.sim.cluster.slowed import SlowedCost
from stepline.sim.cost.work import StepWork
from stepline.sim.engine.plugins import load_plugin, plugin_names
from stepline.sim.engine.request_log import FINISHED, TIMED_OUT
from stepline.traces.errors import ConfigError

from ..policies.conformance import simulate as simulate_world
from ..policies.conformance import worlds
from .engine_kit import Affine, by_index, run, spec, trace

ROUTING = "stepline.routing_policies"


def times(result):
    return by_index(result)[["scheduled_s", "first_token_s", "finish_s"]].to_numpy().tolist()


# -- failures -----------------------------------------------------------------------------------------------------------


def failing(rows, *planned, **kw):
    kw = {"n_replicas": 2, "routing": RoundRobinPolicy()} | kw
    return run(rows, kw.pop("cost", Affine(1.0)), outages=Outages(tuple(planned)), **kw)


def test_what_a_failed_replica_had_starts_again_on_another():
    """Replica 0 fails at 2.5, two tokens into a request of four: replica 1 serves it from 2.5 to 6.5."""
    result = failing([(0.0, 10, 4)], (0, 2.5, 10.0))
    assert times(result) == [[2.5, 3.5, 6.5]]
    assert by_index(result)["replica"].tolist() == [1]
    figures = result.fleet["failures"]
    assert figures["outages"] == figures["retried_requests"] == 1
    assert figures["longest_recovery_s"] == figures["mean_recovery_s"] == 4.0
    assert figures["listed"] == [
        {"replica": 0, "at_s": 2.5, "back_s": 12.5, "lost": 1, "recovered_s": 4.0}
    ]  # fmt: skip


def test_a_retried_request_counts_once_and_its_wait_counts_from_when_it_was_sent():
    q = by_index(failing([(0.0, 10, 4)], (0, 2.5, 10.0)))
    assert len(q) == 1
    assert q["arrival_s"][0] == 0.0
    assert q["output_tokens"][0] == 4


def test_a_lone_replica_serves_again_when_it_is_back():
    result = failing([(0.0, 10, 2), (3.0, 10, 1)], (0, 1.5, 5.0), n_replicas=1)
    assert times(result) == [[6.5, 7.5, 8.5], [6.5, 7.5, 7.5]]
    assert result.fleet["failures"]["down_s"] == 5.0


def test_a_restarted_replica_has_an_empty_cache():
    rows = trace([(0.0, 64, 1), (5.0, 64, 1), (20.0, 64, 1)], [[1, 2, 3, 4]] * 3, 16)
    plain = by_index(run_cluster(rows, spec(caching=True, n_replicas=1, routing=RoundRobinPolicy())))
    failed = by_index(
        run_cluster(rows, spec(caching=True, routing=RoundRobinPolicy(), outages=Outages(((0, 10.0, 1.0),))))
    )
    assert plain["cached_tokens"].tolist() == [0, 48, 48]
    assert failed["cached_tokens"].tolist() == [0, 48, 0]


def test_tokens_that_were_lost_are_computed_twice():
    rows = [(0.0, 10, 4)]
    once = run(rows, Affine(1.0), record_steps=True)
    twice = failing(rows, (0, 2.5, 10.0), record_steps=True)
    assert once.steps["emitted_tokens"].sum() == 4
    assert twice.steps["emitted_tokens"].sum() == 2 + 4  # the third was under way


def test_an_idle_replica_may_fail_and_nobody_notices():
    result = failing([(0.0, 10, 4), (9.0, 10, 1)], (1, 1.0, 2.0))
    assert times(result) == [[0.0, 1.0, 4.0], [9.0, 10.0, 10.0]]
    assert result.fleet["failures"]["retried_requests"] == 0


def test_random_failures_have_their_own_streams():
    """Another replica's presence does not move the failures of the first."""
    rows = [(float(i), 10, 3) for i in range(200)]
    rule = Outages(mtbf_s=40.0, mttr_s=5.0, seed=3)
    few, many = (
        run(rows, Affine(0.1), n_replicas=n, routing=RoundRobinPolicy(), outages=rule).fleet["failures"][
            "listed"
        ]
        for n in (2, 3)
    )
    first = [[(o["at_s"], o["back_s"]) for o in listed if o["replica"] == 0] for listed in (few, many)]
    assert first[0] == first[1] != []


def test_the_share_of_time_down_is_mttr_over_the_cycle():
    """Of a long run: mttr / (mtbf + mttr) = 0.2 of each replica's time, within four standard errors of a renewal process."""
    rule = Outages(mtbf_s=4.0, mttr_s=1.0, seed=1)
    result = run([(float(i), 1, 1) for i in range(4000)], Affine(0.1), n_replicas=4, routing=RoundRobinPolicy(), outages=rule)  # fmt: skip
    figures = result.fleet["failures"]
    share = figures["down_s"] / (4 * 4000.0)
    error = np.sqrt(2 * 0.2**2 * 0.8**2 / figures["outages"])
    assert abs(share - 0.2) < 4 * error
    assert error < 0.02 * 0.2


def test_a_run_that_failures_never_let_end_says_so():
    """A prompt of 40 steps of 1 s in chunks of one token, failures every 2 s: one attempt in e^20 would live."""
    doomed = {
        "n_replicas": 2,
        "routing": RoundRobinPolicy(),
        "outages": Outages(mtbf_s=2.0, mttr_s=1.0),
        "long_prefill_token_threshold": 1,
    }
    with pytest.raises(
        ConfigError, match=r"--failures: no request has ended in 1000 failures.* got mtbf=2, "
    ):
        run([(0.0, 40, 2), (0.0, 50, 2)], Affine(1.0), **doomed)


def test_failures_that_clients_do_not_wait_for_end_the_run():
    """The same load: who gives up has ended, so the run goes on to its end however many replicas fail."""
    rows = [(60.0 * i, 40, 2) for i in range(80)]
    result = run(
        rows,
        Affine(1.0),
        routing=RoundRobinPolicy(),
        outages=Outages(mtbf_s=2.0, mttr_s=0.1),
        client_timeout_s=50.0,
        long_prefill_token_threshold=1,
    )
    assert (by_index(result)["status"] == TIMED_OUT).all()
    assert result.fleet["failures"]["outages"] > 1000


def test_failures_of_idle_replicas_are_not_in_vain():
    """A night without a request: thousands of failures hit nothing, and the morning's request is served."""
    result = failing_at_random([(0.0, 10, 1), (9000.0, 10, 1)], mtbf_s=2.0, mttr_s=1.0)
    assert (by_index(result)["status"] == FINISHED).all()
    assert result.fleet["failures"]["outages"] > 2 * IN_VAIN


def failing_at_random(rows, **rule):
    return run(rows, Affine(0.5), n_replicas=2, routing=RoundRobinPolicy(), outages=Outages(**rule))


@given(
    world=worlds(),
    name=st.sampled_from(sorted(plugin_names(ROUTING))),
    replicas=st.integers(1, 3),
    mtbf=st.sampled_from([3.0, 30.0]),
    patience=st.sampled_from([None, 6.0, 60.0]),
    interval=st.sampled_from([0.0, 2.5]),
    policy=st.sampled_from(["chunked", "continuous", "static", "orca", "sarathi", "mlfq", "fair"]),
    leaps=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_nothing_is_lost_whatever_fails(world, name, replicas, mtbf, patience, interval, policy, leaps):
    def once():
        return simulate_world(
            world,
            policy,
            leaps=leaps,
            n_replicas=replicas,
            routing=load_plugin(ROUTING, name),
            scrape_interval_s=interval,
            client_timeout_s=patience,
            outages=Outages(mtbf_s=mtbf * 20, mttr_s=mtbf),
        )

    result = once()
    q = by_index(result)
    assert q["request_index"].tolist() == list(range(len(world.rows)))
    assert set(q["status"]) <= ({0} if patience is None else {0, 2})
    done = q[q["status"] == 0]
    outputs = np.array([o for _, _, o in world.rows])
    assert (done["output_tokens"].to_numpy() == outputs[done["request_index"]]).all()
    assert (done["arrival_s"] <= done["scheduled_s"]).all()
    assert (done["scheduled_s"] < done["first_token_s"]).all()
    assert (done["first_token_s"] <= done["finish_s"]).all()
    assert result.requests.equals(once().requests)


# -- autoscaling --------------------------------------------------------------------------------------------------------


def scaled(rows, *, cost=None, most=4, routing=None, **rule):
    rule = {"target": 2.0, "interval_s": 1.0, "startup_s": 3.0, "scale_in_s": 5.0} | rule
    return run(
        rows,
        cost or Affine(1.0),
        n_replicas=most,
        routing=routing or LeastRequestsPolicy(),
        autoscaling=Autoscaling(most=most, **rule),
    )


def test_a_burst_starts_replicas_and_they_serve_after_their_start_up():
    """Eight requests at 0 on one replica, two a replica wanted: at 1 three more are started, which take requests from 4 on."""
    rows = [(0.0, 10, 30)] * 8 + [(3.5, 10, 2), (4.5, 10, 2)]
    result = scaled(rows)
    q = by_index(result)
    assert q["replica"].tolist()[:9] == [0] * 9
    assert q["replica"][9] != 0
    assert result.fleet["autoscaling"]["replicas_over_time"][:2] == [[0.0, 1], [1.0, 2]]
    assert result.fleet["autoscaling"]["most_replicas"] == 4
    assert result.fleet["autoscaling"]["scale_outs"] == 3


def test_a_replica_that_leaves_finishes_what_it_has():
    """Load falls away while both decode: replica 1 takes nobody new, and is paid for until its last token."""
    rows = [(0.0, 10, 6)] * 7 + [(0.0, 10, 60), (4.5, 10, 30), (20.0, 10, 1)]
    result = scaled(rows, most=2, target=4.0, scale_in_s=1.0)
    q = by_index(result)
    assert q["replica"].tolist() == [*[0] * 8, 1, 0]
    assert q["finish_s"][8] == 34.5
    assert result.fleet["autoscaling"]["replicas_over_time"] == [[0.0, 1], [1.0, 2], [35.0, 1]]
    assert result.fleet["autoscaling"]["scale_ins"] == 1


def test_time_before_the_first_request_is_not_paid_for():
    late, soon = (
        scaled([(begin_s, 10, 6)] * 8, most=2, target=4.0, scale_in_s=0.0) for begin_s in (100.5, 0.5)
    )
    paid = [sum(k["gpu_hours"] for k in r.fleet["hardware"]["kinds"]) for r in (late, soon)]
    assert paid[0] == pytest.approx(paid[1])


def test_only_replicas_that_are_on_are_paid_for():
    """One replica for the whole run, a second from 1 (when it is asked for) until the end."""
    result = scaled([(0.0, 10, 20)] * 4, most=2)
    end_s = by_index(result)["finish_s"].max()
    paid_s = sum(kind["gpu_hours"] for kind in result.fleet["hardware"]["kinds"]) * 3600
    assert paid_s == pytest.approx(end_s + (end_s - 1.0))
    assert result.totals.busy_s + result.totals.idle_s == pytest.approx(paid_s)


def test_a_steady_load_at_its_target_changes_nothing():
    result = scaled([(0.0, 10, 60)] * 2, target=1.9, least=1)  # within the tolerance of a tenth
    assert result.fleet["autoscaling"]["scale_outs"] == result.fleet["autoscaling"]["scale_ins"] == 0


@pytest.mark.parametrize("metric", ["queue", "outstanding", "kv", "tpot"])
def test_every_metric_scales_out_under_pressure(metric):
    target = {"queue": 1.0, "outstanding": 2.0, "kv": 0.2, "tpot": 0.5}[metric]
    result = run(
        [(0.0, 30, 20)] * 12,
        Affine(1.0),
        n_replicas=3,
        routing=LeastRequestsPolicy(),
        kv_blocks=41,
        max_num_seqs=4,
        autoscaling=Autoscaling(most=3, metric=metric, target=target, interval_s=1.0, startup_s=1.0),
    )
    assert result.fleet["autoscaling"]["most_replicas"] > 1


@given(
    world=worlds(),
    metric=st.sampled_from(["queue", "outstanding", "kv", "tpot"]),
    target=st.sampled_from([0.05, 0.5, 2.0]),
    most=st.integers(1, 4),
    startup=st.sampled_from([0.0, 3.0]),
    patience=st.sampled_from([None, 6.0]),
    mtbf=st.sampled_from([None, 20.0]),
    name=st.sampled_from(sorted(plugin_names(ROUTING))),
)
@settings(max_examples=40, deadline=None)
def test_nothing_is_lost_however_the_fleet_breathes(
    world, metric, target, most, startup, patience, mtbf, name
):
    rule = Autoscaling(1, most, metric, target, interval_s=2.0, startup_s=startup, scale_in_s=4.0)

    def once():
        return simulate_world(
            world,
            n_replicas=most,
            routing=load_plugin(ROUTING, name),
            client_timeout_s=patience,
            autoscaling=rule,
            outages=mtbf and Outages(mtbf_s=mtbf * 10, mttr_s=mtbf),
        )

    result = once()
    assert len(result.requests) == len(world.rows)
    if patience is None:
        assert (result.requests["status"] == 0).all()
    on = [n for _, n in result.fleet["autoscaling"]["replicas_over_time"]]
    assert 1 <= min(on) <= max(on) <= most
    assert result.requests.equals(once().requests)


# -- stragglers ---------------------------------------------------------------------------------------------------------


def test_a_straggler_takes_longer_for_everything():
    specs = spec(Affine(1.0), n_replicas=2, routing=RoundRobinPolicy())
    slow = SlowedCost(Affine(1.0), 1.5)
    mixed = replace(specs, replicas=(specs.replicas[0], replace(specs.replicas[1], cost_model=slow)))
    q = by_index(run_cluster(trace([(0.0, 10, 4), (0.0, 10, 4)]), mixed))
    assert q["finish_s"].tolist() == [4.0, 6.0]


def test_a_slowed_cost_model_slows_leaps_alike():
    inner = Affine(1.0, 0.1, 0.01)
    slow = SlowedCost(inner, 3.0)
    work = StepWork(0, 0, 0, 0, 2, (100,), 2)
    assert slow.step_s(work) == 3 * inner.step_s(work)
    plain, slowed = inner.leap(work, (2,), 5), slow.leap(work, (2,), 5)
    assert (slowed.first_s, slowed.delta_s) == (3 * plain.first_s, 3 * plain.delta_s)


# -- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"outages": Outages(((2, 0.0, 1.0),))}, "replica: got 2, expected 0..1"),
        ({"outages": Outages(((0, -1.0, 1.0),))}, "at=-1"),
        ({"outages": Outages(mtbf_s=0.0)}, "mtbf=0"),
        ({"outages": Outages()}, "expected mtbf=SECONDS"),
        ({"autoscaling": Autoscaling(1, 3)}, "max is 3, got 2 replicas"),
        ({"autoscaling": Autoscaling(3, 2)}, "min=3, max=2"),
        ({"autoscaling": Autoscaling(1, 2, "load")}, "unknown name 'load'"),  # type: ignore[arg-type]
        ({"autoscaling": Autoscaling(1, 2, target=0.0)}, "target: got 0.0"),
        ({"outages": Outages(mtbf_s=9.0), "routing": None}, "--routing: got none"),
    ],
)
def test_rules_that_make_no_sense_are_refused(parts, message):
    with pytest.raises(ConfigError, match=message):
        run([(0.0, 1, 1)], **{"n_replicas": 2, "routing": RoundRobinPolicy()} | parts)
