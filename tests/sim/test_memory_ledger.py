"""The memory ledger: laws, hand-checked parts, refusals with advice. Accuracy is in tests/calibration/test_memory_fit."""

import re

import pytest
from stepline.sim.cost.catalogue import (
    known_engines,
    known_gpus,
    known_models,
    load_engine,
    load_gpu,
    load_model,
)
from stepline.sim.cost.memory import check_fits, kv_block_bytes, kv_groups, kv_ledger
from stepline.sim.cost.memory_constants import memory_constants
from stepline.sim.cost.parameters import weight_bytes
from stepline.sim.cost.weight_tensors import MIB, allocated_bytes, stage_layers, weight_memory
from stepline.traces.errors import ConfigError

H100 = load_gpu("h100-sxm")
RUN = {"engine": load_engine("vllm-0.15.1")}


def ledger(name="llama-3.1-8b", **flags):
    return kv_ledger(load_model(name), H100, **{**RUN, **flags})


def test_the_parts_sum_to_the_budget():
    books = ledger()
    parts = books.weights_bytes + books.activation_bytes + books.non_torch_bytes + books.kv_bytes
    assert parts == pytest.approx(0.9 * H100.memory_bytes)
    assert books.n_blocks == int(books.kv_bytes // books.block_bytes)
    assert books.usable_blocks == books.n_blocks - 1


def test_block_bytes_are_two_k_d_layers():
    assert ledger().block_bytes == 2 * 8 * 128 * 2 * 32 * 16
    assert ledger(tp=2).block_bytes == 2 * 4 * 128 * 2 * 32 * 16
    assert ledger(kv_dtype="fp8").block_bytes == ledger().block_bytes / 2
    assert ledger("deepseek-v2-lite").block_bytes == (512 + 64) * 2 * 27 * 16
    assert kv_block_bytes(load_model("llama-3.1-70b"), block_size=1) == 327680


def test_mla_and_replicated_kv_heads_do_not_shrink_with_tp():
    lite = "deepseek-v2-lite"
    assert ledger(lite, tp=2).block_bytes == ledger(lite).block_bytes
    qwen = "qwen3-30b-a3b"  # 4 KV heads
    assert ledger(qwen, tp=8).block_bytes == ledger(qwen, tp=4).block_bytes


@pytest.mark.parametrize(
    ("name", "layers", "groups"),
    [
        ("gemma-2-2b", 13, 2),
        ("gemma-3-12b", 8, 6),
        ("gemma-3-27b", 10, 7),  # 52 local layers in six groups of ten, the last padded
        ("gpt-oss-20b", 12, 2),
        ("llama-3.1-8b", 32, 1),
        ("mistral-7b-v0.1", 32, 1),
        ("llama-4-scout", 48, 1),  # chunked attention: no groups
    ],
)
def test_layers_of_different_windows_share_a_pool_in_groups(name, layers, groups):
    assert kv_groups(load_model(name)) == (layers, groups)


def test_grouped_tokens_count_every_group():
    books = ledger("gemma-2-9b")
    assert books.kv_tokens == books.n_blocks // 2 * 16
    assert books.token_blocks * 2 <= books.n_blocks


def test_the_allocator_rounds_large_tensors_only():
    assert allocated_bytes(1) == 512
    assert allocated_bytes(9 * MIB) == 9 * MIB
    assert allocated_bytes(31.5 * MIB) == 32 * MIB  # a rest of half a MiB stays with the tensor
    assert allocated_bytes(24.5 * MIB) == 24.5 * MIB  # one of 1.5 MiB is split off
    assert allocated_bytes(259 * MIB) == 260 * MIB


@pytest.mark.parametrize("name", known_models())
def test_held_weights_cover_the_parameters(name):
    model = load_model(name)
    for tp in (1, 2, 4):
        if model.n_heads % tp or model.ffn_size % tp or (model.n_kv_heads % tp and tp % model.n_kv_heads):
            continue
        held = weight_memory(model, tp=tp)[0]
        # At most: rotary tables, allocator rounding, absorbed MLA projections, padded experts.
        assert 0.99 * weight_bytes(model, tp=tp) <= held <= 1.25 * weight_bytes(model, tp=tp) + 3 * 2**30


def test_stages_hold_the_whole_model_between_them():
    model = load_model("llama-3.1-8b")
    one, four = weight_memory(model)[0], weight_memory(model, pp=4)
    rope = model.rope_rows * model.head_dim * 2
    assert sum(four) == pytest.approx(one + 3 * rope)
    assert sum(stage_layers(62, 4)) == 62


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ({"gpu_memory_utilization": 0.95}, {"gpu_memory_utilization": 0.8}),
        ({"max_num_batched_tokens": 2048}, {"max_num_batched_tokens": 65536}),
        ({"max_num_seqs": 128}, {"max_num_seqs": 2048, "max_num_batched_tokens": 4096}),
        ({"weight_dtype": "fp8"}, {"weight_dtype": "bf16"}),
        ({"kv_dtype": "fp8"}, {"kv_dtype": "bf16"}),
        ({"tp": 2}, {"tp": 1}),
        ({"block_size": 16}, {"block_size": 32}),
    ],
)
def test_what_takes_less_leaves_more_blocks(more, less):
    assert ledger(**more).n_blocks > ledger(**less).n_blocks


def test_the_ideal_engine_gives_weights_and_kv_everything():
    books = ledger(engine=load_engine("ideal"))
    weights = weight_memory(load_model("llama-3.1-8b"))[0]
    assert books.kv_bytes == pytest.approx(0.9 * H100.memory_bytes - weights)


@pytest.mark.parametrize("engine", known_engines())
@pytest.mark.parametrize("gpu", ["h100-sxm", "h200", "b200", "a100-80", "l40s"])
def test_every_engine_and_gpu_leaves_a_sane_pool(engine, gpu):
    card = load_gpu(gpu)
    books = kv_ledger(load_model("llama-3.1-8b"), card, engine=load_engine(engine))
    assert 0.3 * card.memory_bytes < books.kv_bytes < card.memory_bytes - 15 * 2**30


def test_every_engine_has_memory_constants_and_unknown_ones_are_refused():
    for name in known_engines():
        assert memory_constants(load_engine(name)).source
    with pytest.raises(ConfigError, match=r"did you mean 'vllm-0\.19'"):
        memory_constants("vllm-0.91")


def test_non_torch_between_and_beyond_measured_sizes_follows_log_tp():
    constants = memory_constants("vllm-0.19")
    step = constants.non_torch_bytes(4) - constants.non_torch_bytes(2)
    assert constants.non_torch_bytes(8) == pytest.approx(constants.non_torch_bytes(4) + step)


def test_a_model_that_does_not_fit_says_what_would():
    with pytest.raises(ConfigError) as caught:
        ledger("llama-3.1-70b")
    text = str(caught.value)
    assert re.search(r"llama-3.1-70b does not fit on 1 x h100-sxm: weights 131\.\d GiB", text)
    assert "--tp 4" in text or "--tp 2" in text
    assert "fp8 weights" in text
    assert "--gpu " in text


def test_every_piece_of_advice_is_true():
    model = load_model("llama-3.1-70b")
    with pytest.raises(ConfigError) as caught:
        kv_ledger(model, H100, **RUN)
    text = str(caught.value)
    tp = int(re.search(r"--tp (\d)", text).group(1))
    assert check_fits(model, H100, tp=tp, **RUN).n_blocks > 1
    gpu = re.search(r"--gpu (\S+)", text).group(1)
    assert gpu in known_gpus()
    assert check_fits(model, load_gpu(gpu), **RUN).n_blocks > 1
    dtype = re.search(r"(fp8|int4) weights", text).group(1)
    assert check_fits(model, H100, weight_dtype=dtype, **RUN).n_blocks > 1


def test_a_model_that_fits_nowhere_says_so():
    with pytest.raises(ConfigError, match="does not fit"):
        kv_ledger(load_model("llama-3.1-405b"), load_gpu("l4"), **RUN)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tp": 3}, "tensor_parallel_size: got 3, expected a divisor of the 32 query heads"),
        ({"tp": 0}, "tensor_parallel_size: got 0"),
        ({"pp": 33}, "pipeline_parallel_size: got 33"),
        ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization: got 0.0"),
        ({"gpu_memory_utilization": 1.2}, "gpu_memory_utilization: got 1.2"),
        ({"gpu_memory_utilization": 0.999}, "gpu_memory_utilization: got 0.999, expected at most 0.99"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens: got 0"),
        ({"max_num_seqs": -1}, "max_num_seqs: got -1"),
        ({"block_size": 0}, "block_size: got 0"),
        ({"max_model_len": 10**6}, "max_model_len: got 1000000, but the KV cache"),
    ],
)
def test_wrong_flags_are_refused(flags, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        ledger(**flags)


def test_kv_heads_that_cannot_be_split_are_refused():
    with pytest.raises(ConfigError, match="10 KV heads"):
        ledger("phi-4", tp=4)
