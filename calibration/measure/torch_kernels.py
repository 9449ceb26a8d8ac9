"""Kernels on a torch device. Per kernel the first library is used that is installed and proves right on a small case."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from . import torch_attention, torch_elementwise
from .cases import Case
from .facts import gpu_name, nvidia_facts
from .kernels import ELEMENT_BYTES, Call, Unsupported
from .numpy_kernels import (
    MOST_COPIES,
    cpu_arena_bytes,
    cpu_cache_bytes,
    cpu_model,
    cpu_round_flops,
    free_memory_bytes,
    refuse_beyond,
    total_memory_bytes,
)

GPU_ARENA_BYTES = 24 * 2**30
"""Most memory for operands; on a GPU at most two fifths of what is free."""

TORCH_TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "float8_e4m3fn"}


class Operands:
    """Random operands: consecutive views of one arena of normal numbers, so that no two calls share lines of cache."""

    def __init__(self, torch: Any, device: Any, n_bytes: int, seed: int = 0) -> None:
        self._torch, self.device = torch, device
        generator = torch.Generator(device=device).manual_seed(seed)
        self._bf16 = torch.empty(n_bytes // 2, dtype=torch.bfloat16, device=device)
        for part in self._bf16.split(2**28):
            part.normal_(generator=generator)
        self.n_bytes, self._at = n_bytes, 0

    def take(self, *shape: int, dtype: str) -> Any:
        """A random tensor of `shape`; numbers beyond the arena's size are allocated of their own."""
        count = 1
        for edge in shape:
            count *= edge
        size = -(-count * ELEMENT_BYTES[dtype] // 512) * 512
        kind = getattr(self._torch, TORCH_TYPES[dtype])
        if size > self.n_bytes:
            raise Unsupported(
                f"an operand of {size / 2**30:.1f} GiB exceeds the arena of {self.n_bytes / 2**30:.1f} GiB"
            )
        if dtype == "fp8":  # reinterpreted bits would hold NaNs
            return self.take(*shape, dtype="bf16").to(kind)
        if self._at + size > self.n_bytes:
            self._at = 0
        part = self._bf16[self._at // 2 : (self._at + size) // 2]
        self._at += size
        if dtype == "bf16":
            return part[:count].view(*shape)
        return (
            part[: size // 2].to(kind).repeat(2)[:count].view(*shape)
            if dtype == "fp32"
            else (part[:count].to(kind).view(*shape))
        )


class TorchKernels:
    """Kernels of torch and of the libraries around it, on one device."""

    failures = (
        RuntimeError,
        ValueError,
        NotImplementedError,
    )  # torch's out-of-memory error is a RuntimeError

    def __init__(self, torch: Any, device: str, dtype: str, arena_bytes: int | None = None) -> None:
        self.torch, self.dtype = torch, dtype
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"
        self.notes: dict[str, str] = {}
        self._chosen: dict[str, torch_attention.Library] = {}
        if self.on_gpu:
            self.most_copies, self.round_flops = 128, 5e12
            self._properties = torch.cuda.get_device_properties(self.device)
            self.gpu = gpu_name(self._properties.name)
            self.cache_bytes = int(getattr(self._properties, "L2_cache_size", 0)) or 50 * 2**20
            free = torch.cuda.mem_get_info(self.device)[0]
            size = min(GPU_ARENA_BYTES, int(0.4 * free)) if arena_bytes is None else arena_bytes
            self._at_start = nvidia_facts(self.device.index or 0)
        else:
            self.gpu, self.cache_bytes = "cpu", cpu_cache_bytes()
            self.most_copies, self.round_flops = MOST_COPIES, cpu_round_flops(self.cache_bytes)
            wanted = cpu_arena_bytes(self.cache_bytes, free_memory_bytes())
            size = wanted if arena_bytes is None else arena_bytes
        self.operands = Operands(torch, self.device, size)
        self.operand_bytes = size

    def reserve(self, n_bytes: int) -> None:
        """See `Kernels.reserve`."""
        if n_bytes <= self.operand_bytes:
            return
        free = self.torch.cuda.mem_get_info(self.device)[0] if self.on_gpu else free_memory_bytes()
        refuse_beyond(n_bytes, free + self.operand_bytes)
        del self.operands
        self.operands, self.operand_bytes = Operands(self.torch, self.device, n_bytes), n_bytes

    @property
    def n_gpus(self) -> int:
        """GPUs that a collective can span."""
        return int(self.torch.cuda.device_count()) if self.on_gpu else 1

    @property
    def gemm_dtypes(self) -> tuple[str, ...]:
        """GEMM types beside the main one: fp8 from compute capability 8.9 (Ada, Hopper) on."""
        if not self.on_gpu or (self._properties.major, self._properties.minor) < (8, 9):
            return ()
        return ("fp8",)

    def library(self, case: Case) -> str:
        """See `Kernels.library`."""
        if case.kernel.startswith("attention"):
            return self._library(case.kernel).name
        if case.kernel == "elementwise":
            return self._library(str(case.operation)).name
        if case.kernel == "all_reduce":
            return "nccl-" + ".".join(str(v) for v in self.torch.cuda.nccl.version())
        return self._torch_name()

    def make(self, case: Case) -> Call:
        """See `Kernels.make`."""
        if case.kernel.startswith("attention"):
            return self._library(case.kernel).build(torch_attention.operands(self, case))
        if case.kernel == "elementwise":
            return self._library(str(case.operation)).build(torch_elementwise.operands(self, case))
        builders: dict[str, Callable[[Case], Call]] = {
            "gemm": self._gemm,
            "copy": self._copy,
            "all_reduce": self._all_reduce,
            "launch": self._launch,
            "sampling": self._sampling,
        }
        name = str(case.operation) if case.kernel == "host" else case.kernel
        if name not in builders:
            raise Unsupported(f"no torch kernel for {name}")
        return builders[name](case)

    def facts(self) -> dict[str, object]:
        """Device, driver, clocks, versions, and which libraries were tried for each kernel."""
        torch = self.torch
        found: dict[str, object] = {
            "libraries": {"torch": torch.__version__, "chosen": {k: v.name for k, v in self._chosen.items()}},
            "left_out": self.notes,
            "cache_bytes": self.cache_bytes,
            "operand_bytes": self.operand_bytes,
        }
        if not self.on_gpu:
            cores = {"n_sm": os.cpu_count() or 1, "memory_bytes": total_memory_bytes()}
            return found | cores | {"cpu_model": cpu_model(), "threads": torch.get_num_threads()}
        p = self._properties
        return found | {
            "device": p.name,
            "capability": f"{p.major}.{p.minor}",
            "n_sm": p.multi_processor_count,
            "memory_bytes": p.total_memory,
            "cuda": torch.version.cuda,
            "driver_at_start": self._at_start,
            "driver_at_end": nvidia_facts(self.device.index or 0),
            "n_gpus": self.n_gpus,
        }

    def _torch_name(self) -> str:
        return f"torch-{str(self.torch.__version__).partition('+')[0]}"

    def _library(self, kernel: str) -> torch_attention.Library:
        if kernel not in self._chosen:
            source = torch_attention if kernel.startswith("attention") else torch_elementwise
            self._chosen[kernel] = torch_attention.first_right(
                self, kernel, source.libraries(self, kernel), source
            )
        return self._chosen[kernel]

    def _gemm(self, case: Case) -> Call:
        m, n, k = case.dims("m", "n", "k")
        torch = self.torch
        if case.dtype == "fp8":
            return self._fp8_gemm(m, n, k)
        x, weight = (self.operands.take(rows, k, dtype=case.dtype) for rows in (m, n))
        out = torch.empty(m, n, dtype=x.dtype, device=self.device)
        return lambda: torch.mm(x, weight.t(), out=out)

    def _fp8_gemm(self, m: int, n: int, k: int) -> Call:
        """fp8 x fp8 -> bf16 with one scale a tensor; activations arrive quantised (their quantising is not timed)."""
        torch = self.torch
        if m % 16 or n % 16 or k % 16:
            raise Unsupported("fp8 GEMMs need multiples of 16")
        x, weight = (self.operands.take(rows, k, dtype="fp8") for rows in (m, n))
        one = torch.ones((), dtype=torch.float32, device=self.device)
        return lambda: torch._scaled_mm(x, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    def _copy(self, case: Case) -> Call:
        # A copy reads and writes: half of the moved bytes each, 2 bytes an element.
        source = self.operands.take(case.dims("message_bytes")[0] // 4, dtype="bf16")
        target = self.torch.empty_like(source)
        return lambda: target.copy_(source)

    def _launch(self, _: Case) -> Call:
        one = self.torch.ones(1, device=self.device)
        return lambda: one.neg_()

    def _sampling(self, case: Case) -> Call:
        """Softmax and exponential race over float32 logits, as engines draw without a synchronisation."""
        rows, vocab = case.dims("m", "n")
        logits = self.operands.take(rows, vocab, dtype="fp32")
        race = self.torch.empty_like(logits).exponential_()
        return lambda: (logits.softmax(dim=-1) / race).argmax(dim=-1)

    def _all_reduce(self, case: Case) -> Call:
        """NCCL from one process over the first `world` GPUs of the machine."""
        torch = self.torch
        world, size = case.dims("world", "message_bytes")
        kind = getattr(torch, TORCH_TYPES[case.dtype])
        count = size // ELEMENT_BYTES[case.dtype]
        buffers = [torch.ones(count, dtype=kind, device=f"cuda:{i}") for i in range(world)]
        return lambda: torch.cuda.nccl.all_reduce(buffers)
