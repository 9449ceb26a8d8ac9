"""The error budget: each source of error taken away by itself, on the same arrivals."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from stepline.calibration.error_budget import budget, report, variants
from stepline.sim.cost.catalogue import load_engine
from stepline.sim.study.measured import load_measured

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sim.measured_folder import SERVED, measure_by_simulation, write_folder


@pytest.mark.slow
def test_what_made_the_measurements_is_missed_when_it_is_taken_away(tmp_path):
    run = SERVED | {"n_requests": 30, "duration_s": 8.0, "osl_spec": 20}
    measure_by_simulation(write_folder(tmp_path, [run]))
    engine = load_engine("vllm-0.15.1")
    rows = {row.name: row for row in budget(load_measured(tmp_path), engine)}
    assert rows["as it is"].error["tpot_mean"] < 0.03  # one arrival seed against the mean of all
    assert rows["as it is"].moved == {"tpot_mean": 0.0, "ttft_mean": 0.0}
    without = rows["no host model at all"]
    assert without.moved["ttft_mean"] > 0.1
    assert without.error["ttft_mean"] > rows["as it is"].error["ttft_mean"]
    assert rows["kernel forms without residual layers"].moved["tpot_mean"] > 0.0
    assert 0.0 < rows["other arrivals of the same law"].moved["ttft_mean"] < 0.2
    assert {v.name for v in variants(engine)} <= rows.keys()
    assert "noise of the measurement" in report(list(rows.values()))


def test_percentages_are_of_the_measured_value():
    from stepline.calibration.error_budget import Row

    text = report([Row("x", {"tpot_mean": 0.0123}, {"ttft_mean": 0.5})])
    assert text.splitlines()[1].split() == ["x", "1.2", "–", "–", "50.0"]
