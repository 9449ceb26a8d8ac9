"""Operator amounts against numbers worked out by hand."""

import numpy as np
import pytest
from stepline.sim.cost import operators
from stepline.sim.cost.catalogue import load_model
from stepline.sim.cost.parameters import parameter_count
from stepline.traces.errors import ConfigError

LLAMA = load_model("llama-3.1-8b")


def test_linear_layers_hold_all_parameters_but_embedding_and_norms():
    held = sum(x.n * x.k * x.count for x in operators.linears(LLAMA))
    count = parameter_count(LLAMA)
    assert held == count.total - count.embedding - count.norms


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.1-70b", "llama-2-7b", "qwen3-32b", "mixtral-8x7b"])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_a_tp_group_holds_the_model_once_while_kv_heads_divide(name, tp):
    model = load_model(name)
    whole = {x.name: x for x in operators.linears(model)}
    for part in operators.linears(model, tp):
        if part.name == "router":  # every GPU routes for itself
            assert (part.n, part.k) == (whole["router"].n, whole["router"].k)
        else:
            assert part.n * part.k * tp == whole[part.name].n * whole[part.name].k


def test_kv_heads_are_replicated_once_tp_exceeds_them():
    assert operators.heads_per_gpu(LLAMA, 8) == (4, 1)
    assert operators.heads_per_gpu(LLAMA, 16) == (2, 1)


@pytest.mark.parametrize("tp", [0, 3, 64])
def test_tp_that_does_not_divide_the_heads_is_refused(tp):
    with pytest.raises(ConfigError, match=f"tp: got {tp}"):
        operators.heads_per_gpu(LLAMA, tp)


def test_pairs_count_every_query_against_every_visible_key():
    for chunk, done, window in [(5, 0, 3), (4, 7, 6), (6, 2, 100), (1, 9, 4), (8, 1, 1)]:
        brute = sum(min(done + i, window) for i in range(1, chunk + 1))
        assert operators.windowed_pairs(chunk, done, window) == brute
    assert operators.causal_pairs(6, 2) == sum(2 + i for i in range(1, 7))


def test_windowed_pairs_are_the_same_on_arrays():
    chunk, done = np.array([5.0, 4.0, 6.0]), np.array([0.0, 7.0, 2.0])
    expected = [operators.windowed_pairs(c, d, 6) for c, d in zip(chunk, done, strict=True)]
    assert operators.windowed_pairs(chunk, done, 6).tolist() == expected


def test_distinct_experts_by_uniform_routing_match_a_draw():
    rng = np.random.default_rng(0)
    n, k, tokens = 16, 2, 5
    draws = [len({e for _ in range(tokens) for e in rng.choice(n, k, replace=False)}) for _ in range(4000)]
    standard_error = np.std(draws) / np.sqrt(len(draws))
    assert abs(operators.distinct_experts(tokens, n, k) - np.mean(draws)) < 4 * standard_error


def test_distinct_experts_are_k_for_one_token_and_n_for_many():
    assert operators.distinct_experts(1, 64, 6) == pytest.approx(6)
    assert operators.distinct_experts(1e5, 64, 6) == pytest.approx(64)
    assert operators.distinct_experts(1, 64, 6, skew=1.2) == pytest.approx(6)


def test_skewed_routing_touches_fewer_experts():
    assert operators.distinct_experts(20, 64, 6, skew=1.2) < operators.distinct_experts(20, 64, 6)


def test_expert_probabilities_sum_to_k_and_none_exceeds_one():
    p = operators.expert_probabilities(8, 3, 3.0)
    assert p.sum() == pytest.approx(3)
    assert p.max() <= 1 + 1e-12
    assert (np.diff(p) <= 1e-12).all()


def test_the_busiest_gpu_holds_its_share_when_balanced_and_more_when_skewed():
    even = operators.MoeShape(hidden=8, expert=8, n_experts=64, top_k=4, ep=8)
    skewed = operators.MoeShape(hidden=8, expert=8, n_experts=64, top_k=4, ep=8, skew=1.2)
    assert operators.busiest_share(even) == 1 / 8
    assert operators.busiest_share(skewed) > 1 / 8


def test_int4_weights_carry_their_group_scales():
    assert operators.gemm_weight_bytes(4096, 4096, "int4") == pytest.approx(4096 * 4096 * (0.5 + 2 / 128))


def test_lm_head_and_router_of_a_quantised_model_stay_bf16():
    from dataclasses import replace

    model = replace(load_model("mixtral-8x7b"), weight_dtype="int4")
    kept = {x.name: operators.linear_dtype(model, x) for x in operators.linears(model)}
    assert kept["lm_head"] == kept["router"] == "bf16"
    assert kept["qkv"] == "int4"


def test_an_unknown_dtype_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'bf16'"):
        operators.bytes_per_element("bf61")


def test_fusing_norms_and_adds_saves_launches_and_bytes():
    fused = operators.elementwise_bytes(LLAMA, 10.0)
    apart = operators.elementwise_bytes(LLAMA, 10.0, fused=False)
    assert len(fused) < len(apart)
    assert sum(fused.values()) < sum(apart.values())


def test_latent_attention_projects_through_its_ranks():
    model = load_model("deepseek-v3")
    mla = model.mla
    by_name = {x.name: x for x in operators.attention_linears(model)}
    assert by_name["q_kv_down"].n == mla.q_lora_rank + mla.kv_lora_rank + mla.qk_rope_head_dim
    assert by_name["kv_up"].k == mla.kv_lora_rank
    assert operators.latent_bytes(1.0, mla.kv_lora_rank, mla.qk_rope_head_dim) == 1152.0
