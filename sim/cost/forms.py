"""Kernel time forms: seconds of a kernel from its work and a few constants, split by the bound that made
them.

Each form takes arrays and returns a `Split`, {bound: seconds}, whose sum is the kernel's time: the fixed
launch part goes to `latency`, the rest to its largest term. All rates are efficiencies (at most 1) of
datasheet peaks, terms join by a p-norm with p >= 1, so that no form can answer below max(FLOPs / peak, bytes
/ bandwidth).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .specs import GpuSpec

Array = NDArray[np.float64]
Split = dict[str, Array]
"""Seconds by bound (`work.BOUNDS`), arrays of one shape."""

Constants = Mapping[str, float]

GEMM_TILE = 64
"""Rows and columns of output that one CTA owns at least: 64 x 64 tiles (PHYSICS: fitted on cuBLAS H100 kernels)."""

SPLIT_K_LENGTH = 2600
"""Shortest K that split-k leaves to one CTA (fitted on the same tables)."""


def p_norm(exponent: float, *terms: Any) -> Any:
    """(Σ term^p)^(1/p): p = 1 adds, p = inf takes the largest (perfect overlap).

    >>> float(p_norm(2.0, 3.0, 4.0)), float(p_norm(math.inf, 3.0, 4.0))
    (5.0, 4.0)
    """
    largest = terms[0]
    for term in terms[1:]:
        largest = np.maximum(largest, term)
    if math.isinf(exponent):
        return largest
    safe = np.maximum(largest, 1e-300)  # scale out, so that tiny seconds to a power do not underflow
    total = sum((term / safe) ** exponent for term in terms)
    return safe * total ** (1.0 / exponent)


def split_by_largest(latency: Any, main: Any, terms: Mapping[str, Any]) -> Split:
    """Book `latency` seconds under latency and `main` seconds under the bound of the largest of `terms`."""
    *rivals, main = np.broadcast_arrays(*terms.values(), np.asarray(main, dtype=float))
    largest, winner = rivals[0], np.zeros(main.shape, dtype=np.int8)
    for index, rival in enumerate(rivals[1:], 1):
        winner = np.where(rival > largest, index, winner)
        largest = np.maximum(largest, rival)
    split: Split = {"latency": np.broadcast_to(np.asarray(latency, dtype=float), main.shape).copy()}
    for index, name in enumerate(terms):
        part = np.where(winner == index, main, 0.0)
        split[name] = split[name] + part if name in split else part
    return split


def total_s(split: Split) -> Array:
    """Seconds of a split."""
    return np.asarray(sum(split.values()))


def scaled(split: Split, factor: Any) -> Split:
    """The split with each part times `factor`."""
    return {bound: seconds * factor for bound, seconds in split.items()}


def with_residual(split: Split, log_factor: Any, floor_s: Any) -> Split:
    """Scale a split by exp(log_factor), but never below `floor_s`, the physical floor of the work."""
    total = total_s(split)
    wanted = np.maximum(total * np.exp(log_factor), floor_s)
    return scaled(split, wanted / total)


def chain_split(m: Any, n: Any, k: Any, n_sm: int) -> Any:
    """How many CTAs share one output tile's K loop: clip(SMs / tiles, 1, max(k / 2600, 1))."""
    tiles = np.maximum(np.ceil(m / GEMM_TILE) * np.ceil(n / GEMM_TILE), 1.0)  # no rows: no tiles, no division
    return np.clip(n_sm / tiles, 1.0, np.maximum(k / SPLIT_K_LENGTH, 1.0))


def gemm_terms(
    m: Any, n: Any, k: Any, bytes_: Any, c: Constants, gpu: GpuSpec, peak: float
) -> tuple[Any, Any, Any]:
    """Compute, memory and serial-chain seconds of a GEMM; `bytes_` all it moves, `peak` FLOP/s of its dtype."""
    compute = 2.0 * m * n * k / (c["compute_eff"] * peak)
    memory = bytes_ / (c["memory_eff"] * gpu.hbm_bytes_per_s)
    chain = c["chain_s_per_k"] * k / chain_split(m, n, k, gpu.n_sm)
    return compute, memory, chain


def gemm_s(m: Any, n: Any, k: Any, bytes_: Any, c: Constants, gpu: GpuSpec, peak: float) -> Any:
    """GEMM seconds: t0 + ((tc^q + tm^q)^(p/q) + tk^p)^(1/p), p = 2; tc = 2mnk/(e_c peak), tm = bytes/(e_m bandwidth).

    tk = chain_s_per_k · k / s is the serial K loop of one CTA, cut s ways by split-k: what keeps a small GEMM
    from either peak. q, `overlap_exponent` (p where there is none), is how well loads hide behind the tensor cores
    where both take as long.
    """
    return c["t0_s"] + _gemm_main_s(*gemm_terms(m, n, k, bytes_, c, gpu, peak), c)


def _gemm_main_s(compute: Any, memory: Any, chain: Any, c: Constants) -> Any:
    overlap = c.get("overlap_exponent", c["exponent"])
    return p_norm(c["exponent"], p_norm(overlap, compute, memory), chain)


def gemm(m: Any, n: Any, k: Any, bytes_: Any, c: Constants, gpu: GpuSpec, peak: float) -> Split:
    """`gemm_s` by bound: compute, weight_bandwidth (weights and activations) or latency (the chain and t0)."""
    compute, memory, chain = gemm_terms(m, n, k, bytes_, c, gpu, peak)
    main = _gemm_main_s(compute, memory, chain, c)
    terms = {"compute": compute, "weight_bandwidth": memory, "latency": chain}
    return split_by_largest(c["t0_s"], main, terms)


def overlapped_terms(flops: Any, bytes_: Any, c: Constants, gpu: GpuSpec, peak: float) -> tuple[Any, Any]:
    """Compute and memory seconds of a kernel that overlaps them."""
    return flops / (c["compute_eff"] * peak), bytes_ / (c["memory_eff"] * gpu.hbm_bytes_per_s)


def overlapped_s(flops: Any, bytes_: Any, c: Constants, gpu: GpuSpec, peak: float) -> Any:
    """t0 + p-norm of compute and memory seconds: prefill attention."""
    return c["t0_s"] + p_norm(c["exponent"], *overlapped_terms(flops, bytes_, c, gpu, peak))


def overlapped(flops: Any, bytes_: Any, c: Constants, gpu: GpuSpec, peak: float, memory_bound: str) -> Split:
    """`overlapped_s` by bound; `memory_bound` names the memory term's."""
    compute, memory = overlapped_terms(flops, bytes_, c, gpu, peak)
    main = p_norm(c["exponent"], compute, memory)
    return split_by_largest(c["t0_s"], main, {"compute": compute, memory_bound: memory})


QUERY_TILE = 128
"""Rows of a query tile of FlashAttention-3: tokens times the query heads that share a KV head."""


def query_tiles(tokens: Any, sequences: Any, kv_heads: Any, group: Any) -> Any:
    """CTAs of a prefill: b K ⌈s (H / K) / 128⌉ for b chunks of s tokens."""
    return sequences * kv_heads * np.ceil(tokens / sequences * group / QUERY_TILE)


STORE_THREADS = 512
"""Most threads of the CTA that writes a token's keys and values to the cache: one an element below (vLLM 0.9.2,
`csrc/cache_kernels.cu`, `reshape_and_cache_flash`: grid of tokens, block of min(heads · size, 512))."""

SM_THREADS = 2048
"""Threads that one SM holds (V100, A100, H100, B200; where it holds fewer, `store_block_s` takes it up)."""


def kv_store_s(tokens: Any, kv_elements: Any, c: Constants, gpu: GpuSpec) -> Any:
    """Seconds to write new tokens to the cache: store_block_s · tokens · min(K d, 512) / (2048 SMs).

    `kv_elements`: K d, keys of a token. `store_block_s` is how long one CTA keeps its threads, whatever it copies:
    four heads of 128 already take four of its places on an SM, and so cost a token as much as 32 do. Constants
    without it book nothing.
    """
    threads = np.minimum(kv_elements, STORE_THREADS)
    return c.get("store_block_s", 0.0) * tokens * threads / (SM_THREADS * gpu.n_sm)


def tile_waves(tiles: Any, n_sm: int) -> Any:
    """Rounds of CTAs beyond the first, tiles / SMs - 1, at least 0."""
    return np.maximum(tiles / n_sm - 1.0, 0.0)


def tile_walk_s(
    flops: Any, bytes_: Any, tiles: Any, keys: Any, c: Constants, gpu: GpuSpec, peak: float
) -> Any:
    """Prefill attention: t0 + wave · (tiles / SMs - 1) + (tc^p + tm^p + tk^p)^(1/p), tk = chain_s_per_key · keys.

    tk is the walk of one query tile over the keys of its sequence, in series: what a short prompt on few heads waits
    for while most processors idle; `wave_s` is what each further round of tiles costs to start and end.
    """
    walk = c["chain_s_per_key"] * keys
    main = p_norm(c["exponent"], *overlapped_terms(flops, bytes_, c, gpu, peak), walk)
    return c["t0_s"] + c["wave_s"] * tile_waves(tiles, gpu.n_sm) + main


def fused_moe_terms(
    flops: Any, weights: Any, activations: Any, c: Constants, gpu: GpuSpec, peak: float
) -> tuple[Any, Any]:
    """Compute and memory seconds of a fused MoE; activations (gathered, scattered) move at a rate of their own."""
    bandwidth = gpu.hbm_bytes_per_s
    memory = weights / (c["memory_eff"] * bandwidth) + activations / (c["activation_eff"] * bandwidth)
    return flops / (c["compute_eff"] * peak), memory


def fused_moe_fixed_s(length: Any, c: Constants) -> Any:
    """Seconds that no overlap hides: t0 + chain_s_per_k · length, length = hidden size + expert width.

    The two GEMMs of an expert run one after the other, and no split-k cuts the K loop of their CTAs: the last ones
    walk all of the hidden size in the first and all of the width in the second.
    """
    return c["t0_s"] + c.get("chain_s_per_k", 0.0) * length


def fused_moe_s(
    flops: Any, weights: Any, activations: Any, length: Any, c: Constants, gpu: GpuSpec, peak: float
) -> Any:
    """t0 + chain + p-norm of compute and memory seconds, memory = weights / (e_m BW) + activations / (e_a BW)."""
    main = p_norm(c["exponent"], *fused_moe_terms(flops, weights, activations, c, gpu, peak))
    return fused_moe_fixed_s(length, c) + main


def fused_moe(
    flops: Any, weights: Any, activations: Any, length: Any, c: Constants, gpu: GpuSpec, peak: float
) -> Split:
    """`fused_moe_s` by bound."""
    compute, memory = fused_moe_terms(flops, weights, activations, c, gpu, peak)
    main = p_norm(c["exponent"], compute, memory)
    fixed = fused_moe_fixed_s(length, c)
    return split_by_largest(fixed, main, {"compute": compute, "weight_bandwidth": memory})


def decode_waves(sequences: Any, kv_heads: int, n_sm: int) -> Any:
    """Waves of CTAs beyond the first, one CTA a sequence and KV head: ⌈b K / SMs⌉ - 1, at least 0."""
    return np.maximum(np.ceil(sequences * kv_heads / n_sm) - 1.0, 0.0)


def decode_terms(
    sequences: Any,
    kv_heads: Any,
    query_bytes: Any,
    kv_bytes: Any,
    flops: Any,
    c: Constants,
    gpu: GpuSpec,
    peak: float,
) -> tuple[Any, Any, Any]:
    """Fixed seconds, and the memory and compute seconds of the longer side of a decode attention."""
    rate = c["memory_eff"] * gpu.hbm_bytes_per_s
    fixed = c["t0_s"] + c["wave_s"] * decode_waves(sequences, kv_heads, gpu.n_sm)
    query = query_bytes / rate
    return fixed, query + kv_bytes / rate, query + flops / peak


def decode_attention_s(
    sequences: Any,
    kv_heads: Any,
    query_bytes: Any,
    kv_bytes: Any,
    flops: Any,
    c: Constants,
    gpu: GpuSpec,
    peak: float,
) -> Any:
    """t0 + (⌈b K / SMs⌉ - 1) wave + query bytes / r + max(KV bytes / r, FLOPs / peak), r = e bandwidth.

    Affine in the context, so that the steps of a leap are an arithmetic progression.
    """
    fixed, memory, compute = decode_terms(sequences, kv_heads, query_bytes, kv_bytes, flops, c, gpu, peak)
    return fixed + np.maximum(memory, compute)


def decode_attention(
    sequences: Any,
    kv_heads: Any,
    query_bytes: Any,
    kv_bytes: Any,
    flops: Any,
    c: Constants,
    gpu: GpuSpec,
    peak: float,
) -> Split:
    """`decode_attention_s` by bound: latency (launch, waves), kv_bandwidth or compute."""
    fixed, memory, compute = decode_terms(sequences, kv_heads, query_bytes, kv_bytes, flops, c, gpu, peak)
    return split_by_largest(fixed, np.maximum(memory, compute), {"kv_bandwidth": memory, "compute": compute})


def elementwise(bytes_: Any, launches: float, c: Constants, gpu: GpuSpec) -> Split:
    """launches · t0 + bytes / (e bandwidth); its bytes are activations, booked with the weights' bandwidth."""
    memory = np.asarray(bytes_ / (c["memory_eff"] * gpu.hbm_bytes_per_s), dtype=float)
    return {"latency": np.full(memory.shape, launches * c["t0_s"]), "weight_bandwidth": memory}


def collective_s(bytes_: Any, world: Any, c: Constants, gpu: GpuSpec, kind: str = "all_reduce") -> Any:
    """The cheapest of one shot, t0 + direct bytes / (e1 link), two shots, t2 + wire bytes / (e2 link), and a
    ring, t3 + wire bytes / (e3 link), which starts slower and moves faster (NCCL's large messages).

    `bytes_`: the buffer on each GPU (all-reduce), the gathered buffer (all-gather), the buffer sent (all-to-all).
    One shot: every GPU reads all peers' buffers, (w-1) B in an all-reduce, (w-1)/w B in the others; only for messages
    under `one_shot_bytes`, the library's own buffers, where the constants name them. Two shots and ring: 2 (w-1)/w B
    on the wire in an all-reduce, (w-1)/w B in the others. Constants without a ring are a library without one.
    """
    share = (world - 1) / world
    reduce = kind == "all_reduce"
    direct = share * bytes_ * (world if reduce else 1.0)
    wire = share * bytes_ * (2.0 if reduce else 1.0)
    one_shot = c["t0_s"] + direct / (c["one_shot_eff"] * gpu.nvlink_bytes_per_s)
    two_shot = c["two_shot_s"] + wire / (c["two_shot_eff"] * gpu.nvlink_bytes_per_s)
    if "one_shot_bytes" in c:
        one_shot = np.where(np.asarray(bytes_) < c["one_shot_bytes"], one_shot, math.inf)
    if "ring_s" in c:
        two_shot = np.minimum(two_shot, c["ring_s"] + wire / (c["ring_eff"] * gpu.nvlink_bytes_per_s))
    return np.minimum(one_shot, two_shot)


def collective(bytes_: Any, world: int, c: Constants, gpu: GpuSpec, kind: str = "all_reduce") -> Split:
    """`collective_s`, all of it `comm`."""
    return {"comm": np.asarray(collective_s(bytes_, world, c, gpu, kind))}
