"""Rows of executed steps and leaps, appended as tuples and handed on in blocks of columns."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .result import Gaps

Columns = Mapping[str, NDArray[Any]]
FLUSH_ROWS = 16_384
ROW = (
    "replica", "start_s", "n_steps", "first_s", "delta_s", "n_decode", "live", "n_waiting", "kv_free_blocks",
    "prefill_tokens", "prefill_seqs", "attention_pairs", "prefill_kv_tokens", "logits_rows",
    "generated_tokens", "context_tokens",
)  # fmt: skip


pack_row = Struct(f"{len(ROW)}d").pack


class StepLog:
    """Collects rows of leaps and of mixed steps and passes them on as columns every FLUSH_ROWS rows.

    A row is the fields of ROW, then the contexts of the second attention window and on, then by how much the context of
    each window grows a step; without the latter if `grows_evenly`: there is one, and every decode adds a token to it.
    They are appended to `rows`, packed as doubles (`pack_row`, then `pack_more` for what is not in ROW: bytes, unlike
    numbers in a list, keep no objects alive), by the replicas themselves, each in order of start; who has appended calls
    `settle` now and then.
    `speculates`: a decode step emits several tokens of a sequence, all of which its context grows by.
    `live` is the number of sequences that emit, negative if their gaps were logged apart. The columns handed on are
    `STEP_COLUMNS`, plus `gap_weight`, `context_growth_<i>` and, for window i > 0, `context_tokens_<i>`.
    """

    def __init__(
        self,
        n_windows: int,
        sinks: list[Callable[[Columns], None]],
        *,
        grows_evenly: bool,
        speculates: bool = False,
    ) -> None:
        growths = [] if grows_evenly else [f"context_growth_{i}" for i in range(n_windows)]
        self.names = (*ROW, *[f"context_tokens_{i}" for i in range(1, n_windows)], *growths)
        self.pack_more = Struct(f"{len(self.names) - len(ROW)}d").pack
        self.rows = bytearray()
        self.sinks = sinks
        self.speculates = speculates
        self.usable_blocks: dict[int, int] = {}  # by replica
        self.limit = FLUSH_ROWS * len(self.names) * 8

    def settle(self) -> None:
        """Hand the rows on if there are many."""
        if len(self.rows) >= self.limit:
            self.flush()

    def flush(self) -> None:
        """Hand all rows on, in order of start."""
        if not self.rows:
            return
        table = np.frombuffer(bytes(self.rows), np.float64).reshape(-1, len(self.names))
        self.rows.clear()
        if len(self.usable_blocks) > 1:
            table = table[np.argsort(table[:, ROW.index("start_s")], kind="stable")]
        columns = dict(zip(self.names, np.ascontiguousarray(table.T), strict=True))
        _derive(columns, speculates=self.speculates)
        most = np.array([self.usable_blocks.get(i, 0) for i in range(max(self.usable_blocks, default=0) + 1)])
        columns["kv_used_blocks"] = most[columns["replica"].astype(np.int64)] - columns.pop("kv_free_blocks")
        for sink in self.sinks:
            sink(columns)


def _derive(columns: dict[str, NDArray[Any]], *, speculates: bool) -> None:
    n, live = columns["n_steps"], columns.pop("live")
    columns["duration_s"] = n * columns["first_s"] + columns["delta_s"] * (n * (n - 1) / 2)
    columns["n_running"] = columns["n_decode"] + columns["prefill_seqs"]
    columns.setdefault("context_growth_0", columns["n_decode"])
    columns["gap_weight"] = np.maximum(live, 0)
    emitted = columns["context_growth_0"] if speculates else np.abs(live)
    columns["generated_growth"] = columns["context_growth_0"] if speculates else columns["n_decode"]
    columns["emitted_tokens"] = emitted * n + columns["logits_rows"] - columns["n_decode"]


class GapLog:
    """Inter-token gaps as arithmetic progressions with weights and their time: 40 bytes a step or leap."""

    def __init__(self) -> None:
        self.first_s = array("d")
        self.delta_s = array("d")
        self.n = array("q")
        self.weight = array("q")
        self.at_s = array("d")

    def take_steps(self, columns: Columns) -> None:
        """A sink of the step log: gaps that are just step durations."""
        rows = columns["gap_weight"] > 0
        self.first_s.frombytes(columns["first_s"][rows].tobytes())
        self.delta_s.frombytes(columns["delta_s"][rows].tobytes())
        self.n.frombytes(columns["n_steps"][rows].astype(np.int64).tobytes())
        self.weight.frombytes(columns["gap_weight"][rows].astype(np.int64).tobytes())
        self.at_s.frombytes(columns["start_s"][rows].tobytes())

    def add(self, first_s: float, delta_s: float, n: int, weight: int, at_s: float) -> None:
        """`weight` sequences each saw the gaps first, first + delta, ... (n of them) in steps from `at_s` on."""
        self.first_s.append(first_s)
        self.delta_s.append(delta_s)
        self.n.append(n)
        self.weight.append(weight)
        self.at_s.append(at_s)

    def gaps(self) -> Gaps:
        """All gaps so far."""
        return Gaps(
            np.array(self.first_s, dtype=np.float64),
            np.array(self.delta_s, dtype=np.float64),
            np.array(self.n, dtype=np.int64),
            np.array(self.weight, dtype=np.int64),
            np.array(self.at_s, dtype=np.float64),
        )
