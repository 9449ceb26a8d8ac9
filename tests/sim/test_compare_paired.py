"""Paired comparison: intervals that cover, differences that are exact, reasons made of numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stepline.sim.report.paired import METHOD, N_BLOCKS, compare_results
from stepline.sim.report.ranking import criterion, rank
from stepline.traces.errors import InvariantError

from .run_results import gaps, requests, run_result


def with_latency(ttft_s, gap_rows=((0.02, 0.0, 2, 100),), e2e_extra_s=1.0):
    """A run whose request i arrives at i and has the given time to first token."""
    rows = [
        {
            "arrival_s": float(i),
            "scheduled_s": i + t / 2,
            "first_token_s": i + t,
            "finish_s": i + t + e2e_extra_s,
        }
        for i, t in enumerate(ttft_s)
    ]
    return run_result(rows, gaps=gaps(*gap_rows))


def test_differences_are_those_of_the_same_requests():
    base = with_latency([1.0, 2.0, 3.0, 4.0])
    other = with_latency([1.5, 2.5, 3.5, 4.5])
    # rows come in order of completion, not of the trace
    shuffled = replace(other, requests=other.requests.iloc[[2, 0, 3, 1]].reset_index(drop=True))
    found = compare_results({"a": base, "b": shuffled}).find("b", "ttft", "mean")
    assert (found.baseline, found.value, found.difference) == (2.5, 3.0, pytest.approx(0.5))
    assert found.low is None, "four requests are too few for an interval"


def test_a_constant_shift_has_an_interval_of_width_zero():
    rng = np.random.default_rng(1)
    ttft = rng.gamma(2.0, 0.5, 400)
    comparison = compare_results({"a": with_latency(ttft), "b": with_latency(ttft + 0.25)})
    for stat in ("mean", "p50", "p99"):
        found = comparison.find("b", "ttft", stat)
        assert found.difference == pytest.approx(0.25)
        assert (found.low, found.high) == (pytest.approx(0.25), pytest.approx(0.25))
        assert found.is_clear


@pytest.mark.slow
def test_the_interval_covers_the_true_difference_of_dependent_latencies():
    """Neighbouring requests share a queue: AR(1) latencies, true difference 0.1; 95 % intervals cover >= 85 of 100."""
    hits = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=(2, 2000))
        for i in range(1, 2000):
            noise[:, i] += 0.8 * noise[:, i - 1]
        a, b = 20 + noise[0], 20 + noise[1] + 0.1
        found = compare_results({"a": with_latency(a), "b": with_latency(b)}, seed=seed).find(
            "b", "ttft", "mean"
        )
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.1 <= found.high
    assert 85 <= hits <= 100


def test_the_same_seed_gives_the_same_intervals():
    rng = np.random.default_rng(2)
    runs = {"a": with_latency(rng.gamma(2, 1, 500)), "b": with_latency(rng.gamma(2, 1.1, 500))}
    assert compare_results(runs, seed=3).differences == compare_results(runs, seed=3).differences
    assert compare_results(runs, seed=3).differences != compare_results(runs, seed=4).differences


def test_requests_lost_in_one_run_leave_the_pairs_of_both():
    base = with_latency([1.0, 2.0, 3.0])
    lost = requests(
        [{}, {"status": 2, "arrival_s": 1.0}, {"arrival_s": 2.0, "first_token_s": 3.0, "finish_s": 9.0}]
    )
    found = compare_results({"a": base, "b": replace(base, requests=lost)}).find("b", "ttft", "mean")
    assert (found.n, found.baseline) == (2, 2.0)


def test_runs_of_different_requests_are_refused():
    with pytest.raises(InvariantError, match="different requests"):
        compare_results({"a": with_latency([1.0, 2.0]), "b": with_latency([1.0])})


def test_gaps_are_compared_by_blocks_of_tokens():
    rng = np.random.default_rng(7)
    rows = [(g, 0.0, 1, 10) for g in rng.gamma(4, 0.005, 2000)]
    slower = [(g + 0.01, d, n, w) for g, d, n, w in rows]
    ttft = np.ones(400)
    runs = {"a": with_latency(ttft, rows), "b": with_latency(ttft, slower)}
    found = compare_results(runs).find("b", "itl", "p99")
    assert found.difference == pytest.approx(0.01, rel=0.01)
    assert found.low == pytest.approx(0.01, rel=0.02)
    assert found.is_clear


def test_every_run_metric_and_statistic_has_a_row_and_the_method_is_said():
    comparison = compare_results({"a": with_latency(np.ones(300)), "b": with_latency(np.ones(300))})
    frame = comparison.frame()
    assert list(frame.columns) == [
        "run", "metric", "stat", "unit", "baseline", "value", "difference", "low", "high", "n",
    ]  # fmt: skip
    assert set(frame["metric"]) >= {"ttft", "tpot", "itl", "e2e", "queue", "output_tokens_per_s"}
    assert frame[frame["run"] == "a"]["low"].isna().all()
    assert str(N_BLOCKS) in METHOD


def test_ranking_follows_completion_then_latency_and_says_numbers():
    fast, slow = with_latency(np.full(50, 0.5)), with_latency(np.full(50, 3.0))
    lossy = replace(fast, requests=fast.requests.assign(status=[2] + [0] * 49))
    comparison = compare_results({"slow": slow, "lossy": lossy, "fast": fast})
    places = rank(comparison)
    assert [p.run for p in places] == ["fast", "slow", "lossy"]
    assert "mean end-to-end latency" in criterion(comparison)
    assert "3.00 s" in next(p.why for p in places if p.run == "slow")


def test_reasons_name_the_strongest_figure_and_the_waste():
    smooth = with_latency(np.full(50, 1.0), [(0.02, 0.0, 2, 100)])
    bursty = with_latency(np.full(50, 1.2), [(0.02, 0.0, 2, 90), (0.9, 0.0, 2, 10)])
    bursty = replace(bursty, totals=replace(bursty.totals, busy_s=2 * smooth.totals.busy_s))
    why = {p.run: p.why for p in rank(compare_results({"smooth": smooth, "bursty": bursty}))}
    assert why["smooth"].startswith(
        "least mean E2E (2.00 s, then 2.20 s); against bursty: lower p99 ITL (20.0 ms, not 900 ms: 0.022×)"
    )
    assert why["bursty"].startswith("against smooth: higher p99 ITL (900 ms, not 20.0 ms: 45.0×)")
    assert "higher GPU time per output token" in why["bursty"]


def test_equal_runs_are_said_to_be_equal():
    same = with_latency(np.full(50, 1.0))
    places = rank(compare_results({"a": same, "b": same}))
    assert [p.is_tie for p in places] == [False, True]
    assert places[1].why == "no figure differs from a by more than 5%"


def test_a_clear_difference_is_no_tie():
    ttft = np.random.default_rng(4).gamma(2.0, 0.5, 400)
    places = rank(compare_results({"a": with_latency(ttft), "b": with_latency(ttft + 0.01)}))
    assert [(p.run, p.is_tie) for p in places] == [("a", False), ("b", False)]
