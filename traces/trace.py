"""An ordered, columnar list of requests with its provenance: ten million rows need no ten million objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import TraceError
from .request import Request

OPTIONAL_COLUMNS = (
    "request_id", "session_id", "delay_s", "turn", "parent_id", "max_output_tokens", "priority", "tenant",
    "model", "adapter", "slo_class", "observed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ragged:
    """Variable-length integer rows in two flat arrays: row i is `values[offsets[i]:offsets[i + 1]]`.

    A row that is absent (None) has length 0.
    """

    values: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @classmethod
    def from_rows(cls, rows: Iterable[Iterable[int] | None]) -> Ragged:
        """Pack rows of ints (None: an absent row)."""
        lists = [list(row) if row is not None else [] for row in rows]
        offsets = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in lists], out=offsets[1:])
        flat = np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=int(offsets[-1]))
        return cls(flat, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> tuple[int, ...] | None:
        """Row i as a tuple of Python ints, or None where it is absent."""
        lo, hi = self.offsets[i], self.offsets[i + 1]
        return tuple(self.values[lo:hi].tolist()) if hi > lo else None

    def take(self, index: NDArray[np.int64]) -> Ragged:
        """The rows at `index`, in that order."""
        lengths = np.diff(self.offsets)[index]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        flat = np.repeat(self.offsets[:-1][index] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(self.values[flat], offsets)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests in order of arrival, held as columns.

    `arrival_s` float64 (n,), non-decreasing; `input_tokens`, `output_tokens` int64 (n,), each >= 1.
    `hash_ids` / `output_hash_ids`: `Ragged` or None; `block_size` tokens per id (0: that row has no ids), int64 (n,).
    `columns`: the remaining optional fields of `Request`, by name, as sequences of length n (absent: None for all).
    `source`: provenance as shown to people; `meta`: the sidecar's content; `warnings`: what the reader noticed.
    """

    arrival_s: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    hash_ids: Ragged | None = None
    output_hash_ids: Ragged | None = None
    block_size: NDArray[np.int64] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    source: str = "memory"
    sha256: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        for name in ("input_tokens", "output_tokens", "hash_ids", "output_hash_ids", "block_size"):
            column = getattr(self, name)
            if column is not None and len(column) != n:
                raise TraceError(f"{self.source}: column {name}: got {len(column)} rows, expected {n}")
        for name, column in self.columns.items():
            if name not in OPTIONAL_COLUMNS:
                raise TraceError(
                    f"{self.source}: unknown column {name!r}, expected one of {OPTIONAL_COLUMNS}"
                )
            if len(column) != n:
                raise TraceError(f"{self.source}: column {name}: got {len(column)} rows, expected {n}")

    def __len__(self) -> int:
        return len(self.arrival_s)

    def __getitem__(self, i: int) -> Request:
        size = None if self.block_size is None else int(self.block_size[i]) or None
        extra = {name: column[i] for name, column in self.columns.items()}
        extra.setdefault("request_id", str(i))
        return Request(
            arrival_s=float(self.arrival_s[i]),
            input_tokens=int(self.input_tokens[i]),
            output_tokens=int(self.output_tokens[i]),
            hash_ids=None if self.hash_ids is None else self.hash_ids.row(i),
            block_size=size,
            output_hash_ids=None if self.output_hash_ids is None else self.output_hash_ids.row(i),
            **{k: v for k, v in extra.items() if v is not None},
        )

    def __iter__(self) -> Iterator[Request]:
        return (self[i] for i in range(len(self)))

    @classmethod
    def from_requests(cls, requests: Iterable[Request], **provenance: Any) -> Trace:
        """Build a trace from requests, stable-sorted by arrival. `provenance`: source, meta, ..."""
        rows = sorted(requests, key=lambda r: r.arrival_s)
        columns = {}
        for name in OPTIONAL_COLUMNS:
            values = [getattr(r, name) for r in rows]
            if any(v is not None and not (name == "priority" and v == 0) for v in values):
                columns[name] = values
        hashed = any(r.hash_ids for r in rows)
        emitted = any(r.output_hash_ids for r in rows)
        return cls(
            np.array([r.arrival_s for r in rows], dtype=np.float64),
            np.array([r.input_tokens for r in rows], dtype=np.int64),
            np.array([r.output_tokens for r in rows], dtype=np.int64),
            hash_ids=Ragged.from_rows(r.hash_ids for r in rows) if hashed else None,
            output_hash_ids=Ragged.from_rows(r.output_hash_ids for r in rows) if emitted else None,
            block_size=np.array([r.block_size or 0 for r in rows], dtype=np.int64) if hashed else None,
            columns=columns,
            **provenance,
        )

    def take(self, index: NDArray[np.int64], **changes: Any) -> Trace:
        """The rows at `index` (int64), in that order; `changes` replace other fields."""
        picked = {k: [c[i] for i in index.tolist()] for k, c in self.columns.items()}
        rows: dict[str, Any] = {
            "arrival_s": self.arrival_s[index],
            "input_tokens": self.input_tokens[index],
            "output_tokens": self.output_tokens[index],
            "hash_ids": self.hash_ids and self.hash_ids.take(index),
            "output_hash_ids": self.output_hash_ids and self.output_hash_ids.take(index),
            "block_size": None if self.block_size is None else self.block_size[index],
            "columns": picked,
            "sha256": None,
        }
        return replace(self, **(rows | changes))
