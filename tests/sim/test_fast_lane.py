"""The fast lane: with it closed, every table is the same to the byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.sim.cluster.cluster import _Run
from stepline.sim.engine import replica as replica_module
from stepline.sim.engine.plugins import plugin_names
from stepline.sim.study.config import RunConfig
from stepline.sim.study.run import simulate
from stepline.sim.study.setup import resolve
from stepline.traces.trace import Ragged, Trace

POLICIES = sorted(plugin_names("stepline.batch_policies"))


def chats(rng: np.random.Generator, n: int, *, ids: bool) -> Trace:
    """Prompts of 1 to 3 000 tokens, bursts included, some of which share what they begin with."""
    arrivals = np.cumsum(rng.exponential(0.15, n) * (rng.random(n) < 0.7))
    inputs = rng.integers(1, 3000, n)
    outputs = rng.integers(1, 200, n)
    if not ids:
        return Trace(arrivals, inputs, outputs, source="generated")
    rows = [
        [1000 * family + i for i in range(-(-int(tokens) // 512))]
        for family, tokens in zip(rng.integers(0, 6, n), inputs, strict=True)
    ]
    return Trace(
        arrivals, inputs, outputs, source="generated",
        hash_ids=Ragged.from_rows(rows), block_size=np.full(n, 512),
    )  # fmt: skip


def tables(trace: Trace, config: RunConfig) -> list[Any]:
    """Everything that a run says, as bytes and numbers."""
    result = simulate(trace, config)
    assert result.steps is not None
    frames = [result.requests, result.steps]
    columns = [frame[name].to_numpy() for frame in frames for name in frame if frame[name].dtype != object]
    gaps = result.gaps
    columns += [gaps.first_s, gaps.delta_s, gaps.n, gaps.weight, gaps.at_s]
    return [*[column.tobytes() for column in columns], sorted(result.kv.items()), result.totals.steps]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    policy=st.sampled_from(POLICIES),
    engine=st.sampled_from(["vllm-v1", "vllm-v0", "ideal"]),
    blocks=st.sampled_from([400, 700, 5000]),
    ids=st.booleans(),
    patience_s=st.sampled_from([None, 3.0]),
)
def test_tables_are_the_same_with_the_lane_closed(
    seed: int, policy: str, engine: str, blocks: int, ids: bool, patience_s: float | None
) -> None:
    """Bursts, shared prefixes, scarce KV, clients who give up: with a feed (no patience) and without."""
    trace = chats(np.random.default_rng(seed), 60, ids=ids)
    config = RunConfig(
        policy=policy, engine=engine, num_gpu_blocks_override=blocks, max_model_len=4096,
        client_timeout=patience_s, record_steps=True,
    )  # fmt: skip
    with_lane = tables(trace, config)
    assert any(r.glides for r in _Run(trace, resolve(config).cluster).replicas) or policy == "static"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replica_module, "LANE_IS_OPEN", False)
        assert not any(r.glides for r in _Run(trace, resolve(config).cluster).replicas)
        without = tables(trace, config)
    assert with_lane == without


def test_most_steps_of_a_plain_run_are_taken_in_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the law above would compare the general case with itself."""
    general = []
    for name in ("_start_leap", "start_mixed"):
        start = getattr(replica_module.Replica, name)

        def counted(self: Any, *args: Any, start: Any = start) -> Any:
            general.append(self.n_steps)
            return start(self, *args)

        monkeypatch.setattr(replica_module.Replica, name, counted)
    trace = Trace(np.arange(200) * 0.3, np.full(200, 700), np.full(200, 50), source="generated")
    result = simulate(trace, RunConfig(record_steps=True))
    assert result.steps is not None
    assert len(general) < 0.05 * len(result.steps)


class TestLivelock:
    """Nobody runs for ever: long prompts that do not fit together, and an order that preempts."""

    @pytest.mark.parametrize("policy", ["mlfq", "edf", "srpt", "priority"])
    @pytest.mark.parametrize("engine", ["vllm-v0", "vllm-v1"])
    def test_first_in_rank_keeps_what_it_has_computed(self, policy: str, engine: str) -> None:
        rng = np.random.default_rng(3)
        n = 40
        arrivals = np.cumsum(rng.exponential(4.0, n))
        trace = Trace(
            arrivals, rng.integers(3_000, 60_000, n), rng.integers(1, 400, n), source="generated"
        )  # fmt: skip
        result = simulate(trace, RunConfig(policy=policy, engine=engine, num_gpu_blocks_override=4_200))
        assert len(result.requests) == n
        assert result.totals.steps < 40_000


def test_the_lane_lets_the_clock_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who watches a run hears of it every few hundred steps, even where nothing else happens in the simulation."""
    monkeypatch.setattr("stepline.sim.cluster.cluster.EVENTS_PER_CHECK", 4)
    heard: list[int] = []
    n = 1000
    trace = Trace(np.arange(n) * 0.1, np.full(n, 500), np.full(n, 20), source="generated")
    simulate(trace, RunConfig(), on_progress=lambda progress: heard.append(progress.done))
    assert len(set(heard)) >= 4
