"""What a library of kernels must offer to be timed, and how a case becomes calls with cold operands."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .cases import Case

Call = Callable[[], object]


class Unsupported(Exception):  # noqa: N818 - a fact about the device, not an error of anyone
    """This device or library cannot run a case; the text says why. The loop counts it and goes on."""


class Kernels(Protocol):
    """Kernels on one device. `make` returns a call ready to be timed, on operands of its own.

    gpu              name for the table: the catalogue's, or a slug of the driver's
    cache_bytes      last-level cache, which the operands of cold calls must overflow
    operand_bytes    memory that the operands of one case may take
    most_copies      how many sets of operands a case may have
    round_flops      FLOPs after which a case gets no further set: heavy calls would make a round too long
    """

    gpu: str
    cache_bytes: int
    operand_bytes: int
    most_copies: int
    round_flops: float

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """What the library raises where it cannot run a shape (out of memory, unsupported head size)."""
        ...

    def library(self, case: Case) -> str:
        """NAME-VERSION of whoever runs the case. Raises Unsupported where nobody can."""
        ...

    def reserve(self, n_bytes: int) -> None:
        """Make sure that single operands of `n_bytes` can be had. Raises Unsupported where memory does not suffice."""
        ...

    def make(self, case: Case) -> Call:
        """A call that runs the case once. Raises Unsupported."""
        ...

    def facts(self) -> dict[str, object]:
        """The machine and its libraries, JSON-able; what was tried and left out, with reasons."""
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """Calls of one case, each on its own operands.

    cold   they overflow the cache between two uses of one set
    graph  they may be captured in a CUDA graph: all but collectives and the overhead of a launch itself
    """

    calls: tuple[Call, ...]
    cold: bool
    graph: bool


def prepare(case: Case, kernels: Kernels) -> Prepared:
    """Build enough copies of a case that what it streams cannot stay in the last-level cache.

    Each set is met again only after more than twice the cache has passed, where the limits of `kernels`
    allow;
    `cold` states whether they did.
    Raises Unsupported where one copy alone exceeds `operand_bytes`.
    """
    streamed = stream_bytes(case)
    if streamed > kernels.operand_bytes:
        need, have = streamed / 2**30, kernels.operand_bytes / 2**30
        raise Unsupported(f"operands of {need:.1f} GiB exceed the {have:.1f} GiB left for them")
    graph = case.kernel != "all_reduce" and case.operation != "launch"
    if not streamed:
        return Prepared((kernels.make(case),), cold=False, graph=graph)
    wanted = math.ceil(2 * kernels.cache_bytes / streamed)
    light = math.ceil(kernels.round_flops / max(flops(case), 1.0))
    copies = max(1, min(wanted, kernels.most_copies, kernels.operand_bytes // streamed, light))
    calls = tuple(kernels.make(case) for _ in range(copies))
    return Prepared(calls, cold=copies * streamed >= 2 * kernels.cache_bytes, graph=graph)


def stream_bytes(case: Case) -> int:
    """Bytes of the operands that should come from memory: weights, cached keys and values, or the rows themselves."""
    size = ELEMENT_BYTES[case.dtype]
    match case.kernel:
        case "gemm":
            n, k = case.dims("n", "k")
            return n * k * size
        case "attention_prefill":
            batch, tokens, history = case.dims("batch", "query_tokens", "history_tokens")
            return batch * (tokens + history) * _kv_bytes(case, size)
        case "attention_decode":
            batch, context = case.dims("batch", "context_tokens")
            return batch * context * _kv_bytes(case, size)
        case "attention_mixed":
            batch, context, chunk, history = case.dims(
                "batch", "decode_context_tokens", "query_tokens", "history_tokens"
            )
            return (batch * context + chunk + history) * _kv_bytes(case, size)
        case "elementwise":
            m, n = case.dims("m", "n")
            return m * n * size
        case "copy":
            return int(case.dims("message_bytes")[0])
        case "host" if case.operation == "sampling":
            m, n = case.dims("m", "n")
            return m * n * 4  # logits are float32 by then
        case _:
            return 0


def operand_bytes(case: Case) -> int:
    """Bytes of the largest set of operands of a case: what it streams and its activations, whichever is more."""
    size = ELEMENT_BYTES[case.dtype]
    largest = stream_bytes(case)
    if case.m is not None and case.n is not None:
        largest = max(largest, case.m * max(2 * case.n, case.k or 0) * size)
    if case.heads is not None:
        batch, tokens, heads, dim = case.dims("batch", "query_tokens", "heads", "head_dim")
        largest = max(largest, batch * tokens * heads * dim * size)
    return largest


def flops(case: Case) -> float:
    """FLOPs of a matrix product or of attention; 0 for what only moves bytes."""
    from stepline.sim.cost.operators import attention_flops, causal_pairs, gemm_flops

    if case.kernel == "gemm":
        return float(gemm_flops(*case.dims("m", "n", "k")))
    if not case.kernel.startswith("attention"):
        return 0.0
    heads, dim = case.dims("heads", "head_dim")
    pairs = 0
    if case.kernel != "attention_prefill":
        pairs += sum(lengths(case))
    if case.kernel != "attention_decode":
        chunks = case.prefill_batch or case.batch or 1
        pairs += chunks * causal_pairs(*case.dims("query_tokens", "history_tokens"))
    return float(attention_flops(pairs, heads, dim))


ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
"""Bytes of an element of the types that can be timed here."""


def lengths(case: Case) -> tuple[int, ...]:
    """Context of each decoding sequence: all equal, or (ragged) evenly spread over 1/4 to 7/4 of the mean.

    The mean is exact, so that uniform and ragged rows move the same bytes; the ends are ours, and give a
    coefficient
    of variation of about 0.43.
    """
    batch = case.dims("batch")[0]
    mean = int(case.context_tokens or case.decode_context_tokens or 0)
    if not case.ragged:
        return (mean,) * batch
    spread = np.linspace(0.25, 1.75, batch) * mean
    whole = np.maximum(1, np.round(spread).astype(int))
    whole[-1] += batch * mean - int(whole.sum())
    return tuple(int(c) for c in whole)


def _kv_bytes(case: Case, size: int) -> int:
    kv_heads, head_dim = case.dims("kv_heads", "head_dim")
    return 2 * kv_heads * head_dim * size
