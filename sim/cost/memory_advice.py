"""What would fit: the error for a model that leaves no room for KV."""

from __future__ import annotations

from ...traces.errors import ConfigError
from .catalogue import known_gpus, load_gpu
from .memory_ledger import GIB, Flags, MemoryLedger, ledger
from .specs import Dtype, EngineProfile, GpuSpec, ModelSpec


def no_room(
    model: ModelSpec,
    gpu: GpuSpec,
    books: MemoryLedger,
    *,
    engine: EngineProfile | None,
    tp: int,
    weight_dtype: Dtype | None,
) -> ConfigError:
    """A ConfigError that says how much is missing and which change (TP, dtype, GPU, utilisation) would do."""
    need = books.weights_bytes + books.activation_bytes + books.non_torch_bytes
    options = _options(model, gpu, engine, tp, weight_dtype)
    advice = "; would fit: " + ", or ".join(options) if options else "; no built-in GPU at TP 8 would fit it"
    return ConfigError(
        f"model {model.name} does not fit on {tp} x {gpu.name}: weights {books.weights_bytes / GIB:.1f} GiB + "
        f"activations and buffers {(need - books.weights_bytes) / GIB:.1f} GiB leave no room for KV in "
        f"{books.budget_bytes / GIB:.1f} GiB{advice}"
    )


def _options(
    model: ModelSpec, gpu: GpuSpec, engine: EngineProfile | None, tp: int, dtype: Dtype | None
) -> list[str]:
    found = []
    sizes = [size for size in (2, 4, 8) if size > tp and _fits(model, gpu, engine, size, dtype)]
    if sizes:
        found.append(f"--tp {sizes[0]}")
    smaller: tuple[Dtype, ...] = ("fp8", "int4")
    stored = dtype or model.weight_dtype
    lighter = [d for d in smaller if stored in ("bf16", "fp16", "fp32") or (stored == "fp8" and d == "int4")]
    fitting = [d for d in lighter if _fits(model, gpu, engine, tp, d)]
    if fitting:
        found.append(f"{fitting[0]} weights")
    if _fits(model, gpu, engine, tp, dtype, utilization=0.95):
        found.append("--gpu-memory-utilization 0.95")
    others = [load_gpu(name) for name in known_gpus()]
    larger = sorted((g for g in others if g.memory_bytes > gpu.memory_bytes), key=lambda g: g.memory_bytes)
    bigger = [g.name for g in larger if _fits(model, g, engine, tp, dtype)]
    if bigger:
        found.append(f"--gpu {bigger[0]}")
    return found


def _fits(
    model: ModelSpec,
    gpu: GpuSpec,
    engine: EngineProfile | None,
    tp: int,
    dtype: Dtype | None,
    utilization: float | None = None,
) -> bool:
    flags = Flags.resolve(engine, utilization, None, None, None)
    try:
        return ledger(model, gpu, flags, tp, 1, "bf16", dtype).n_blocks >= 2
    except ConfigError:
        return False
