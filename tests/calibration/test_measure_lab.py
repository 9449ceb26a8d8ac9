"""Whole steps of a model: which kernels they are made of, how they are rated, what is concluded."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import pytest
from stepline.calibration.measure.cli import add_arguments
from stepline.calibration.measure.kernels import Unsupported
from stepline.calibration.measure.lab import Point, explanation, points, run_lab, shapes, step_cases
from stepline.calibration.measure.timers import Timing
from stepline.calibration.seeds.accounting import account, step_shape
from stepline.sim.cost.catalogue import load_model
from stepline.traces.errors import ConfigError

MODEL = load_model("llama-3.1-8b")


class Device:
    """Calls book the FLOPs of their GEMM; a timer that turns them into seconds at 1 TFLOP/s."""

    gpu, cache_bytes, operand_bytes, most_copies, round_flops = "fake", 2**20, 2**34, 64, 1e15

    def __init__(self, limit=2**40):
        self.booked, self.made, self.limit = 0.0, [], limit

    def make(self, case):
        self.made.append(case)
        return lambda: self.book(case)

    def book(self, case):
        self.booked += 2.0 * case.m * case.n * case.k if case.kernel == "gemm" else 1e6

    def reserve(self, n_bytes):
        if n_bytes > self.limit:
            raise Unsupported("too large")

    def facts(self):
        return {"device": "fake"}

    def time(self, calls, budget_s, *, graph=True):
        self.booked = 0.0
        for call in calls:
            call()
        return Timing(self.booked / 1e12 / len(calls), 0.0, 3)


def arguments(*flags):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([*flags])


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_layer_is_the_models_own_kernels(phase):
    shape = step_shape(phase, 2, 192)
    body, head = step_cases(MODEL, shape, "bf16")
    gemm_flops = sum(2 * c.m * c.n * c.k for c in body if c.kernel == "gemm")
    wanted = {a.name: a for a in account(MODEL, shape, layers=1)}
    assert gemm_flops == sum(wanted[n].flops for n in ("qkv", "attention_out", "ffn_up", "ffn_down"))
    assert [c.kernel for c in body].count(f"attention_{phase}") == 1
    assert head[1].m == 2  # the LM head sees one row a sequence


def test_layers_that_are_not_built_are_scaled_and_rates_follow(capsys):
    todo = [step_shape("prefill", 1, n) for n in (128, 512)]
    device = Device()
    some = points(MODEL, 4, todo, device, device, "bf16")
    all_ = points(MODEL, MODEL.n_layers, todo, device, device, "bf16")
    for a, b in zip(some, all_, strict=True):
        assert a.step_s == pytest.approx(b.step_s, rel=1e-9)
        assert a.mfu_frac == pytest.approx(1.0, rel=0.05)  # the device computes at its ceiling of 1 TFLOP/s
        assert a.tok_per_s == pytest.approx(a.tokens / a.step_s)
        assert a.bound == "compute"


def test_a_step_that_does_not_fit_is_left_out_and_said(capsys):
    todo = [step_shape("prefill", 1, n) for n in (128, 8192)]
    device = Device(limit=2 * 2**31)
    found = points(MODEL, 1, todo, device, device, "bf16")
    assert [p.tokens for p in found] == [128, 8192]
    device.limit = 10
    with pytest.raises(ConfigError, match="no step of it could be run"):
        points(MODEL, 1, todo, device, device, "bf16")
    assert "left out: too large" in capsys.readouterr().err


def test_the_lab_of_the_texts_is_the_default():
    assert [s.new for s in shapes(arguments("--phase", "prefill"))] == [128, 512, 2048, 8192]
    assert [s.new for s in shapes(arguments("--phase", "prefill", "--device", "cpu"))] == [16, 64, 256]
    assert [s.batch for s in shapes(arguments("--phase", "decode", "--device", "cpu"))] == [1, 4, 16]
    decodes = shapes(arguments("--phase", "decode"))
    assert [s.batch for s in decodes[:4]] == [1, 4, 16, 64]
    assert {s.done + s.new for s in decodes} == {192}  # halfway through 128 tokens after a prompt of 128


def test_the_command_prints_and_writes(tmp_path, capsys):
    device = Device()
    flags = ("--phase", "decode", "--model", "llama-3.1-8b", "--layers", "2", "--batches", "1,4")
    assert run_lab(arguments(*flags, "--out", str(tmp_path / "lab.json")), device, device, "bf16") == 0
    said = json.loads((tmp_path / "lab.json").read_text())
    assert [p["batch"] for p in said["points"]] == [1, 4]
    assert "2 of 32 layers built and scaled" in capsys.readouterr().out


def test_a_cpu_builds_one_layer_unless_told(capsys):
    device = Device()
    assert (
        run_lab(
            arguments("--phase", "prefill", "--model", "llama-3.1-8b", "--device", "cpu"),
            device,
            device,
            "fp32",
        )
        == 0
    )
    assert "1 of 32 layers built and scaled" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--phase", "decode"), "needs --model"),
        (("--phase", "decode", "--model", "llama-3.1-8b", "--layers", "33"), "expected 1 to 32"),
        (
            ("--phase", "decode", "--model", "llama-3.1-8b", "--tokens", "5"),
            "--tokens: only used with --phase prefill",
        ),
        (("--phase", "decode", "--model", "llama-3.1-8b", "--batches", "1,x"), "expected whole numbers"),
        (("--phase", "decode", "--model", "llama-3.1-8b", "--out", "t.parquet"), r"ends in \.json"),
        (("--phase", "decode", "--model", "mixtral-8x7b"), "only dense gated models"),
    ],
)
def test_bad_flags_are_refused(flags, message):
    device = Device()
    with pytest.raises(ConfigError, match=message):
        run_lab(arguments(*flags), device, device, "bf16")


def decode_point(batch, rate, **changes):
    point = Point(
        "decode", batch, batch, 192, batch / rate, 0.0, 1e12, 1e12, rate, 2 * rate, 0.1, 0.8, batch, "memory"
    )
    return replace(point, **changes)


def test_the_knee_is_explained_by_what_is_used_up():
    follows = [decode_point(b, 30.0 * b) for b in (1, 4, 16)]
    assert "still follow the batch" in explanation("decode", follows)
    flat = [*follows, decode_point(64, 500.0)]
    assert "flattens at batch 64: KV reads grow" in explanation("decode", flat)
    full = [*follows, decode_point(64, 500.0, bound="compute", mfu_frac=0.7)]
    assert "its FLOPs take as long" in explanation("decode", full)
    lost = [*follows, decode_point(64, 500.0, mbu_frac=0.2)]
    assert "neither ceiling is near" in explanation("decode", lost)
