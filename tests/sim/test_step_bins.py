"""Bins of steps by time: those of several cost models together are those of all their steps."""

from __future__ import annotations

import numpy as np
import pandas as pd
from stepline.sim.engine.step_bins import FRAME_COLUMNS, StepBins, empty_frame


def bins(*starts_s: float) -> StepBins:
    """Of one block of steps that begin at these times, each of a size of its own."""
    n = len(starts_s)
    size = 1.0 + np.arange(n)
    columns = {
        "n_steps": np.ones(n), "duration_s": 0.01 * size, "start_s": np.array(starts_s), "n_running": size,
        "n_decode": size, "prefill_tokens": np.zeros(n),
    }  # fmt: skip
    out = StepBins()
    out.add(columns, 1e9 * size, 1e7 * size)
    return out


def test_parts_of_any_length_add_up_to_the_whole():
    short, middle, long = (0.0, 0.1, 15.0), (0.0, 60.0), (0.0, 0.3, 700.0)
    merged = bins(*short).merged(bins(*middle)).merged(bins(*long)).frame()
    whole = StepBins()
    for part in (long, short, middle):  # each in the bins of the longest from the start
        whole = whole.merged(bins(*part))
    key = list(FRAME_COLUMNS[:4])
    expected = whole.frame().sort_values(key, ignore_index=True)
    pd.testing.assert_frame_equal(merged.sort_values(key, ignore_index=True), expected)
    assert merged.groupby("what")["steps"].sum().unique().tolist() == [8.0]


def test_no_steps_make_no_cells():
    assert StepBins().frame().equals(empty_frame())
