"""The quantities that the teaching texts talk about, each made of the product's own operator functions."""

from __future__ import annotations

from functools import lru_cache

from stepline.sim.cost.catalogue import load_gpu, load_model
from stepline.sim.cost.operators import (
    attention_flops,
    gemm_flops,
    gemm_weight_bytes,
    head_linear,
    kv_bytes,
    kv_bytes_per_token,
    linears,
)
from stepline.sim.cost.parameters import parameter_count, weight_bytes
from stepline.sim.cost.specs import GpuSpec, ModelSpec


@lru_cache(maxsize=16)
def model(name: str) -> ModelSpec:
    """A model of the catalogue."""
    return load_model(name)


@lru_cache(maxsize=8)
def gpu(name: str) -> GpuSpec:
    """A GPU of the catalogue."""
    return load_gpu(name)


def layer_weights(name: str) -> float:
    """Parameters in the linear layers of one decoder layer (dense models)."""
    spec = model(name)
    return sum(x.n * x.k * x.count for x in linears(spec) if x.kernel == "gemm") / spec.n_layers


def layer_weight_bytes(name: str) -> float:
    """Bytes of `layer_weights` in bf16."""
    return float(gemm_weight_bytes(layer_weights(name), 1))


def matrix(name: str, linear: str) -> tuple[int, int]:
    """(n, k) of one fused linear layer of a model at TP 1."""
    found = next(x for x in linears(model(name)) if x.name == linear)
    return found.n, found.k


def query_matrix(name: str) -> tuple[int, int]:
    """(n, k) of the query projection alone."""
    spec = model(name)
    return spec.n_heads * spec.head_dim, spec.hidden_size


def key_matrix(name: str) -> tuple[int, int]:
    """(n, k) of the key projection alone."""
    spec = model(name)
    return spec.n_kv_heads * spec.head_dim, spec.hidden_size


def gate_matrix(name: str) -> tuple[int, int]:
    """(n, k) of the gate projection alone: half of the fused gate and up."""
    n, k = matrix(name, "ffn_up")
    return n // 2, k


def ffn_flops(name: str, tokens: int = 1) -> float:
    """FLOPs of the gated FFN of one layer: gate, up and down."""
    return float(sum(gemm_flops(tokens, *matrix(name, part)) for part in ("ffn_up", "ffn_down")))


def layer_attention_flops(name: str, pairs: float) -> float:
    """FLOPs of one layer's attention over query-key pairs."""
    spec = model(name)
    return float(attention_flops(pairs, spec.n_heads, spec.head_dim))


def layer_flops(name: str, tokens: int, pairs: float) -> float:
    """FLOPs of one layer: linear layers over `tokens`, attention over `pairs`."""
    return float(gemm_flops(tokens, layer_weights(name), 1)) + layer_attention_flops(name, pairs)


def model_flops(name: str, tokens: int, pairs: float) -> float:
    """FLOPs of all layers, LM head aside."""
    return model(name).n_layers * layer_flops(name, tokens, pairs)


def lm_head_bytes(name: str) -> float:
    """Weight bytes of the LM head in bf16."""
    head = head_linear(model(name))
    return float(gemm_weight_bytes(head.n, head.k))


def layers_bytes(name: str) -> float:
    """Weight bytes of the linear layers of all decoder layers in bf16."""
    return model(name).n_layers * layer_weight_bytes(name)


def total_bytes(name: str) -> float:
    """All weights of a model in bf16."""
    return weight_bytes(model(name), "bf16")


def total_params(name: str) -> int:
    """All parameters of a model."""
    return parameter_count(model(name)).total


def kv(name: str, tokens: float, dtype: str = "bf16") -> float:
    """Bytes of keys and values of `tokens` over all layers, without the group scales that a 4-bit cache also stores."""
    return tokens * kv_bytes_per_token(model(name), dtype)


def layer_kv(name: str, tokens: float = 1) -> float:
    """Bytes of keys and values of `tokens` in one layer, bf16."""
    spec = model(name)
    return float(kv_bytes(tokens, spec.n_kv_heads, spec.head_dim))


def attention_intensity(context: int, heads: int, kv_heads: int, dtype: str = "bf16") -> float:
    """FLOP per KV byte of decode attention: 2 H/K divided by the bytes of an element; the context cancels."""
    return float(attention_flops(context, heads, 128) / kv_bytes(context, kv_heads, 128, dtype))


def gemm_intensity(tokens: int, dtype: str = "bf16") -> float:
    """FLOP per weight byte of a GEMM over `tokens`: 2m divided by the bytes of a weight."""
    return float(gemm_flops(tokens, 4096, 4096) / gemm_weight_bytes(4096, 4096, dtype))


def ridge(name: str, dtype: str = "bf16") -> float:
    """FLOP per byte at which a GPU's roofline bends: peak over bandwidth."""
    spec = gpu(name)
    return balance(spec.peak_flops[dtype], spec.hbm_bytes_per_s)


def balance(flops_per_s: float, bytes_per_s: float) -> float:
    """FLOP per byte of a machine."""
    return flops_per_s / bytes_per_s


def read_s(bytes_: float, name: str = "h100-sxm") -> float:
    """Seconds to read `bytes_` at a GPU's full bandwidth."""
    return bytes_ / gpu(name).hbm_bytes_per_s


def compute_s(flops: float, name: str = "h100-sxm") -> float:
    """Seconds to compute `flops` in bf16 at a GPU's full rate."""
    return flops / gpu(name).peak_flops["bf16"]
