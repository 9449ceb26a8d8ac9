"""How many requests wait and run over time, from the tables of requests and preemptions: Little's law by construction.

The step log cannot say: it sees the queue at the ends of steps only, and of the running sequences those in the step.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def presence(requests: pd.DataFrame, preemptions: pd.DataFrame, edges_s: Floats) -> tuple[Floats, Floats]:
    """Request-seconds spent waiting, and running, in each bin between consecutive edges (shape (bins + 1,)).

    A request waits from when it is sent until it is first scheduled, and between giving way and its return; it runs
    for the rest of its time. One that is never scheduled waits until it ends.
    """
    sent, ended = requests["arrival_s"].to_numpy(), requests["finish_s"].to_numpy()
    began = requests["scheduled_s"].to_numpy()
    began = np.where(np.isnan(began), ended, began)
    queued = _since(sent, edges_s) - _since(began, edges_s)
    seated = _since(began, edges_s) - _since(ended, edges_s)
    if len(preemptions):
        aside = _aside(requests["request_index"].to_numpy(), ended, preemptions, edges_s)
        queued, seated = queued + aside, seated - aside
    waiting, running = np.diff(queued), np.diff(seated)
    return np.maximum(waiting, 0.0), np.maximum(running, 0.0)


def _aside(indices: NDArray[np.int64], ended: Floats, preemptions: pd.DataFrame, edges_s: Floats) -> Floats:
    """Request-seconds up to each edge between giving way and the return, or the end of the request."""
    end_of = np.full(1 + int(indices.max()), np.nan)
    end_of[indices] = ended
    at_most = end_of[preemptions["request_index"].to_numpy()]
    away = np.fmin(preemptions["preempted_s"].to_numpy(), at_most)
    back = np.fmin(preemptions["resumed_s"].to_numpy(), at_most)
    return _since(away, edges_s) - _since(back, edges_s)


def _since(times_s: Floats, edges_s: Floats) -> Floats:
    """Σ max(0, edge - time) over the times, for each edge: the integral of how many have passed."""
    ordered = np.sort(times_s)
    passed = np.searchsorted(ordered, edges_s, side="right")
    summed = np.concatenate([[0.0], np.cumsum(ordered)])
    return np.asarray(passed * edges_s - summed[passed])
