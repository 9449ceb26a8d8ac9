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
    began = requests["scheduled_s"].fillna(requests["finish_s"]).to_numpy()
    end_of = pd.Series(ended, index=requests["request_index"])
    at_most = end_of.reindex(preemptions["request_index"]).to_numpy()
    away = np.fmin(preemptions["preempted_s"].to_numpy(), at_most)
    back = np.fmin(preemptions["resumed_s"].to_numpy(), at_most)
    queued = _since(sent, edges_s) - _since(began, edges_s)
    seated = _since(began, edges_s) - _since(ended, edges_s)
    aside = _since(away, edges_s) - _since(back, edges_s)
    waiting, running = np.diff(queued + aside), np.diff(seated - aside)
    return np.maximum(waiting, 0.0), np.maximum(running, 0.0)


def _since(times_s: Floats, edges_s: Floats) -> Floats:
    """Σ max(0, edge - time) over the times, for each edge: the integral of how many have passed."""
    ordered = np.sort(times_s)
    passed = np.searchsorted(ordered, edges_s, side="right")
    summed = np.concatenate([[0.0], np.cumsum(ordered)])
    return np.asarray(passed * edges_s - summed[passed])
