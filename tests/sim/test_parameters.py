"""Parameter counts against what the publishers state, to the parameter where they give it."""

import pytest
from stepline.sim.cost.catalogue import known_models, load_model
from stepline.sim.cost.parameters import parameter_count, weight_bytes

# Total and active billions as the teaching text's MoE table states them, routed experts, top-k, shared experts.
SEED_TABLE = {
    "glam-64b-64e": (1200, 97, 64, 2, 0),
    "mixtral-8x7b": (47, 13, 8, 2, 0),
    "mixtral-8x22b": (141, 39, 8, 2, 0),
    "qwen1.5-moe-a2.7b": (14, 2.7, 60, 4, 4),
    "deepseek-v2": (236, 21, 160, 6, 2),
    "deepseek-v3": (671, 37, 256, 8, 1),
    "qwen3-235b-a22b": (235, 22, 128, 8, 0),
    "llama-4-scout": (109, 17, 16, 1, 1),
    "llama-4-maverick": (400, 17, 128, 1, 1),
}


@pytest.mark.parametrize("name", known_models(counts_only=True))
def test_total_is_the_published_one(name):
    model = load_model(name, counts_only=True)
    published = model.params_published[0]
    exact = published > 1e7 and published % 1e6 != 0  # a checkpoint's own count, not a rounded figure
    tolerance = 0 if exact else 0.035 if name.startswith("glam") else 0.005
    assert parameter_count(model).total == pytest.approx(published, rel=tolerance, abs=0)


def test_most_totals_are_exact_counts():
    models = [load_model(name) for name in known_models()]
    assert sum(parameter_count(m).total == m.params_published[0] for m in models) >= 50


@pytest.mark.parametrize("name", sorted(SEED_TABLE))
def test_the_seed_table_of_moe_models(name):
    total, active, n_experts, top_k, n_shared = SEED_TABLE[name]
    model = load_model(name, counts_only=True)
    count = parameter_count(model)
    assert count.total / 1e9 == pytest.approx(total, rel=0.035)
    # A publisher counts as active either everything or all but the input embedding (and never a vision tower).
    low, high = sorted((count.active_without_embedding / 1e9, (count.active - count.extra) / 1e9))
    assert low * 0.97 <= active <= high * 1.03
    assert (model.moe.n_experts, model.moe.top_k) == (n_experts, top_k)
    widths = model.moe.n_shared * model.moe.shared_size / model.moe.expert_size
    assert widths == n_shared  # Qwen1.5-MoE: one block as wide as four experts


def test_switch_total_holds_and_the_texts_active_figure_does_not():
    count = parameter_count(load_model("switch-c-2048", counts_only=True))
    assert count.total == pytest.approx(1571e9, rel=1e-3)
    assert count.active < 2e9  # top-1 of 2048 narrow experts: 1.8 B, not the 26 B of the text


def test_gpt_oss_active_counts_the_unembedding_only():
    for name, active in (("gpt-oss-120b", 5.13), ("gpt-oss-20b", 3.61)):
        assert parameter_count(load_model(name)).active_without_embedding / 1e9 == pytest.approx(
            active, abs=0.005
        )


def test_parts_sum_to_the_total():
    for name in known_models(counts_only=True):
        c = parameter_count(load_model(name, counts_only=True))
        parts = (
            c.attention,
            c.dense_ffn,
            c.router,
            c.experts,
            c.shared,
            c.embedding,
            c.lm_head,
            c.norms,
            c.extra,
        )
        assert sum(parts) == c.total
        assert c.active <= c.total


def test_maverick_alternates_dense_and_moe_layers():
    assert load_model("llama-4-maverick").n_moe_layers == 24
    assert load_model("deepseek-v3").n_moe_layers == 58


def test_weight_bytes_of_a_bf16_model_are_twice_its_parameters():
    model = load_model("llama-3.1-8b")
    assert weight_bytes(model) == 2 * parameter_count(model).total


@pytest.mark.parametrize("name", ["llama-3.1-70b", "mixtral-8x7b", "qwen3-235b-a22b"])
def test_a_tp_group_holds_at_least_the_model(name):
    model = load_model(name)
    whole = weight_bytes(model)
    for tp in (2, 4, 8):
        assert whole <= tp * weight_bytes(model, tp=tp) <= 1.02 * whole


def test_kv_projections_replicate_beyond_the_kv_heads():
    model = load_model("qwen3-30b-a3b")  # 4 KV heads
    kv = 2 * model.n_layers * model.hidden_size * 2 * 4 * model.head_dim
    norms = 2 * parameter_count(model).norms
    router = 2 * parameter_count(model).router
    replicated = 8 * weight_bytes(model, tp=8) - weight_bytes(model)
    assert replicated == pytest.approx(kv + 7 * (norms + router), rel=1e-3)


@pytest.mark.parametrize(("dtype", "size"), [("fp8", 1.0), ("int4", 0.515625), ("fp4", 0.53125)])
def test_quantised_linear_layers_keep_embeddings_wide(dtype, size):
    model = load_model("llama-3.1-8b")
    count = parameter_count(model)
    linear = count.attention + count.dense_ffn
    assert weight_bytes(model, dtype) == pytest.approx(size * linear + 2 * (count.total - linear))
