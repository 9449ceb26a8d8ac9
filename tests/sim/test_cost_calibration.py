"""Calibration files: what is written comes back, what is wrong is named, what is borrowed is said."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stepline.sim.cost.calibration import (
    Calibration,
    KernelFit,
    calibration_from_dict,
    calibration_to_dict,
    dump_calibration,
    find_calibration,
    load_calibration,
    registered_calibrations,
)
from stepline.sim.cost.catalogue import load_gpu, load_model
from stepline.sim.cost.residual import ResidualGrid
from stepline.sim.cost.roofline import RooflineCostModel
from stepline.sim.cost.uncertainty import STATED_SD, TRANSFERRED_SD, draw, unseen_sd
from stepline.sim.cost.work import StepWork
from stepline.traces.errors import CalibrationError

ROOT = Path(__file__).parents[2]
GRID = ResidualGrid(
    {"m": (1.0, 4.0, 64.0), "n": (8.0, 64.0)}, np.array([[0.1, 0.2], [0.0, -0.1], [0.3, 0.0]])
)
GEMM = KernelFit(
    form="k-chain",
    constants={"t0_s": 2e-6, "compute_eff": 0.8, "memory_eff": 0.9, "chain_s_per_k": 1e-9, "exponent": 2.0},
    covariance=((1e-4, 0.0), (0.0, 1e-4)),
    fitted=("compute_eff", "memory_eff"),
    valid={"m": (1.0, 64.0)},
    rows=10,
    residual=GRID,
)
SMALL = Calibration("h100-sxm", "test-1.0", "bf16", {"gemm": GEMM}, {"source": "a test"})


@pytest.mark.parametrize(
    "path", sorted((ROOT / "calibration" / "constants").glob("*.json")), ids=lambda p: p.stem
)
def test_reading_and_writing_a_shipped_calibration_changes_no_byte(tmp_path, path):
    dump_calibration(load_calibration(path), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_a_calibration_survives_its_file(tmp_path):
    path = tmp_path / "c.json"
    dump_calibration(SMALL, path)
    again = load_calibration(path)
    assert again.id == SMALL.id
    assert dict(again.kernels["gemm"].constants) == pytest.approx(dict(GEMM.constants))
    assert again.kernels["gemm"].valid == {"m": (1.0, 64.0)}
    np.testing.assert_allclose(again.kernels["gemm"].residual.values, GRID.values, atol=5e-4)
    dump_calibration(again, tmp_path / "d.json")
    assert (tmp_path / "d.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=2), "schema: got 2, expected 1"),
        (lambda d: d.update(gpuu="x"), "unknown key 'gpuu'; did you mean 'gpu'"),
        (lambda d: d.update(gpu=7), "gpu: got 7, expected a name"),
        (lambda d: d.update(kernels={}), "kernels: got dict, expected at least one kernel"),
        (
            lambda d: d["kernels"].update(gem=d["kernels"]["gemm"]),
            "kernels.gem: unknown kernel; did you mean 'gemm'",
        ),
        (lambda d: d["kernels"]["gemm"].update(form="waves"), "form: got 'waves', expected 'k-chain'"),
        (lambda d: d["kernels"]["gemm"]["constants"].pop("t0_s"), "missing 't0_s'"),
        (
            lambda d: d["kernels"]["gemm"]["constants"].update(compute_eff=1.2),
            "compute_eff: got 1.2, expected a fraction",
        ),
        (lambda d: d["kernels"]["gemm"]["constants"].update(t0_s=-1.0), "t0_s: got -1.0, expected a finite"),
        (
            lambda d: d["kernels"]["gemm"]["constants"].update(exponent=0.5),
            "exponent: got 0.5, expected >= 1",
        ),
        (
            lambda d: d["kernels"]["gemm"]["constants"].update(t0_s="fast"),
            "t0_s: got 'fast', expected a number",
        ),
        (lambda d: d["kernels"]["gemm"]["residual"]["axes"].update(m=[1, 1, 2]), "expected increasing knots"),
        (
            lambda d: d["kernels"]["gemm"]["residual"].pop("fade"),
            "expected axes, axis_order, milli_log, fade",
        ),
        (lambda d: d["kernels"]["gemm"]["residual"].update(milli_log=[[1]]), "milli_log: got shape"),
    ],
)
def test_a_wrong_file_is_refused_with_the_field(change, message, tmp_path):
    data = json.loads(json.dumps(calibration_to_dict(SMALL)))
    change(data)
    path = tmp_path / "c.json"
    path.write_text(json.dumps(data))
    with pytest.raises(CalibrationError) as caught:
        load_calibration(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_is_no_json_or_absent_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(CalibrationError, match="not JSON"):
        load_calibration(tmp_path / "x.json")
    with pytest.raises(CalibrationError, match="No such file"):
        load_calibration(tmp_path / "y.json")


def test_committed_calibrations_cover_the_catalogue_gpus():
    have = {(c.gpu, c.dtype) for c in registered_calibrations()}
    assert {(g, "bf16") for g in ("h100-sxm", "h200", "b200", "l40s", "a100-80")} <= have
    assert ("h100-sxm", "fp8") in have


def test_committed_calibrations_hold_no_more_numbers_than_their_grids_and_state_their_source():
    for calibration in registered_calibrations():
        assert "Apache-2.0" in calibration.provenance["source"]
        assert calibration.provenance["sha256"]
        for name, fit in calibration.kernels.items():
            assert set(fit.standard_errors) == set(fit.fitted)
            if fit.rows:
                assert fit.valid, name
            if fit.residual is not None:
                assert fit.residual.values.size < max(
                    fit.rows, 24
                )  # smoother than the table it was fitted on


def test_borrowed_constants_are_marked():
    other = find_calibration("gh200", "bf16")
    assert "transferred" in other.notes[0]
    assert all("transferred_from" in fit.provenance for fit in other.kernels.values())
    assert all(fit.residual is None for fit in other.kernels.values())
    scaled = find_calibration("h100-sxm", "int4")
    assert "int4" in scaled.notes[0]
    assert find_calibration("h100-sxm", "bf16").notes == ()
    assert find_calibration("h100-sxm", "fp16").notes == ()


def test_an_unknown_library_names_the_nearest():
    with pytest.raises(CalibrationError, match=r"did you mean 'vllm-0.24.0'"):
        find_calibration("h100-sxm", library="vllm-0.24")


def test_work_outside_the_data_is_noted_once():
    model = RooflineCostModel(
        load_model("llama-3.1-8b"), load_gpu("h100-sxm"), find_calibration("h100-sxm"), tp=2
    )
    inside = StepWork(0, 0, 0, 0, 8, (8000,), 8)
    model.explain(inside)
    assert model.warnings == ()
    for factor in (1, 2):
        model.explain(StepWork(0, 0, 0, 0, 1, (200_000 * factor,), 1))
    assert len(model.warnings) == 1
    assert "attention_decode context_tokens 400000 (data: to 131072)" in model.warnings[0]
    model.explain(StepWork(256, 1, 256 * 4000, 4256, 0, (0,), 1))
    assert "no kernel table" in model.warnings[1]


def test_residual_grids_interpolate_slice_and_fade():
    exact = GRID.log_factor({"m": np.array([4.0, 64.0]), "n": np.array([64.0, 8.0])})
    np.testing.assert_allclose(exact, [-0.1, 0.3])
    middle = GRID.log_factor({"m": np.array([2.0]), "n": np.array([8.0])})
    np.testing.assert_allclose(middle, [0.05])
    far = GRID.log_factor({"m": np.array([64.0 * 4.0 + 1]), "n": np.array([8.0])})
    np.testing.assert_allclose(far, [0.0])
    sliced = GRID.at({"n": 20.0})
    np.testing.assert_allclose(
        sliced.log_factor({"m": np.array([3.0])}),
        GRID.log_factor({"m": np.array([3.0]), "n": np.array([20.0])}),
    )


def test_the_scalar_residual_equals_the_grid():
    rng = np.random.default_rng(0)
    scalar = GRID.scalar2().at
    for m, n in rng.lognormal(2.0, 2.0, (200, 2)):
        grid = GRID.log_factor({"m": np.array([m]), "n": np.array([n])})[0]
        assert scalar(m, n) == pytest.approx(grid, abs=1e-12)


def test_draws_spread_as_far_as_unseen_shapes_do():
    calibration = find_calibration("h100-sxm")
    rng = np.random.default_rng(1)
    model, gpu = load_model("llama-3.1-8b"), load_gpu("h100-sxm")
    work = StepWork(0, 0, 0, 0, 64, (64_000,), 64)
    steps = [RooflineCostModel(model, gpu, draw(calibration, rng)).step_s(work) for _ in range(30)]
    base = RooflineCostModel(model, gpu, calibration).step_s(work)
    assert 0.005 < np.std(np.log(steps)) < 0.15
    assert min(steps) < base < max(steps)


def test_draws_never_break_the_floor_and_repeat_with_the_seed():
    calibration = find_calibration("h100-sxm")
    first = draw(calibration, np.random.default_rng(5))
    again = draw(calibration, np.random.default_rng(5))
    for name, fit in first.kernels.items():
        assert dict(fit.constants) == dict(again.kernels[name].constants)
        assert all(0 < v <= 1 for k, v in fit.constants.items() if k.endswith("_eff"))
        assert fit.constants.get("exponent", 1.0) >= 1.0
    calibration_from_dict(calibration_to_dict(first), "draw")  # a draw is a valid calibration


def test_borrowed_and_stated_constants_are_drawn_wide():
    borrowed = find_calibration("h100-sxm", "int4").kernels["gemm"]
    assert unseen_sd(borrowed) == TRANSFERRED_SD
    assert unseen_sd(replace(GEMM, rows=0)) == STATED_SD
    assert unseen_sd(find_calibration("h100-sxm").kernels["gemm"]) < 0.1
