"""The virtual token counter: what is charged once, and where a tenant that comes back starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stepline.policies.batching.fair import FairPolicy, FairQueue
from stepline.sim import simulate
from stepline.sim.engine.sequence import Sequence
from stepline.traces.trace import Trace


def request(index, tenant, tokens=100):
    seq = Sequence(index, 0.0, 0.0, tokens, 10)
    seq.tenant = tenant
    return seq


def idle_queue():
    """A queue of a replica where nothing runs."""
    queue = FairPolicy().make_queue()
    queue.attach(
        SimpleNamespace(
            generated_tokens=lambda seq: seq.generated_tokens,
            decode_steps=0,
            emits_one=True,
            decodes=lambda seq: False,
        )
    )
    return queue


def test_a_prompt_is_charged_once_however_often_it_leaves_the_queue():
    """It may come back before anything was computed: from a load of its KV, or preempted."""
    queue = idle_queue()
    seq = request(0, "a")
    queue.append(seq)
    queue.remove(seq)
    queue.appendleft(seq)
    queue.remove(seq)
    assert queue.service("a") == 100


def test_idleness_earns_no_credit_even_where_nobody_waits():
    """Sheng et al., Algorithm 2: an empty queue lifts who comes to the counter of the tenant that left it last."""
    queue = idle_queue()
    busy = request(0, "a")
    queue.append(busy)
    queue.popleft()
    queue.append(request(1, "b"))
    assert queue.service("b") == queue.service("a") == 100


def test_who_comes_while_others_wait_starts_at_the_least_served_of_them():
    queue = idle_queue()
    for index, (tenant, tokens) in enumerate((("a", 50), ("b", 70))):
        first = request(index, tenant, tokens)
        queue.append(first)
        queue.append(request(index + 2, tenant))
        queue.remove(first)
    queue.append(request(4, "c"))
    assert (queue.service("a"), queue.service("b"), queue.service("c")) == (50.0, 120.0, 50.0)


class OneByOneQueue(FairQueue):
    """Looks at each running sequence, as if no two emitted alike."""

    def attach(self, view: Any) -> None:
        outer = view

        class Proxy:
            emits_one = False

            def __getattr__(self, name: str) -> Any:
                return getattr(outer, name)

        super().attach(Proxy())


class OneByOnePolicy(FairPolicy):
    def make_queue(self) -> FairQueue:  # type: ignore[override]
        return OneByOneQueue(self.prompt_cost, self.output_cost, self.tenant_weights)


def tenants(seed: int) -> Trace:
    """Three tenants, one of them greedy, in bursts."""
    rng = np.random.default_rng(seed)
    n = 150
    return Trace(
        np.cumsum(rng.exponential(0.02, n) * (rng.random(n) < 0.5)), rng.integers(1, 900, n), rng.integers(1, 150, n),
        source="generated", columns={"tenant": rng.choice(["a", "b", "gold"], n, p=[0.7, 0.2, 0.1]).astype(object)},
    )  # fmt: skip


@pytest.mark.parametrize(
    "settings", [{}, {"num_gpu_blocks_override": 150}, {"max_num_seqs": 6, "engine": "ideal"}], ids=repr
)
def test_sums_by_tenant_charge_what_looking_at_each_sequence_does(settings):
    """Costs and weights are sums of powers of two, so that no order of additions rounds."""
    for seed in range(3):
        trace = tenants(seed)
        runs = [
            simulate(trace, policy=f"{policy}:gold=2", max_model_len=2048, **settings)
            for policy in ("fair", f"{__file__}:OneByOnePolicy")
        ]
        assert runs[0].requests.equals(runs[1].requests)
    if settings:
        assert (runs[0].requests["scheduled_s"] - runs[0].requests["arrival_s"]).max() > 1.0


def test_an_empty_name_is_a_tenant_beside_those_without_one():
    """Both at the same counter: neither is compared by anything but its place."""
    queue = idle_queue()
    rows = [request(i, tenant) for i, tenant in enumerate([None, "", None, ""])]
    for seq in rows:
        queue.append(seq)
    assert [seq.index for seq in queue] == [0, 1, 2, 3]


def test_who_has_paid_for_its_prompt_is_not_charged_again_where_the_queue_is_read():
    """A preempted request of `a` waits before another of `a`; it is free, so both go before the one of `b` that is dearer."""
    queue = idle_queue()
    preempted, other = request(0, "a"), request(1, "a")
    queue.append(preempted)
    queue.popleft()
    queue.append(other)
    queue.appendleft(preempted)
    late = request(2, "b", tokens=10)
    queue.append(late)
    queue._account("b").service = 150.0
    assert [seq.index for seq in queue] == [0, 1, 2]
    assert [queue.popleft().index for _ in range(3)] == [0, 1, 2]
