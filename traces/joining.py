"""Putting traces one behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from .trace import OPTIONAL_COLUMNS, Ragged, Trace


def concatenate(traces: Sequence[Trace]) -> Trace:
    """The rows of all `traces` in order; provenance is the first one's. A column that some lack is None there."""
    if len(traces) == 1:
        return traces[0]
    columns: dict[str, Any] = {}
    for name in OPTIONAL_COLUMNS:
        if any(name in t.columns for t in traces):
            columns[name] = [v for t in traces for v in t.columns.get(name, [None] * len(t))]
    hashed = any(t.hash_ids is not None for t in traces)
    emitted = any(t.output_hash_ids is not None for t in traces)
    sized = any(t.block_size is not None for t in traces)
    return replace(
        traces[0],
        arrival_s=np.concatenate([t.arrival_s for t in traces]),
        input_tokens=np.concatenate([t.input_tokens for t in traces]),
        output_tokens=np.concatenate([t.output_tokens for t in traces]),
        hash_ids=_ragged([(t.hash_ids, len(t)) for t in traces]) if hashed else None,
        output_hash_ids=_ragged([(t.output_hash_ids, len(t)) for t in traces]) if emitted else None,
        block_size=np.concatenate([_sizes(t) for t in traces]) if sized else None,
        columns=columns,
        sha256=None,
    )


def _sizes(trace: Trace) -> NDArray[np.int64]:
    return np.zeros(len(trace), dtype=np.int64) if trace.block_size is None else trace.block_size


def _ragged(parts: Sequence[tuple[Ragged | None, int]]) -> Ragged:
    lengths = [np.zeros(n, dtype=np.int64) if r is None else np.diff(r.offsets) for r, n in parts]
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    values = [r.values[r.offsets[0] : r.offsets[-1]] for r, _ in parts if r is not None]
    return Ragged(np.concatenate(values), offsets)


@dataclass(frozen=True, slots=True)
class RowNumbers(Sequence[str]):
    """Request ids that are row numbers: "start", "start + 1", ... without holding them."""

    start: int
    size: int

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        numbers = range(self.start, self.start + self.size)[i]
        return str(numbers) if isinstance(numbers, int) else [str(n) for n in numbers]
