"""The virtual token counter: what is charged once, and where a tenant that comes back starts."""

from __future__ import annotations

from types import SimpleNamespace

from stepline.policies.batching.fair import FairPolicy
from stepline.sim.engine.sequence import Sequence


def request(index, tenant, tokens=100):
    seq = Sequence(index, 0.0, 0.0, tokens, 10)
    seq.tenant = tenant
    return seq


def test_a_prompt_is_charged_once_however_often_it_leaves_the_queue():
    """It may come back before anything was computed: from a load of its KV, or preempted."""
    queue = FairPolicy().make_queue()
    queue.attach(SimpleNamespace(generated_tokens=lambda seq: seq.generated_tokens))
    seq = request(0, "a")
    queue.append(seq)
    queue.remove(seq)
    queue.appendleft(seq)
    queue.remove(seq)
    assert queue.counters["a"] == 100


def test_idleness_earns_no_credit_even_where_nobody_waits():
    """Sheng et al., Algorithm 2: an empty queue lifts who comes to the counter of the tenant that left it last."""
    queue = FairPolicy().make_queue()
    busy = request(0, "a")
    queue.append(busy)
    queue.popleft()
    queue.append(request(1, "b"))
    assert queue.counters["b"] == queue.counters["a"] == 100


def test_who_comes_while_others_wait_starts_at_the_least_served_of_them():
    queue = FairPolicy().make_queue()
    queue.counters = {"a": 50.0, "b": 70.0}
    for index, tenant in enumerate("ab"):
        queue._queues.setdefault(tenant, []).append(request(index, tenant))
    queue.append(request(2, "c"))
    assert queue.counters["c"] == 50.0


def test_an_empty_name_is_a_tenant_beside_those_without_one():
    """Both at the same counter: neither is compared by anything but its place."""
    queue = FairPolicy().make_queue()
    rows = [request(i, tenant) for i, tenant in enumerate([None, "", None, ""])]
    for seq in rows:
        queue.append(seq)
    assert [seq.index for seq in queue] == [0, 1, 2, 3]


def test_who_has_paid_for_its_prompt_is_not_charged_again_where_the_queue_is_read():
    """A preempted request of `a` waits before another of `a`; it is free, so both go before the one of `b` that is dearer."""
    queue = FairPolicy().make_queue()
    queue.attach(SimpleNamespace(generated_tokens=lambda seq: seq.generated_tokens))
    preempted, other = request(0, "a"), request(1, "a")
    queue.append(preempted)
    queue.popleft()
    queue.append(other)
    queue.appendleft(preempted)
    late = request(2, "b", tokens=10)
    queue.append(late)
    queue.counters["b"] = 150.0
    assert [seq.index for seq in queue] == [0, 1, 2]
    assert [queue.popleft().index for _ in range(3)] == [0, 1, 2]
