"""`simulate trace synth` and `simulate trace fit`: what they write, what they say, what they refuse."""

import json

import numpy as np
import pytest
from stepline.sim.cli.trace_synth import fit_main, main
from stepline.traces import read_trace
from stepline.traces.errors import ConfigError
from stepline.traces.synth import load_profile, profile_names, synth


def test_a_profile_is_generated_into_a_file_that_reads_back(tmp_path, capsys):
    out = tmp_path / "chat.jsonl.gz"
    assert (
        main([str(out), "--profile", "azure_conv", "--seed", "1", "--duration", "120", "--rate-scale", "2"])
        == 0
    )
    read, made = read_trace(out), synth("azure_conv", seed=1, duration_s=120.0, rate_scale=2.0)
    np.testing.assert_array_equal(read.arrival_s, made.arrival_s)
    np.testing.assert_array_equal(read.output_tokens, made.output_tokens)
    assert read.meta["seed"] == 1
    assert f"{len(made):,} requests" in capsys.readouterr().out


def test_the_same_command_writes_the_same_bytes(tmp_path):
    a, b, c = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    for path, seed in ((a, "4"), (b, "4"), (c, "5")):
        main([str(path), "--profile", "mooncake_conv", "--requests", "50", "--seed", seed])
    assert a.read_bytes() == b.read_bytes()
    assert a.read_bytes() != c.read_bytes()


def test_flags_make_independent_requests(tmp_path):
    out = tmp_path / "t.jsonl"
    main([str(out), "--rate", "20", "--arrivals", "gamma:shape=0.25",
          "--modulate", "spike:at_s=50,duration_s=50,factor=3",
          "--input-len", "uniform:low=10,high=20", "--output-len", "7", "--duration", "100"])  # fmt: skip
    trace = read_trace(out)
    assert abs((trace.arrival_s >= 50).sum() - 3000) <= 4 * np.sqrt(4 * 3000)
    assert (trace.input_tokens.min(), trace.input_tokens.max()) == (10, 20)
    assert set(trace.output_tokens.tolist()) == {7}


def test_constant_arrivals_come_at_one_distance(tmp_path):
    out = tmp_path / "t.jsonl"
    main(
        [
            str(out),
            "--rate",
            "4",
            "--arrivals",
            "constant",
            "--input-len",
            "5",
            "--output-len",
            "7",
            "--requests",
            "9",
        ]
    )
    np.testing.assert_allclose(read_trace(out).arrival_s, 0.25 * np.arange(1, 10), atol=1e-9)


def test_bursts_come_by_flags(tmp_path):
    out = tmp_path / "t.jsonl"
    main(
        [
            str(out),
            "--arrivals",
            "bursts:on_s=10,off_s=30,gaps_s=0.5",
            "--input-len",
            "5",
            "--output-len",
            "7",
        ]
    )
    gaps = np.diff(read_trace(out).arrival_s)
    assert set(np.round(gaps, 3)) == {0.5, 30.5}


def test_users_come_by_flags(tmp_path):
    out = tmp_path / "t.jsonl"
    main(
        [
            str(out),
            "--users",
            "3",
            "--think",
            "2",
            "--input-len",
            "5",
            "--output-len",
            "7",
            "--requests",
            "30",
        ]
    )
    trace = read_trace(out)
    assert set(trace.columns["session_id"]) == {"u0", "u1", "u2"}
    assert {d for d in trace.columns["delay_s"] if d is not None} == {2.0}


def test_sessions_come_by_flags_and_share_their_system_prompt(tmp_path):
    out = tmp_path / "t.jsonl"
    main([str(out), "--rate", "1", "--turns", "3", "--growth", "200", "--system-prompt-len", "64", "--block-size", "16",
          "--think", "5", "--input-len", "100", "--output-len", "7", "--duration", "200"])  # fmt: skip
    trace = read_trace(out)
    lead = {trace.hash_ids.row(i)[:4] for i in range(len(trace))}
    assert len(lead) == 1
    assert set(trace.input_tokens.tolist()) == {100, 300, 500}
    assert max(trace.columns["turn"]) == 2


def test_a_profile_made_of_flags_can_be_saved_and_used(tmp_path):
    saved, direct, again = tmp_path / "p.json", tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    flags = [
        "--rate",
        "5",
        "--input-len",
        "lognormal:median=300,sigma=1",
        "--output-len",
        "9",
        "--requests",
        "50",
    ]
    main([str(direct), *flags, "--save-profile", str(saved), "--name", "mine"])
    main([str(again), "--profile", str(saved), "--requests", "50"])
    assert load_profile(saved).name == "mine"
    assert direct.read_bytes() == again.read_bytes()


def test_other_formats_are_written_and_losses_are_told(tmp_path, capsys):
    out = tmp_path / "t.csv"
    main([str(out), "--profile", "claude_code", "--requests", "20", "--to", "azure"])
    assert (
        read_trace(out, trace_format="azure").input_tokens.tolist()
        == synth("claude_code", n_requests=20).input_tokens.tolist()
    )
    assert "cannot hold hash_ids (20 rows)" in capsys.readouterr().err


def test_the_shipped_profiles_are_listed(capsys):
    assert main(["--list-profiles"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in profile_names())


LENGTHS = ["--input-len", "5", "--output-len", "5"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected --profile NAME|FILE, or flags"),
        (["--profile", "azure_cnv"], "did you mean 'azure_conv'"),
        (["--profile", "azure_conv", "--rate", "3"], "--rate: expected no such flag with --profile"),
        (["--rate", "3", "--output-len", "4"], "--input-len: missing"),
        (LENGTHS, "--rate: missing"),
        (["--rate", "3", *LENGTHS, "--think", "3"], "--think: expected --turns or --users with it"),
        (["--rate", "3", *LENGTHS, "--growth", "3"], "--growth: expected --turns or --users with it"),
        (["--rate", "3", *LENGTHS, "--users", "3"], "--rate: expected --turns or no --users with it"),
        (["--users", "3", *LENGTHS, "--growth", "3"], "--growth: expected --turns or no --users with it"),
        (
            ["--rate", "3", *LENGTHS, "--turns", "2", "--ramp-users", "3"],
            "--ramp-users: expected --users with it",
        ),
        (
            ["--rate", "3", *LENGTHS, "--arrivals", "bursts:on_s=1,off_s=1,gaps_s=1"],
            "bursts have a rate of their own",
        ),
        (["--rate", "3", *LENGTHS, "--arrivals", "gama:shape=1"], "did you mean 'gamma'"),
        (["--rate", "3", *LENGTHS, "--modulate", "ou:sigma=1"], "tau_s: missing"),
        (["--rate", "-3", *LENGTHS], "rate_per_s: got -3.0"),
        (
            ["--rate", "3", "--input-len", "lognormal:median", "--output-len", "3"],
            "--input-len: got 'median'",
        ),
        (["--rate", "3", *LENGTHS, "--requests", "0"], "n_requests: got 0"),
        (["--rate", "3", *LENGTHS, "--to", "natve"], "did you mean 'native'"),
        (["--rte", "3"], "did you mean '--rate'"),
    ],
)
def test_wrong_flags_are_refused_in_one_line_and_nothing_is_written(flags, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        main([str(tmp_path / "t.jsonl"), *flags])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_file_to_write_is_asked_for():
    with pytest.raises(ConfigError, match="OUT: expected a file"):
        main(["--profile", "azure_conv"])


def test_a_fit_writes_a_profile_and_says_how_near_it_comes(tmp_path, capsys):
    trace, profile = tmp_path / "chat.jsonl", tmp_path / "mine.json"
    main([str(trace), "--profile", "azure_conv", "--seed", "3", "--duration", "600"])
    assert (
        fit_main([str(trace), str(profile), "--json", "--part", "output_length>350", "--license", "MIT"]) == 0
    )
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["ks_input"] < 0.04
    assert found["ks_output"] < 0.04
    assert load_profile(profile).license == "MIT"
    assert load_profile(profile).name == "mine"
    assert load_profile(profile).workload["kind"] == "mix"


def test_a_fit_prints_its_distances(tmp_path, capsys):
    trace, profile = tmp_path / "code.jsonl", tmp_path / "mine.json"
    main([str(trace), "--profile", "azure_code", "--seed", "3", "--duration", "600"])
    fit_main([str(trace), str(profile), "--name", "own"])
    printed = capsys.readouterr().out
    assert "Kolmogorov-Smirnov distance: input 0.0" in printed
    assert "index of dispersion at 60s" in printed
    assert load_profile(profile).name == "own"


def test_a_fit_that_fails_writes_nothing(tmp_path):
    trace, profile = tmp_path / "few.jsonl", tmp_path / "mine.json"
    trace.write_text('{"timestamp": 0, "input_length": 5, "output_length": 5}\n')
    with pytest.raises(ConfigError, match=r"few.jsonl: got 1 rows"):
        fit_main([str(trace), str(profile)])
    assert not profile.exists()
