"""Memory constants of engine versions: read from `data/memory.toml`, fitted by `stepline.calibration.memory_fit`."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

from ...traces.errors import ConfigError, nearest
from .specs import EngineProfile

MIB = 2.0**20


@dataclass(frozen=True, slots=True)
class MemoryConstants:
    """What an engine version allocates beside weights and KV.

    version                 the engine version they belong to
    rule                    how the KV budget is stated: "total" (vLLM: a share of the GPU's memory covers all),
                            "static" (SGLang: a share covers weights and KV), "free" (TensorRT-LLM: a share of what
                            weights and activations leave free)
    sampler_bytes_per_logit bytes alive per (sequence, vocabulary entry) beside the model's own logits
    sampler_copies          hidden states alive in the sampler phase, in units of (T + S) × D
    forward_copies          hidden states alive in an FFN, in units of T × D
    workspace_bytes         library workspaces (cuBLAS takes 32 MiB on Hopper)
    compile_copy            whether compilation holds a copy of the largest table a kernel reads
    non_torch               bytes outside the allocator by TP size
    context_bytes           bytes taken before start-up
    hybrid_kv               whether layers with different windows share one pool in groups
    """

    version: str
    rule: Literal["total", "static", "free"]
    sampler_bytes_per_logit: float
    sampler_copies: float
    forward_copies: float
    workspace_bytes: float
    compile_copy: bool
    non_torch: Mapping[int, float]
    context_bytes: float
    hybrid_kv: bool
    source: str

    def non_torch_bytes(self, tp: int) -> float:
        """Bytes outside the allocator at `tp`: measured sizes as they stand, others on a line over log2(tp)."""
        if tp in self.non_torch:
            return self.non_torch[tp]
        known = sorted(size for size in self.non_torch if size > 1) or [1]
        near = sorted(known, key=lambda size: abs(math.log2(size / tp)))[:2]
        if len(near) == 1:
            return self.non_torch[near[0]]
        low, high = sorted(near)
        slope = (self.non_torch[high] - self.non_torch[low]) / math.log2(high / low)
        return self.non_torch[low] + slope * math.log2(tp / low)

    def room(
        self, total: float, share: float, weights: float, activation: float, non_torch: float
    ) -> tuple[float, float]:
        """(budget, bytes left for KV) under this engine's rule."""
        if self.rule == "total":
            if share * total > total - self.context_bytes:
                most = math.floor(100 * (1 - self.context_bytes / total)) / 100
                raise ConfigError(f"gpu_memory_utilization: got {share}, expected at most {most} on this GPU")
            return share * total, share * total - weights - activation - non_torch
        free = total - self.context_bytes - non_torch
        if self.rule == "static":
            return share * free, share * free - weights
        return total - self.context_bytes, share * (free - weights - activation)


def memory_constants(engine: EngineProfile | str | None = None) -> MemoryConstants:
    """Constants of an engine profile or a version's name; of `vllm-v1` when None.

    Raises:
        ConfigError: unknown version.
    """
    name = engine.memory if isinstance(engine, EngineProfile) else engine or "vllm-0.19"
    table = _table()
    if name not in table:
        raise ConfigError(f"unknown memory constants {name!r}{nearest(name, table)}")
    return table[name]


@lru_cache(maxsize=1)
def _table() -> dict[str, MemoryConstants]:
    text = (resources.files(__package__) / "data" / "memory.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)["memory"]
    return {row["version"]: _constants(row) for row in rows}


def _constants(row: dict[str, Any]) -> MemoryConstants:
    sizes = {"non_torch_mib", "workspace_mib", "context_mib"}
    return MemoryConstants(
        non_torch={int(tp): size * MIB for tp, size in row["non_torch_mib"].items()},
        workspace_bytes=row["workspace_mib"] * MIB,
        context_bytes=row["context_mib"] * MIB,
        **{key: value for key, value in row.items() if key not in sizes},
    )
