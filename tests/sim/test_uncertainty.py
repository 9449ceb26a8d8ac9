"""Intervals of a run over the constants that the kernel timings allow."""

from __future__ import annotations

import json

import pytest
from stepline.sim.cli.main import main
from stepline.sim.study.config import RunConfig
from stepline.sim.study.uncertainty import FIGURES, intervals
from stepline.traces.errors import ConfigError
from stepline.traces.synth import synth


@pytest.fixture(scope="module")
def trace():
    return synth("azure_conv", seed=3, n_requests=60)


def test_intervals_hold_the_spread_of_the_draws(trace):
    found = intervals(trace, RunConfig(), draws=8)
    for group, name in FIGURES:
        figure = found["figures"][group][name]
        assert figure["low"] <= figure["high"]
    tpot = found["figures"]["tpot_s"]["mean"]
    assert 0.8 < tpot["low"] / tpot["nominal"] < tpot["high"] / tpot["nominal"] < 1.3
    assert tpot["high"] > tpot["low"]


def test_the_same_seed_draws_the_same_constants(trace):
    assert intervals(trace, RunConfig(), draws=3) == intervals(trace, RunConfig(), draws=3)
    assert intervals(trace, RunConfig(seed=1), draws=3) != intervals(trace, RunConfig(), draws=3)


def test_a_borrowed_calibration_is_less_certain(trace):
    def width(gpu):
        tpot = intervals(trace, RunConfig(gpu=gpu), draws=10)["figures"]["tpot_s"]["mean"]
        return (tpot["high"] - tpot["low"]) / tpot["nominal"]

    assert width("h100-pcie") > 1.5 * width("h100-sxm")


def test_what_has_no_constants_cannot_be_drawn(trace):
    with pytest.raises(ConfigError, match="no calibration to draw from"):
        intervals(trace, RunConfig(cost_model="datasheet"), draws=3)
    with pytest.raises(ConfigError, match="expected at least 2 draws"):
        intervals(trace, RunConfig(), draws=1)


def test_the_command_prints_and_keeps_them(tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    path.write_text(
        "".join(f'{{"timestamp":{90 * i},"input_length":200,"output_length":20}}\n' for i in range(20))
    )
    out = tmp_path / "out"
    assert main(["--trace", str(path), "--uncertainty", "3", "--out", str(out)]) == 0
    assert "90% of 3 draws of the kernel constants" in capsys.readouterr().out
    kept = json.loads((out / "summary.json").read_text())["uncertainty"]
    assert kept["draws"] == 3
    assert main(["--trace", str(path), "--uncertainty", "--policy", "static,chunked", "--no-save"]) == 2
    assert "--uncertainty: speaks of one run" in capsys.readouterr().err
