"""The weight tensors one GPU holds, in the shapes vLLM allocates them, and what torch's allocator counts for each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from ...traces.errors import ConfigError
from .parameters import BYTES_PER_PARAM, plain_bytes
from .specs import Dtype, MlaSpec, ModelSpec, MoeSpec

MIB = 2**20
_SCALED = ("fp8", "int8")


class WeightTensor(NamedTuple):
    """`copies` equal tensors of `size_bytes` each on one GPU."""

    part: str
    copies: int
    size_bytes: float


def allocated_bytes(size_bytes: float) -> float:
    """Bytes that PyTorch's caching allocator books for one tensor.

    Tensors of 10 MiB and more get a segment of their own, rounded up to 2 MiB; a rest of at most 1 MiB is not split
    off and counts with the tensor (c10/cuda/CUDACachingAllocator: kMinLargeAlloc, kRoundLarge, kSmallSize).
    """
    rounded = math.ceil(size_bytes / 512) * 512
    if rounded < 10 * MIB:
        return rounded
    segment = math.ceil(rounded / (2 * MIB)) * 2 * MIB
    return segment if segment - rounded <= MIB else rounded


class ExpertSplit(NamedTuple):
    """Over how many GPUs the routed experts are dealt whole (`dealt`), and over how many each is cut (`cut`)."""

    dealt: int
    cut: int


def weight_memory(
    model: ModelSpec,
    *,
    tp: int = 1,
    dtype: Dtype | None = None,
    pp: int = 1,
    experts: ExpertSplit | None = None,
) -> list[float]:
    """Allocated bytes of the weights on one GPU of each of `pp` pipeline stages.

    `experts`: how the routed experts are spread; None: cut over the `tp` GPUs like all else.

    Layers are dealt evenly, the rest to the middle stages as vLLM does; the first stage holds the embedding, the
    last one the LM head.

    Raises:
        ConfigError: the heads or the FFN cannot be split `tp` ways.
    """
    per_layer = (
        sum(t.copies * allocated_bytes(t.size_bytes) for t in layer_tensors(model, tp, dtype, experts))
        / model.n_layers
    )
    rope = allocated_bytes(rope_table_bytes(model, dtype))
    table = allocated_bytes(vocabulary_bytes(model, tp, dtype))
    # Every tower runs on the first stage; its tensors are many and small: no rounding.
    extra = model.extra_params * plain_bytes(dtype or model.weight_dtype) / tp
    stages = [per_layer * n + rope for n in stage_layers(model.n_layers, pp)]
    stages[0] += table + extra + model.learned_positions * model.hidden_size * plain_bytes(dtype or "bf16")
    if not model.tie_embeddings or pp > 1:
        stages[-1] += table
    return stages


def stage_layers(n_layers: int, pp: int) -> list[int]:
    """Layers of each pipeline stage: even, what is left over goes to the stages before the last (vLLM).

    >>> stage_layers(32, 4), stage_layers(30, 4)
    ([8, 8, 8, 8], [7, 8, 8, 7])
    """
    if not 1 <= pp <= n_layers:
        raise ConfigError(f"pipeline_parallel_size: got {pp}, expected 1 to the model's {n_layers} layers")
    layers = [n_layers // pp] * pp
    for i in range(2, 2 + n_layers % pp):
        layers[-i] += 1
    return layers


def layer_tensors(
    model: ModelSpec, tp: int, dtype: Dtype | None = None, experts: ExpertSplit | None = None
) -> Iterator[WeightTensor]:
    """Weight tensors of all layers on one GPU of a tensor-parallel group; biases and norms as one of all layers."""
    check_split(model, tp, experts)
    stored: str = dtype or model.weight_dtype
    attention: str = dtype or model.attention_dtype or model.weight_dtype
    n_moe = model.n_moe_layers
    yield from _attention(model, tp, attention)
    gates = 2 if model.gated_ffn else 1
    if n_moe < model.n_layers:
        yield from _ffn("ffn", model, model.n_layers - n_moe, model.ffn_size // tp, gates, stored)
    if model.moe is not None:
        yield from _experts(model, model.moe, n_moe, tp, stored, experts or ExpertSplit(1, tp))
    small = model.n_layers * model.norms_per_layer * model.hidden_size * (1 + (model.norm == "layer"))
    yield WeightTensor("norms", 1, small * plain_bytes(stored))


def vocabulary_bytes(model: ModelSpec, tp: int, dtype: Dtype | None = None) -> float:
    """Bytes of one GPU's shard of the embedding (or LM head): the vocabulary padded to 64 rows, cut by rows."""
    rows = math.ceil(model.vocab_size / 64) * 64 // tp
    return rows * model.hidden_size * plain_bytes(dtype or model.weight_dtype)


def rope_table_bytes(model: ModelSpec, dtype: Dtype | None = None) -> float:
    """Bytes of the rotary cosine/sine tables: a row for each position the config allows, not for `max_model_len`."""
    width = model.head_dim if model.mla is None else model.mla.qk_rope_head_dim
    return model.rope_rows * width * plain_bytes(dtype or model.weight_dtype)


def check_split(model: ModelSpec, tp: int, experts: ExpertSplit | None = None) -> None:
    """Raise ConfigError unless heads, KV heads and FFN can be cut `tp` ways, and the experts as they are spread."""
    where = f"tensor_parallel_size: got {tp}, expected"
    if tp < 1:
        raise ConfigError(f"{where} an integer >= 1")
    if model.n_heads % tp:
        raise ConfigError(f"{where} a divisor of the {model.n_heads} query heads of {model.name}")
    kv = model.n_kv_heads
    if model.mla is None and kv % tp and tp % kv:
        raise ConfigError(f"{where} a divisor or a multiple of the {kv} KV heads of {model.name}")
    cut = experts.cut if experts else tp
    for width, ways in {(model.ffn_size, tp), (model.moe.expert_size if model.moe else 0, cut)}:
        if width % ways:
            raise ConfigError(f"{where} a divisor of the FFN width {width} of {model.name}")


def kv_heads_held(model: ModelSpec, tp: int) -> int:
    """KV heads on one GPU: cut `tp` ways, never below one (then they are replicated)."""
    return max(1, model.n_kv_heads // tp)


def _linear(part: str, count: int, rows: int, columns: int, dtype: str, stack: int = 1) -> WeightTensor:
    """`count` matrices of rows × columns (stacked `stack` deep); one fp32 scale a row where 8-bit."""
    scales = 4.0 * rows if dtype in _SCALED else 0.0
    return WeightTensor(part, count, stack * (rows * columns * BYTES_PER_PARAM[dtype] + scales))


def _attention(model: ModelSpec, tp: int, dtype: str) -> Iterator[WeightTensor]:
    D, L, d = model.hidden_size, model.n_layers, model.head_dim
    heads = model.n_heads // tp
    if model.mla is not None:
        yield from _latent_attention(model, model.mla, heads, dtype)
        return
    qkv = (heads + 2 * kv_heads_held(model, tp)) * d
    yield _linear("attention", L, qkv, D, dtype)
    yield _linear("attention", L, D, heads * d, dtype)
    if model.qkv_bias:
        yield WeightTensor("attention", L, qkv * plain_bytes(dtype))


def _latent_attention(model: ModelSpec, mla: MlaSpec, heads: int, dtype: str) -> Iterator[WeightTensor]:
    D, L = model.hidden_size, model.n_layers
    per_head = mla.qk_nope_head_dim + mla.v_head_dim
    if mla.q_lora_rank is None:
        yield _linear("attention", L, heads * model.head_dim, D, dtype)
    else:
        yield _linear("attention", L, mla.q_lora_rank, D, dtype)
        yield _linear("attention", L, heads * model.head_dim, mla.q_lora_rank, dtype)
    yield _linear("attention", L, mla.kv_lora_rank + mla.qk_rope_head_dim, D, dtype)
    yield _linear("attention", L, heads * per_head, mla.kv_lora_rank, dtype)
    yield _linear("attention", L, D, heads * mla.v_head_dim, dtype)
    # The absorbed W_UK and W_UV of the decode path are kept in bf16 beside the checkpoint's own projection.
    for width in (mla.qk_nope_head_dim, mla.v_head_dim):
        yield WeightTensor("attention", L, 2.0 * heads * width * mla.kv_lora_rank)


def _ffn(
    part: str, model: ModelSpec, count: int, width: int, gates: int, dtype: str
) -> Iterator[WeightTensor]:
    yield _linear(part, count, gates * width, model.hidden_size, dtype)
    yield _linear(part, count, model.hidden_size, width, dtype)


def _experts(
    model: ModelSpec, moe: MoeSpec, count: int, tp: int, dtype: str, split: ExpertSplit
) -> Iterator[WeightTensor]:
    D, width, columns = model.hidden_size, moe.expert_size // split.cut, model.hidden_size
    held = moe.n_experts // split.dealt
    gates = 2 if moe.gated else 1
    if dtype == "fp4":  # the MXFP4 kernels pad the expert to tiles of 128 rows and 256 columns
        width, columns = _pad(width, 128), _pad(D, 256)
    yield _linear("experts", count, gates * width, columns, dtype, stack=held)
    yield _linear("experts", count, columns, width, dtype, stack=held)
    if moe.n_shared:
        yield from _ffn("shared", model, count, moe.n_shared * moe.shared_size // tp, gates, dtype)
    yield WeightTensor("router", count, moe.n_experts * D * 2.0)


def _pad(n: int, multiple: int) -> int:
    return math.ceil(n / multiple) * multiple
