"""Generators: laws have their means, processes their rates and shapes, and a seed fixes every byte."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.traces.errors import ConfigError
from stepline.traces.random_streams import stream
from stepline.traces.synth import Profile, synth, synth_blocks
from stepline.traces.synth.laws import LAWS, law
from stepline.traces.synth.measure import index_of_dispersion, ks_distance

LAW_EXAMPLES = [
    ({"kind": "constant", "value": 7}, 7.0),
    ({"kind": "uniform", "low": 2, "high": 10}, 6.0),
    ({"kind": "exponential", "mean": 3}, 3.0),
    ({"kind": "gamma", "shape": 0.4, "mean": 5}, 5.0),
    ({"kind": "weibull", "shape": 0.7, "mean": 4}, 4.0),
    ({"kind": "lognormal", "median": 100, "sigma": 0.5}, 100 * np.exp(0.125)),
    ({"kind": "normal", "centre": 512, "spread": 64}, 512.0),
    ({"kind": "geometric", "again": 0.75}, 4.0),
    ({"kind": "quantiles", "p": [0, 0.5, 1], "q": [0, 10, 30]}, 12.5),
    ({"kind": "mixture", "weights": [1, 3], "laws": [4, {"kind": "uniform", "low": 0, "high": 16}]}, 7.0),
]


def profile(workload, duration_s=600.0):
    return Profile(name="t", duration_s=duration_s, source="test", workload=workload)


def renewal(rate=5.0, **more):
    lengths = {"kind": "independent", "input": {"kind": "constant", "value": 9}, "output": 3}
    return {"kind": "open", "arrivals": {"kind": "renewal", "rate_per_s": rate, **more}, "lengths": lengths}


@pytest.mark.parametrize(
    ("spec", "mean"), LAW_EXAMPLES, ids=lambda v: v.get("kind") if isinstance(v, dict) else None
)
def test_a_law_draws_with_the_mean_it_states(spec, mean):
    built = law(spec)
    draws = built.ppf(stream(1, "law").random(400_000))
    assert built.mean == pytest.approx(mean, rel=1e-3)
    assert abs(draws.mean() - mean) <= 4 * draws.std() / np.sqrt(len(draws)) + 1e-9


def test_every_law_has_an_example_here():
    assert {spec["kind"] for spec, _ in LAW_EXAMPLES} == set(LAWS.parts)


def test_streams_differ_by_seed_and_name_and_not_by_anything_else():
    assert stream(3, "a", 1).random() == stream(3, "a", 1).random()
    draws = {
        stream(3, "a", 1).random(),
        stream(4, "a", 1).random(),
        stream(3, "a", 2).random(),
        stream(3, "a").random(),
    }
    assert len(draws) == 4
    assert stream(3, "a", "1").random() != stream(3, "a", 1).random()


def test_a_stream_is_the_same_on_every_machine():
    # Written down once: the hash, the seed sequence and the bit generator are fixed by their definitions.
    assert stream(0, "gaps").random(3).tolist() == STREAM_0_GAPS


STREAM_0_GAPS = [
    float.fromhex(text) for text in ("0x1.76607f01fff8cp-2", "0x1.946bf183e4658p-1", "0x1.16ae33e6f4db4p-2")
]


@pytest.mark.parametrize("seed", [-1, 1.5, True, "1"])
def test_a_wrong_seed_is_refused(seed):
    with pytest.raises(ConfigError, match="seed: got"):
        stream(seed, "a")


@pytest.mark.parametrize(
    ("gaps", "squared_variation"),
    [
        ({"kind": "exponential"}, 1.0),
        ({"kind": "gamma", "shape": 0.25}, 4.0),
        ({"kind": "constant", "value": 1}, 0.0),
        ({"kind": "weibull", "shape": 1.0}, 1.0),
    ],
)
def test_renewal_arrivals_have_the_rate_and_the_variation_of_their_gaps(gaps, squared_variation):
    times = synth(profile(renewal(8.0, gaps=gaps)), seed=2, n_requests=60_000).arrival_s
    seen = np.diff(times)
    assert len(times) / times[-1] == pytest.approx(
        8.0, abs=4 * 8.0 * np.sqrt(squared_variation / 60_000) + 1e-3
    )
    assert seen.var() / seen.mean() ** 2 == pytest.approx(squared_variation, rel=0.08, abs=1e-6)


def test_plain_gaps_are_distributed_as_their_law():
    spec = {"kind": "gamma", "shape": 0.5}
    seen = np.diff(synth(profile(renewal(2.0, gaps=spec)), seed=5, n_requests=40_000).arrival_s)
    wanted = law(spec).ppf((np.arange(40_000) + 0.5) / 40_000) / 2.0
    assert ks_distance(seen, wanted) < 1.95 / np.sqrt(40_000)  # one-sample 0.1 % point


def count_in(times, low, high):
    return int(((times >= low) & (times < high)).sum())


MODULATIONS = [
    ({"kind": "ramp", "start": 0.0, "end": 2.0, "duration_s": 2000}, [(0, 1000, 0.5), (1000, 2000, 1.5)]),
    (
        {"kind": "ramp", "start": 0.5, "end": 2.0, "duration_s": 1000, "exponential": True},
        [(1000, 2000, 2.0)],
    ),
    ({"kind": "spike", "at_s": 500, "duration_s": 500, "factor": 3}, [(0, 500, 1.0), (500, 1000, 3.0)]),
    (
        {"kind": "diurnal", "amplitude": 1.0, "period_s": 2000},
        [(0, 1000, 1 + 2 / np.pi), (1000, 2000, 1 - 2 / np.pi)],
    ),
    (
        {"kind": "curve", "time_s": [0, 1000], "factor": [0, 2], "period_s": 1000},
        [(0, 500, 0.5), (1500, 2000, 1.5)],
    ),
]


@pytest.mark.parametrize(
    ("modulation", "shares"), MODULATIONS, ids=[f"{m['kind']}{i}" for i, (m, _) in enumerate(MODULATIONS)]
)
def test_a_modulated_rate_is_followed(modulation, shares):
    times = synth(profile(renewal(20.0, modulation=[modulation]), 2000.0), seed=1).arrival_s
    for low, high, factor in shares:
        expected = 20.0 * factor * (high - low)
        assert abs(count_in(times, low, high) - expected) <= 4 * np.sqrt(expected)


RANDOM_MODULATIONS = [
    ({"kind": "ou", "sigma": 0.5, "tau_s": 20}, 1.0),
    ({"kind": "markov", "levels": [0.5, 1.5], "mean_s": [30, 30]}, 1.0),
    (
        {
            "kind": "on-off",
            "on_s": {"kind": "exponential", "mean": 10},
            "off_s": {"kind": "exponential", "mean": 30},
        },
        1.0,
    ),
]


@pytest.mark.parametrize(("modulation", "level"), RANDOM_MODULATIONS, ids=["ou", "markov", "on-off"])
def test_a_random_modulation_keeps_the_mean_rate_and_spreads_the_counts(modulation, level):
    span_s = 60_000.0
    times = synth(profile(renewal(4.0, modulation=[modulation]), span_s), seed=4).arrival_s
    blocks = np.histogram(times, np.arange(0, span_s + 1, 2000.0))[0] / 2000.0
    assert abs(blocks.mean() - 4.0 * level) <= 4 * blocks.std() / np.sqrt(len(blocks))
    assert index_of_dispersion(times, 60.0) > 2.0  # Poisson: 1


def test_off_periods_are_silent():
    modulation = {"kind": "on-off", "on_s": 10, "off_s": 30}
    times = synth(profile(renewal(4.0, modulation=[modulation]), 4000.0), seed=4).arrival_s
    assert (np.diff(times) > 28.0).sum() in range(95, 105)  # one pause each 40 s
    assert np.median(np.diff(times)) < 0.2  # 16 requests a second while ON


def test_bursts_have_their_laws_of_gaps_and_periods():
    gaps = {"kind": "exponential", "mean": 0.05}
    arrivals = {"kind": "bursts", "on_s": {"kind": "gamma", "shape": 2, "mean": 20}, "off_s": 60, "gaps_s": gaps,
                "memory_frac": 0.3, "memory_gaps": 20}  # fmt: skip
    spec = {"kind": "open", "arrivals": arrivals, "lengths": renewal()["lengths"]}
    times = synth(profile(spec, 40_000.0), seed=3).arrival_s
    seen = np.diff(times)
    inside = seen[seen < 30]
    assert ks_distance(inside, law(gaps).ppf((np.arange(20_000) + 0.5) / 20_000)) < 0.02
    assert (seen >= 60).sum() == pytest.approx(40_000 / 80, rel=0.1)
    assert np.corrcoef(inside[:-1], inside[1:])[0, 1] > 0.1  # neighbours resemble each other


def test_a_conditional_output_depends_on_its_input():
    lengths = {"kind": "conditional", "input": {"kind": "uniform", "low": 1, "high": 100}, "edges": [1, 50, 101],
               "outputs": [10, {"kind": "uniform", "low": 200, "high": 300}]}  # fmt: skip
    made = synth(profile(renewal() | {"lengths": lengths}), seed=1, n_requests=4000)
    short = made.input_tokens < 50
    assert set(made.output_tokens[short]) == {10}
    assert made.output_tokens[~short].min() >= 200
    assert made.output_tokens[~short].max() <= 300


def test_a_mix_merges_its_parts_in_order_and_names_tenants():
    mix = {"kind": "mix", "parts": [renewal(3.0), renewal(1.0)], "tenants": ["a", "b"]}
    made = synth(profile(mix, 5000.0), seed=6)
    tenants = np.array(made.columns["tenant"])
    assert (np.diff(made.arrival_s) >= 0).all()
    for name, rate in (("a", 3.0), ("b", 1.0)):
        expected = rate * 5000
        assert abs((tenants == name).sum() - expected) <= 4 * np.sqrt(expected)


def test_block_ids_of_different_parts_never_meet():
    agents = {"kind": "agents", "arrivals": {"kind": "renewal", "rate_per_s": 1}, "turns": 2, "first_input": 1500,
              "growth": 500, "outputs": 5, "think_s": 1}  # fmt: skip
    made = synth(
        profile({"kind": "mix", "parts": [agents, agents, renewal()], "tenants": ["a", "b", "c"]}), seed=6
    )
    tenants = made.columns["tenant"]
    ids = {
        name: {h for i, t in enumerate(tenants) if t == name for h in made.hash_ids.row(i) or ()}
        for name in "abc"
    }
    assert ids["a"]
    assert ids["b"]
    assert not ids["a"] & ids["b"]
    assert not ids["c"]


@pytest.mark.parametrize("name", ["azure_conv", "azure_code", "mooncake_conv", "claude_code"])
def test_the_same_seed_gives_the_same_trace_and_another_seed_another(name):
    first, again, other = (synth(name, seed=seed, n_requests=300) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.arrival_s, again.arrival_s)
    np.testing.assert_array_equal(first.input_tokens, again.input_tokens)
    assert not np.array_equal(first.arrival_s, other.arrival_s)


@given(n=st.integers(1, 5000), seed=st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_a_longer_trace_begins_with_the_shorter_one(n, seed):
    workload = renewal(50.0, modulation=[{"kind": "ou", "sigma": 0.3, "tau_s": 5}])
    short, long = (
        synth(profile(workload), seed=seed, n_requests=n),
        synth(profile(workload), seed=seed, n_requests=6000),
    )
    np.testing.assert_array_equal(short.arrival_s, long.arrival_s[:n])
    np.testing.assert_array_equal(short.input_tokens, long.input_tokens[:n])


def test_blocks_make_up_the_trace():
    blocks = list(synth_blocks("azure_conv", seed=2, n_requests=40_000))
    whole = synth("azure_conv", seed=2, n_requests=40_000)
    assert len(blocks) > 1
    np.testing.assert_array_equal(np.concatenate([b.arrival_s for b in blocks]), whole.arrival_s)
    assert len(whole) == 40_000


def test_duration_and_number_both_limit_a_trace():
    made = synth(profile(renewal(10.0)), seed=1, duration_s=20.0, n_requests=1000)
    assert made.arrival_s[-1] < 20.0
    assert abs(len(made) - 200) <= 4 * np.sqrt(200)
    assert len(synth(profile(renewal(10.0)), seed=1, duration_s=1e6, n_requests=37)) == 37


def test_the_rate_scale_multiplies_the_rate():
    for name in ("azure_conv", "azure_code", "mooncake_conv"):
        one, two = (len(synth(name, seed=1, duration_s=3000.0, rate_scale=x)) for x in (1.0, 2.0))
        assert two == pytest.approx(2 * one, rel=0.15)


def test_a_million_rows_hold_no_more_than_columns():
    made = synth(profile(renewal(500.0)), seed=1, n_requests=1_000_000)
    assert len(made) == 1_000_000
    assert not made.columns
    assert made.arrival_s.nbytes + made.input_tokens.nbytes + made.output_tokens.nbytes == 24_000_000


WRONG = [
    ({"kind": "opn"}, "workload: kind: unknown workload 'opn'; did you mean 'open'"),
    (renewal(-1.0), "rate_per_s: got -1.0, expected a number > 0"),
    (renewal(gaps={"kind": "gamma"}), "gaps: shape: missing"),
    (renewal(gaps={"kind": "gamma", "shape": 1, "shap": 2}), "unknown key 'shap'; did you mean 'shape'"),
    (renewal(gaps={"kind": "constant", "value": 0}), "gaps: got a law of mean 0"),
    (renewal(modulation=[{"kind": "spike", "at_s": 1, "duration_s": 0, "factor": 2}]), "duration_s: got 0"),
    (renewal(modulation=[{"kind": "markov", "levels": [1], "mean_s": [1]}]), "expected >= 2 pairs"),
    (renewal(modulation=[{"kind": "curve", "time_s": [0, 0], "factor": [1, 1]}]), "time_s: got"),
    (renewal(modulation=3), "wrong type"),
    (renewal() | {"lengths": {"kind": "independent", "input": "x", "output": 3}}, "lengths: input: got 'x'"),
    (
        renewal() | {"lengths": {"kind": "independent", "input": float("nan"), "output": 3}},
        "got nan, expected a number",
    ),
    ({"kind": "mix", "parts": []}, "parts: got []"),
    ({"kind": "users", "users": 0, "lengths": renewal()["lengths"]}, "count: got 0"),
]


@pytest.mark.parametrize(("workload", "message"), WRONG, ids=[m[:20] for _, m in WRONG])
def test_a_wrong_profile_is_refused_with_the_place(workload, message):
    with pytest.raises(ConfigError) as caught:
        profile(workload)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_requests": 0}, "n_requests: got 0"),
        ({"duration_s": 0}, "duration_s: got 0"),
        ({"duration_s": float("inf")}, "duration_s: got inf"),
        ({"rate_scale": 0}, "rate_scale: got 0"),
        ({"seed": -3}, "seed: got -3"),
    ],
)
def test_wrong_limits_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        synth("azure_conv", **options)
