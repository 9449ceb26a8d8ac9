"""Kernels as they would be: attention back ends, elementwise kernels apart, eager launches."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from stepline.sim import simulate, summary
from stepline.sim.cli.main import main
from stepline.sim.cost import attention_costs, operators
from stepline.sim.cost.attention_backends import BACKENDS, SCORE_PASSES, NaivePrefill
from stepline.sim.cost.calibration import find_calibration
from stepline.sim.cost.catalogue import load_engine, load_gpu, load_model
from stepline.sim.cost.datasheet import datasheet_calibration
from stepline.sim.cost.roofline import RooflineCostModel, context_column
from stepline.sim.cost.specs import EngineProfile
from stepline.sim.cost.work import StepWork
from stepline.sim.study import config
from stepline.traces.errors import ConfigError

H100 = load_gpu("h100-sxm")
SERIAL = EngineProfile(name="serial", step_host_s=1e-3, step_host_per_seq_s=1e-5, eager_launch_s=2e-5)
STEPS = (
    StepWork(n_decode=1, context_tokens=(100,), logits_rows=1),
    StepWork(n_decode=40, context_tokens=(40_000,), logits_rows=40),
    StepWork(700, 2, 500_000, 1300, 0, (0,), 2),
    StepWork(700, 1, 700 * 600 + 350 * 701, 1300, 12, (9_000,), 13),
)


@cache
def priced(name="llama-3.1-8b", engine="ideal", tp=1, **options):
    profile = SERIAL if engine == "serial" else load_engine(engine)
    return RooflineCostModel(
        load_model(name), H100, find_calibration("h100-sxm"), tp=tp, engine=profile, **options
    )


def columns(work):
    found = {k: np.array([float(v)]) for k, v in work._asdict().items() if k != "context_tokens"}
    return found | {context_column(i): np.array([float(c)]) for i, c in enumerate(work.context_tokens)}


def test_the_flag_knows_every_back_end():
    assert set(BACKENDS) == set(config.BACKENDS)


@pytest.mark.parametrize("backend", ["naive", "flash"])
@pytest.mark.parametrize("engine", ["vllm-v1", "serial"])
@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("work", STEPS)
def test_breakdowns_sum_to_the_step(backend, engine, eager, work):
    model = priced(engine=engine, attention_backend=backend, enforce_eager=eager)
    seconds, flops, moved = model.explain_many(columns(work))
    assert sum(s[0] for split in seconds.values() for s in split.values()) == pytest.approx(
        model.step_s(work)
    )
    assert model.step_s(work) > max(flops[0] / H100.peak_flops["bf16"], moved[0] / H100.hbm_bytes_per_s)


@pytest.mark.parametrize("backend", ["naive", "flash"])
@pytest.mark.parametrize("engine", ["vllm-v1", "serial"])
@pytest.mark.parametrize("eager", [False, True])
def test_a_leap_is_its_steps_and_its_line(backend, engine, eager):
    model = priced(engine=engine, attention_backend=backend, enforce_eager=eager)
    n, context = 30, 200_000
    work = StepWork(n_decode=n, context_tokens=(context,), logits_rows=n)
    first, delta, steps = model.leap(work, (n,), 5_000)
    assert steps > 1
    for i in (0, steps - 1):
        then = context + i * n
        one = model.step_s(work._replace(context_tokens=(then,)))
        assert first + i * delta == pytest.approx(one, rel=1e-9)
        ends, pieces = model.decode_lines[n]
        fixed, slope = pieces[next(k for k, end in enumerate(ends) if end >= then)]
        assert fixed + slope * then == pytest.approx(one, rel=1e-9)


def test_the_score_matrix_of_8000_tokens_and_32_heads_is_4_gb_and_crosses_memory_four_times():
    model, tokens = load_model("llama-2-7b"), 8000
    shape = attention_costs.prefill_shape(model, 1, "bf16")
    sheet = datasheet_calibration("h100-sxm").kernels
    naive = NaivePrefill(shape, sheet["gemm"], sheet["elementwise"], H100, 1e15, layers=1)
    one = np.array([1.0])
    causal = one * tokens * (tokens + 1) / 2
    _, flops, moved = naive.split(one * tokens, one, causal, one * tokens)
    once = operators.query_bytes(tokens, 32, 128) + operators.kv_bytes(tokens, 32, 128)
    assert moved[0] - once == pytest.approx(SCORE_PASSES * 4.096e9)  # 8000² · 32 heads · 2 bytes
    assert flops[0] == 4 * 8000**2 * 32 * 128  # the masked half is computed too


def test_flash_attention_moves_no_scores():
    work = StepWork(8000, 1, 8000 * 8001 // 2, 8000, 0, (0,), 1)
    moved = [
        priced("llama-2-7b", attention_backend=b).explain_many(columns(work))[2][0] for b in ("auto", "naive")
    ]
    assert moved[1] - moved[0] == pytest.approx(32 * SCORE_PASSES * 4.096e9)


def test_naive_attention_of_long_prompts_is_many_times_slower():
    """FlashAttention-2 (Dao 2023, figure 4): 3 to 10 times standard attention's speed at 2 k to 16 k tokens."""
    work = StepWork(8192, 1, 8192 * 8193 // 2, 8192, 0, (0,), 1)
    flash, naive = (
        sum(priced("llama-2-7b", attention_backend=b).explain(work).seconds["attention_prefill"].values())
        for b in ("auto", "naive")
    )
    assert 3 < naive / flash < 12


def test_a_lone_decode_without_split_keys_uses_one_processor_a_kv_head():
    split, unsplit = priced("llama-3.1-8b", residual=False), priced("llama-3.1-8b", attention_backend="flash")
    for n, crowding in ((1, H100.n_sm / 8), (8, H100.n_sm / 64), (17, 1.0), (200, 1.0)):
        slopes = [m._decode[0].segments(n)[2][0] for m in (split, unsplit)]
        assert slopes[1] == pytest.approx(crowding * slopes[0])


def test_flash_decoding_splits_the_history_of_chunks():
    assert priced(attention_backend="flash-decoding").history_rule == "split-kv"
    assert priced(attention_backend="flash").history_rule == "work"
    assert priced(engine="vllm-v1").history_rule == load_engine("vllm-v1").chunk_history


def test_latents_have_no_naive_attention():
    with pytest.raises(ConfigError, match="naive attention of the latents"):
        priced("deepseek-v2-lite", attention_backend="naive")


def test_a_llama_layer_launches_ten_kernels():
    """qkv, out, gate-up, down; two norms, rope, activation; attention and the write of its keys."""
    assert priced().launches == 32 * 10 + 3  # final norm, embedding, LM head
    assert priced(fused_elementwise=False).launches == 32 * 12 + 3
    assert priced(tp=2).launches == 32 * 12 + 4  # two all-reduces a layer, one all-gather of the logits


def test_steps_with_prompts_wait_for_their_launches_and_decodes_do_not():
    """An engine whose graphs hold decodes alone: the floor of a step is there once, however many prompts it has."""
    graphs = replace(load_engine("ideal"), host_overlaps_gpu=True)
    launching = replace(graphs, prompt_launch_s=5e-5)
    plain, late = (
        RooflineCostModel(load_model("llama-3.1-8b"), H100, priced().calibration, engine=e)
        for e in (graphs, launching)
    )
    decodes = StepWork(n_decode=8, context_tokens=(8000,), logits_rows=8)
    assert late.step_s(decodes) == plain.step_s(decodes)
    one = StepWork(64, 1, 64 * 65 // 2, 64, 0, (0,), 1)
    two = StepWork(128, 2, 64 * 65, 128, 0, (0,), 2)
    long = StepWork(8192, 1, 8192 * 8193 // 2, 8192, 0, (0,), 1)
    assert late.step_s(one) == late.step_s(two) == pytest.approx(late.launches * 5e-5)
    assert late.step_s(long) == plain.step_s(long)
    for work in (decodes, one, two, long):
        assert late.explain(work).total_s == pytest.approx(late.step_s(work))


def test_eager_launches_bind_small_steps_and_leave_large_ones():
    graphs, eager = priced(engine="vllm-v1"), priced(engine="vllm-v1", enforce_eager=True)
    profile = load_engine("vllm-v1")
    small = STEPS[0]
    host_s = profile.step_host_s + profile.step_host_per_seq_s
    assert eager.step_s(small) == pytest.approx(eager.launches * profile.eager_launch_s + host_s)
    large = StepWork(8192, 1, 8192 * 8193 // 2, 8192, 0, (0,), 1)
    assert eager.step_s(large) == graphs.step_s(large)


def test_without_graphs_batches_are_not_padded():
    eager = replace(load_engine("vllm-v1"), eager_launch_s=1e-12, name="free")
    model = load_model("llama-3.1-8b")
    nine, sixteen = (
        RooflineCostModel(model, H100, find_calibration("h100-sxm"), engine=eager, enforce_eager=True).step_s(
            StepWork(n_decode=n, context_tokens=(9000,), logits_rows=n)
        )
        for n in (9, 16)
    )
    assert nine < sixteen


def test_an_engine_without_a_launch_cost_has_no_eager_mode():
    with pytest.raises(ConfigError, match="engine ideal has no eager mode"):
        priced(enforce_eager=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention_backend": "naive"},
        {"attention_backend": "flash"},
        {"elementwise": "separate"},
        {"enforce_eager": True},
    ],
)
def test_each_what_if_slows_a_run_and_is_on_record(settings, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 3000, "output_length": 20}\n')
    plain, asked = simulate(path), simulate(path, **settings)
    assert summary(asked)["e2e_s"]["mean"] > summary(plain)["e2e_s"]["mean"]
    assert asked.config.items() >= settings.items()


def test_a_bare_switch_is_on_and_two_values_are_compared(tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 300, "output_length": 20}\n')
    common = ["--trace", str(path), "--no-save", "--json"]
    assert main([*common, "--enforce-eager"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert main([*common, "--enforce-eager", "false,true"]) == 0
    both = json.loads(capsys.readouterr().out)["runs"]
    assert both["enforce-eager=True"]["tpot_s"] == alone["tpot_s"]
    assert both["enforce-eager=False"]["tpot_s"]["mean"] < alone["tpot_s"]["mean"]
