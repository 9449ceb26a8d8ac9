"""The books of one GPU's memory: weights, activation peak, buffers, KV blocks. `memory.kv_ledger` is the door."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...traces.errors import ConfigError
from .activation_peak import activation_peak
from .memory_constants import MemoryConstants, memory_constants
from .parameters import KV_BYTES
from .specs import Dtype, EngineProfile, GpuSpec, ModelSpec
from .weight_tensors import ExpertSplit, check_split, kv_heads_held, stage_layers, weight_memory

GIB = 2**30


@dataclass(frozen=True, slots=True)
class MemoryLedger:
    """Bytes on one GPU (of the pipeline stage that has the least room), and the KV blocks they leave.

    total_bytes       memory of the GPU
    budget_bytes      what the engine may use (`gpu_memory_utilization` of it)
    weights_bytes     weights as the allocator books them
    activation_bytes  peak of the profile run above the weights
    non_torch_bytes   CUDA context growth, NCCL and custom all-reduce buffers
    kv_bytes          left for KV
    block_bytes       one KV block of one group of layers
    block_size        tokens of a block
    n_groups          groups of layers that share the pool, each with blocks of its own (1: every layer grows alike)
    n_blocks          blocks of the pool, the null block included (vLLM's `num_gpu_blocks`)
    activation_phase  which phase of the profile run made the peak
    """

    total_bytes: float
    budget_bytes: float
    weights_bytes: float
    activation_bytes: float
    non_torch_bytes: float
    kv_bytes: float
    block_bytes: float
    block_size: int
    n_groups: int
    n_blocks: int
    activation_phase: str

    @property
    def usable_blocks(self) -> int:
        """Blocks that can hold tokens: all but the null block (vLLM V1 block_pool)."""
        return self.n_blocks - 1

    @property
    def token_blocks(self) -> int:
        """Blocks for an engine that counts one block per `block_size` tokens whatever the layer: n_blocks / n_groups.

        Exact while contexts stay inside the smallest window; beyond it windowed groups stop growing and real capacity
        is larger.
        """
        return self.n_blocks // self.n_groups

    @property
    def kv_tokens(self) -> int:
        """Tokens the pool holds when every group of layers keeps all of them."""
        return self.token_blocks * self.block_size


def kv_block_bytes(model: ModelSpec, *, tp: int = 1, kv_dtype: Dtype = "bf16", block_size: int = 16) -> float:
    """Bytes of one token block over all layers on one GPU: 2 K d (or latent) × bytes × layers × block_size."""
    return model.n_layers * _page_bytes(model, tp, kv_dtype, block_size)


def kv_groups(model: ModelSpec, *, hybrid: bool = True) -> tuple[int, int]:
    """(layers in a group, number of groups) in which vLLM pools KV of layers with different windows.

    Groups have as many layers as the smallest kind, unless kinds differ by less than a quarter; the last group of a
    kind is padded (vLLM V1 kv_cache_utils). Chunked attention (Llama-4) disables it: one group.
    """
    kinds = [n for _, n in model.windows]
    if not hybrid or len(kinds) == 1 or model.chunked_attention:
        return model.n_layers, 1
    smallest, largest = min(kinds), max(kinds)
    size = largest if largest < 1.25 * smallest else smallest
    return size, sum(math.ceil(n / size) for n in kinds)


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags that matter here, checked, with the engine's defaults filled in."""

    utilization: float
    tokens: int
    seqs: int
    block_size: int
    constants: MemoryConstants

    @staticmethod
    def resolve(
        engine: EngineProfile | None,
        utilization: float | None,
        tokens: int | None,
        seqs: int | None,
        block_size: int | None,
    ) -> Flags:
        """Explicit flags first, then the engine's defaults, then vLLM's."""
        defaults = engine.defaults if engine else {}

        def pick(given: float | None, flag: str, fallback: float) -> float:
            return given if given is not None else float(defaults.get(flag, fallback))

        share = pick(utilization, "gpu_memory_utilization", 0.9)
        if not 0 < share <= 1:
            raise ConfigError(f"gpu_memory_utilization: got {share}, expected a fraction in (0, 1]")
        counts = {
            "max_num_batched_tokens": pick(tokens, "max_num_batched_tokens", 8192),
            "max_num_seqs": pick(seqs, "max_num_seqs", 256),
            "block_size": pick(block_size, "block_size", 16),
        }
        for flag, value in counts.items():
            if value < 1 or value != int(value):
                raise ConfigError(f"{flag}: got {value}, expected an integer >= 1")
        tokens, seqs, size = (int(v) for v in counts.values())
        return Flags(share, tokens, min(seqs, tokens), size, memory_constants(engine))


def ledger(
    model: ModelSpec,
    gpu: GpuSpec,
    flags: Flags,
    tp: int,
    pp: int,
    kv_dtype: Dtype,
    weight_dtype: Dtype | None,
    experts: ExpertSplit | None = None,
) -> MemoryLedger:
    """The ledger of the pipeline stage with the fewest blocks; `n_blocks` is 0 where nothing is left."""
    check_split(model, tp, experts)
    constants = flags.constants
    non_torch = constants.non_torch_bytes(tp)
    weights = weight_memory(model, tp=tp, dtype=weight_dtype, pp=pp, experts=experts)
    layers = stage_layers(model.n_layers, pp)
    group_layers, n_groups = kv_groups(model, hybrid=constants.hybrid_kv)
    page = _page_bytes(model, tp, kv_dtype, flags.block_size)
    rows = []
    for stage, held in enumerate(weights):
        peak = activation_peak(
            model,
            constants,
            tp=tp,
            max_num_batched_tokens=flags.tokens,
            max_num_seqs=flags.seqs,
            weight_dtype=weight_dtype,
            first_stage=stage == 0,
            last_stage=stage == pp - 1,
        )
        budget, room = constants.room(gpu.memory_bytes, flags.utilization, held, peak.bytes, non_torch)
        block = page * (group_layers if pp == 1 else layers[stage])
        rows.append(
            MemoryLedger(
                total_bytes=float(gpu.memory_bytes),
                budget_bytes=budget,
                weights_bytes=held,
                activation_bytes=peak.bytes,
                non_torch_bytes=non_torch,
                kv_bytes=room,
                block_bytes=block,
                block_size=flags.block_size,
                n_groups=n_groups if pp == 1 else 1,
                n_blocks=max(0, math.floor(room / block)),
                activation_phase=peak.phase,
            )
        )
    return min(rows, key=lambda row: row.n_blocks)


def _page_bytes(model: ModelSpec, tp: int, kv_dtype: Dtype, block_size: int) -> float:
    """KV bytes of one block of one layer on one GPU; the latent of MLA is replicated over the group."""
    if model.mla is not None:
        return (model.mla.kv_lora_rank + model.mla.qk_rope_head_dim) * KV_BYTES[kv_dtype] * block_size
    return 2 * kv_heads_held(model, tp) * model.head_dim * KV_BYTES[kv_dtype] * block_size
