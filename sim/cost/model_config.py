"""`ModelSpec` from a Hugging Face `config.json`: known families only; what would be mis-priced is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...traces.errors import ConfigError, nearest
from .model_families import FAMILIES, Family, Fields
from .specs import Dtype, MlaSpec, ModelSpec, VisionSpec
from .vision_config import unwrap

_DTYPES: dict[str, Dtype] = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "float8_e4m3fn": "fp8",
}
_REFUSED = {
    "num_local_experts": "experts",
    "n_routed_experts": "experts",
    "num_experts": "experts",
    "kv_lora_rank": "latent attention",
    "attention_chunk_size": "chunked attention",
    "cross_attention_layers": "cross attention",
    "ssm_cfg": "state-space layers",
    "mamba_d_state": "state-space layers",
    "linear_num_key_heads": "linear attention",
}
"""Keys that change the arithmetic of a layer: refused (when set) in a family that does not read them."""


def model_from_config(
    source: str | Path | Mapping[str, Any],
    *,
    name: str | None = None,
    params_published: tuple[float, float] | None = None,
    extra_params: int = 0,
    vision: VisionSpec | None = None,
    provenance: str = "",
) -> ModelSpec:
    """Shape of the model that a Hugging Face `config.json` describes.

    Args:
        source: path of a `config.json`, of a folder that holds one, or its content as a mapping.
        name: the model's name; by default the file's `_name_or_path` or its folder's name.
        params_published: (total, active) parameters the publisher states, for checks.
        extra_params: weights held beside the decoder (a vision tower), counted but not priced.
        vision: the image side of a multimodal model.
        provenance: where the shape comes from; the path by default.

    Raises:
        ConfigError: unreadable file, missing or wrong field, an architecture or feature that is not modelled.
    """
    where, config = _read(source)
    config, tower_params, images = unwrap(where, config)
    family = _family(where, config)
    fields = Fields(where, config, family.defaults)
    _refuse_features(fields, family)
    hidden_size = fields.integer("hidden_size", "n_embd", "d_model")
    n_layers = fields.integer("num_hidden_layers", "n_layer")
    n_heads = fields.integer("num_attention_heads", "n_head")
    max_model_len = fields.integer("max_position_embeddings", "n_positions")
    attention_dtype, weight_dtype = _weight_dtypes(fields)
    mla = _mla(fields) if family.mla else None
    moe = family.moe(fields) if family.moe else None
    if moe is not None and moe.top_k > moe.n_experts:
        raise fields.error("num_experts_per_tok", moe.top_k, f"at most the {moe.n_experts} experts")
    n_kv_heads = n_heads if family.mha else fields.integer("num_key_value_heads", default=n_heads)
    if mla is None and n_heads % n_kv_heads:
        raise fields.error("num_key_value_heads", n_kv_heads, f"a divisor of the {n_heads} query heads")
    return ModelSpec(
        name=name or _default_name(where, config),
        n_layers=n_layers,
        hidden_size=hidden_size,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=_head_dim(fields, hidden_size, n_heads, mla),
        ffn_size=_ffn_size(fields, hidden_size, family),
        vocab_size=fields.integer("vocab_size"),
        max_model_len=max_model_len,
        gated_ffn=family.gated,
        tie_embeddings=fields.flag("tie_word_embeddings", default=family.tied),
        qkv_bias=family.qkv_bias or fields.flag("attention_bias", default=False),
        linear_bias=family.linear_bias,
        qk_norm=fields.flag("use_qk_norm", default=family.qk_norm) and family.qk_norm,
        norm=family.norm,
        norms_per_layer=family.norms_per_layer,
        learned_positions=max_model_len if family.learned_positions else 0,
        rope_rows=0 if family.learned_positions else _rope_rows(fields, max_model_len, family),
        chunked_attention=fields.has("attention_chunk_size"),
        vision=vision or images,
        attention_windows=_group(family.windows(fields, n_layers), max_model_len),
        moe=moe,
        mla=mla,
        weight_dtype=weight_dtype,
        attention_dtype=attention_dtype,
        extra_params=extra_params or tower_params,
        params_published=params_published,
        source=provenance or where,
    )


def _read(source: str | Path | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    if isinstance(source, Mapping):
        return "config", source
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}), expected a config.json") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: got {type(content).__name__}, expected a JSON object")
    return str(path), content


def _family(where: str, config: Mapping[str, Any]) -> Family:
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ConfigError(f"{where}: model_type: got {kind!r}, expected one of {', '.join(sorted(FAMILIES))}")
    if kind not in FAMILIES:
        raise ConfigError(f"{where}: model_type: {kind!r} is not modelled{nearest(kind, FAMILIES)}")
    return FAMILIES[kind]


def _refuse_features(fields: Fields, family: Family) -> None:
    for key, feature in _REFUSED.items():
        read = family.reads_experts if feature == "experts" else key in family.reads
        if not read and fields.has(key):
            raise ConfigError(f"{fields.where}: {key}: {feature} is not modelled for this model_type")
    kinds = set(fields.get("layer_types") or ())
    unknown = kinds - {"full_attention", "sliding_attention", "chunked_attention"}
    if unknown:
        raise fields.error("layer_types", sorted(unknown)[0], "full, sliding or chunked attention")


def _default_name(where: str, config: Mapping[str, Any]) -> str:
    stated = config.get("_name_or_path")
    return str(stated) if stated else Path(where).resolve().parent.name if where != "config" else "model"


def _head_dim(fields: Fields, hidden_size: int, n_heads: int, mla: MlaSpec | None) -> int:
    if mla is not None:
        return mla.qk_nope_head_dim + mla.qk_rope_head_dim
    if fields.has("head_dim"):
        return fields.integer("head_dim")
    if hidden_size % n_heads:
        raise fields.error("hidden_size", hidden_size, f"a multiple of the {n_heads} heads, or a head_dim")
    return hidden_size // n_heads


def _ffn_size(fields: Fields, hidden_size: int, family: Family) -> int:
    keys = ("intermediate_size_mlp", "intermediate_size", "n_inner")
    if family.learned_positions:  # GPT-2: n_inner is null in every published config and means 4 D
        return fields.integer(*keys, default=4 * hidden_size)
    return fields.integer(*keys, default=0 if family.reads_experts else None)


def _mla(fields: Fields) -> MlaSpec:
    return MlaSpec(
        kv_lora_rank=fields.integer("kv_lora_rank"),
        qk_rope_head_dim=fields.integer("qk_rope_head_dim"),
        qk_nope_head_dim=fields.integer("qk_nope_head_dim"),
        v_head_dim=fields.integer("v_head_dim"),
        q_lora_rank=fields.integer("q_lora_rank") if fields.has("q_lora_rank") else None,
    )


def _group(windows: list[int | None], max_model_len: int) -> tuple[tuple[int | None, int], ...]:
    """Layers counted by window, full attention first; a window no context can outgrow is none."""
    real = [None if w is None or w >= max_model_len else w for w in windows]
    return tuple((w, real.count(w)) for w in sorted(set(real), key=lambda w: (w is not None, w or 0)))


def _rope_rows(fields: Fields, max_model_len: int, family: Family) -> int:
    """Rows of all rotary tables: linear scaling stretches the table by its factor; Gemma-3 keeps a local one too."""
    scaling = fields.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    factor = float(scaling.get("factor", 1.0)) if kind == "linear" else 1.0
    return int(max_model_len * factor) + (max_model_len if family.local_rope else 0)


def _weight_dtypes(fields: Fields) -> tuple[Dtype | None, Dtype]:
    """(what attention stores if that differs, what linear layers store)."""
    quantised = fields.get("quantization_config")
    if quantised is None:
        stated = str(fields.get("torch_dtype") or fields.get("dtype") or "bfloat16")
        if stated not in _DTYPES:
            raise fields.error("torch_dtype", stated, "one of " + ", ".join(_DTYPES))
        return None, _DTYPES[stated]
    method = str(quantised.get("quant_method"))
    if method in ("gptq", "awq", "bitsandbytes"):
        return None, _integer_dtype(fields, quantised.get("bits", 4 if quantised.get("load_in_4bit") else 8))
    if method == "mxfp4":
        return "bf16", "fp4"
    if method in ("fp8", "fbgemm_fp8"):
        return None, "fp8"
    if method in ("compressed-tensors", "compressed_tensors"):
        return _compressed(fields, quantised)
    known = ["gptq", "awq", "bitsandbytes", "mxfp4", "fp8", "fbgemm_fp8", "compressed-tensors"]
    raise ConfigError(f"{fields.where}: quantization_config.quant_method: {method!r}{nearest(method, known)}")


def _compressed(fields: Fields, quantised: Mapping[str, Any]) -> tuple[Dtype | None, Dtype]:
    groups = list((quantised.get("config_groups") or {}).values())
    weights = groups[0].get("weights") if len(groups) == 1 else None
    if not weights:
        raise fields.error("quantization_config.config_groups", len(groups), "one group with weights")
    dtype: Dtype
    if weights.get("type") == "float":
        dtype = "fp8" if weights.get("num_bits") == 8 else "fp4"
    else:
        dtype = _integer_dtype(fields, weights.get("num_bits"))
    ignored = " ".join(map(str, quantised.get("ignore") or ()))
    return ("bf16" if "self_attn" in ignored else None), dtype


def _integer_dtype(fields: Fields, bits: object) -> Dtype:
    if bits == 8:
        return "int8"
    if bits == 4:
        return "int4"
    raise fields.error("quantization_config.bits", bits, "4 or 8")
