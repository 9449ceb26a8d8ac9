"""Parameter counts and weight bytes of a model, part by part, whole or as one GPU of a tensor-parallel group holds."""

from __future__ import annotations

from dataclasses import dataclass

from .specs import Dtype, ModelSpec

BYTES_PER_PARAM: dict[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.5 + 2.0 / 128,  # GPTQ/AWQ w4a16: one 16-bit scale for each group of 128 weights
    "fp4": 0.5 + 1.0 / 32,  # OCP MX v1.0: one 8-bit scale for each block of 32 elements
}
"""Stored bytes of a weight, scales of its group included (per-channel scales of fp8 and int8 are negligible)."""

KV_BYTES: dict[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.5,
    "fp4": 0.5,
}
"""Bytes of a cached element, in room and in traffic alike. 8-bit scales are one a tensor (vLLM `k_scale`, `v_scale`); the
4-bit formats are what-ifs, counted bare."""


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameters of a model by part; `active` is what one token's forward pass uses.

    attention   projections (and latent-attention norms, per-head norms) of all layers
    dense_ffn   FFN matrices of dense layers
    router      routers (and the shared experts' gate)
    experts     routed experts, all of them
    shared      shared experts
    embedding   token and learned position embeddings
    lm_head     output matrix; 0 where tied to the embedding
    norms       per-layer and final norms
    extra       held but not priced (`ModelSpec.extra_params`)
    experts_active  the routed experts one token visits
    """

    attention: int
    dense_ffn: int
    router: int
    experts: int
    shared: int
    embedding: int
    lm_head: int
    norms: int
    extra: int
    experts_active: int

    @property
    def total(self) -> int:
        """All parameters of the checkpoint."""
        return self.active - self.experts_active + self.experts

    @property
    def active(self) -> int:
        """Parameters with the routed experts cut to those one token visits; embeddings included."""
        linear = self.attention + self.dense_ffn + self.router + self.experts_active + self.shared
        return linear + self.embedding + self.lm_head + self.norms + self.extra

    @property
    def active_without_embedding(self) -> int:
        """`active` less the input embedding (one row of it is read) and the extra parts."""
        return self.active - self.extra - (self.embedding if self.lm_head else 0)


def parameter_count(model: ModelSpec) -> ParameterCount:
    """Parameters of `model`, from its shape alone."""
    n_moe = model.n_moe_layers + (model.encoder_layers if model.moe else 0)
    n_dense = model.n_layers + model.encoder_layers - n_moe
    moe = model.moe
    D = model.hidden_size
    expert = ffn_params(model, moe.expert_size, gated=moe.gated, bias=moe.bias) if moe else 0
    shared = moe.n_shared * ffn_params(model, moe.shared_size, gated=moe.gated) if moe else 0
    router = (D * moe.n_experts + moe.bias * moe.n_experts + moe.shared_gate * D) if moe else 0
    n_blocks = (
        model.n_layers + 2 * model.encoder_layers
    )  # an encoder gives its decoder layers cross attention
    return ParameterCount(
        attention=n_blocks * attention_params(model),
        dense_ffn=n_dense * ffn_params(model, model.ffn_size, gated=model.gated_ffn, bias=model.linear_bias),
        router=n_moe * router,
        experts=n_moe * expert * (moe.n_experts if moe else 0),
        shared=n_moe * shared,
        embedding=model.vocab_size * D + model.learned_positions * D,
        lm_head=0 if model.tie_embeddings else model.vocab_size * D + _lm_head_bias(model),
        norms=(model.n_layers * model.norms_per_layer + 1) * _norm_params(model),
        extra=model.extra_params,
        experts_active=n_moe * expert * (moe.top_k if moe else 0),
    )


def attention_params(model: ModelSpec) -> int:
    """Parameters of one layer's attention: projections, biases, per-head or latent norms."""
    D, H, K, d = model.hidden_size, model.n_heads, model.n_kv_heads, model.head_dim
    mla = model.mla
    if mla is None:
        biases = model.qkv_bias * (H + 2 * K) * d + model.linear_bias * D
        return D * (H + 2 * K) * d + H * d * D + biases + model.qk_norm * 2 * d
    latent = D * (mla.kv_lora_rank + mla.qk_rope_head_dim) + mla.kv_lora_rank
    expand = mla.kv_lora_rank * H * (mla.qk_nope_head_dim + mla.v_head_dim)
    rank = mla.q_lora_rank
    query = D * H * d if rank is None else D * rank + rank + rank * H * d
    return query + latent + expand + H * mla.v_head_dim * D


def ffn_params(model: ModelSpec, width: int, *, gated: bool, bias: bool = False) -> int:
    """Parameters of one FFN of `width`: 3 D F gated, 2 D F classic, plus biases."""
    n_in = 2 if gated else 1
    D = model.hidden_size
    return (n_in + 1) * D * width + bias * (n_in * width + D)


def weight_bytes(model: ModelSpec, dtype: Dtype | None = None, tp: int = 1) -> float:
    """Bytes of weights on one GPU of a group of `tp`.

    Linear layers are split `tp` ways (KV projections replicate once `tp` exceeds the KV heads), embedding and LM head
    by rows of the vocabulary; norms, routers, latent down-projections and biases of row-split layers are replicated.

    Args:
        model: the model.
        dtype: what linear layers store; by default as the model says.
        tp: tensor-parallel size.
    """
    linear = BYTES_PER_PARAM[dtype or model.weight_dtype]
    attention = BYTES_PER_PARAM[(None if dtype else model.attention_dtype) or dtype or model.weight_dtype]
    plain = plain_bytes(dtype or model.weight_dtype)
    count = parameter_count(model)
    ffn = (count.dense_ffn + count.experts + count.shared) / tp
    rows = (count.embedding + count.lm_head) / tp
    whole = count.norms + count.router
    n_blocks = model.n_layers + 2 * model.encoder_layers
    held = n_blocks * attention_params_held(model, tp)
    return held * attention + ffn * linear + (rows + whole + count.extra / tp) * plain


def attention_params_held(model: ModelSpec, tp: int) -> float:
    """Parameters of one layer's attention on one GPU of `tp`; KV heads and latent projections replicate."""
    mla = model.mla
    whole = attention_params(model)
    if mla is not None:
        replicated = model.hidden_size * (mla.kv_lora_rank + mla.qk_rope_head_dim + (mla.q_lora_rank or 0))
        return (whole - replicated) / tp + replicated
    kv = 2 * model.hidden_size * model.n_kv_heads * model.head_dim
    return (whole - kv) / tp + kv / min(tp, model.n_kv_heads)


def plain_bytes(dtype: str) -> float:
    """Bytes of an unquantised parameter in a model whose linear layers store `dtype`."""
    return 4.0 if dtype == "fp32" else 2.0


def _norm_params(model: ModelSpec) -> int:
    return model.hidden_size * (2 if model.norm == "layer" else 1)


def _lm_head_bias(model: ModelSpec) -> int:
    return model.vocab_size if model.linear_bias and model.norm == "layer" else 0  # phi-2's head has a bias
