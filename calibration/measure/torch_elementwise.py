"""Norm, rope, activation and residual sum: fused kernels of FlashInfer, of our own in Triton, or torch's.

One kernel each where the library fuses; torch alone launches several, and its rows say so by the library's
name.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .cases import Case
from .kernels import Call
from .torch_attention import Library, _require, _version

if TYPE_CHECKING:
    from .torch_kernels import TorchKernels

EPSILON = 1e-5
"""Added to the mean square before the root, as Llama does."""


@dataclass(frozen=True, slots=True)
class RowWise:
    """Operands of one operation: x and y of shape (m, n), the norm's gain (n)."""

    torch: Any
    operation: str
    x: Any
    y: Any
    gain: Any


def operands(kernels: TorchKernels, case: Case) -> RowWise:
    """Random operands of an elementwise case; for `act`, y is the other half of one (m, 2n) tensor."""
    m, n = case.dims("m", "n")
    if case.operation == "act":
        both = kernels.operands.take(m, 2 * n, dtype=case.dtype)
        x, y = both[:, :n], both[:, n:]
    else:
        x, y = (kernels.operands.take(m, n, dtype=case.dtype) for _ in range(2))
    gain = kernels.torch.ones(n, dtype=x.dtype, device=x.device)
    return RowWise(kernels.torch, str(case.operation), x, y, gain)


def small_case(operation: str, dtype: str) -> Case:
    """Five rows of 256."""
    return Case("elementwise", dtype, m=5, n=256, operation=operation)


def reference(given: RowWise) -> Any:
    """The output in float32."""
    x, y = given.x.float(), given.y.float()
    match given.operation:
        case "residual":
            return x + y
        case "act":
            return given.torch.nn.functional.silu(x) * y
        case "rope":
            return _rotate(given.torch, x, y)
        case "add_norm":
            x = (given.x + given.y).float()
    return x * (x.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * given.gain.float()


def libraries(kernels: TorchKernels, kernel: str) -> Iterable[Callable[[], Library]]:
    """Makers of the libraries to try, best first."""
    if kernels.on_gpu:
        if kernel in ("norm", "add_norm", "act"):
            yield lambda: _flashinfer(kernel)
        yield _triton
    yield lambda: Library(kernels._torch_name(), _torch)


def _flashinfer(operation: str) -> Library:
    _require("flashinfer")
    import flashinfer

    def build(given: RowWise) -> Call:
        if operation == "norm":
            return lambda: flashinfer.norm.rmsnorm(given.x, given.gain, EPSILON)
        if operation == "act":
            both = given.x.as_strided((given.x.shape[0], 2 * given.x.shape[1]), (2 * given.x.shape[1], 1))
            return lambda: flashinfer.activation.silu_and_mul(both)
        x, y = given.x.clone(), given.y.clone()  # the fused kernel writes both

        def add_norm() -> Any:
            flashinfer.norm.fused_add_rmsnorm(x, y, given.gain, EPSILON)
            return x

        return add_norm

    return Library(f"flashinfer-{_version('flashinfer-python')}", build)


def _triton() -> Library:
    _require("triton")
    from .triton_kernels import build

    return Library(f"triton-{_version('triton')}", build)


def _torch(given: RowWise) -> Call:
    torch, x, y, gain = given.torch, given.x, given.y, given.gain
    functional = torch.nn.functional
    match given.operation:
        case "residual":
            return lambda: x + y
        case "act":
            return lambda: functional.silu(x) * y
        case "rope":
            return lambda: _rotate(torch, x, y)
        case "norm":
            return lambda: functional.rms_norm(x, (x.shape[-1],), gain, EPSILON)
        case _:
            return lambda: functional.rms_norm(x + y, (x.shape[-1],), gain, EPSILON)


def _rotate(torch: Any, x: Any, y: Any) -> Any:
    """Rotate (x[i], x[i + n/2]) by cosine and sine held in the halves of y."""
    (a, b), (cos, sin) = x.chunk(2, -1), y.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def has_triton() -> bool:
    """Triton is installed."""
    return importlib.util.find_spec("triton") is not None
