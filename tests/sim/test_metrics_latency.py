"""Latency figures: exact percentiles of gaps that are never expanded, and the definitions of TTFT, TPOT, E2E."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.sim.report import metrics

from .run_results import expanded, gaps, run_result

FRACTIONS = [0.0, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0]

rows = st.lists(
    st.tuples(
        st.sampled_from([0.01, 0.0125, 0.02, 0.3, 1.7]),
        st.sampled_from([0.0, 1e-6, 3.3e-5, -2e-6, 1e-4]),
        st.integers(0, 60),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(rows)
def test_gap_figures_are_those_of_the_expanded_population(drawn):
    g = gaps(*drawn)
    values = expanded(g)
    if not len(values):
        assert metrics.gap_distribution(g)["mean"] is None
        return
    np.testing.assert_allclose(
        metrics.gap_quantiles(g, FRACTIONS), np.quantile(values, FRACTIONS), rtol=1e-12
    )
    found = metrics.gap_distribution(g)
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert found["max"] == pytest.approx(values.max(), rel=1e-12)
    assert metrics.gap_std(g) == pytest.approx(values.std(), rel=1e-6, abs=1e-9)


def test_the_narrowing_search_agrees_with_sorting_everything(monkeypatch):
    rng = np.random.default_rng(5)
    n = 3000
    g = gaps(*zip(rng.gamma(2, 0.01, n), rng.choice([0, 1e-6, -1e-6], n), rng.integers(1, 40, n), rng.integers(1, 90, n),
                  strict=True))  # fmt: skip
    monkeypatch.setattr(metrics, "_EXPAND_AT_MOST", 100)
    np.testing.assert_allclose(
        metrics.gap_quantiles(g, FRACTIONS), np.quantile(expanded(g), FRACTIONS), rtol=1e-12
    )


def test_a_billion_tokens_need_no_billion_numbers():
    g = gaps((0.01, 1e-12, 10**9, 64), (0.5, 0.0, 1, 10**9))
    total = 65 * 10**9
    p50 = metrics.gap_quantiles(g, [0.5])[0]
    assert p50 == pytest.approx(0.01 + 1e-12 * (0.5 * total / 64), rel=1e-9)
    assert metrics.gap_quantiles(g, [0.99])[0] == 0.5


def test_equal_gaps_far_beyond_the_sorting_limit():
    g = gaps(*[(0.01, 0.0, 3, 2)] * 100_000)
    assert metrics.gap_quantiles(g, [0.5, 0.999]).tolist() == [0.01, 0.01]


def test_latencies_follow_their_definitions():
    result = run_result(
        [{"arrival_s": 1.0, "scheduled_s": 1.25, "first_token_s": 1.5, "finish_s": 3.5, "output_tokens": 5}]
    )
    found = {k: v.tolist() for k, v in metrics.latencies(result.requests).items()}
    assert found == {"ttft": [0.5], "tpot": [0.5], "e2e": [2.5], "queue": [0.25]}


def test_a_single_token_has_no_tpot():
    result = run_result([{"output_tokens": 1, "finish_s": 0.5}, {"output_tokens": 2, "finish_s": 2.0}])
    assert metrics.distribution(metrics.latencies(result.requests)["tpot"])["mean"] == pytest.approx(0.5)


def test_an_empty_sample_has_no_figures():
    assert set(metrics.distribution(np.array([np.nan])).values()) == {None}


def test_percentiles_are_numpys_default():
    values = np.array([1.0, 2.0, 3.0, 4.0, 10.0])
    found = metrics.distribution(values)
    assert (found["p50"], found["p90"]) == (3.0, pytest.approx(7.6))
