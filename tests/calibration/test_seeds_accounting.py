"""The per-kernel accounting agrees with the whole-model operators and with hand-drawn numbers."""

from __future__ import annotations

import json

import pytest
from stepline.calibration.seeds.accounting import account, step_shape, total
from stepline.calibration.seeds.cli import add_arguments, run
from stepline.sim.cost.catalogue import known_models, load_gpu, load_model
from stepline.sim.cost.operators import kv_bytes_per_token
from stepline.sim.cost.parameters import parameter_count
from stepline.traces.errors import ConfigError

H100 = load_gpu("h100-sxm")


def priced_models():
    for name in known_models():
        try:
            yield load_model(name)
        except ConfigError:
            continue  # counts only


@pytest.mark.parametrize("model", list(priced_models()), ids=lambda m: m.name)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_every_model_is_accounted_for_and_linear_flops_are_twice_its_active_weights(model, phase):
    shape = step_shape(phase, 3, 100)
    kernels = {a.name: a for a in account(model, shape)}
    count = parameter_count(model)
    head = kernels["lm_head"].flops / 2 / shape.batch
    body = sum(k.flops for k in kernels.values() if k.weight_bytes and k.name != "lm_head") / 2 / shape.tokens
    assert head == model.vocab_size * model.hidden_size
    active = count.attention + count.dense_ffn + count.router + count.experts_active + count.shared
    assert body == pytest.approx(active, rel=2e-3)  # biases and per-head norms are weights without products
    assert all(k.flops > 0 and k.bytes > 0 for k in kernels.values())


def test_kv_of_a_decode_is_what_the_cache_holds():
    model = load_model("llama-3-8b")
    attention = {a.name: a for a in account(model, step_shape("decode", 16, 2048))}["attention"]
    assert attention.kv_bytes == 16 * 2048 * kv_bytes_per_token(model)


def test_anchor_8b_decode_floor_is_4_52_ms_of_weights_head_and_kv():
    step = total(account(load_model("llama-3-8b"), step_shape("decode", 1, 1000)))
    assert (step.weight_bytes + step.kv_bytes) / H100.hbm_bytes_per_s == pytest.approx(4.52e-3, rel=2e-3)


def test_a_window_caps_what_attention_reads():
    model = load_model("mistral-7b-v0.1")
    at = {
        c: {a.name: a for a in account(model, step_shape("decode", 1, c))}["attention"]
        for c in (4096, 8192, 16384)
    }
    assert at[8192].kv_bytes == at[16384].kv_bytes == at[4096].kv_bytes
    assert at[8192].flops == at[16384].flops


def test_decode_of_an_8b_is_memory_bound_and_turns_compute_bound_past_the_ridge():
    model = load_model("llama-3-8b")
    regime = {
        b: {a.name: a.regime(H100) for a in account(model, step_shape("decode", b, 128))}["ffn_up"]
        for b in (64, 512)
    }
    assert regime == {64: "memory", 512: "compute"}


def test_tensor_parallelism_divides_weights_and_kv():
    model = load_model("llama-3-70b")
    whole, part = (total(account(model, step_shape("decode", 32, 4096), tp=tp)) for tp in (1, 8))
    assert part.weight_bytes == pytest.approx(whole.weight_bytes / 8)
    assert part.kv_bytes == pytest.approx(whole.kv_bytes / 8)


def test_a_layer_is_one_of_all_of_them():
    model = load_model("llama-3-8b")
    shape = step_shape("decode", 4, 512)
    one, all_ = ({a.name: a for a in account(model, shape, layers=n)} for n in (1, None))
    assert all_["ffn_up"].weight_bytes == 32 * one["ffn_up"].weight_bytes
    assert all_["lm_head"] == one["lm_head"]


def seeds(capsys, *flags):
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    code = run(parser.parse_args([*flags]))
    return code, capsys.readouterr()


def test_the_command_lists_what_does_not_hold(capsys):
    code, said = seeds(capsys)
    assert code == 0
    assert said.err == "134 figures: 94 ok, 25 loose, 15 wrong\n"
    assert len([line for line in said.out.splitlines() if not line.startswith(" " * 8)]) == 1 + 25 + 15
    code, said = seeds(capsys, "--all", "--json")
    assert len(json.loads(said.out)) == 134


def test_the_command_accounts_for_both_phases(capsys):
    _, said = seeds(capsys, "--accounting", "--model", "mixtral-8x7b", "--batch", "8", "--json")
    answer = json.loads(said.out)
    assert list(answer) == ["prefill", "decode"]
    names = [row["kernel"] for row in answer["decode"]]
    assert names[0] == "norm_1"
    assert names[-3:] == ["lm_head", "sampling", "layer + head"]
    assert "experts" in names


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--question", "6"), "expected 1 to 5"),
        (("--batch", "4"), "--batch: only used with --accounting"),
        (("--accounting", "--batch", "0"), "expected both >= 1"),
        (("--accounting", "--model", "lama-3-8b"), "llama-3-8b"),
    ],
)
def test_bad_flags_are_refused_with_a_reason(capsys, flags, message):
    with pytest.raises(ConfigError, match=message):
        seeds(capsys, *flags)
