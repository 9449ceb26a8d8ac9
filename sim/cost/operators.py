"""What each operator of a decoder layer computes and moves: FLOPs and bytes on one GPU of a TP group.

One function an operator, used by the simulator, the fits and the reports alike. All take scalars or NumPy
arrays and return the same; counts are floats, bytes are bytes, FLOPs count a multiply-add as two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from stepline.traces.errors import ConfigError, nearest

from .parameters import BYTES_PER_PARAM, KV_BYTES
from .specs import ModelSpec

Amount = Any
"""A float or a float array; a function returns the kind it was given."""

ACTIVATION_BYTES = 2.0
"""Activations are bf16 (fp16): 2 bytes an element."""


def bytes_per_element(dtype: str) -> float:
    """Bytes of one stored weight, its share of the group scales included.

    >>> bytes_per_element("bf16"), bytes_per_element("int4")
    (2.0, 0.515625)
    """
    if dtype not in BYTES_PER_PARAM:
        raise ConfigError(f"dtype: got {dtype!r}{nearest(dtype, BYTES_PER_PARAM)}")
    return BYTES_PER_PARAM[dtype]


def kv_bytes_per_element(dtype: str) -> float:
    """Bytes of one cached element.

    >>> kv_bytes_per_element("fp8"), kv_bytes_per_element("int4")
    (1.0, 0.5)
    """
    if dtype not in KV_BYTES:
        raise ConfigError(f"kv dtype: got {dtype!r}{nearest(dtype, KV_BYTES)}")
    return KV_BYTES[dtype]


@dataclass(frozen=True, slots=True)
class Linear:
    """One kind of linear layer as one GPU sees it: n outputs, k inputs, `count` of them in the whole model."""

    name: str
    n: int
    k: int
    count: int
    kernel: Literal["gemm", "lm_head"] = "gemm"


def attention_linears(model: ModelSpec, tp: int = 1) -> tuple[Linear, ...]:
    """QKV and output projections on one GPU: D -> (H + 2K)d and Hd -> D, heads divided by TP.

    KV heads are divided too, at least one a GPU (they are replicated when TP > K). MLA: low-rank query and
    latent projections; the latent one is replicated, the up-projections are divided by heads (DeepSeek-V2,
    section 2.1).
    """
    layers, width = model.n_layers, model.hidden_size
    if model.mla is not None:
        return _mla_linears(model, tp)
    heads, kv_heads = heads_per_gpu(model, tp)
    return (
        Linear("qkv", (heads + 2 * kv_heads) * model.head_dim, width, layers),
        Linear("attention_out", width, heads * model.head_dim, layers),
    )


def _mla_linears(model: ModelSpec, tp: int) -> tuple[Linear, ...]:
    mla = model.mla
    assert mla is not None  # narrowed by the caller
    layers, width = model.n_layers, model.hidden_size
    heads = heads_per_gpu(model, tp)[0]
    query = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    latent = mla.kv_lora_rank + mla.qk_rope_head_dim
    down = (
        (Linear("q", query, width, layers), Linear("kv_down", latent, width, layers))
        if mla.q_lora_rank is None
        else (
            Linear("q_kv_down", mla.q_lora_rank + latent, width, layers),
            Linear("q_up", query, mla.q_lora_rank, layers),
        )
    )
    # The same up-projection is a GEMM in an expanded prefill and two batched products in an absorbed decode:
    # either way its weights are read once a step and each token costs 2 * rank * heads * (nope + v) FLOPs.
    up = Linear("kv_up", heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank, layers)
    return (*down, up, Linear("attention_out", width, heads * mla.v_head_dim, layers))


def ffn_linears(model: ModelSpec, tp: int = 1) -> tuple[Linear, ...]:
    """Dense FFN and shared experts: up (gate and up fused where gated, D -> 2F) and down (F -> D), F / TP; routers."""
    dense = model.n_layers - model.n_moe_layers
    width = model.hidden_size
    linears: tuple[Linear, ...] = ()
    if dense:
        ffn = ceil_div(model.ffn_size, tp)
        linears += (Linear("ffn_up", _up(model, ffn), width, dense), Linear("ffn_down", width, ffn, dense))
    moe = model.moe
    if moe is not None and moe.n_shared:
        shared = ceil_div(moe.n_shared * moe.shared_size, tp)
        count = model.n_moe_layers
        linears += (
            Linear("shared_up", (2 if moe.gated else 1) * shared, width, count),
            Linear("shared_down", width, shared, count),
        )
    if moe is not None:
        linears += (Linear("router", moe.n_experts, width, model.n_moe_layers),)
    return linears


def head_linear(model: ModelSpec, tp: int = 1) -> Linear:
    """LM head, D -> V divided by TP (vocab-parallel)."""
    return Linear("lm_head", ceil_div(model.vocab_size, tp), model.hidden_size, 1, "lm_head")


def _up(model: ModelSpec, width: int) -> int:
    return 2 * width if model.gated_ffn else width


def ceil_div(a: Any, b: int) -> Any:
    """Integer ceiling of a / b, for ints and integer arrays."""
    return -(-a // b)


def heads_per_gpu(model: ModelSpec, tp: int = 1) -> tuple[int, int]:
    """Query and KV heads on one GPU: H/TP and max(1, K/TP).

    Raises:
        ConfigError: TP does not divide the query heads, or neither of TP and the KV heads divides the other.
    """
    heads, kv_heads = model.n_heads, model.n_kv_heads
    if tp < 1 or heads % tp:
        raise ConfigError(f"tp: got {tp}, expected a divisor of the {heads} query heads of {model.name}")
    if kv_heads % tp and tp % kv_heads:
        raise ConfigError(
            f"tp: got {tp}, expected a divisor or multiple of the {kv_heads} KV heads of {model.name}"
        )
    return heads // tp, max(1, kv_heads // tp)


# --- linear layers


def gemm_flops(m: Amount, n: Amount, k: Amount) -> Amount:
    """2 m n k.

    >>> gemm_flops(1, 4096, 4096)
    33554432
    """
    return 2 * m * n * k


def gemm_weight_bytes(n: Amount, k: Amount, dtype: str = "bf16") -> Amount:
    """n k stored weights, scales included."""
    return n * k * bytes_per_element(dtype)


def gemm_activation_bytes(m: Amount, n: Amount, k: Amount) -> Amount:
    """Inputs read and outputs written once: (m k + m n) at 2 bytes."""
    return ACTIVATION_BYTES * (m * k + m * n)


# --- attention


def attention_flops(pairs: Amount, heads: Amount, qk_dim: Amount, v_dim: Amount | None = None) -> Amount:
    """Scores and weighted values over query-key pairs: 2 pairs H (d_qk + d_v); 4 pairs H d where both are d.

    `pairs`: a decode of context c has c; a chunk of c tokens after `done` has c done + c (c + 1) / 2
    (causal).
    """
    return 2 * pairs * heads * (qk_dim + (qk_dim if v_dim is None else v_dim))


def causal_pairs(chunk: Amount, done: Amount = 0) -> Amount:
    """Query-key pairs of a chunk after `done` tokens: c done + c (c + 1) / 2.

    >>> causal_pairs(4), causal_pairs(2, 10)
    (10, 23)
    """
    return chunk * done + chunk * (chunk + 1) // 2


def windowed_pairs(chunk: Amount, done: Amount, window: Amount) -> Amount:
    """Pairs of a chunk when each query sees at most `window` keys (itself included): Σ_i min(done + i,
    window).

    Works on scalars and arrays, fractional mean lengths included (then the sum is its continuous-length
    extension).

    >>> windowed_pairs(4, 0, 2), windowed_pairs(2, 10, 100)
    (7.0, 23.0)
    """
    growing = _between(window - done, chunk)  # queries that see fewer than `window` keys
    return growing * done + growing * (growing + 1) / 2 + (chunk - growing) * window


def _between(value: Amount, high: Amount) -> Amount:
    """Clip to 0 .. high without NumPy scalars on the scalar path."""
    if isinstance(value, (int, float)) and isinstance(high, (int, float)):
        return min(max(float(value), 0.0), high)
    import numpy as np

    return np.clip(value, 0.0, high)


def kv_bytes(tokens: Amount, kv_heads: Amount, head_dim: Amount, kv_dtype: str = "bf16") -> Amount:
    """Keys and values of `tokens` in one layer on one GPU: 2 K d bytes each."""
    return tokens * (2 * kv_heads * head_dim * kv_bytes_per_element(kv_dtype))


def latent_bytes(tokens: Amount, rank: int, rope_dim: int, kv_dtype: str = "bf16") -> Amount:
    """MLA latent of `tokens` in one layer: (d_c + d_r) elements each, replicated on every GPU."""
    return tokens * ((rank + rope_dim) * kv_bytes_per_element(kv_dtype))


def query_bytes(tokens: Amount, heads: Amount, head_dim: Amount, v_dim: Amount | None = None) -> Amount:
    """Queries read and outputs written by attention, bf16."""
    return tokens * (ACTIVATION_BYTES * heads * (head_dim + (head_dim if v_dim is None else v_dim)))


def kv_bytes_per_token(model: ModelSpec, kv_dtype: str = "bf16", tp: int = 1) -> float:
    """Cached bytes a token over all layers on one GPU: L 2 max(1, K/TP) d bytes; MLA L (d_c + d_r) bytes.

    Layers with a sliding window hold at most `window` tokens; this is what one more held token costs.
    """
    if model.mla is not None:
        mla = model.mla
        return float(model.n_layers * latent_bytes(1, mla.kv_lora_rank, mla.qk_rope_head_dim, kv_dtype))
    kv_heads = heads_per_gpu(model, tp)[1]
    return float(model.n_layers * kv_bytes(1, kv_heads, model.head_dim, kv_dtype))


# --- mixture of experts


EXPERT_ROWS = 1024
"""Token counts whose experts are summed at a time: a few MB, where a whole table of counts would take hundreds."""


def distinct_experts(tokens: Amount, n_experts: int, top_k: int, skew: float = 0.0) -> Amount:
    """Expected number of distinct experts that `tokens` touch when each draws k of N.

    Uniform routing (skew 0): N (1 - (1 - k/N)^T). With skew a, expert i is drawn with a probability
    proportional to (i + 1)^-a (a Zipf law, each at most 1 a token): Σ_i 1 - (1 - p_i)^T.
    """
    import numpy as np

    if skew == 0.0:
        return (
            n_experts * -np.expm1(tokens * np.log1p(-top_k / n_experts))
            if top_k < n_experts
            else (n_experts * np.minimum(tokens, 1.0))
        )
    p = expert_probabilities(n_experts, top_k, skew)
    with np.errstate(divide="ignore"):
        log_miss = np.log1p(-np.minimum(p, 1.0 - 1e-15))
    counts = np.asarray(tokens, dtype=float)
    blocks = np.array_split(counts.reshape(-1), max(1, counts.size // EXPERT_ROWS))
    touched = [(-np.expm1(np.multiply.outer(block, log_miss))).sum(axis=-1) for block in blocks]
    return np.concatenate(touched).reshape(counts.shape)[()]


def expert_probabilities(n_experts: int, top_k: int, skew: float) -> Any:
    """Chance that a token picks each expert, shape (n_experts,), summing to k, none above 1, ∝ (i + 1)^-skew."""
    import numpy as np

    weight = np.arange(1, n_experts + 1, dtype=float) ** -skew
    p = top_k * weight / weight.sum()
    for _ in range(n_experts):  # hand the excess of saturated experts to the others; ends when none is left
        over = p > 1.0
        if not over.any():
            break
        free = ~over & (p < 1.0)
        p = np.where(over, 1.0, p)
        p[free] *= (top_k - (p >= 1.0).sum()) / p[free].sum()
    return p


@dataclass(frozen=True, slots=True)
class MoeShape:
    """Routed experts of one layer: `expert` is the width one GPU computes, `ep` over how many GPUs experts spread."""

    hidden: int
    expert: int
    n_experts: int
    top_k: int
    gated: bool = True
    ep: int = 1
    skew: float = 0.0


def expert_bytes(shape: MoeShape, dtype: str = "bf16") -> float:
    """Bytes of one expert as one GPU holds it: 3 D F weights (gate, up, down), 2 where not gated."""
    return (3 if shape.gated else 2) * shape.hidden * shape.expert * bytes_per_element(dtype)


def moe_work(
    tokens: Amount, shape: MoeShape, dtype: str = "bf16", experts: Amount | None = None
) -> tuple[Amount, Amount, Amount]:
    """FLOPs, weight bytes and activation bytes of one layer's routed experts on one GPU.

    Where experts are spread over GPUs and popularity is skewed, of the busiest GPU. FLOPs: T k copies through
    2 (3 or 2) D F. Weights: the distinct experts touched. Activations: tokens in and out, and each copy's up and down
    intermediates.

    Args:
        tokens: T, all tokens of the group.
        shape: the layer.
        dtype: of the stored weights.
        experts: distinct experts touched on this GPU; None: expected under the shape's routing.
    """
    copies = tokens * shape.top_k * busiest_share(shape)
    matrices = 3 if shape.gated else 2
    flops = 2 * copies * matrices * shape.hidden * shape.expert
    if experts is None:
        experts = distinct_experts(tokens, shape.n_experts, shape.top_k, shape.skew) / shape.ep
    middle = (2 if shape.gated else 1) * shape.expert + shape.expert + shape.hidden
    activations = ACTIVATION_BYTES * (2 * tokens * shape.hidden / shape.ep + copies * middle)
    return flops, experts * expert_bytes(shape, dtype), activations


def spread_overhead(ep: int) -> float:
    """Activation work of an expert-parallel kernel over its own copies': ep · min(1, 1/2 + 1/ep).

    The kernel sorts, activates and sums over slots of all T k copies, half of which cost even where they belong to
    other GPUs. Read off the bf16 tables of vLLM 0.24 on H100 (EP 2 to 64, balanced): 1, 3/4, 5/8 ... of all copies.
    """
    return ep * min(1.0, 0.5 + 1.0 / ep)


def busiest_share(shape: MoeShape) -> float:
    """Share of the routed copies that the busiest GPU computes: 1/ep when balanced, more when skewed.

    Experts sit on GPUs in blocks of N/ep dealt round robin by popularity, as an expert load balancer would
    place them, so the busiest GPU holds the most popular expert and every ep-th after it.
    """
    if shape.ep == 1 or shape.skew == 0.0:
        return 1.0 / shape.ep
    p = expert_probabilities(shape.n_experts, shape.top_k, shape.skew)
    return float(p[:: shape.ep].sum() / shape.top_k)


# --- elementwise


def elementwise_bytes(model: ModelSpec, tokens: Amount, tp: int = 1, fused: bool = True) -> dict[str, Amount]:
    """Bytes that one layer's elementwise kernels move, by kernel name (one launch each).

    Fused (torch.compile, vLLM's default): each norm takes the residual add before it along (read x and
    residual, write both: 4 D); rope on query and key heads in place; activation (gated: read 2F, write F).
    Not fused: norms (2 D each) and the two residual adds (3 D each) are launches of their own.
    """
    width = model.hidden_size * tokens * ACTIVATION_BYTES
    kernels = {f"norm_{i + 1}": (4 if fused else 2) * width for i in range(model.norms_per_layer)}
    if not fused:
        kernels |= {"residual_1": 3 * width, "residual_2": 3 * width}
    if not model.learned_positions:
        kernels["rope"] = 2 * ACTIVATION_BYTES * tokens * _rope_width(model, tp)
    kernels["act"] = ACTIVATION_BYTES * tokens * _act_width(model, tp)
    return kernels


def _rope_width(model: ModelSpec, tp: int) -> float:
    heads, kv_heads = heads_per_gpu(model, tp)
    if model.mla is not None:
        return (heads + 1) * model.mla.qk_rope_head_dim
    return (heads + kv_heads) * model.head_dim


def _act_width(model: ModelSpec, tp: int) -> float:
    """Elements a token that activations read and write, a mean over layers (a fused MoE does its own)."""
    copies = 3 if model.gated_ffn else 2
    dense = (model.n_layers - model.n_moe_layers) * model.ffn_size
    shared = model.n_moe_layers * model.moe.n_shared * model.moe.shared_size if model.moe is not None else 0
    return copies * (dense + shared) / (model.n_layers * tp)


# --- whole model


def linears(model: ModelSpec, tp: int = 1) -> tuple[Linear, ...]:
    """Every linear layer of the model on one GPU, routed experts aside, the LM head last."""
    return (*attention_linears(model, tp), *ffn_linears(model, tp), head_linear(model, tp))


def linear_dtype(model: ModelSpec, linear: Linear) -> str:
    """Dtype in which one linear layer is stored: LM head and router of a quantised model stay bf16."""
    if linear.kernel == "lm_head" or linear.name == "router":
        return "fp32" if model.weight_dtype == "fp32" else "bf16"
    attention = linear.name in ("qkv", "attention_out", "q", "q_up", "q_kv_down", "kv_down", "kv_up")
    return (model.attention_dtype if attention else None) or model.weight_dtype
