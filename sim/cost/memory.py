"""The memory ledger: what a GPU's memory holds after an engine's start-up, and how many KV blocks are left."""

from __future__ import annotations

from ...traces.errors import ConfigError
from .memory_advice import no_room
from .memory_ledger import Flags, MemoryLedger, kv_block_bytes, kv_groups, ledger
from .specs import Dtype, EngineProfile, GpuSpec, ModelSpec
from .weight_tensors import ExpertSplit

__all__ = ["MemoryLedger", "check_fits", "kv_block_bytes", "kv_groups", "kv_ledger"]


def kv_ledger(
    model: ModelSpec,
    gpu: GpuSpec,
    *,
    engine: EngineProfile | None = None,
    tp: int = 1,
    pp: int = 1,
    gpu_memory_utilization: float | None = None,
    max_num_batched_tokens: int | None = None,
    max_num_seqs: int | None = None,
    max_model_len: int | None = None,
    kv_dtype: Dtype = "bf16",
    weight_dtype: Dtype | None = None,
    block_size: int | None = None,
    experts: ExpertSplit | None = None,
) -> MemoryLedger:
    """KV blocks of a start-up from first principles: model, parallelism, flags, GPU and engine version.

    blocks = (utilisation × total - weights - activation peak - non-torch) / block bytes; the constants of each
    version are in `memory_constants`, fitted by `stepline.calibration.memory_fit`.

    Args:
        model: the model; gpu: one of the GPUs it runs on.
        engine: supplies defaults of the flags and the version's memory constants; None: `vllm-v1`.
        tp: tensor-parallel size; pp: pipeline stages.
        gpu_memory_utilization: fraction in 0..1; max_num_batched_tokens, max_num_seqs, block_size: as vLLM's flags.
        max_model_len: where given, one such sequence must fit.
        kv_dtype: what the KV cache stores; weight_dtype: what linear layers store, by default as the model says.
        experts: how routed experts are spread over the GPUs; None: cut over the `tp` GPUs.

    Raises:
        ConfigError: a flag out of range, a split that does not go, or a model that does not fit (saying what would).
    """
    flags = Flags.resolve(engine, gpu_memory_utilization, max_num_batched_tokens, max_num_seqs, block_size)
    books = ledger(model, gpu, flags, tp, pp, kv_dtype, weight_dtype, experts)
    if books.n_blocks < 2:
        raise no_room(model, gpu, books, engine=engine, tp=tp, weight_dtype=weight_dtype)
    if max_model_len is not None and max_model_len > books.kv_tokens:
        raise ConfigError(
            f"max_model_len: got {max_model_len}, but the KV cache of {model.name} on {tp} x {gpu.name} holds "
            f"{books.kv_tokens} tokens; lower max_model_len, raise gpu_memory_utilization or tp"
        )
    return books


def check_fits(model: ModelSpec, gpu: GpuSpec, **flags: object) -> MemoryLedger:
    """The ledger of a model that fits; the same flags as `kv_ledger`.

    Raises:
        ConfigError: it does not fit; the message says what would (TP, dtype, GPU, utilisation).
    """
    return kv_ledger(model, gpu, **flags)  # type: ignore[arg-type]  # one signature, spelt once in kv_ledger
