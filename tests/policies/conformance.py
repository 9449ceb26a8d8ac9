"""Random small worlds for every registered policy: traces with shared prefixes, tight KV, few seats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from stepline.sim.engine.plugins import load_plugin, plugin_factory, plugin_names

from ..sim.engine_kit import Affine, by_index, run_cluster, spec, trace

BATCH, EVICTION = "stepline.batch_policies", "stepline.eviction_policies"
PREEMPTION, ADMISSION = "stepline.preemption_policies", "stepline.admission_policies"
COMPRESSION = "stepline.kv_compressions"
NEEDS = {"token-bucket": "token-bucket:rate=2"}
"""Policies with a parameter that has no default."""
TRACE_BLOCK = 8


@dataclass(frozen=True)
class World:
    """A trace and the limits of a replica."""

    rows: list
    hash_ids: list
    tenants: list
    priorities: list
    kv_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    depth: int
    caching: bool


@st.composite
def worlds(draw, *, max_requests=14, caching=None):
    n = draw(st.integers(1, max_requests))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.0, 0.5, 3.0]), min_size=n, max_size=n))
    inputs = draw(st.lists(st.integers(1, 60), min_size=n, max_size=n))
    outputs = draw(st.lists(st.integers(1, 25), min_size=n, max_size=n))
    families = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    shared = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    seats = draw(st.integers(1, 5))
    return World(
        rows=list(zip(np.cumsum(gaps).tolist(), inputs, outputs, strict=True)),
        hash_ids=[
            chain(f, s, i, -(-t // TRACE_BLOCK))
            for i, (f, s, t) in enumerate(zip(families, shared, inputs, strict=True))
        ],
        tenants=[("a", "b", None)[f] for f in families],
        priorities=[f - 1 for f in families],
        kv_blocks=draw(st.integers(23, 40)),
        max_num_seqs=seats,
        max_num_batched_tokens=draw(st.integers(max(seats, 4), 40)),
        depth=draw(st.integers(0, 1)),
        caching=draw(st.booleans()) if caching is None else caching,
    )


def chain(family, shared, request, n_blocks):
    """Chained ids: the first `shared` blocks belong to the family, the rest to the request alone."""
    return [1000 * family + i if i < shared else 10_000 + 100 * request + i for i in range(n_blocks)]


def simulate(
    world,
    policy="chunked",
    eviction="lru",
    preemption="last-in",
    admission=None,
    compression=None,
    *,
    leaps=True,
    **kw,
):
    """Run a world under policies given by their texts."""
    rows = trace(
        world.rows,
        world.hash_ids,
        TRACE_BLOCK,
        tenant=world.tenants,
        priority=world.priorities,
        slo_class=["interactive" if t == "a" else None for t in world.tenants],
    )
    cost = kw.pop("cost", Affine(1.0, 0.01, 0.001, 0.0001, leaps=leaps))
    return run_cluster(
        rows,
        spec(
            cost,
            load_plugin(BATCH, policy) if isinstance(policy, str) else policy,
            depth=world.depth,
            eviction=plugin_factory(EVICTION, eviction) if world.caching else None,
            preemption=load_plugin(PREEMPTION, preemption),
            admission=None if admission is None else plugin_factory(ADMISSION, admission),
            compression=None if compression is None else load_plugin(COMPRESSION, compression),
            kv_blocks=world.kv_blocks,
            block_size=4,
            max_num_seqs=world.max_num_seqs,
            max_num_batched_tokens=world.max_num_batched_tokens,
            max_model_len=85,
            record_steps=True,
            **kw,
        ),
    )


def check(world, result, *, rejects=False):
    """What must hold of any run: everybody is served once, in order of time, and every token is computed."""
    q = by_index(result)
    n = len(world.rows)
    assert len(q) == n
    assert (q["arrival_s"] <= q["finish_s"]).all()
    served = q[q["status"] == 0]
    if not rejects:
        assert len(served) == n
    assert (served["arrival_s"] <= served["scheduled_s"]).all()
    assert (served["scheduled_s"] < served["first_token_s"]).all()
    assert (served["first_token_s"] <= served["finish_s"]).all()
    outputs = np.array([o for _, _, o in world.rows])
    assert (served["output_tokens"].to_numpy() == outputs[served["request_index"]]).all()
    assert result.steps["emitted_tokens"].sum() == served["output_tokens"].sum()
    uncached = (served["input_tokens"] - served["cached_tokens"]).sum()
    computed = result.steps["prefill_tokens"].sum()
    if not served["preemptions"].sum():
        assert computed == uncached
    else:
        assert computed >= uncached
    gaps = result.gaps
    assert (gaps.weight * gaps.n).sum() == (served["output_tokens"] - 1).sum()


def names(group):
    return [NEEDS.get(name, name) for name in plugin_names(group)]
