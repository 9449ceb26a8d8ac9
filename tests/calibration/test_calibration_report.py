"""Pictures of a calibration: the frames behind them are right, the page is whole and needs no network."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from functools import cache, lru_cache
from math import log2

import numpy as np
import pandas as pd
import pytest
from stepline.calibration.report import accountant, fit_data, page, step_data
from stepline.calibration.report_cli import main
from stepline.calibration.seeds.accounting import account, step_shape, total
from stepline.calibration.seeds.pricing import cost_model
from stepline.sim.cost.catalogue import load_gpu, load_model
from stepline.traces.errors import CalibrationError, ConfigError


@lru_cache(maxsize=4)
def priced(model="llama-3.1-8b", gpu="h100-sxm", **options):
    return cost_model(model, gpu, **options)


def test_no_kernel_stands_above_the_roof_and_the_shares_are_whole():
    points = step_data.roofline_points(priced(), 64, 2048)
    assert (points["roof_frac"] <= 1 + 1e-9).all()
    assert points.groupby("step")["time_frac"].sum().to_numpy() == pytest.approx(1.0)
    assert set(points["class"]) == {"linear", "attention", "elementwise"}


@pytest.mark.parametrize(
    "model", ["llama-3.1-8b", "llama-2-7b", "gemma-2-27b", "mixtral-8x7b", "deepseek-v3"]
)
def test_kernels_add_up_to_the_step_of_the_cost_model(model):
    cost = priced(model)
    for shape in (step_shape("decode", 16, 1024), step_shape("prefill", 1, 512)):
        kernels = [k for k in account(cost.model, shape, fused=True) if k.name != "sampling"]
        parts = step_data.kernel_seconds(cost, shape, kernels)
        step = cost.step_s(step_data.step_work(shape, cost.model.windows))
        assert sum(parts.values()) == pytest.approx(step, rel=0.02)


def test_rates_stay_below_their_ceilings_and_rise_with_the_batch():
    curve = step_data.decode_curve(priced())
    assert (curve["rate"] <= curve["ceiling"] * (1 + 1e-9)).all()
    assert (curve["ceiling"] <= curve["bandwidth"] * (1 + 1e-9)).all()
    for _, part in curve.groupby("context"):
        assert (np.diff(part["bandwidth"]) > 0).all()


def test_a_knee_halves_the_plateau_and_comes_earlier_with_longer_contexts():
    cost = priced()
    knees = step_data.knees(cost, step_data.decode_curve(cost))
    assert [k.context for k in knees] == [512, 2048, 8192]
    assert knees[0].batch > knees[1].batch > knees[2].batch
    for knee in knees:
        shape = step_shape("decode", knee.batch, knee.context)
        rate = knee.batch / cost.step_s(step_data.step_work(shape, cost.model.windows))
        assert knee.plateau_tok_per_s / 2 <= rate < 0.6 * knee.plateau_tok_per_s
        assert str(knee.batch) in knee.why


def test_memory_bounds_the_batch():
    assert step_data.capacity(priced(), 8192) == pytest.approx(0.9 * 79.19 * 2**30 / 2**30 - 14.96, abs=2)
    assert step_data.capacity(priced("llama-3.1-70b"), 8192) == 0


def test_traffic_is_what_the_accounting_says():
    cost = priced()
    shares = step_data.traffic_shares(cost, 2048).set_index(["batch", "part"])["gigabytes"]
    step = total(account(cost.model, step_shape("decode", 64, 2048), fused=True))
    assert shares[64, "weights"] == pytest.approx(step.weight_bytes / 1e9)
    assert shares[64, "KV cache"] == pytest.approx(step.kv_bytes / 1e9)


# --- the accountant


@cache
def accountant_spec():
    """The specification; a page's reader changes its parameters."""
    return accountant.accountant("llama-3.1-8b", "h100-sxm", 1, 1024).to_dict()


def accountant_says(model, gpu, batch, context, **more):
    """Draw the accountant with vl-convert for these parameters and read the text that Vega computed."""
    import vl_convert

    spec = deepcopy(accountant_spec())
    chosen = {"model": model, "gpu": gpu, "log_batch": log2(batch), "log_context": log2(context), **more}
    for parameter in spec["params"]:
        if parameter["name"] in chosen:
            parameter["value"] = chosen.pop(parameter["name"])
    assert not chosen
    svg = vl_convert.vegalite_to_svg(spec)
    found = re.search(r"ceiling ([\d,]+) tok/s, step ([\d.]+) ms", svg)
    lever = re.search(r"(weight-bound|KV-bound|beyond the knee|does not fit)", svg)
    return float(found[1].replace(",", "")), float(found[2]), lever[1]


@pytest.mark.parametrize(
    ("model", "batch", "context", "weights", "kv"),
    [
        ("llama-3.1-8b", 1, 1024, "bf16", "bf16"),
        ("llama-3.1-8b", 64, 8192, "fp8", "fp8"),
        ("mixtral-8x7b", 16, 2048, "bf16", "bf16"),
        ("deepseek-v3", 64, 4096, "fp8", "bf16"),
        ("mistral-7b-v0.1", 8, 16384, "bf16", "bf16"),
    ],
)
def test_the_page_computes_what_the_operators_do(model, batch, context, weights, kv):
    from dataclasses import replace

    rate, step_ms, _ = accountant_says(model, "h200", batch, context, weights=weights, kv=kv)
    spec = replace(load_model(model), weight_dtype=weights, attention_dtype=None)
    step = total(account(spec, step_shape("decode", batch, context), kv_dtype=kv))
    read_s = (step.weight_bytes + step.kv_bytes) / load_gpu("h200").hbm_bytes_per_s
    assert step_ms == pytest.approx(read_s * 1e3, rel=0.01, abs=0.006)
    assert rate == pytest.approx(batch / read_s, rel=0.01)


def test_a_page_opens_with_what_the_command_was_asked_for():
    found = accountant.accountant("mixtral-8x7b", "h200", 16, 2048).to_dict()["params"]
    values = {parameter["name"]: parameter["value"] for parameter in found if "value" in parameter}
    assert (
        values.items() >= {"model": "mixtral-8x7b", "gpu": "h200", "log_batch": 4, "log_context": 11}.items()
    )


def test_the_lever_follows_the_bound():
    assert accountant_says("llama-3.1-8b", "h100-sxm", 1, 1024)[2] == "weight-bound"
    assert accountant_says("llama-3.1-8b", "h100-sxm", 32, 8192)[2] == "KV-bound"
    assert accountant_says("llama-3.1-8b", "h100-sxm", 1024, 16)[2] == "beyond the knee"
    assert accountant_says("llama-3.1-70b", "h100-sxm", 1, 1024)[2] == "does not fit"
    assert accountant_says("llama-3.1-70b", "h100-sxm", 1, 1024, tp=4)[2] == "weight-bound"


# --- the fit


def timing_table():
    """GEMMs and decodes of a made-up collection: the calibration's own answers, a tenth too slow."""
    from stepline.calibration.schema import check_timings
    from stepline.calibration.tasks import TASKS, columns_of

    cost = priced()
    rows = [
        {"kernel": "gemm", "m": m, "n": n, "k": k}
        for m in (1, 8, 64, 512, 8192)
        for n, k in ((4096, 4096), (1024, 8192), (28672, 4096))
    ] + [
        {
            "kernel": "attention_decode",
            "batch": b,
            "context_tokens": c,
            "heads": 32,
            "kv_heads": 8,
            "head_dim": 128,
        }
        for b in (1, 16, 128)
        for c in (128, 1024, 8192)
    ]
    frame = pd.DataFrame(rows).assign(
        gpu="h100-sxm", library="vllm-0.24.0", dtype="bf16", median_s=1.0, graph=True
    )
    frame["median_s"] = 1e-3
    table = check_timings(frame, "made up")
    for task in TASKS:
        part = task.select(table, "bf16")
        if len(part):
            x = columns_of(part, task)
            seconds = task.predict(cost.calibration.kernels[task.name].constants, x, cost.gpu, "bf16")
            table.loc[part.index, "median_s"] = seconds * 1.1
    return table


def test_errors_are_signed_and_summed_by_regime():
    cost = priced()
    found = fit_data.predictions(timing_table(), cost.calibration, cost.gpu)
    assert found["error"].to_numpy() == pytest.approx(1 / 1.1 - 1)
    errors = fit_data.error_table(found).set_index(["kernel", "regime"])
    assert errors.loc[("gemm", "all"), "shapes"] == 15
    assert errors.loc[("gemm", "m ≤ 16"), "shapes"] == 6
    assert errors["formula"].to_numpy() == pytest.approx(1 - 1 / 1.1)
    assert (errors["datasheet"] > errors["formula"]).all()  # the roofline alone is further off
    cells = fit_data.residual_map(found, "gemm")
    assert cells["shapes"].sum() == 15
    assert (cells["x"] < cells["x2"]).all()
    assert (cells["y"] < cells["y2"]).all()


def test_sampling_keeps_the_ends_and_thins_the_middle():
    found = pd.DataFrame({"kernel": "gemm", "measured_us": np.arange(10_000.0), "error": 0.0})
    kept = fit_data.sampled(found)
    assert len(kept) <= fit_data.MOST_POINTS
    assert kept["measured_us"].iloc[0] == 0.0


# --- the page


def test_the_command_writes_a_page_that_needs_no_network(tmp_path, capsys):
    table = tmp_path / "t.parquet"
    timing_table().to_parquet(table)
    out = tmp_path / "report"
    assert main(["--source", str(table), "--out", str(out), "--format", "html"]) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    text = (out / "report.html").read_text()
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"<(script|link|img)|https?://", outside)
    charts = json.loads(re.search(r"const charts = (\{.*\});\n", text)[1])
    assert set(charts) == {"roofline", "decode-rate", "traffic", "time", "accountant", "fit", "residuals"}
    for name in charts:
        assert f'id="chart-{name}"' in text
    assert text.count("window.vegaEmbed=") == 1  # the bundle is inside, once


def test_pictures_are_written(tmp_path):
    cost = priced()
    curve = step_data.decode_curve(cost)
    from stepline.calibration.report.step_charts import decode_rate

    section = page.Section("rate", "Rate", (), decode_rate(curve, step_data.knees(cost, curve), "a test"))
    written = page.write(tmp_path, page.page("t", "l", [section]), [section], ["png"])
    assert [p.name for p in written] == ["rate.png"]
    assert written[0].read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (("--format", "pdf"), ConfigError, "expected html, png or both"),
        (("--batch", "0"), ConfigError, "expected both >= 1"),
        (("--model", "lama"), ConfigError, "unknown model"),
        (("--source", "none.parquet"), CalibrationError, "that exists"),
        (("--dtype", "fp7"), ConfigError, "fp7"),
        (("--calibration", "c.json", "--library", "vllm-0.24.0"), ConfigError, "only without --calibration"),
    ],
)
def test_bad_flags_are_refused(tmp_path, flags, error, message):
    with pytest.raises(error, match=message):
        main([*flags, "--out", str(tmp_path / "r")])
    assert not (tmp_path / "r").exists()


def test_timings_of_another_gpu_are_refused(tmp_path):
    timing_table().assign(gpu="a100-80").to_parquet(tmp_path / "t.parquet")
    with pytest.raises(CalibrationError, match="rows of a100-80, the calibration is of h100-sxm"):
        main(["--source", str(tmp_path / "t.parquet"), "--out", str(tmp_path / "r")])
