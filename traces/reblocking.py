"""The same prefixes told in blocks of another size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .errors import TraceError
from .formats.fields import MAX_ID
from .trace import Ragged, Trace

Ints = NDArray[np.int64]


def reblocked(trace: Trace, block_size: int) -> Trace:
    """`trace` with hash ids of `block_size` tokens each; equal ids still mean equal prefixes.

    Larger blocks take the id of the last small block in them, which stands for the whole prefix up to there. Smaller
    blocks are numbered within the large one: id x of size s becomes x * (s / block_size) + 0, 1, ...; sharing inside
    a large block is unknown and stays so.

    Raises: TraceError where neither size divides the other, or ids grow too large.
    """
    if trace.hash_ids is None or trace.block_size is None:
        return trace
    counts = np.diff(trace.hash_ids.offsets)
    sizes = trace.block_size
    if ((sizes == block_size) | (counts == 0)).all():
        return trace
    changed = [
        None if ids is None else _changed(ids, sizes, tokens, block_size, trace.source)
        for ids, tokens in ((trace.hash_ids, trace.input_tokens), (trace.output_hash_ids, None))
    ]
    return replace(
        trace,
        hash_ids=changed[0],
        output_hash_ids=changed[1],
        block_size=np.where(counts > 0, block_size, 0),
    )


def _changed(ids: Ragged, sizes: Ints, tokens: Ints | None, target: int, source: str) -> Ragged:
    counts = np.diff(ids.offsets)
    for size in np.unique(sizes[counts > 0]).tolist():
        if size % target and target % size:
            raise TraceError(f"{source}: hash_ids: got blocks of {size} tokens, expected a size that divides {target}, "
                             "or is divided by it")  # fmt: skip
    finer = np.maximum(sizes // target, 1)
    coarser = np.maximum(target // np.maximum(sizes, 1), 1)
    if len(ids.values) and int(ids.values.max()) > MAX_ID // int(finer.max()) - 1:
        raise TraceError(f"{source}: hash_ids: too large to be split into blocks of {target} tokens")
    new_counts = np.where(finer > 1, counts * finer, -(-counts // coarser))
    if tokens is not None:
        # The last block of a prompt is rarely whole: it has as many small blocks as it has tokens for.
        rows = (finer > 1) & (counts > 0)
        new_counts = np.where(rows, np.minimum(new_counts, -(-tokens // target)), new_counts)
    offsets = np.concatenate([[0], np.cumsum(new_counts)]).astype(np.int64)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], new_counts)
    fine, coarse = np.repeat(finer, new_counts), np.repeat(coarser, new_counts)
    last = np.repeat(counts - 1, new_counts)
    old = np.where(fine > 1, place // fine, np.minimum((place + 1) * coarse - 1, last))
    values = ids.values[np.repeat(ids.offsets[:-1], new_counts) + old]
    return Ragged(np.where(fine > 1, values * fine + place % fine, values), offsets)
