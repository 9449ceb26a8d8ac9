"""How near generated traces come to the real ones (TRACES targets): medians over seeds, no draw picked."""

import json
from pathlib import Path

import numpy as np
import pytest
from stepline.traces import read_trace, spread_quantum
from stepline.traces.synth import load_profile, synth
from stepline.traces.synth.fitted import distances
from stepline.traces.synth.measure import index_of_dispersion, ks_distance, ks_distance_2d, lru_hit_rates

DATA = Path(__file__).resolve().parents[3] / "shared" / "traces"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real traces are not on this machine")
SEEDS = range(7)


def hit_rates(name):
    found = json.loads((DATA / f"{name}.ref_hitrate.json").read_text())
    blocks = [point["cacheBlocks"] for point in found["points"]]
    rates = [point["results"]["lru"]["hitRate"] for point in found["points"]]
    return [*blocks, 10**9], np.array([*rates, found["hitRateCeiling"]])


@needs_data
@pytest.mark.parametrize(
    "name", ["claude_code_sessions", "mooncake_conversation_first10min", "mooncake_synthetic"]
)
def test_our_lru_replay_agrees_with_an_independent_one(name):
    blocks, reference = hit_rates(name)
    ours = lru_hit_rates(read_trace(DATA / f"{name}.jsonl.gz"), blocks)
    np.testing.assert_allclose(ours, reference, atol=5e-4)


@needs_data
def test_azure_conv_has_the_lengths_gaps_and_bursts_of_its_trace():
    trace = read_trace(DATA / "azure_conv.jsonl.gz")
    found = distances(trace, load_profile("azure_conv"), SEEDS)
    assert found["ks_input"] <= 0.03
    assert found["ks_output"] <= 0.03
    assert found["ks_gap"] <= 0.03
    assert found["ks_input_output"] <= 0.05
    for window in ("1s", "10s", "60s"):
        assert found[f"dispersion_{window}"] == pytest.approx(found[f"real_dispersion_{window}"], rel=0.2)


@needs_data
def test_azure_conv_answers_less_at_the_peak_of_the_hour_as_its_trace_does():
    trace = read_trace(DATA / "azure_conv.jsonl.gz")

    def mean_output(some, low, high):
        rows = (some.arrival_s >= low) & (some.arrival_s < high)
        return some.output_tokens[rows].mean()

    made = [synth("azure_conv", seed=seed) for seed in SEEDS]
    for low, high in ((0, 900), (1500, 2100), (2700, 3300)):
        median = np.median([mean_output(one, low, high) for one in made])
        assert median == pytest.approx(mean_output(trace, low, high), rel=0.08)


@needs_data
def test_azure_code_has_the_lengths_and_gaps_of_its_trace():
    trace = read_trace(DATA / "azure_code_first20min.jsonl.gz")
    made = [synth("azure_code", seed=seed) for seed in SEEDS]
    gaps = np.median([ks_distance(np.diff(trace.arrival_s), np.diff(one.arrival_s)) for one in made])
    assert gaps <= 0.08
    for column in ("input_tokens", "output_tokens"):
        seen = [ks_distance(getattr(trace, column), getattr(one, column)) for one in made]
        assert np.median(seen) <= 0.03
    pairs = [
        ks_distance_2d((trace.input_tokens, trace.output_tokens), (m.input_tokens, m.output_tokens))
        for m in made
    ]
    assert np.median(pairs) <= 0.05


def test_azure_code_has_the_bursts_of_the_whole_hour():
    made = [synth("azure_code", seed=seed, duration_s=3600.0) for seed in range(15)]
    # TRACES: 73 % of seconds empty, index of dispersion 164 at 60 s over the whole hour.
    empty = [1 - len(np.unique(one.arrival_s.astype(int))) / 3600 for one in made]
    assert np.median(empty) == pytest.approx(0.73, abs=0.03)
    assert np.median([index_of_dispersion(one.arrival_s, 60.0, 3600.0) for one in made]) == pytest.approx(
        164, rel=0.2
    )


@needs_data
def test_mooncake_conv_has_the_lengths_and_the_hit_rate_curve_of_its_trace():
    trace = spread_quantum(read_trace(DATA / "mooncake_conversation_first10min.jsonl.gz"))
    made = [synth("mooncake_conv", seed=seed, duration_s=600.0) for seed in range(9)]
    for column in ("input_tokens", "output_tokens"):
        seen = [ks_distance(getattr(trace, column), getattr(one, column)) for one in made]
        assert np.median(seen) <= 0.03
    pairs = [
        ks_distance_2d((trace.input_tokens, trace.output_tokens), (m.input_tokens, m.output_tokens))
        for m in made
    ]
    assert np.median(pairs) <= 0.05
    blocks, reference = hit_rates("mooncake_conversation_first10min")
    curve = np.median([lru_hit_rates(one, blocks) for one in made], axis=0)
    np.testing.assert_allclose(curve, reference, atol=0.03)


@needs_data
def test_claude_code_has_the_lengths_and_the_reuse_of_its_trace():
    trace = read_trace(DATA / "claude_code_sessions.jsonl.gz")
    made = [synth("claude_code", seed=seed) for seed in range(5)]
    for column in ("input_tokens", "output_tokens"):
        assert np.median([ks_distance(getattr(trace, column), getattr(one, column)) for one in made]) <= 0.03
    pairs = [
        ks_distance_2d((trace.input_tokens, trace.output_tokens), (m.input_tokens, m.output_tokens))
        for m in made
    ]
    assert np.median(pairs) <= 0.05
    assert np.median([len(one) for one in made]) == pytest.approx(len(trace), rel=0.05)
    blocks, reference = hit_rates("claude_code_sessions")
    some = [1, 3, len(blocks) - 1]
    curve = np.median([lru_hit_rates(one, [blocks[k] for k in some]) for one in made], axis=0)
    np.testing.assert_allclose(curve, reference[some], atol=0.03)
