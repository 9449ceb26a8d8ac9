"""Residual grids choose their smoothing, fill in what was never timed, and fits go as far as they were tried."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from stepline.calibration.fit_residual import ResidualPlan, chosen_scale, fit_residual
from stepline.calibration.reach import reach
from stepline.calibration.task import plan
from stepline.calibration.tasks import DECODE, GEMM
from stepline.calibration.validate import parts_of
from stepline.sim.cost.calibration import KernelFit
from stepline.sim.cost.catalogue import load_gpu
from stepline.sim.cost.ranges import RangeLog
from stepline.traces.errors import CalibrationError

GPU = load_gpu("h100-sxm")
TRUTH = {"t0_s": 3e-6, "compute_eff": 0.7, "memory_eff": 0.8, "chain_s_per_k": 1.5e-9, "exponent": 2.0}
KNOTS = {"m": tuple(2.0**e for e in range(11)), "n": tuple(2.0**e for e in range(11))}


def shapes(rng, rows=600):
    return {name: np.exp2(rng.uniform(0, 10, rows)) for name in KNOTS}


@pytest.mark.parametrize(("wave", "noise", "wanted"), [(0.0, 0.3, 30.0), (2.0, 0.0, 0.03)])
def test_cross_validation_smooths_noise_and_keeps_detail(wave, noise, wanted):
    rng = np.random.default_rng(0)
    x = shapes(rng)
    ratio = 0.2 * np.sin(wave * np.log2(x["m"])) + rng.normal(0, noise, len(x["m"]))
    assert chosen_scale(plan(KNOTS, 1.0, scales=(0.03, 1.0, 30.0)), x, ratio, None) == wanted


def test_families_stay_together_in_cross_validation():
    """Twins in one family cannot vouch for each other: what only they share counts as noise."""
    rng = np.random.default_rng(1)
    x = shapes(rng, 150)
    ratio, family = rng.normal(0, 0.3, 150), np.arange(150)
    twins = {name: np.tile(values, 2) for name, values in x.items()}
    wide = plan(KNOTS, 1.0, scales=(1e-4, 100.0))
    assert chosen_scale(wide, twins, np.tile(ratio, 2), np.tile(family, 2)) == 100.0


def test_pairs_of_axes_predict_a_matrix_that_was_never_timed():
    """log ratio = f(m, n) + g(m, k) at every (n, k) but some: the sum is recovered where no row is."""
    knots = {
        "m": (1.0, 16.0, 256.0),
        "n": tuple(2.0**e for e in range(8)),
        "k": tuple(2.0**e for e in range(8)),
    }
    rows_of_m = (1.0, 4.0, 16.0, 64.0, 256.0)  # more rows than knots, lest the grid is thinned
    axes = np.meshgrid(rows_of_m, knots["n"], knots["k"], indexing="ij")
    m, n, k = (axis.ravel() for axis in axes)
    rng = np.random.default_rng(2)
    of_n, of_k = rng.normal(0, 0.1, (2, 8))
    ratio = of_n[np.log2(n).astype(int)] + of_k[np.log2(k).astype(int)]
    held = (np.log2(n) + 3 * np.log2(k)) % 5 == 0
    rows = {"m": m[~held], "n": n[~held], "k": k[~held]}
    grids = ResidualPlan(knots, dict.fromkeys(knots, 0.02), 3e-3)
    unseen = {"m": m[held], "n": n[held], "k": k[held]}
    errors = [
        np.abs(fit_residual(some, rows, ratio[~held]).log_factor(unseen) - ratio[held]).mean()
        for some in (grids, replace(grids, pairs=(("m", "n"), ("m", "k"))))
    ]
    assert errors[1] < 0.25 * errors[0]


def test_a_family_keeps_what_is_its_own_and_its_neighbours_do_not_get_it():
    powers = tuple(2.0**e for e in range(6))
    m, n, k = (axis.ravel() for axis in np.meshgrid(powers, powers[:5], powers[:5], indexing="ij"))
    knots = {"m": (1.0, 4.0, 8.0, 32.0), "n": powers[:5], "k": powers[:5]}  # fewer than rows: not thinned
    slow, held_out = (n == 8.0) & (k == 4.0), (n == 4.0) & (k == 4.0)
    ratio = np.where(slow, 0.1, 0.0)
    seen = ~held_out & ~(slow & (m == 4.0))
    smooth = ResidualPlan(knots, {"m": 0.02, "n": 1.0, "k": 1.0})
    misses = {}
    for name, some in {"smooth": smooth, "own": replace(smooth, own={"m": 3.0})}.items():
        grid = fit_residual(some, {"m": m[seen], "n": n[seen], "k": k[seen]}, ratio[seen])
        misses[name] = grid.log_factor({"m": m, "n": n, "k": k}) - ratio
    row = slow & (m == 4.0)
    assert abs(misses["own"][row]) < 0.6 * abs(misses["smooth"][row])
    assert misses["own"][held_out] == pytest.approx(misses["smooth"][held_out], abs=1e-3)


def test_knots_beside_a_jump_differ_where_the_plan_says_so():
    knots = {"m": (8.0, 16.0, 17.0, 34.0)}
    rows = {"m": np.array([8.0, 16.0, 17.0, 34.0])}
    step = np.array([0.0, 0.0, 0.2, 0.2])
    smooth = ResidualPlan(knots, {"m": 0.02})
    heights = [
        np.ptp(fit_residual(some, rows, step).values[1:3]) for some in (smooth, replace(smooth, jumps=("m",)))
    ]
    assert heights[0] < 0.16 < heights[1]


def test_a_grid_that_cannot_be_solved_is_an_error(monkeypatch):
    monkeypatch.setattr("stepline.calibration.fit_residual.MOST_ITERATIONS", 1)
    x = shapes(np.random.default_rng(0))
    with pytest.raises(CalibrationError, match="no convergence in 1 iterations"):
        fit_residual(plan(KNOTS, 1.0, scales=(1.0,)), x, np.log(x["m"]))


def widths(wrong=1.0):
    """GEMM rows up to n = 65536 that the form makes; those above 16384 `wrong` times as slow."""
    frame = pd.DataFrame(
        [(m, n, k) for m in (1, 64, 1024) for n in (512, 2048, 16384, 51200, 65536) for k in (1024, 8192)],
        columns=["m", "n", "k"],
    ).astype(float)
    x = {name: frame[name].to_numpy() for name in frame.columns}
    seconds = GEMM.predict(TRUTH, x, GPU, "bf16") * np.where(x["n"] > 16384, wrong, 1.0)
    return frame.assign(median_s=seconds, cold=True)


def test_a_fit_reaches_as_far_as_it_was_tried_on_held_out_widths():
    furthest, errors = reach(GEMM, widths(), GPU, "bf16")
    assert furthest == {"n": 4 * 65536.0}
    assert errors["all"]["formula"] < 0.01


def test_a_fit_that_is_wrong_on_wider_rows_reaches_no_further_than_its_data():
    furthest, errors = reach(GEMM, widths(wrong=1.3), GPU, "bf16")
    assert furthest == {}
    assert errors["all"]["formula"] == pytest.approx(0.23, abs=0.01)
    assert reach(DECODE, widths().assign(kv_heads=1), GPU, "bf16") == ({}, {})


def test_work_within_reach_is_no_warning_and_beyond_it_is():
    fit = KernelFit("k-chain", TRUTH, valid={"n": (32.0, 65536.0)}, reach={"n": 262144.0})
    log = RangeLog()
    log.check("lm_head", fit, n=128256)
    assert log.notes() == ()
    log.check("lm_head", fit, n=300000)
    log.check("router", fit, n=8)
    assert log.notes() == (
        "outside the range of the kernel timings: router n 8 (data: from 32); lm_head n 300000 (data: to 262144)",
    )


def test_subsets_are_scored_beside_the_regimes():
    x = {
        "heads": np.array([8.0, 8.0]),
        "kv_heads": np.array([8.0, 2.0]),
        "context_tokens": np.array([8.0, 512.0]),
    }
    parts = parts_of(DECODE, x)
    assert parts["all"].tolist() == [True, True]
    assert parts["grouped"].tolist() == [False, True]
    assert parts["one KV head a query head"].tolist() == [True, False]
    assert parts["context_tokens 256-4096"].tolist() == [False, True]
