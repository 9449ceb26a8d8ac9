"""Fits recover the constants that made the timings, and score themselves on what they never saw."""

import numpy as np
import pandas as pd
import pytest
from stepline.calibration.fit import STATED_ELEMENTWISE, fit_calibration, fit_task
from stepline.calibration.fit_core import bootstrap_covariance, fit_constants
from stepline.calibration.fit_residual import ResidualPlan, fit_residual
from stepline.calibration.schema import check_timings
from stepline.calibration.sources import Source
from stepline.calibration.splits import SPLITS, held_out
from stepline.calibration.tasks import (
    COLLECTIVES,
    DECODE,
    GEMM,
    MOE,
    PREFILL,
    columns_of,
    merged,
    rows_for,
    without_l2_replays,
)
from stepline.calibration.tasks_small import CUSTOM_BUFFER_BYTES
from stepline.calibration.validate import regime_names, scores_by_kernel, validate
from stepline.sim.cost.calibration import calibration_from_dict, calibration_to_dict
from stepline.sim.cost.catalogue import load_gpu
from stepline.traces.errors import CalibrationError

GPU = load_gpu("h100-sxm")
TRUTH = {
    "gemm": {
        "t0_s": 3e-6,
        "compute_eff": 0.7,
        "memory_eff": 0.8,
        "chain_s_per_k": 1.5e-9,
        "overlap_exponent": 3.0,
        "exponent": 2.0,
    },
    "attention_prefill": {
        "t0_s": 1e-5,
        "wave_s": 2e-6,
        "chain_s_per_key": 5e-9,
        "compute_eff": 0.6,
        "memory_eff": 0.3,
        "exponent": 1.3,
        "store_block_s": 2e-6,
    },
    "attention_decode": {"t0_s": 1.1e-5, "wave_s": 3e-6, "memory_eff": 0.9},
    "moe": {
        "t0_s": 3e-5,
        "chain_s_per_k": 1.5e-9,
        "compute_eff": 0.5,
        "memory_eff": 0.9,
        "activation_eff": 0.3,
        "exponent": 2.0,
    },
}
SHAPES = {
    "gemm": [
        {"m": m, "n": n, "k": k}
        for m in (1, 16, 64, 256, 1024, 8192)
        for n in (512, 2048, 8192, 16384)
        for k in (1024, 4096, 12288)
    ],
    "attention_prefill": [
        {"batch": b, "query_tokens": s, "heads": h, "kv_heads": 8, "head_dim": 128}
        for b in (1, 8)
        for s in (64, 512, 4096, 16384)
        for h in (16, 32, 64)
    ],
    "attention_decode": [
        {"batch": b, "context_tokens": c, "heads": h, "kv_heads": k, "head_dim": 128}
        for b in (1, 16, 64, 256)
        for c in (128, 2048, 32768)
        for h, k in ((32, 8), (8, 2), (16, 4))
    ],
    "moe": [
        {"m": m, "n": n, "k": d, "n_experts": e, "top_k": t, "skew": 0.0}
        for m in (1, 16, 128, 1024, 8192)
        for n, d, e, t in (
            (14336, 4096, 8, 2),
            (768, 2048, 128, 8),
            (1536, 4096, 128, 8),
            (512, 6144, 256, 8),
        )
    ],
}
TASKS = {task.name: task for task in (GEMM, PREFILL, DECODE, MOE)}


def timings(noise=0.0, kernels=tuple(SHAPES), seed=0, outliers=0):
    """A table in our schema whose times the forms make."""
    rng = np.random.default_rng(seed)
    frames = []
    for name in kernels:
        frame = pd.DataFrame(SHAPES[name])
        x = {column: frame[column].to_numpy(float) for column in frame.columns}
        seconds = TASKS[name].predict(TRUTH[name], x, GPU, "bf16") * np.exp(rng.normal(0, noise, len(frame)))
        seconds[:outliers] *= 5.0
        extra = {"history_tokens": 0, "ep": 1} if name != "gemm" else {}
        frames.append(frame.assign(kernel=name, median_s=seconds, **extra))
    table = pd.concat(frames, ignore_index=True).assign(gpu="h100-sxm", library="test-1.0", dtype="bf16")
    return check_timings(table, "made up")


@pytest.mark.parametrize("name", list(TASKS))
def test_a_fit_recovers_the_constants_that_made_the_timings(name):
    task = TASKS[name]
    rows = rows_for(task, timings(), GPU, "bf16")
    constants = fit_task(task, rows, GPU, "bf16", residual=False).fit.constants
    assert constants == pytest.approx(TRUTH[name], rel=1e-3)


def test_stray_rows_do_not_move_the_constants():
    strays = rows_for(DECODE, timings(noise=0.02, outliers=3), GPU, "bf16")
    constants = fit_task(DECODE, strays, GPU, "bf16", residual=False).fit.constants
    assert constants == pytest.approx(TRUTH["attention_decode"], rel=0.06)


def test_standard_errors_cover_the_truth():
    rows = rows_for(DECODE, timings(noise=0.05), GPU, "bf16")
    fit = fit_task(DECODE, rows, GPU, "bf16", residual=False).fit
    for name, truth in TRUTH["attention_decode"].items():
        assert abs(fit.constants[name] - truth) < 4 * fit.standard_errors[name]


def test_the_bootstrap_widens_when_families_share_their_error():
    x = np.repeat(np.arange(1.0, 31.0), 10)
    shared = np.repeat(np.random.default_rng(0).normal(0, 0.05, 30), 10)
    seconds = 2.0 * x * np.exp(shared)
    fit = fit_constants(lambda c: c["slope"] * x, seconds, {"slope": 1.0})
    by_family = bootstrap_covariance(lambda c: c["slope"] * x, seconds, np.repeat(np.arange(30), 10), fit)
    assert by_family[0][0] > 4 * fit.covariance[0][0]


def test_efficiencies_stop_at_the_peak():
    x = np.arange(1.0, 20.0)
    fit = fit_constants(lambda c: x / c["memory_eff"], 0.5 * x, {"memory_eff": 0.5})
    assert fit.constants["memory_eff"] <= 1.0


def test_too_few_rows_for_a_form_are_refused():
    with pytest.raises(CalibrationError, match="got 3 rows for 2 constants"):
        fit_constants(lambda c: c["a"] + c["b"] * np.ones(3), np.ones(3), {"a": 1.0, "b": 1.0})
    with pytest.raises(CalibrationError, match="too few gemm rows of dtype bf16"):
        fit_calibration(timings(kernels=("attention_decode",)), GPU, "test-1.0", "bf16", {})


def test_repeats_of_a_shape_count_once():
    table = timings(kernels=("gemm",))
    doubled = pd.concat([table, table.assign(median_s=table["median_s"] * 3), table * 1], ignore_index=True)
    rows = merged(GEMM.select(doubled, "bf16"), GEMM)
    assert len(rows) == len(SHAPES["gemm"])
    assert rows["median_s"].sum() == pytest.approx(table["median_s"].sum())


def test_rows_that_beat_the_floor_are_taken_for_l2_replays():
    rows = merged(DECODE.select(timings(), "bf16"), DECODE)
    floor = DECODE.floor(columns_of(rows, DECODE), GPU, "bf16")
    warm = rows.assign(cold=False, median_s=np.maximum(0.5 * floor, 2e-6))
    kept = without_l2_replays(warm, DECODE, GPU, "bf16")
    assert len(kept) < len(rows)
    assert (kept["median_s"].to_numpy() >= 3 * DECODE.floor(columns_of(kept, DECODE), GPU, "bf16")).all()
    assert len(without_l2_replays(rows, DECODE, GPU, "bf16")) == len(rows)


def test_a_residual_grid_learns_a_smooth_error_and_ignores_noise():
    rng = np.random.default_rng(0)
    x = {"m": np.exp(rng.uniform(0, 8, 800)), "n": np.exp(rng.uniform(0, 8, 800))}
    shape = 0.1 * np.sin(np.log(x["m"])) + 0.02 * np.log(x["n"])
    knots = tuple(float(2.0**e) for e in range(13))
    plan = ResidualPlan({"m": knots, "n": knots}, {"m": 0.1, "n": 0.1})
    grid = fit_residual(plan, x, shape + rng.normal(0, 0.03, 800))
    assert np.sqrt(np.mean((grid.log_factor(x) - shape) ** 2)) < 0.012


def test_a_calibration_holds_all_that_the_table_times():
    calibration, skipped = fit_calibration(
        timings(noise=0.02), GPU, "test-1.0", "bf16", {"source": "made up"}
    )
    assert skipped == []
    assert set(TASKS) <= set(calibration.kernels)
    gemm = calibration.kernels["gemm"]
    assert gemm.valid["m"] == (1.0, 8192.0)
    assert gemm.rows == len(SHAPES["gemm"])
    assert 0 < gemm.standard_errors["memory_eff"] < 0.05
    assert 0 < gemm.errors["train"]["formula"] < 0.03
    calibration_from_dict(calibration_to_dict(calibration), "round trip")


@pytest.mark.parametrize("split", SPLITS)
def test_splits_hold_out_what_they_say(split):
    rows = rows_for(GEMM, timings(), GPU, "bf16")
    mask = held_out(rows, GEMM, split, seed=1)
    held, left = rows[mask], rows[~mask]
    assert len(held) >= 5
    assert len(left) >= 8
    families = {tuple(f) for f in held[["n", "k"]].to_numpy()} & {
        tuple(f) for f in left[["n", "k"]].to_numpy()
    }
    if split == "unseen":
        assert not families
    if split == "largest":
        assert held["m"].min() > left["m"].max()
    if split == "wider":
        assert held["n"].min() > 4096 >= left["n"].max()
    if split == "large-nk":
        assert held["n"].min() >= 8192
        assert held["k"].min() >= 4096
    if split in ("random", "unseen"):
        assert not np.array_equal(mask, held_out(rows, GEMM, split, seed=2))
        assert np.array_equal(mask, held_out(rows, GEMM, split, seed=1))


def test_validation_scores_noise_as_noise_and_the_datasheet_as_worse():
    source = Source(timings(noise=0.05), GPU, "test-1.0", {})
    scores = validate(source, "bf16", seeds=2, kernels=("gemm", "attention_decode"))
    for kernel in ("gemm", "attention_decode"):
        overall = {
            s.model: s.mape for s in scores if (s.kernel, s.split, s.regime) == (kernel, "unseen", "all")
        }
        assert 0.02 < overall["formula"] < 0.08
        assert overall["datasheet"] > 2 * overall["formula"]
    assert {s.regime for s in scores if s.kernel == "gemm"} <= {"all", *regime_names(GEMM)}
    recorded = scores_by_kernel(scores)
    assert set(recorded["gemm"]["family_sd"]) >= {"formula"}


def test_validation_of_nothing_is_refused():
    source = Source(timings(kernels=("attention_decode",)).head(0), GPU, "test-1.0", {})
    with pytest.raises(CalibrationError, match="no kernel has enough"):
        validate(source, "bf16", seeds=1)


def test_stated_constants_say_so():
    calibration, _ = fit_calibration(timings(kernels=("gemm",)), GPU, "test-1.0", "bf16", {})
    assert calibration.kernels["elementwise"] == STATED_ELEMENTWISE
    assert calibration.kernels["elementwise"].rows == 0


ALL_REDUCE = next(task for task in COLLECTIVES if task.name == "all_reduce_2")
PATHS = {
    "t0_s": 4e-6,
    "one_shot_eff": 0.6,
    "two_shot_s": 8e-6,
    "two_shot_eff": 0.5,
    "ring_s": 1e-4,
    "ring_eff": 0.8,
    "one_shot_bytes": CUSTOM_BUFFER_BYTES,
}


def all_reduce_rows(powers_of_two):
    size = np.array([2.0**i for i in powers_of_two])
    seconds = ALL_REDUCE.predict(PATHS, {"message_bytes": size}, GPU, "bf16")
    return pd.DataFrame({"message_bytes": size, "median_s": seconds})


def test_an_all_reduce_finds_its_ring_and_where_the_library_s_buffers_end():
    constants = fit_task(ALL_REDUCE, all_reduce_rows(range(8, 31)), GPU, "bf16", residual=False).fit.constants
    assert constants == pytest.approx(PATHS, rel=1e-3)


def test_an_all_reduce_of_few_sizes_is_fitted_without_a_ring():
    rows = all_reduce_rows(range(10, 29, 2))
    assert len(rows) < 2 * len(PATHS) - 2
    assert "ring_s" not in fit_task(ALL_REDUCE, rows, GPU, "bf16", residual=False).fit.constants
