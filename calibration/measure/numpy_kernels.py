"""Kernels in NumPy: they calibrate this CPU, and let the whole loop run where there is neither GPU nor torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import Case
from .kernels import Call, Unsupported, lengths

Array = NDArray[np.float32]
ARENA_BYTES = 256 * 2**20
LARGEST_COPY_BYTES = 2**26
"""Largest copy of the quick grid for CPUs (`grids`)."""
COMMON_CACHE_BYTES = 2**25
"""Last-level cache, or the slice of it, of most servers' cores."""
MOST_COPIES = 512
"""Sets of operands of a case on a CPU: views of one arena, which cost nothing."""
QUERY_BLOCK = 256
"""Queries per block of prefill attention: bounds the score matrix to 256 × context per head."""


class NumpyKernels:
    """float32 kernels on the CPU. Operands are views of one random arena, taken in turn."""

    most_copies = MOST_COPIES
    failures = (MemoryError,)

    def __init__(self, arena_bytes: int | None = None, seed: int = 0) -> None:
        self.gpu = "cpu"
        self.cache_bytes = cpu_cache_bytes()
        self.round_flops = cpu_round_flops(self.cache_bytes)
        if arena_bytes is None:
            arena_bytes = cpu_arena_bytes(self.cache_bytes, free_memory_bytes())
        self.operand_bytes = arena_bytes
        self._block = np.random.default_rng(seed).standard_normal(4 * 2**20, dtype=np.float32)
        self._arena = np.resize(self._block, arena_bytes // 4)
        self._at = 0

    def reserve(self, n_bytes: int) -> None:
        """See `Kernels.reserve`."""
        if n_bytes <= self.operand_bytes:
            return
        refuse_beyond(n_bytes, free_memory_bytes())
        self._arena = np.resize(self._block, n_bytes // 4)
        self.operand_bytes, self._at = n_bytes, 0

    def library(self, case: Case) -> str:
        """`numpy-VERSION`; only float32."""
        if case.dtype != "fp32":
            raise Unsupported(f"NumPy has no {case.dtype} kernels")
        return f"numpy-{np.__version__}"

    def facts(self) -> dict[str, object]:
        """Processor, cores, cache, BLAS."""
        config: Any = np.show_config(mode="dicts")
        blas = config["Build Dependencies"]["blas"]
        return {
            "device": platform.processor() or platform.machine(),
            "cpu_model": cpu_model(),
            "libraries": {"numpy": np.__version__, "blas": f"{blas.get('name')} {blas.get('version')}"},
            "cache_bytes": self.cache_bytes,
            "n_sm": os.cpu_count() or 1,
            "memory_bytes": total_memory_bytes(),
            "threads": os.environ.get("OPENBLAS_NUM_THREADS", "all"),
        }

    def make(self, case: Case) -> Call:
        """See `Kernels.make`."""
        self.library(case)
        name = case.operation if case.kernel in ("elementwise", "host") else case.kernel
        builders: dict[str | None, Callable[[Case], Call]] = {
            "gemm": self._gemm,
            "attention_prefill": self._prefill,
            "attention_decode": self._decode,
            "attention_mixed": self._mixed,
            "copy": self._copy,
            "launch": lambda _: self._launch(),
            "sampling": self._sampling,
        }
        if case.kernel == "elementwise":
            return self._row_wise(case)
        if name not in builders:
            raise Unsupported(f"no NumPy kernel for {name}")
        return builders[name](case)

    def take(self, *shape: int) -> Array:
        """Random operand of `shape`: the next stretch of the arena."""
        size = int(np.prod(shape))
        if size > self._arena.size:
            raise Unsupported(
                f"an operand of {size * 4 / 2**30:.2f} GiB exceeds the {self.operand_bytes} bytes for it"
            )
        if self._at + size > self._arena.size:
            self._at = 0
        self._at += size
        return self._arena[self._at - size : self._at].reshape(shape)

    def _gemm(self, case: Case) -> Call:
        m, n, k = case.dims("m", "n", "k")
        x, weight, out = self.take(m, k), self.take(n, k), np.empty((m, n), np.float32)
        return lambda: np.matmul(x, weight.T, out=out)

    def _prefill(self, case: Case) -> Call:
        batch, tokens, history, heads, kv_heads, dim = case.dims(
            "batch", "query_tokens", "history_tokens", "heads", "kv_heads", "head_dim"
        )
        q = self.take(batch, tokens, heads, dim)
        k, v = (self.take(batch, history + tokens, kv_heads, dim) for _ in range(2))
        return lambda: [attention(q[b], k[b], v[b]) for b in range(batch)]

    def _decode(self, case: Case) -> Call:
        heads, kv_heads, dim = case.dims("heads", "kv_heads", "head_dim")
        queries = self.take(case.dims("batch")[0], 1, heads, dim)
        caches = [(self.take(c, kv_heads, dim), self.take(c, kv_heads, dim)) for c in lengths(case)]
        return lambda: [attention(q, k, v) for q, (k, v) in zip(queries, caches, strict=True)]

    def _mixed(self, case: Case) -> Call:
        chunk, decodes = split_mixed(case)
        prefill, decode = self._prefill(chunk), self._decode(decodes)
        return lambda: (prefill(), decode())

    def _row_wise(self, case: Case) -> Call:
        m, n = case.dims("m", "n")
        x, y = self.take(m, n), self.take(m, n)
        gain = np.ones(n, np.float32)
        match case.operation:
            case "norm":
                return lambda: rms_norm(x, gain)
            case "add_norm":
                return lambda: rms_norm(x + y, gain)
            case "residual":
                return lambda: x + y
            case "act":
                return lambda: silu_mul(x, y)
            case "rope":
                return lambda: rope(x, y)
            case _:
                raise Unsupported(f"no NumPy kernel for {case.operation}")

    def _copy(self, case: Case) -> Call:
        source = self.take(case.dims("message_bytes")[0] // 8)  # a copy reads and writes: half the bytes each
        target = np.empty_like(source)
        return lambda: np.copyto(target, source)

    def _launch(self) -> Call:
        one = np.ones(1, np.float32)
        return lambda: np.negative(one, out=one)

    def _sampling(self, case: Case) -> Call:
        rows, vocab = case.dims("m", "n")
        logits = self.take(rows, vocab)
        noise = np.random.default_rng(1).gumbel(size=(rows, 1)).astype(np.float32)
        return lambda: np.argmax(logits + noise, axis=1)


def attention(q: Array, k: Array, v: Array) -> Array:
    """Causal grouped-query attention of one sequence; the last query sees every key.

    Args:
        q: queries, shape (s, H, d). k, v: keys and values, shape (c, K, d) with c >= s and H a multiple of K.

    Returns: shape (s, H, d).
    """
    s, heads, dim = q.shape
    context, kv_heads, _ = k.shape
    keys = k.transpose(1, 2, 0)
    values = v.transpose(1, 0, 2)
    out = np.empty((s, heads, dim), np.float32)
    for start in range(0, s, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, s)
        seen = context - s + stop  # keys that the block's last query sees
        group = q[start:stop].transpose(1, 0, 2).reshape(kv_heads, -1, dim)
        scores = (group @ keys[:, :, :seen]).reshape(heads, stop - start, seen)
        if stop - start > 1:
            hidden = np.arange(seen) > np.arange(seen - (stop - start), seen)[:, None]
            scores[:, hidden] = -np.inf
        scores *= dim**-0.5
        np.exp(scores - scores.max(axis=-1, keepdims=True), out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = scores.reshape(kv_heads, -1, seen) @ values[:, :seen]
        out[start:stop] = mixed.reshape(heads, stop - start, dim).transpose(1, 0, 2)
    return out


def rms_norm(x: Array, gain: Array) -> Array:
    """x / rms(x) · gain over the last axis."""
    scale = 1 / np.sqrt(np.einsum("mn,mn->m", x, x) / x.shape[1] + 1e-5)
    return np.asarray(x * scale[:, None].astype(np.float32) * gain)


def silu_mul(gate: Array, up: Array) -> Array:
    """silu(gate) · up."""
    return np.asarray(gate / (1 + np.exp(-np.clip(gate, -30, 30))) * up)


def rope(x: Array, angle: Array) -> Array:
    """Rotate pairs (x[i], x[i + n/2]) of each row by precomputed cosines and sines held in `angle`'s halves."""
    half = x.shape[1] // 2
    a, b, cos, sin = x[:, :half], x[:, half : 2 * half], angle[:, :half], angle[:, half : 2 * half]
    return np.concatenate((a * cos - b * sin, a * sin + b * cos), axis=1)


def split_mixed(case: Case) -> tuple[Case, Case]:
    """The chunk and the decodes of a mixed case as cases of their own, for libraries without a joint kernel."""
    from dataclasses import replace

    chunk = replace(case, kernel="attention_prefill", batch=case.prefill_batch)
    context = case.decode_context_tokens
    return chunk, replace(case, kernel="attention_decode", context_tokens=context, decode_context_tokens=None)


def free_memory_bytes() -> int:
    """Memory that Linux calls available; 4 GiB where it does not say."""
    return _memory_bytes("MemAvailable")


def total_memory_bytes() -> int:
    """Memory of the machine; 4 GiB where Linux does not say."""
    return _memory_bytes("MemTotal")


def _memory_bytes(field: str) -> int:
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = (int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
    return next(found, 4 * 2**30)


def refuse_beyond(n_bytes: int, free: int) -> None:
    """Raise Unsupported if operands would take more than half of the free memory."""
    if n_bytes > free // 2:
        raise Unsupported(
            f"operands of {n_bytes / 2**30:.1f} GiB exceed half of the {free / 2**30:.1f} GiB free"
        )


def cpu_arena_bytes(cache_bytes: int, free_bytes: int) -> int:
    """Memory for operands: enough to be cold (twice the cache, in whole sets of the largest copy), a fourth of what is free.

    >>> [cpu_arena_bytes(mib * 2**20, 24 * 2**30) // 2**20 for mib in (32, 480)]
    [256, 1024]
    """
    return max(ARENA_BYTES, min(2 * cache_bytes + LARGEST_COPY_BYTES, free_bytes // 4))


def cpu_round_flops(cache_bytes: int) -> float:
    """FLOPs of a round: a second or less on one core; more where the cache is larger than common, or nothing were cold."""
    return 1e9 * max(1.0, cache_bytes / COMMON_CACHE_BYTES)


def cpu_cache_bytes() -> int:
    """Largest cache of core 0 as Linux states it; 32 MiB where it does not say (typical of a server's L3 slice)."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        units = {"K": 2**10, "M": 2**20, "G": 2**30}
        sizes.append(int(text.rstrip("KMG")) * units.get(text[-1], 1))
    return max(sizes, default=32 * 2**20)


def cpu_model() -> str:
    """Name of the processor as Linux states it, else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
