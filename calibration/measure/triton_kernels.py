"""Elementwise kernels of our own in Triton: one launch and one pass each, a program a row.

Imported only where Triton is installed.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .kernels import Call
from .torch_elementwise import EPSILON, RowWise


def _norm(x_ptr, y_ptr, gain_ptr, out_ptr, n, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton's dialect
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < n
    x = tl.load(x_ptr + row * n + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(y_ptr + row * n + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(y_ptr + row * n + column, x.to(y_ptr.dtype.element_ty), mask=inside)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / n + eps)
    gain = tl.load(gain_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * n + column, (x * scale * gain).to(out_ptr.dtype.element_ty), mask=inside)


def _pointwise(x_ptr, y_ptr, out_ptr, n, x_stride, ACT: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # same
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < n
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if ACT:  # noqa: SIM108 - a compile-time branch
        out = x / (1.0 + tl.exp(-x)) * y
    else:
        out = x + y
    tl.store(out_ptr + row * n + column, out.to(out_ptr.dtype.element_ty), mask=inside)


def _rope(x_ptr, y_ptr, out_ptr, half, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # same
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < half
    start = row * 2 * half
    a = tl.load(x_ptr + start + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + start + half + column, mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(y_ptr + start + column, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(y_ptr + start + half + column, mask=inside, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    tl.store(out_ptr + start + column, (a * cos - b * sin).to(kind), mask=inside)
    tl.store(out_ptr + start + half + column, (a * sin + b * cos).to(kind), mask=inside)


norm, pointwise, rope = (triton.jit(f) for f in (_norm, _pointwise, _rope))
BLOCK = 1024
"""Elements a program of the pointwise kernels."""


def build(given: RowWise) -> Call:
    """A call of the fused kernel of `given.operation`; `add_norm` writes the sum back, as engines do."""
    x, y, m, n = given.x, given.y, given.x.shape[0], given.x.shape[1]
    out = given.torch.empty(m, n, dtype=x.dtype, device=x.device)
    if given.operation in ("norm", "add_norm"):
        add = given.operation == "add_norm"
        sums = y.clone() if add else y
        wide = triton.next_power_of_2(n)
        return _returning(out, lambda: norm[(m,)](x, sums, given.gain, out, n, EPSILON, ADD=add, BLOCK=wide))
    if given.operation == "rope":
        grid = (m, triton.cdiv(n // 2, BLOCK))
        return _returning(out, lambda: rope[grid](x, y, out, n // 2, BLOCK=BLOCK))
    act = given.operation == "act"
    grid = (m, triton.cdiv(n, BLOCK))
    return _returning(out, lambda: pointwise[grid](x, y, out, n, x.stride(0), ACT=act, BLOCK=BLOCK))


def _returning(out: Any, launch: Call) -> Call:
    def call() -> Any:
        launch()
        return out

    return call
