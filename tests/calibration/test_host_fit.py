"""The fit of host constants: it finds constants that it can know, and shows what a model left out would get."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from stepline.calibration.host_fit import fit_host, main, report, scan, usable, write_constants
from stepline.calibration.tasks_serving import SERVING, cold_rows, never_dearer_than_more_rows
from stepline.sim.cost.catalogue import load_engine
from stepline.sim.study.measured import load_measured
from stepline.traces.errors import CalibrationError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sim.measured_folder import SERVED, measure_by_simulation, write_folder

RUNS = [
    SERVED | {"n_requests": 40, "duration_s": 10.0, "osl_spec": 30},
    SERVED | {"exp_key": "nemo", "model": "mistralai/Mistral-Nemo-Instruct-2407", "n_requests": 40, "duration_s": 10.0,
              "osl_spec": 30},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = write_folder(tmp_path_factory.mktemp("measured"), RUNS)
    measure_by_simulation(root)
    return root


def test_the_fit_finds_the_constants_that_made_the_measurements(folder):
    experiments = usable(load_measured(folder), "vllm-0.15.1")
    truth = load_engine("vllm-0.15.1")
    start = replace(truth, step_gpu_s=8e-4, request_ingest_s=1e-3)
    found = fit_host(experiments, start, ("step_gpu_s", "request_ingest_s"), rounds=3)
    # few requests: a time that moves an arrival across the border of a step moves the result by a part of a step
    assert found.values[0] == pytest.approx(truth.step_gpu_s, abs=8e-5)
    assert found.values[1] == pytest.approx(truth.request_ingest_s, abs=6e-4)
    assert max(e["tpot_mean"] for e in found.errors().values()) < 0.01


def test_a_model_left_out_is_predicted_by_the_others(folder):
    experiments = usable(load_measured(folder), "vllm-0.15.1")
    start = replace(load_engine("vllm-0.15.1"), step_gpu_s=5e-4)
    found = fit_host(experiments, start, ("step_gpu_s",), rounds=1)
    assert set(found.left_out) == {e.model for e in experiments}
    assert all(errors["tpot_mean"] < 0.01 for errors in found.left_out.values())
    text = report(found)
    assert "step_gpu_s" in text
    assert "mean, left out" in text


def test_a_scan_is_without_error_at_the_value_that_made_the_measurements_and_counts_ttft_of_closed_loops(
    tmp_path,
):
    loop = SERVED | {"replay_class": "B closed-loop", "concurrency": 4, "n_requests": 16}
    root = write_folder(tmp_path, [loop])
    measure_by_simulation(root)
    engine = load_engine("vllm-0.15.1")
    true = engine.request_ingest_s
    found = scan(usable(load_measured(root), engine.name), engine, "request_ingest_s", [0.0, true, 0.02])
    assert found[true]["ttft_mean"] == pytest.approx((0.0, 0.0), abs=1e-9)
    assert found[0.0]["ttft_mean"][0] > 0.01 < found[0.02]["ttft_mean"][0]


@pytest.mark.parametrize("text", ["step_gpu=1", "step_gpu_s", "step_gpu_s=fast"])
def test_a_scan_that_says_nothing_is_refused(folder, text):
    with pytest.raises(CalibrationError, match="--scan"):
        main(["--measured", str(folder), "--scan", text, "--jobs", "1"])


def test_only_dense_runs_of_the_engine_on_h100_teach(folder, tmp_path):
    rows = [
        SERVED,
        SERVED | {"exp_key": "moe", "arch": "moe"},
        SERVED | {"exp_key": "a100", "hardware": "A100-80GB"},
        SERVED | {"exp_key": "sglang", "engine": "sglang"},
        SERVED | {"exp_key": "unknown", "model": "nobody/secret-9b"},
    ]
    kept = usable(load_measured(write_folder(tmp_path, rows)), "vllm-0.15.1")
    assert [e.key for e in kept] == ["served-8b"]


def test_nothing_to_learn_from_and_unknown_constants_are_refused(folder):
    engine = load_engine("vllm-0.15.1")
    with pytest.raises(CalibrationError, match="no dense run"):
        fit_host([], engine, ("step_gpu_s",))
    with pytest.raises(CalibrationError, match="step_gpu_s"):
        fit_host(usable(load_measured(folder), engine.name), engine, ("step_gpu",))


def test_constants_are_written_into_their_engine_alone(tmp_path):
    path = tmp_path / "engines.toml"
    path.write_text(
        '[[engine]]\nname = "a"\nstep_gpu_s = 1.0\nsource = "x"\n\n[[engine]]\nname = "b"\nsource = "y"\n'
    )
    write_constants(path, "a", {"step_gpu_s": 0.25})
    write_constants(path, "b", {"output_per_seq_s": 3.84e-5})
    assert path.read_text() == (
        '[[engine]]\nname = "a"\nstep_gpu_s = 0.25\nsource = "x"\n\n'
        '[[engine]]\nname = "b"\noutput_per_seq_s = 3.84e-05\nsource = "y"\n'
    )
    with pytest.raises(CalibrationError, match="got no engine 'c'"):
        write_constants(path, "c", {"step_gpu_s": 0.1})


def test_the_command_names_an_engine_that_no_run_used(folder):
    with pytest.raises(CalibrationError, match="sglang"):
        main(["--measured", str(folder), "--engine", "sglang", "--jobs", "1"])


def test_rows_are_never_dearer_than_more_rows_of_the_same_weights():
    rows = pd.DataFrame(
        {"m": [1, 2, 4, 1, 2], "n": [8, 8, 8, 16, 16], "k": 4, "median_s": [2.0, 3.0, 1.0, 1.0, 5.0]},
        index=[10, 11, 12, 13, 14],
    )
    cleaned = never_dearer_than_more_rows(rows)
    assert cleaned["median_s"].tolist() == [1.0, 1.0, 1.0, 1.0, 5.0]
    assert cleaned.index.tolist() == rows.index.tolist()


def test_cold_rows_are_those_that_are_cold_or_do_not_say():
    rows = pd.DataFrame({"cold": [True, False, None], "m": [1, 2, 3]})
    assert cold_rows(rows)["m"].tolist() == [1, 3]
    assert {task.name for task in SERVING} == {
        "gemm_serving", "moe_serving", "attention_decode_serving",
    }  # fmt: skip


def test_a_run_in_which_many_gave_up_teaches_nothing_and_a_queue_teaches_only_tpot(tmp_path):
    from stepline.calibration.host_fit import measure

    rows = [
        SERVED | {"exp_key": name, "n_requests": 20, "duration_s": 5.0, "osl_spec": 10}
        for name in ("few", "many")
    ]
    root = write_folder(tmp_path, rows)
    failed = {"few": 0.005, "many": 0.2}
    pd.DataFrame(
        [(key, 0, "failed_fraction", "mean", value, "1") for key, value in failed.items()]
        + [("few", 0, "ttft", "mean", 9000.0, "ms"), ("few", 0, "tpot", "mean", 10.0, "ms")],
        columns=["exp_key", "stage", "metric", "stat", "value", "unit"],
    ).to_csv(root / "metrics.csv", index=False)
    kept = usable(load_measured(root), "vllm-0.15.1")
    assert [e.key for e in kept] == ["few"]
    assert [name for name, _ in measure(kept[0], load_engine("vllm-0.15.1"))] == ["tpot_mean"]
