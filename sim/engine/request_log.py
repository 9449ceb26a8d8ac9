"""One row a request, written when it ends, in columns."""

from __future__ import annotations

from math import nan
from struct import Struct
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .result import REQUEST_COLUMNS, STATUSES
from .sequence import Sequence

FINISHED, REJECTED, TIMED_OUT, UNFINISHED = range(len(STATUSES))


NAMES = (
    "request_index", "replica", "input_tokens", "output_tokens", "cached_tokens", "preemptions", "status",
    "arrival_s", "scheduled_s", "first_token_s", "finish_s",
)  # fmt: skip

pack_row = Struct(f"{len(NAMES)}d").pack
FLUSH_BYTES = 16_384 * 8 * len(NAMES)


class RequestLog:
    """Columns `REQUEST_COLUMNS`, 88 bytes a request."""

    def __init__(self) -> None:
        self.rows = bytearray()
        self.blocks: list[NDArray[np.float64]] = []
        self.flushed = 0

    def add(self, seq: Sequence, replica: int, finish_s: float, output_tokens: int, status: int) -> None:
        """Note how a request ended. `finish_s` is at the client."""
        first, scheduled = seq.first_token_s, seq.scheduled_s
        self.rows += pack_row(
            seq.index, replica, seq.input_tokens, output_tokens, seq.cached_tokens, seq.preemptions, status,
            seq.sent_s, nan if scheduled is None else scheduled, nan if first is None else first, finish_s,
        )  # fmt: skip
        if len(self.rows) >= FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        block = np.frombuffer(bytes(self.rows), np.float64).reshape(-1, len(NAMES))
        self.rows.clear()
        self.blocks.append(block)
        self.flushed += len(block)

    def __len__(self) -> int:
        return self.flushed + len(self.rows) // (8 * len(NAMES))

    def frame(self) -> pd.DataFrame:
        """All rows so far, in order of completion. What a client did not stay to see never happened to it."""
        self._flush()
        table = np.concatenate(self.blocks)
        columns: dict[str, NDArray[Any]] = {
            name: table[:, NAMES.index(name)].astype(kind) for name, kind in REQUEST_COLUMNS.items()
        }
        for name in ("scheduled_s", "first_token_s"):
            columns[name][columns[name] > columns["finish_s"]] = nan
        return pd.DataFrame(columns)
