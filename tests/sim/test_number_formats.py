"""Narrow weights and KV: what they save in room and in traffic, exactly, and how sure their speed is."""

from dataclasses import replace

import pytest
from stepline.sim.cost import operators
from stepline.sim.cost.calibration import find_calibration
from stepline.sim.cost.catalogue import load_gpu, load_model
from stepline.sim.cost.datasheet import DatasheetCostModel
from stepline.sim.cost.memory import kv_block_bytes, kv_ledger
from stepline.sim.cost.uncertainty import TRANSFERRED_SD, unseen_sd
from stepline.sim.cost.work import StepWork
from stepline.sim.study.config import RunConfig
from stepline.sim.study.setup import resolve

H200 = load_gpu("h200")
LLAMA = load_model("llama-3.1-70b")
WEIGHT_BITS = {"bf16": 16, "fp8": 8, "int8": 8, "int4": 4 + 16 / 128, "fp4": 4 + 8 / 32}
KV_BITS = {"bf16": 16, "fp8": 8, "int8": 8, "int4": 4, "fp4": 4}


def linear_weights(model):
    """Weights of the layers' linear layers: what a quantiser narrows."""
    return sum(x.n * x.k * x.count for x in operators.linears(model) if x.kernel == "gemm")


@pytest.mark.parametrize("dtype", sorted(WEIGHT_BITS))
def test_a_decode_reads_the_weights_in_their_format(dtype):
    wide, narrow = (
        DatasheetCostModel(replace(LLAMA, weight_dtype=d), H200)
        .explain(StepWork(0, 0, 0, 0, 1, (1,), 1))
        .hbm_bytes
        for d in ("bf16", dtype)
    )
    assert wide - narrow == pytest.approx(linear_weights(LLAMA) * (16 - WEIGHT_BITS[dtype]) / 8, rel=1e-9)


@pytest.mark.parametrize("dtype", sorted(WEIGHT_BITS))
def test_the_ledger_holds_the_weights_in_their_format(dtype):
    held = {
        d: kv_ledger(load_model("llama-3.1-8b"), H200, weight_dtype=d).weights_bytes for d in ("bf16", dtype)
    }
    saved = linear_weights(load_model("llama-3.1-8b")) * (16 - WEIGHT_BITS[dtype]) / 8
    assert held["bf16"] - held[dtype] == pytest.approx(
        saved, rel=0.02
    )  # allocation granularity, scales of a row


@pytest.mark.parametrize("dtype", sorted(KV_BITS))
@pytest.mark.parametrize("name", ["llama-3.1-70b", "deepseek-v2-lite"])
def test_a_cached_token_takes_the_same_bytes_in_room_and_in_traffic(dtype, name):
    model = load_model(name)
    one, more = (
        DatasheetCostModel(model, H200, kv_dtype=dtype).explain(StepWork(0, 0, 0, 0, 1, (c,), 1)).hbm_bytes
        for c in (1000, 1016)
    )
    elements = model.mla.kv_lora_rank + model.mla.qk_rope_head_dim if model.mla else 2 * 8 * 128
    assert more - one == pytest.approx(16 * model.n_layers * elements * KV_BITS[dtype] / 8, rel=1e-6)
    assert kv_block_bytes(model, kv_dtype=dtype, block_size=16) == pytest.approx(more - one, rel=1e-6)


def test_int4_weights_on_bf16_units_gain_in_a_decode_and_nothing_in_a_long_prompt():
    """w4a16 kernels dequantise to bf16 (Marlin): fewer bytes, the same FLOP/s."""
    wide, narrow = (DatasheetCostModel(replace(LLAMA, weight_dtype=d), H200) for d in ("bf16", "int4"))
    decode = StepWork(0, 0, 0, 0, 1, (1000,), 1)
    assert 3.3 < wide.step_s(decode) / narrow.step_s(decode) < 4.0
    prompt = StepWork(8192, 1, 8192 * 8193 // 2, 8192, 0, (0,), 1)
    assert narrow.step_s(prompt) == pytest.approx(wide.step_s(prompt), rel=0.02)


def test_int4_says_how_unsure_it_is():
    """No table times int4 kernels: the warning names 15 to 30 %, the draws of `--uncertainty` have 20 % and more."""
    found = find_calibration("h100-sxm", "int4")
    assert unseen_sd(found.kernels["gemm"]) == TRANSFERRED_SD
    setup = resolve(RunConfig(dtype="int4"))
    assert any("expect errors of 15 to 30 %" in text for text in setup.warnings)
