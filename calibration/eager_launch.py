"""Host seconds of a kernel launch outside a CUDA graph, from the eagerly launched rows of the published tables.

The collector replays CUDA graphs for every dtype but fp8_block, whose GEMMs it launches from Python: one to quantise the
activations, one to multiply. With few rows the GPU waits for those two launches, so half such a row is what one costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepline.traces.errors import CalibrationError

if TYPE_CHECKING:
    import pandas as pd

KERNELS = 2
"""Launches of a fp8_block GEMM: activation quantisation and the GEMM (vLLM `w8a8_block_fp8_matmul`)."""

FEW_ROWS = 64
"""Rows at most, where no GEMM of the table keeps an H100 as long as its launch lasts."""

QUANTILE = 0.1
"""Of those rows, the fast tenth: the others also wait for weights."""


def eager_launch_s(timings: pd.DataFrame) -> float:
    """Seconds of one launch, from a table with `schema.TIMING_COLUMNS`.

    Raises:
        CalibrationError: no GEMM row was launched eagerly.
    """
    eager = timings[
        (timings["kernel"] == "gemm") & ~timings["graph"].astype(bool) & (timings["m"] <= FEW_ROWS)
    ]
    if not len(eager):
        raise CalibrationError(
            "eager launches: got no GEMM row without a CUDA graph, expected fp8_block rows"
        )
    return float(eager["median_s"].quantile(QUANTILE)) / KERNELS
