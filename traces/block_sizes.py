"""How many tokens a hash id stands for, and the check that the number of ids agrees with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .errors import TraceError
from .formats import Chunk, Context, Format

MOONCAKE_BLOCK = 512
"""Tokens per hash id where nothing states it and every row agrees: Mooncake's (FAST25 release)."""


def with_block_size(chunk: Chunk, context: Context, trace_format: Format) -> Chunk:
    """`chunk` with the block size of every row that has ids: row > sidecar > flag > the format's own > 512.

    A row of L input tokens has ceil(L / block_size) ids. One id less is accepted where the last block is not whole
    (its owner hashed whole blocks only), but not together with the assumption of 512.

    Raises: TraceError naming the first row whose number of ids does not agree.
    """
    trace = chunk.trace
    if trace.hash_ids is None:
        return chunk if trace.block_size is None else replace(chunk, trace=replace(trace, block_size=None))
    counts = np.diff(trace.hash_ids.offsets)
    stated = np.zeros(len(trace), dtype=np.int64) if trace.block_size is None else trace.block_size
    size, assumed = _default(context, trace_format)
    sizes = np.where(stated > 0, stated, size)
    _check(chunk, counts, sizes, (stated == 0) & assumed, context)
    return replace(chunk, trace=replace(trace, block_size=np.where(counts > 0, sizes, 0)))


def _default(context: Context, trace_format: Format) -> tuple[int, bool]:
    flag, sidecar = context.options.hash_block_size, context.meta.get("block_size")
    if sidecar is not None and flag not in (None, sidecar):
        context.remark(f"--hash-block-size {flag} is not used: the sidecar says block_size {sidecar}")
    for size in (sidecar, flag, trace_format.hash_block_size):
        if size is not None:
            return int(size), False
    return MOONCAKE_BLOCK, True


def _check(
    chunk: Chunk,
    counts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    assumed: NDArray[np.bool_],
    context: Context,
) -> None:
    tokens = chunk.trace.input_tokens
    expected = -(-tokens // sizes)
    short = (counts == tokens // sizes) & (counts != expected) & ~assumed & (counts > 0)
    wrong = np.flatnonzero((counts > 0) & (counts != expected) & ~short)
    if len(wrong):
        i = int(wrong[0])
        place = f"{context.name}:{chunk.lines[i]}: hash_ids: got {counts[i]} ids for {tokens[i]} input tokens"
        if assumed[i]:
            raise TraceError(
                f"{place}, expected a stated block_size: {sizes[i]} would make {expected[i]} ids and neither row, "
                "sidecar nor --hash-block-size gives another"
            )
        raise TraceError(f"{place}, expected {expected[i]} of {sizes[i]} tokens each")
    context.count("row", "without an id for the last, unfilled block", int(short.sum()))
