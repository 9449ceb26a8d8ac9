"""Small parts for engine tests: a closed-form cost model, one-line clusters, traces from lists."""

from __future__ import annotations

from typing import Any

import numpy as np
from stepline.policies.batching.chunked import ChunkedPolicy
from stepline.policies.eviction.lru import LruPolicy
from stepline.policies.preemption.last_in import LastInPolicy
from stepline.sim.cluster.cluster import ClusterSpec, ReplicaSpec, run_cluster
from stepline.sim.cost.specs import EngineProfile, GpuSpec, ModelSpec
from stepline.sim.cost.work import Progression, StepWork
from stepline.sim.engine.result import RunResult
from stepline.traces.trace import Ragged, Trace

MODEL = ModelSpec("toy", 2, 64, 4, 2, 16, 128, 1000, 1_000_000)
GPU = GpuSpec("toy", {"bf16": 1e12}, 1e12, 2**30, 1, 1e10, 1e10, 100.0)


class Affine:
    """fixed + per_token·new + per_context·Σ context + per_pair·pairs, in seconds; leaps in closed form."""

    def __init__(self, fixed=1.0, per_token=0.0, per_context=0.0, per_pair=0.0, *, leaps=True) -> None:
        self.fixed, self.per_token, self.per_context, self.per_pair = fixed, per_token, per_context, per_pair
        self.leaps = leaps

    def step_s(self, work: StepWork) -> float:
        return (
            self.fixed
            + self.per_token * work.new_tokens
            + self.per_context * sum(work.context_tokens)
            + self.per_pair * work.attention_pairs
        )

    def leap(self, work: StepWork, growth: tuple[float, ...], n_steps: int) -> Progression:
        if not self.leaps:
            return Progression(self.step_s(work), 0.0, 1)
        return Progression(self.step_s(work), self.per_context * sum(growth), n_steps)

    def explain_many(self, columns: Any) -> Any:
        n = len(columns["n_decode"])
        contexts = sum(v for k, v in columns.items() if k.startswith("context_tokens"))
        seconds = (
            self.fixed
            + self.per_token * (columns["prefill_tokens"] + columns["n_decode"])
            + self.per_context * contexts
            + self.per_pair * columns["attention_pairs"]
        )
        return {"gemm": {"compute": seconds}}, np.zeros(n), np.zeros(n)


def trace(rows, hash_ids=None, block_size=None, **columns) -> Trace:
    """Rows (arrival_s, input_tokens, output_tokens)."""
    a, i, o = (np.array(c) for c in zip(*rows, strict=True))
    ids = None if hash_ids is None else Ragged.from_rows(hash_ids)
    sizes = None if hash_ids is None else np.full(len(rows), block_size, dtype=np.int64)
    return Trace(
        a.astype(float),
        i.astype(np.int64),
        o.astype(np.int64),
        hash_ids=ids,
        block_size=sizes,
        columns=columns,
    )


def spec(cost=None, policy=None, *, depth=0, caching=False, n_replicas=1, replay="open", **kw) -> ClusterSpec:
    """A cluster of equal replicas; keyword arguments go to `ReplicaSpec` or `ClusterSpec`."""
    cluster = {
        k: kw.pop(k)
        for k in (
            "client_timeout_s",
            "max_concurrency",
            "record_steps",
            "routing",
            "scrape_interval_s",
            "disaggregation",
            "decode_routing",
            "outages",
            "autoscaling",
        )
        if k in kw
    }
    replica = {
        "model": MODEL,
        "gpu": GPU,
        "engine": kw.pop("engine", EngineProfile("toy", pipeline_depth=depth)),
        "cost_model": cost or Affine(),
        "policy": policy or ChunkedPolicy(),
        "preemption": LastInPolicy(),
        "eviction": LruPolicy if caching else None,
        "kv_blocks": 100_001,
        "max_model_len": 1_000_000,
    } | kw
    return ClusterSpec(tuple(ReplicaSpec(**replica) for _ in range(n_replicas)), replay=replay, **cluster)


def run(rows, *args, **kw) -> RunResult:
    """Simulate rows or a trace."""
    t = rows if isinstance(rows, Trace) else trace(rows)
    return run_cluster(t, spec(*args, **kw))


def by_index(result: RunResult):
    """Request table in trace order."""
    return result.requests.sort_values("request_index").reset_index(drop=True)
