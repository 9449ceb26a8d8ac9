"""Fits give back what they were made from, and say no where they cannot."""

import numpy as np
import pytest
from stepline.traces.errors import ConfigError
from stepline.traces.synth import Profile, synth
from stepline.traces.synth.fitted import detected_kind, distances, fit_profile
from stepline.traces.synth.laws import law
from stepline.traces.synth.laws import whole as rounded
from stepline.traces.synth.measure import ks_distance, ks_distance_2d, lru_hit_rates
from stepline.traces.synth.tables import quantile_table
from stepline.traces.trace import Trace


def fitted(trace, **options):
    return Profile(**fit_profile(trace, name="fit", **options))


@pytest.mark.parametrize("tolerance", [0.002, 0.02])
def test_a_table_is_as_near_as_it_was_asked_to_be(tolerance):
    u = (np.arange(5000) + 0.5) / 5000
    values = np.rint(law({"kind": "lognormal", "median": 200, "sigma": 1.2, "high": 1000}).ppf(u))
    table = quantile_table(values, tolerance)
    made = np.rint(law(table).ppf((np.arange(50_000) + 0.5) / 50_000))
    assert ks_distance(values, made) <= tolerance + 1e-4
    assert (values == 1000).mean() == pytest.approx(
        (made == 1000).mean(), abs=tolerance
    )  # the clipped atom stays
    assert len(table["p"]) < 80


@pytest.mark.parametrize("values", [[5], [5, 5, 5], [1, 2], [3, 3, 9]])
@pytest.mark.parametrize("whole", [True, False])
def test_a_table_of_few_values_stays_within_them(values, whole):
    made = law(quantile_table(values, 0.01, whole=whole)).ppf(np.linspace(0, 1, 101)[:-1])
    lengths = rounded(made) if whole else made
    assert lengths.min() >= min(values)
    assert lengths.max() <= max(values)


def test_a_fit_of_plain_arrivals_finds_rate_shape_and_swing():
    workload = {
        "kind": "open",
        "arrivals": {"kind": "renewal", "rate_per_s": 6.0, "gaps": {"kind": "gamma", "shape": 0.5},
                     "modulation": [{"kind": "ou", "sigma": 0.4, "tau_s": 15}]},
        "lengths": {"kind": "independent", "input": {"kind": "lognormal", "median": 300, "sigma": 1}, "output": 64},
    }  # fmt: skip
    trace = synth(Profile(name="t", duration_s=7200.0, source="", workload=workload), seed=3)
    profile = fitted(trace)
    arrivals = profile.workload["arrivals"]
    swing = arrivals["modulation"][-1]
    assert arrivals["rate_per_s"] == pytest.approx(len(trace) / 7200, rel=0.01)
    assert swing["kind"] == "ou"
    assert swing["sigma"] == pytest.approx(0.4, abs=0.12)
    found = distances(trace, profile)
    assert found["ks_input"] < 0.02
    assert found["ks_gap"] < 0.05
    for window in ("1s", "10s", "60s"):
        assert found[f"dispersion_{window}"] == pytest.approx(found[f"real_dispersion_{window}"], rel=0.25)


def test_a_fit_sees_bursts_and_gives_them_back():
    trace = synth("azure_code", seed=5)
    profile = fitted(trace)
    assert profile.workload["arrivals"]["kind"] == "bursts"
    found = distances(trace, profile)
    assert found["ks_gap"] < 0.05
    assert found["dispersion_60s"] == pytest.approx(found["real_dispersion_60s"], rel=0.5)


def test_parts_keep_the_shares_that_change_over_time():
    trace = synth("azure_conv", seed=8)
    made = synth(fitted(trace, parts=["output_length>350"]), seed=1)
    for low, high in ((0, 900), (1500, 2100)):
        shares = []
        for one in (trace, made):
            rows = (one.arrival_s >= low) & (one.arrival_s < high)
            shares.append((one.output_tokens[rows] > 350).mean())
        assert shares[1] == pytest.approx(shares[0], abs=0.05)


def test_the_dependence_of_outputs_on_inputs_is_kept():
    trace = synth("azure_conv", seed=8, duration_s=1500.0)
    made = synth(fitted(trace), seed=1)
    joint = ks_distance_2d((trace.input_tokens, trace.output_tokens), (made.input_tokens, made.output_tokens))
    shuffled = np.random.Generator(np.random.PCG64(1)).permutation(made.output_tokens)
    broken = ks_distance_2d((trace.input_tokens, trace.output_tokens), (made.input_tokens, shuffled))
    assert joint < 0.05
    assert broken > 2 * joint


@pytest.mark.slow
def test_a_fit_of_sessions_gives_back_their_reuse():
    trace = synth("mooncake_conv", seed=2, duration_s=900.0)
    assert (
        detected_kind(Trace(trace.arrival_s, trace.input_tokens, trace.output_tokens, trace.hash_ids))
        == "sessions"
    )
    profile = fitted(trace, kind="sessions")
    blocks = [1000, 5000, 20_000, 10**9]
    made = [lru_hit_rates(synth(profile, seed=seed, duration_s=900.0), blocks) for seed in range(5)]
    np.testing.assert_allclose(np.median(made, axis=0), lru_hit_rates(trace, blocks), atol=0.06)
    assert distances(trace, profile, range(3))["ks_input"] < 0.04


def test_a_fit_of_agents_gives_back_turns_contexts_and_reuse():
    trace = synth("claude_code", seed=2)
    assert detected_kind(trace) == "agents"
    made = synth(fitted(trace), seed=1)
    assert len(made) == pytest.approx(len(trace), rel=0.3)
    assert made.input_tokens.mean() == pytest.approx(trace.input_tokens.mean(), rel=0.15)
    assert lru_hit_rates(made, [10**9])[0] == pytest.approx(lru_hit_rates(trace, [10**9])[0], abs=0.02)


def plain(n=300):
    return Trace(np.arange(n) * 0.5, np.arange(n) % 50 + 1, np.arange(n) % 7 + 1, source="few")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "opne"}, "kind: unknown 'opne'; did you mean 'open'"),
        ({"kind": "agents"}, "few: got no session_id and delay"),
        ({"kind": "sessions"}, "few: got no hash_ids"),
        ({"parts": ["output>3"]}, "part: got 'output>3'"),
        ({"parts": ["output_length>6"]}, "output_length>6: got 42 rows, expected at least 100"),
        ({"parts": ["output_length>3"], "kind": "agents"}, "expected kind open"),
    ],
)
def test_a_fit_that_cannot_be_says_why(options, message):
    with pytest.raises(ConfigError) as caught:
        fitted(plain(), **options)
    assert message in str(caught.value)


def test_a_fit_needs_rows():
    with pytest.raises(ConfigError, match="got 60 rows, expected at least 100"):
        fitted(plain(60))


def test_a_trace_without_times_cannot_be_fitted():
    with pytest.raises(ConfigError, match="got one time of arrival for all rows"):
        fitted(Trace(np.zeros(200), np.full(200, 5), np.full(200, 5), source="offline"))
