"""One function a figure: how each of the 134 figures of the teaching texts follows from the operators.

Numbers in here are the texts' premises (a batch, a context, a bandwidth that a text assumes), never results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from stepline.sim.cost.operators import (
    MoeShape,
    attention_flops,
    elementwise_bytes,
    expert_bytes,
    gemm_flops,
    gemm_weight_bytes,
    heads_per_gpu,
    kv_bytes,
    latent_bytes,
    linears,
    moe_work,
)
from stepline.sim.cost.parameters import parameter_count

from .accounting import NORM_FLOPS, SOFTMAX_FLOPS
from .arithmetic import (
    attention_intensity,
    balance,
    compute_s,
    ffn_flops,
    gate_matrix,
    gemm_intensity,
    gpu,
    key_matrix,
    kv,
    layer_attention_flops,
    layer_flops,
    layer_kv,
    layer_weight_bytes,
    layer_weights,
    layers_bytes,
    lm_head_bytes,
    matrix,
    model,
    model_flops,
    query_matrix,
    read_s,
    ridge,
    total_bytes,
    total_params,
)

B8, B70, MISTRAL = "llama-3-8b", "llama-3-70b", "mistral-7b"
LLAMA2, MIXTRAL, DEEPSEEK = "llama-2-7b", "mixtral-8x7b", "deepseek-v3"
K = 1024
A100_BYTES_PER_S = 2.0e12
"""Bandwidth that text 003 gives the A100 (the 80 GB part has 2.039 TB/s)."""
ROUNDED_BYTES_PER_S = 3.0e12
"""Bandwidth that text 004 gives the H100 (the datasheet says 3.35 TB/s)."""
UNIT_EXPERT = MoeShape(hidden=1, expert=1, n_experts=1, top_k=1)
"""An expert of unit sizes: its work is the coefficient of H I k."""
FA3_FLOPS = 840e12
"""FlashAttention-3's best bf16 rate on H100, as text 001 quotes its paper."""


def tp8_rank_bytes() -> float:
    """Weights (divided by 8) and KV (one of 8 heads) that one of 8 GPUs reads for 32 sequences of 4096 tokens."""
    return layers_bytes(B70) / 8 + tp8_rank_kv()


def tp8_rank_kv() -> float:
    """KV bytes that one of 8 GPUs reads for 32 sequences of 4096 tokens of the 70B model."""
    spec = model(B70)
    return spec.n_layers * float(kv_bytes(32 * 4096, heads_per_gpu(spec, 8)[1], spec.head_dim))


def mla_layer_bytes() -> float:
    """Latent bytes of one token in one layer of DeepSeek-V3."""
    mla = model(DEEPSEEK).mla
    if mla is None:
        raise ValueError(f"{DEEPSEEK}: expected a model with latent attention")
    return float(latent_bytes(1, mla.kv_lora_rank, mla.qk_rope_head_dim))


def classic_7b_bytes() -> float:
    """Bytes of 12 L D² weights: Llama-2-7B as if its FFN were two D × 4D matrices."""
    spec = model(LLAMA2)
    classic = replace(spec, gated_ffn=False, ffn_size=4 * spec.hidden_size)
    return float(sum(x.count * gemm_weight_bytes(x.n, x.k) for x in linears(classic) if x.kernel == "gemm"))


def step_bytes(name: str, context: int) -> float:
    """Bytes of a decode step of one sequence: layers, LM head, KV of `context` tokens."""
    return layers_bytes(name) + lm_head_bytes(name) + kv(name, context)


def unit_elementwise(kernel: str, width: int) -> float:
    """Bytes per token and unit of `width` that an unfused elementwise kernel of the 8B model moves."""
    return float(elementwise_bytes(model(B8), 1, fused=False)[kernel]) / width


FIGURES_000: dict[int, Callable[[], float]] = {
    1: lambda: layer_kv(B70),
    2: lambda: kv(B70, 1),
    3: lambda: kv(B70, 8 * K),
    4: lambda: 1024 * kv(B70, 8 * K),
    5: lambda: kv(B8, 1),
    6: lambda: kv(B8, 8 * K),
    7: lambda: kv(B70, 8 * K),
    8: lambda: kv(MISTRAL, 1),
    9: lambda: model(DEEPSEEK).n_layers * mla_layer_bytes(),
    10: lambda: 8 * K * kv(DEEPSEEK, 1),
    11: lambda: ridge("h100-sxm"),
    12: lambda: float(kv_bytes(1, 1, 1)),
    13: lambda: unit_elementwise("act", model(B8).ffn_size),
    14: lambda: unit_elementwise("norm_1", model(B8).hidden_size),
    15: lambda: float(gemm_weight_bytes(*matrix(B70, "qkv"))),
    16: lambda: float(attention_flops(1, 1, 1)),
    17: lambda: attention_intensity(4096, model(B70).n_heads, model(B70).n_kv_heads),
    18: lambda: gemm_intensity(4096),
    19: lambda: gemm_intensity(64),
    20: lambda: layer_weight_bytes(B70),
    21: lambda: layers_bytes(B70),
    22: lambda: total_bytes(B70),
    23: lambda: layers_bytes(B70) / 8,
    24: tp8_rank_kv,
    25: tp8_rank_bytes,
    26: lambda: read_s(tp8_rank_bytes()),
    27: lambda: 32 / read_s(tp8_rank_bytes()),
}

FIGURES_001: dict[int, Callable[[], float]] = {
    28: lambda: layer_weights(B8),
    29: lambda: 32 * layer_weights(B8),
    30: lambda: parameter_count(model(B8)).embedding,
    31: lambda: total_params(B8),
    32: lambda: float(gemm_flops(1, *query_matrix(B8))),
    33: lambda: float(gemm_flops(1, *key_matrix(B8))),
    34: lambda: ffn_flops(B8),
    35: lambda: layer_attention_flops(B8, 1000),
    36: lambda: layer_flops(B8, 1, 1000),
    37: lambda: model_flops(B8, 1, 1000),
    38: lambda: 2.0 * total_params(B8),
    39: lambda: 2.0 * total_params(B8),
    40: lambda: compute_s(model_flops(B8, 1, 1000)),
    41: lambda: layer_weight_bytes(B8),
    42: lambda: layers_bytes(B8),
    43: lambda: read_s(layers_bytes(B8)),
    44: lambda: read_s(layers_bytes(B8)) / compute_s(model_flops(B8, 1, 1000)),
    45: lambda: compute_s(model_flops(B8, 1, 1000)) / read_s(layers_bytes(B8)),
    46: lambda: model_flops(B8, 1, 1000) / (layers_bytes(B8) + kv(B8, 1000)),
    47: lambda: ridge("h100-sxm"),
    48: lambda: float(gemm_weight_bytes(8000, 8000)) * model(B8).n_heads,
    49: lambda: FA3_FLOPS / gpu("h100-sxm").peak_flops["bf16"],
    50: lambda: FA3_FLOPS / gpu("h100-sxm").peak_flops["bf16"],
    51: lambda: read_s(step_bytes(B8, 1000)),
    52: lambda: total_bytes(B70) / total_bytes(B8),
}

FIGURES_002: dict[int, Callable[[], float]] = {
    53: lambda: kv(B70, 1),
    54: lambda: kv(B70, 4 * K),
    55: lambda: kv(B70, 16 * K),
    56: lambda: kv(B70, 64 * K),
    57: lambda: kv(B70, 128 * K),
    58: lambda: kv(B70, 4 * K, "fp8"),
    59: lambda: kv(B70, 16 * K, "fp8"),
    60: lambda: kv(B70, 64 * K, "fp8"),
    61: lambda: kv(B70, 128 * K, "fp8"),
    62: lambda: kv(B70, 4 * K, "int4"),
    63: lambda: kv(B70, 16 * K, "int4"),
    64: lambda: kv(B70, 64 * K, "int4"),
    65: lambda: kv(B70, 128 * K, "int4"),
    66: lambda: 16 * kv(B70, 32 * K),
    67: lambda: 8 * kv(B70, 32 * K),
    68: lambda: kv(B70, 64 * K),
    69: lambda: read_s(kv(B70, 64 * K), "h200"),
    70: lambda: attention_intensity(4096, 1, 1),
    71: lambda: ridge("h100-sxm"),
    72: lambda: ridge("h200"),
    73: lambda: ridge("b200"),
    74: lambda: 1 / read_s(total_bytes(B70), "h200"),
    75: lambda: model(B70).n_layers * model(B70).norms_per_layer + 1,
    76: lambda: 8 * kv(B70, 64 * K, "fp8"),
}

FIGURES_003: dict[int, Callable[[], float]] = {
    77: lambda: attention_intensity(4096, 1, 1, "fp32"),
    78: lambda: attention_intensity(4096, 1, 1, "fp16"),
    79: lambda: attention_intensity(4096, 1, 1, "int8"),
    80: lambda: balance(gpu("a100-80").peak_flops["bf16"], A100_BYTES_PER_S),
    81: lambda: ridge("h100-sxm"),
    82: lambda: ridge("cpu-i5-8250u", "fp32"),
    83: classic_7b_bytes,
    84: classic_7b_bytes,
    85: lambda: total_bytes(LLAMA2),
    86: lambda: classic_7b_bytes() / A100_BYTES_PER_S,
    87: lambda: gemm_intensity(16, "fp16"),
    88: lambda: attention_intensity(4096, 1, 1) / ridge("h100-sxm"),
}

FIGURES_004: dict[int, Callable[[], float]] = {
    89: lambda: layer_kv(B8),
    90: lambda: kv(B8, 1),
    91: lambda: kv(B8, 4 * K),
    92: lambda: layer_kv(LLAMA2),
    93: mla_layer_bytes,
    94: lambda: layer_kv(B8) / mla_layer_bytes(),
    95: lambda: 2 / 3 * 4 * model(B8).hidden_size * 1.3,
    96: lambda: expert_bytes(UNIT_EXPERT, "fp16"),
    97: lambda: float(moe_work(1, UNIT_EXPERT)[0]),
    98: lambda: parameter_count(model(MIXTRAL)).total,
    99: lambda: parameter_count(model(MIXTRAL)).active,
    100: lambda: parameter_count(model(DEEPSEEK)).total,
    101: lambda: parameter_count(model(DEEPSEEK)).active,
    102: lambda: float(gemm_weight_bytes(parameter_count(model(B8)).embedding, 1)),
    103: lambda: float(gemm_weight_bytes(*query_matrix(B8))),
    104: lambda: float(gemm_weight_bytes(*gate_matrix(B8))),
    105: lambda: 32 * float(gemm_weight_bytes(*gate_matrix(B8))),
    106: lambda: layer_weight_bytes(B8),
    107: lambda: total_bytes(B8),
    108: lambda: float(gemm_weight_bytes(model(B8).norms_per_layer * model(B8).hidden_size, 1)),
    109: lambda: read_s(layers_bytes(B8) + lm_head_bytes(B8)),
    110: lambda: ridge("h100-sxm"),
    111: lambda: float(gemm_flops(2048, *query_matrix(B8))),
    112: lambda: float(gemm_flops(2048, *key_matrix(B8))),
    113: lambda: layer_attention_flops(B8, 2048**2) / 2,
    114: lambda: float(gemm_flops(2048, *gate_matrix(B8))),
    115: lambda: NORM_FLOPS * 2048 * model(B8).hidden_size,
    116: lambda: SOFTMAX_FLOPS * model(B8).n_heads * 2048**2,
    117: lambda: SOFTMAX_FLOPS * model(B8).n_heads * 2048,
    118: lambda: layer_flops(B8, 2048, 2048**2),
    119: lambda: layer_flops(B8, 1, 2048),
    120: lambda: layer_kv(B8, 2048),
    121: lambda: ffn_flops(B8) / layer_flops(B8, 1, 2048),
    122: lambda: ffn_flops(B8) / float(gemm_flops(1, layer_weights(B8), 1)),
    123: lambda: 1 - (ffn_flops(B8) + layer_attention_flops(B8, 2048)) / layer_flops(B8, 1, 2048),
    124: lambda: layer_attention_flops(B8, 2048) / layer_flops(B8, 1, 2048),
    125: lambda: layer_kv(B8, 2048) / layer_weight_bytes(B8),
    126: lambda: model_flops(B8, 2048, 2048**2),
    127: lambda: model_flops(B8, 2048, 2048**2) / (layers_bytes(B8) + kv(B8, 2048)),
    128: lambda: model_flops(B8, 1, 2048),
    129: lambda: model_flops(B8, 1, 2048) / (layers_bytes(B8) + kv(B8, 2048)),
    130: lambda: float(gemm_flops(1, *matrix(B8, "lm_head"))),
    131: lambda: 2.0 * 2048 * total_params(B8),
    132: lambda: (
        model_flops(B8, 1, 2048)
        / (layers_bytes(B8) + kv(B8, 2048))
        / balance(gpu("h100-sxm").peak_flops["bf16"], ROUNDED_BYTES_PER_S)
    ),
    133: lambda: float(gemm_flops(1, layer_weights(B8), 1)) / layer_attention_flops(B8, 1),
    134: lambda: LLAMA3_ROPE_BASE,
}

LLAMA3_ROPE_BASE = 500_000.0
"""`rope_theta` of Llama 3 in its HF config.json; no operator prices it, so that it is a constant and not computed."""

FORMULAS: dict[int, Callable[[], float]] = FIGURES_000 | FIGURES_001 | FIGURES_002 | FIGURES_003 | FIGURES_004
"""Figure number -> its value from the operators."""
