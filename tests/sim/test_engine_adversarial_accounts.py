"""The engine's own accounts against each other: time series, totals, step table, request table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.policies.batching.continuous import ContinuousPolicy
from stepline.policies.batching.static import StaticPolicy
from stepline.sim import summary
from stepline.sim.report.summary import time_frac

from .engine_kit import Affine, run
from .test_engine_adversarial import engine, gaps_of, worlds

POLICIES = st.sampled_from([None, ContinuousPolicy, StaticPolicy])


def integral(series, name):
    return float((series[name] * series["width_s"]).sum())


@settings(max_examples=80, deadline=None)
@given(worlds(timeouts=(None, 0.7531)), POLICIES)
def test_the_series_obey_littles_law(world, policy):
    result = engine(world, policy=policy and policy(), max_model_len=90)
    q, p, series = result.requests, result.preemptions, result.totals.series
    ends = q.set_index("request_index")["finish_s"]
    end = ends[p["request_index"]].to_numpy()
    away = (np.fmin(p["resumed_s"], end) - np.fmin(p["preempted_s"], end)).sum()
    served = (q["finish_s"] - q["scheduled_s"]).sum() - away
    assert integral(series, "running") == pytest.approx(served, rel=1e-9, abs=1e-9)
    all_of_it = (q["finish_s"] - q["arrival_s"]).sum()
    assert integral(series, "waiting") + integral(series, "running") == pytest.approx(
        all_of_it, rel=1e-9, abs=1e-9
    )


@settings(max_examples=60, deadline=None)
@given(worlds(timeouts=(None, 0.7531)), POLICIES)
def test_series_histograms_and_totals_add_up(world, policy):
    result = engine(world, policy=policy and policy(), max_model_len=90)
    totals, steps = result.totals, result.steps
    close = lambda a, b: a == pytest.approx(b, rel=1e-9, abs=1e-9)  # noqa: E731
    assert totals.steps == steps["n_steps"].sum()
    assert close(totals.busy_s, steps["duration_s"].sum())
    assert close(integral(totals.series, "busy_frac"), totals.busy_s)
    for name in ("prefill_tokens", "emitted_tokens"):
        assert close(totals.series[name].sum(), steps[name].sum())
    assert close(totals.series["steps"].sum(), totals.steps)
    kernels = {k: sum(b.values()) for k, b in totals.seconds.items()}
    for kernel, seconds in kernels.items():
        assert close(totals.series[f"kernel_{kernel}_s"].sum(), seconds)
    assert close(sum(kernels.values()), totals.busy_s)
    assert totals.step_histogram["steps"].sum() == totals.steps
    assert close(totals.step_histogram["seconds"].sum(), totals.busy_s)
    for _, part in totals.step_bins.groupby("what"):
        assert close(part["steps"].sum(), totals.steps)
        assert close(part["seconds"].sum(), totals.busy_s)
    if totals.busy_s:
        assert sum(time_frac(result).values()) == pytest.approx(1.0, abs=1e-12)
    assert result.kv["peak_used_blocks"] >= steps["kv_used_blocks"].max()


@settings(max_examples=60, deadline=None)
@given(worlds(timeouts=(None, 0.7531)), POLICIES)
def test_gap_percentiles_are_those_of_the_token_list(world, policy):
    result = engine(world, policy=policy and policy(), max_model_len=90)
    gaps = gaps_of(result)
    figures = summary(result)["itl_s"]
    if not len(gaps):
        assert figures["p50"] is None
        return
    for name, share in {"p50": 50, "p90": 90, "p99": 99, "p99_9": 99.9}.items():
        assert figures[name] == pytest.approx(np.percentile(gaps, share), rel=1e-12)
    assert figures["mean"] == pytest.approx(gaps.mean(), rel=1e-9)
    assert figures["max"] == pytest.approx(gaps.max(), rel=1e-12)


def test_steps_after_the_last_client_has_left_are_on_the_clock():
    result = run([(0.0, 10, 3)], Affine(1.0, 1.0), client_timeout_s=5.0)
    totals = result.totals
    assert (totals.busy_s, totals.idle_s) == (11.0, 0.0)
    assert totals.series["prefill_tokens"].sum() == pytest.approx(10)


def test_the_series_reach_the_last_request_even_without_steps():
    # the second is longer than the model allows: rejected an hour later, and nothing is computed for it
    result = run([(0.0, 4, 3), (3600.0, 50, 60)], Affine(1.0), max_model_len=90)
    series = result.totals.series
    assert series["t_s"].iloc[-1] + series["width_s"].iloc[-1] == pytest.approx(3600.0)
    assert result.totals.idle_s == pytest.approx(3597.0)
