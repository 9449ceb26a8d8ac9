"""Contexts that stop growing: attention windows and token budgets, against per-sequence sums."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.sim import RunConfig
from stepline.sim.cluster.cluster import run_cluster
from stepline.sim.study.setup import resolve
from stepline.traces.request import Request
from stepline.traces.trace import Trace

from .engine_kit import MODEL, Affine, by_index
from .test_engine_adversarial import COST, engine, naive, worlds

WINDOWS = st.sampled_from([(7,), (1,), (7, None, 23), (None, 16), (500, 4)])


def model(windows):
    return replace(MODEL, n_layers=len(windows), attention_windows=tuple((w, 1) for w in windows))


def booked_s(result) -> float:
    return sum(sum(bounds.values()) for bounds in result.totals.seconds.values())


@settings(max_examples=60, deadline=None)
@given(worlds(), WINDOWS)
def test_contexts_of_every_window_are_sums_over_sequences(world, windows):
    stepped = engine(world, cost=Affine(0.11, 0.0123, 3.1e-4, 1.7e-5, leaps=False), model=model(windows))
    want = naive(world, windows=windows)
    steps = stepped.steps.sort_values("start_s", kind="stable")
    for i in range(len(windows)):
        got = steps["context_tokens" if i == 0 else f"context_tokens_{i}"]
        assert got.tolist() == [step.work.context_tokens[i] for step in want.steps]


@settings(max_examples=60, deadline=None)
@given(worlds(), WINDOWS)
def test_leaps_over_windows_cost_what_their_steps_do(world, windows):
    leapt = engine(world, cost=COST, model=model(windows))
    want = naive(world, windows=windows)
    got = by_index(leapt)
    np.testing.assert_allclose(
        got["finish_s"], [a.finish_s for a in sorted(want.asks, key=lambda a: a.index)], rtol=1e-9
    )
    assert booked_s(leapt) == pytest.approx(leapt.totals.busy_s, rel=1e-9)


class WithoutLines:
    """A cost model without `decode_lines`: the engine has to ask for every leap."""

    def __init__(self, inner) -> None:
        self.step_s, self.leap, self.explain_many = inner.step_s, inner.leap, inner.explain_many


@pytest.mark.parametrize("compression", [None, "h2o:budget=300", "streaming-llm:recent=200"])
def test_decode_lines_are_a_short_cut_and_nothing_else(compression):
    rows = Trace.from_requests(Request(f"r{i}", 0.03 * i, 200 + 31 * i, 400) for i in range(12))
    config = RunConfig(kv_compression=compression, enable_prefix_caching=False)
    spec = resolve(config).cluster
    plain = replace(
        spec, replicas=tuple(replace(r, cost_model=WithoutLines(r.cost_model)) for r in spec.replicas)
    )
    assert hasattr(spec.replicas[0].cost_model, "decode_lines")
    a, b = run_cluster(rows, spec), run_cluster(rows, plain)
    np.testing.assert_allclose(a.requests["finish_s"], b.requests["finish_s"], rtol=1e-9)
    assert booked_s(a) == pytest.approx(a.totals.busy_s, rel=1e-9)
    assert booked_s(b) == pytest.approx(b.totals.busy_s, rel=1e-9)
