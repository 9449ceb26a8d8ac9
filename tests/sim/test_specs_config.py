"""A Hugging Face config.json as a ModelSpec; what would be mis-priced is refused with the field's name."""

import json

import pytest
from stepline.sim.cost.catalogue import load_model
from stepline.sim.cost.model_config import model_from_config
from stepline.sim.cost.parameters import parameter_count
from stepline.traces.errors import ConfigError

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
}


def config(**changes):
    return {k: v for k, v in {**LLAMA, **changes}.items() if v is not ...}


def test_a_users_file_gives_the_built_in_shape(tmp_path):
    folder = tmp_path / "my-llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    built_in = load_model("llama-3.1-8b")
    for path in (folder, folder / "config.json", str(folder), str(folder / "config.json")):
        mine = load_model(path)
        assert mine.name == "my-llama"
        assert parameter_count(mine) == parameter_count(built_in)
        assert mine.rope_rows == built_in.rope_rows


def test_attention_kinds():
    assert model_from_config(config(num_key_value_heads=...)).n_kv_heads == 32
    assert model_from_config(config(num_key_value_heads=1)).n_kv_heads == 1
    assert model_from_config(config(head_dim=256)).head_dim == 256


def test_gpt2_is_classic():
    model = load_model("gpt2")
    assert (model.gated_ffn, model.ffn_size, model.learned_positions) == (False, 3072, 1024)
    assert model.tie_embeddings
    assert model.norm == "layer"


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"model_type": ...}, "model_type", "expected one of"),
        ({"model_type": "lama"}, "model_type", "did you mean 'llama'"),
        ({"model_type": "mamba2"}, "model_type", "is not modelled"),
        ({"hidden_size": ...}, "hidden_size", "missing"),
        ({"hidden_size": -4}, "hidden_size", "got -4"),
        ({"hidden_size": 4096.5}, "hidden_size", "got 4096.5"),
        ({"hidden_size": True}, "hidden_size", "got True"),
        ({"hidden_size": 4100}, "hidden_size", "a multiple of the 32 heads"),
        ({"num_key_value_heads": 5}, "num_key_value_heads", "a divisor of the 32 query heads"),
        ({"num_local_experts": 8}, "num_local_experts", "experts is not modelled"),
        ({"kv_lora_rank": 512}, "kv_lora_rank", "latent attention is not modelled"),
        ({"layer_types": ["linear_attention"] * 32}, "layer_types", "linear_attention"),
        ({"model_type": "blip", "text_config": {}}, "text_config", "model_type 'blip' is not modelled"),
        ({"language_config": {}}, "language_config", "multimodal"),
        ({"torch_dtype": "float8_e5m2"}, "torch_dtype", "float8_e5m2"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quant_method", "'hqq'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "bits", "got 3"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings", "true or false"),
    ],
)
def test_what_is_not_modelled_is_refused(changes, field, expected):
    with pytest.raises(ConfigError) as caught:
        model_from_config(config(**changes))
    assert field in str(caught.value)
    assert expected in str(caught.value)


def test_more_active_experts_than_experts_is_refused():
    mixtral = config(model_type="mixtral", num_local_experts=4, num_experts_per_tok=8)
    with pytest.raises(ConfigError, match="num_experts_per_tok: got 8"):
        model_from_config(mixtral)


def test_qwen_window_needs_its_switch():
    window = {"sliding_window": 4096, "max_window_layers": 20}
    qwen = config(model_type="qwen2", **window)
    assert model_from_config(qwen).windows == ((None, 32),)
    assert model_from_config(qwen | {"use_sliding_window": True}).windows == ((None, 20), (4096, 12))


def test_layer_types_win_over_the_pattern():
    kinds = ["sliding_attention"] * 30 + ["full_attention"] * 2
    gemma = config(model_type="gemma2", sliding_window=1024, layer_types=kinds, head_dim=128)
    assert model_from_config(gemma).windows == ((None, 2), (1024, 30))
    with pytest.raises(ConfigError, match="layer_types: got '3 entries'"):
        model_from_config(gemma | {"layer_types": kinds[:3]})


@pytest.mark.parametrize(
    ("quantised", "weights", "attention"),
    [
        ({"quant_method": "fp8"}, "fp8", None),
        ({"quant_method": "awq", "bits": 4}, "int4", None),
        ({"quant_method": "gptq", "bits": 8}, "int8", None),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4", None),
        ({"quant_method": "mxfp4"}, "fp4", "bf16"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
                "ignore": ["lm_head"],
            },
            "fp8",
            None,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
                "ignore": ["re:.*self_attn"],
            },
            "int4",
            "bf16",
        ),
    ],
)
def test_quantised_checkpoints(quantised, weights, attention):
    model = model_from_config(config(quantization_config=quantised))
    assert (model.weight_dtype, model.attention_dtype) == (weights, attention)


def test_files_that_are_no_config(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_model(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        load_model(path)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="expected a JSON object"):
        load_model(path)


GEMMA3 = {
    "model_type": "gemma3",
    "mm_tokens_per_image": 256,
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "image_size": 896,
        "patch_size": 14,
    },
}


def test_a_published_multimodal_config_is_its_text_part_and_a_tower():
    mine, built_in = model_from_config(GEMMA3), load_model("gemma-3-4b")
    ours, theirs = parameter_count(mine), parameter_count(built_in)
    assert ours.total - ours.extra == theirs.total - theirs.extra
    assert ours.extra == pytest.approx(theirs.extra, rel=0.08)
    assert (mine.windows, mine.vision, mine.rope_rows) == (
        built_in.windows,
        built_in.vision,
        built_in.rope_rows,
    )


def test_a_tower_of_unknown_shape_is_refused():
    tower = {k: v for k, v in GEMMA3["vision_config"].items() if k != "patch_size"}
    with pytest.raises(ConfigError, match="vision_config: patch_size: missing"):
        model_from_config(GEMMA3 | {"vision_config": tower})


@pytest.mark.parametrize(
    ("kind", "built_in", "vision"),
    [
        ("mistral3", "mistral-small-3.1-24b", (1024, 4096, 24, 1540, 14)),
        ("llama4", "llama-4-scout", (1408, 5632, 34, 336, 14)),
    ],
)
def test_other_towers_come_close_to_the_published_ones(kind, built_in, vision):
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "image_size", "patch_size")
    text = config(model_type=...)
    if kind == "llama4":
        text |= {"num_local_experts": 16, "num_experts_per_tok": 1, "attention_chunk_size": 8192}
    wrapped = {"model_type": kind, "text_config": text, "vision_config": dict(zip(keys, vision, strict=True))}
    mine, theirs = model_from_config(wrapped), load_model(built_in)
    assert mine.vision == theirs.vision
    assert mine.extra_params == pytest.approx(theirs.extra_params, rel=0.09)
