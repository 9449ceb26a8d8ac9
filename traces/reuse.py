"""Prefix reuse in a stream of requests: what an unlimited cache would hit, and how soon blocks come back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tallies import TimeTally
from .trace import Trace

_DENSE_IDS = 1 << 25
"""Ids below this are looked up in an array (8 bytes an id); larger ones in a dict."""


class IdTable:
    """The last value stored under each block id; `empty` where there was none."""

    def __init__(self, empty: float) -> None:
        self._empty = empty
        self._dense = np.full(1 << 10, empty)
        self._sparse: dict[int, float] = {}

    def swap(self, ids: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Store `values` under `ids` (each once); returns what was there before."""
        before = np.full(len(ids), self._empty)
        dense = ids < _DENSE_IDS
        if dense.any():
            small = ids[dense]
            self._grow(int(small.max()) + 1)
            before[dense] = self._dense[small]
            self._dense[small] = values[dense]
        for i in np.flatnonzero(~dense).tolist():
            before[i] = self._sparse.get(int(ids[i]), self._empty)
            self._sparse[int(ids[i])] = float(values[i])
        return before

    def _grow(self, size: int) -> None:
        if size > len(self._dense):
            more = np.full(max(size, 2 * len(self._dense)) - len(self._dense), self._empty)
            self._dense = np.concatenate([self._dense, more])


class Reuse:
    """Running figures of prefix reuse; memory grows with the distinct block ids."""

    def __init__(self) -> None:
        self.rows = 0
        self._last_seen_s = IdTable(np.nan)
        self._gaps_s = TimeTally()
        self._blocks = self._distinct = 0
        self._input_tokens = self._hit_tokens = self._repeated_tokens = 0
        self._sizes: set[int] = set()

    def add(self, trace: Trace) -> None:
        """Take in the next rows; rows without ids can hit nothing."""
        self._input_tokens += int(trace.input_tokens.sum())
        if trace.hash_ids is None or trace.block_size is None:
            return
        offsets = trace.hash_ids.offsets
        counts = np.diff(offsets)
        rows = np.flatnonzero(counts > 0)
        if not len(rows):
            return
        self.rows += len(rows)
        self._sizes |= set(np.unique(trace.block_size[rows]).tolist())
        ids = trace.hash_ids.values[offsets[0] : offsets[-1]]
        at_s = np.repeat(trace.arrival_s, counts)
        before_s = previous(ids, at_s, self._last_seen_s)
        seen = ~np.isnan(before_s)
        self._gaps_s.add(at_s[seen] - before_s[seen])
        self._blocks += len(ids)
        self._distinct += int((~seen).sum())
        leading, sizes, tokens = (
            _leading(seen, counts[rows]),
            trace.block_size[rows],
            trace.input_tokens[rows],
        )
        self._hit_tokens += int((np.minimum(leading, tokens // sizes) * sizes).sum())
        self._repeated_tokens += int(np.minimum(leading * sizes, tokens).sum())

    def figures(self) -> dict[str, Any] | None:
        """Block counts, shares of all input tokens, the time to reuse (None: no row had ids).

        `ideal_hit_token_frac`: in whole leading blocks that came before, which is what an engine's cache can hit.
        `repeated_token_frac`: in any leading blocks that came before, a last one that is not whole too.
        """
        if not self.rows:
            return None
        return {
            "requests_with_ids": self.rows,
            "block_sizes": sorted(self._sizes),
            "blocks": self._blocks,
            "distinct_blocks": self._distinct,
            "ideal_hit_token_frac": self._hit_tokens / self._input_tokens,
            "repeated_token_frac": self._repeated_tokens / self._input_tokens,
            "reuse_gap_s": self._gaps_s.figures(),
        }


def previous(ids: NDArray[np.int64], values: NDArray[np.float64], table: IdTable) -> NDArray[np.float64]:
    """For each occurrence of an id the value of the occurrence before it, here or in `table`, which is updated."""
    order = np.argsort(ids, kind="stable")
    ranked, ranked_values = ids[order], values[order]
    same = np.concatenate([[False], ranked[1:] == ranked[:-1]])
    out = np.empty(len(ids))
    inside = np.concatenate([[np.nan], ranked_values[:-1]])
    firsts = np.flatnonzero(~same)
    lasts = np.concatenate([firsts[1:] - 1, [len(ids) - 1]])
    inside[firsts] = table.swap(ranked[firsts], ranked_values[lasts])
    out[order] = inside
    return out


def _leading(seen: NDArray[np.bool_], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many blocks at the start of each row were seen before."""
    starts = np.cumsum(counts) - counts
    place = np.arange(len(seen)) - np.repeat(starts, counts)
    return np.minimum.reduceat(np.where(seen, np.repeat(counts, counts), place), starts)
