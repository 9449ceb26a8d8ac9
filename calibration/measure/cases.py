"""What is timed: cases (one kernel shape each), the grids of each size, most important first."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

Size = Literal["quick", "standard", "full"]
SIZES: tuple[Size, ...] = ("quick", "standard", "full")

ELEMENTWISE = ("norm", "add_norm", "rope", "act", "residual")
"""Elementwise operations: RMS norm, norm of a sum (fused where the library can), rotary embedding of n
elements a token, SiLU(gate)·up to n outputs, residual sum."""

Heads = tuple[int, int, int]
"""Query heads, KV heads, head dim of one GPU."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel shape to time; fields named as in `schema.TIMING_COLUMNS`. `priority`: smaller is timed earlier.

    `attention_mixed`: `prefill_batch` chunks of `query_tokens` on `history_tokens` beside `batch` decodes of
    `decode_context_tokens` keys each, in one call where the library can.
    """

    kernel: str
    dtype: str
    priority: int = 0
    m: int | None = None
    n: int | None = None
    k: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    batch: int | None = None
    query_tokens: int | None = None
    context_tokens: int | None = None
    history_tokens: int | None = None
    ragged: bool | None = None
    prefill_batch: int | None = None
    decode_context_tokens: int | None = None
    world: int | None = None
    message_bytes: int | None = None
    operation: str | None = None

    def columns(self) -> dict[str, Any]:
        """The case as columns of the timing table; `kv_dtype` follows `dtype` where there is a cache."""
        found = {f: getattr(self, f) for f in self.__slots__ if f != "priority"}
        return found | {"kv_dtype": self.dtype if self.kernel.startswith("attention") else None}

    def dims(self, *names: str) -> tuple[int, ...]:
        """The named shape fields; raises ValueError where one is absent."""
        values = tuple(getattr(self, n) for n in names)
        if any(v is None for v in values):
            raise ValueError(f"{self.kernel}: {names} got {values}, expected whole numbers")
        return values

    def label(self) -> str:
        """Short text for a progress bar, such as `gemm m=64 n=4096 k=4096`."""
        shape = {f: v for f in self.__slots__[3:] if (v := getattr(self, f)) is not None}
        return " ".join([self.kernel, *(f"{f}={v}" for f, v in shape.items())])


@dataclass(frozen=True, slots=True)
class Grid:
    """Axes from which the cases of one size are made; the numbers are ours, chosen to span what serving meets.

    gemm_m             tokens in a step; gemm_nk weights (n, k) of one GPU
    heads              attention shapes
    prompts            (batch, tokens) of plain prefill
    chunks, histories  chunked prefill with a cached history: all pairs, one sequence
    decodes            (batch, context) of uniform decode; ragged ones use the same means
    mixed              (decodes, their context, chunk, its history)
    rows, widths       elementwise kernels; samples: rows of `vocab` logits to sample from
    copies             bytes of plain copies; peak: edge of the square matmul that gives the device's peak
    """

    gemm_m: tuple[int, ...]
    gemm_nk: tuple[tuple[int, int], ...]
    heads: tuple[Heads, ...]
    prompts: tuple[tuple[int, int], ...]
    chunks: tuple[int, ...]
    histories: tuple[int, ...]
    decodes: tuple[tuple[int, int], ...]
    mixed: tuple[tuple[int, int, int, int], ...]
    rows: tuple[int, ...]
    widths: tuple[int, ...]
    samples: tuple[int, ...]
    vocab: int
    copies: tuple[int, ...]
    peak: int


def cases(grid: Grid, dtype: str, gemm_dtypes: Iterable[str] = ()) -> list[Case]:
    """All cases of a grid, deduplicated, in the order in which they should be timed.

    A run that is cut short by its budget must still serve a fit, so each kernel's spanning shapes come first
    (priority
    0: machine peaks; 1: coarse grids of every kernel; 2: the remainder). `gemm_dtypes`: further GEMM types
    (fp8).
    """
    found = [
        *_machine(grid, dtype),
        *itertools.chain.from_iterable(_gemms(grid, d) for d in (dtype, *gemm_dtypes)),
        *_attention(grid, dtype),
        *_row_wise(grid, dtype),
    ]
    unique: dict[Case, Case] = {}
    for case in found:
        key = replace(case, priority=0)
        if key not in unique or case.priority < unique[key].priority:
            unique[key] = case
    return interleave(unique.values())


def interleave(found: Iterable[Case]) -> list[Case]:
    """Order by priority; within one, kernels take turns, so that a cut run lacks no kernel."""
    turns: dict[tuple[int, str, str], int] = {}
    ranked = []
    for case in found:
        group = (case.priority, f"{case.kernel} {case.operation}", case.dtype)
        turns[group] = turns.get(group, -1) + 1
        ranked.append((case.priority, turns[group], case))
    return [case for _, _, case in sorted(ranked, key=lambda r: r[:2])]


def _machine(grid: Grid, dtype: str) -> Iterator[Case]:
    yield Case("host", dtype, operation="launch")
    yield Case("gemm", dtype, m=grid.peak, n=grid.peak, k=grid.peak)
    for size in grid.copies:
        yield Case("copy", dtype, message_bytes=size)


def _gemms(grid: Grid, dtype: str) -> Iterator[Case]:
    coarse = set(grid.gemm_m[::2])
    for (i, (n, k)), m in itertools.product(enumerate(grid.gemm_nk), grid.gemm_m):
        yield Case("gemm", dtype, 1 if m in coarse and i % 2 == 0 else 2, m=m, n=n, k=k)


def _attention(grid: Grid, dtype: str) -> Iterator[Case]:
    for i, (heads, kv_heads, head_dim) in enumerate(grid.heads):
        base = Case(
            "attention_prefill", dtype, 1 if i == 0 else 2, heads=heads, kv_heads=kv_heads, head_dim=head_dim
        )
        for batch, s in grid.prompts:
            yield replace(base, batch=batch, query_tokens=s, context_tokens=s, history_tokens=0)
        for chunk, history in itertools.product(grid.chunks, grid.histories):
            yield replace(
                base, batch=1, query_tokens=chunk, history_tokens=history, context_tokens=chunk + history
            )
        for batch, context in grid.decodes:
            one = replace(base, kernel="attention_decode", batch=batch, query_tokens=1)
            for ragged in (False, True)[: 2 if batch > 1 else 1]:
                yield replace(one, ragged=ragged, context_tokens=context, history_tokens=context - 1)
        for n_decode, context, chunk, history in grid.mixed:
            yield replace(
                base, kernel="attention_mixed", batch=n_decode, decode_context_tokens=context,
                prefill_batch=1, query_tokens=chunk, history_tokens=history,
            )  # fmt: skip


def _row_wise(grid: Grid, dtype: str) -> Iterator[Case]:
    for i, (m, n) in enumerate(itertools.product(grid.rows, grid.widths)):
        for operation in ELEMENTWISE:
            yield Case("elementwise", dtype, 1 if i % 2 == 0 else 2, m=m, n=n, operation=operation)
    for m in grid.samples:
        yield Case("host", dtype, 2, m=m, n=grid.vocab, operation="sampling")
