"""One row a request, written when it ends, in columns."""

from __future__ import annotations

from array import array
from math import nan

import numpy as np
import pandas as pd

from .result import REQUEST_COLUMNS, STATUSES
from .sequence import Sequence

FINISHED, REJECTED, TIMED_OUT, UNFINISHED = range(len(STATUSES))


class RequestLog:
    """Columns `REQUEST_COLUMNS`, about 80 bytes a request."""

    def __init__(self) -> None:
        self.ints = array("q")
        self.times = array("d")

    def add(self, seq: Sequence, replica: int, finish_s: float, output_tokens: int, status: int) -> None:
        """Note how a request ended. `finish_s` is at the client."""
        first, scheduled = seq.first_token_s, seq.scheduled_s
        self.ints.extend(
            (seq.index, replica, seq.input_tokens, output_tokens, seq.cached_tokens, seq.preemptions, status)
        )
        self.times.extend(
            (seq.sent_s, nan if scheduled is None else scheduled, nan if first is None else first, finish_s)
        )

    def __len__(self) -> int:
        return len(self.times) // 4

    def frame(self) -> pd.DataFrame:
        """All rows so far, in order of completion."""
        ints = np.array(self.ints, dtype=np.int64).reshape(-1, 7).T
        times = np.array(self.times, dtype=np.float64).reshape(-1, 4).T
        names = (
            "request_index",
            "replica",
            "input_tokens",
            "output_tokens",
            "cached_tokens",
            "preemptions",
            "status",
        )
        data = dict(zip(names, ints, strict=True))
        data |= dict(zip(("arrival_s", "scheduled_s", "first_token_s", "finish_s"), times, strict=True))
        return pd.DataFrame({name: data[name].astype(kind) for name, kind in REQUEST_COLUMNS.items()})
