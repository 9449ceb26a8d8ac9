"""The cost of an eager launch: read off the rows that were launched eagerly, and shipped as it was read."""

from pathlib import Path

import pandas as pd
import pytest
from stepline.calibration.eager_launch import KERNELS, eager_launch_s
from stepline.calibration.tables import read_tables, tables_dir
from stepline.sim.cost.catalogue import known_engines, load_engine
from stepline.traces.errors import CalibrationError


def rows(*cells):
    return pd.DataFrame(
        [dict(zip(("kernel", "graph", "m", "median_s"), cell, strict=True)) for cell in cells]
    )


def test_only_eager_rows_of_few_tokens_count():
    table = rows(
        ("gemm", False, 8, 6e-5),
        ("gemm", True, 8, 5e-6),
        ("gemm", False, 4096, 9e-4),
        ("moe", False, 8, 1e-6),
    )
    assert eager_launch_s(table) == pytest.approx(6e-5 / KERNELS)


def test_a_table_without_eager_rows_is_refused():
    with pytest.raises(CalibrationError, match="no GEMM row without a CUDA graph"):
        eager_launch_s(rows(("gemm", True, 8, 5e-6)))


def _published() -> Path | None:
    try:
        return tables_dir()
    except CalibrationError:
        return None


@pytest.mark.slow
@pytest.mark.skipif(_published() is None, reason="aiconfigurator-core is not installed (extra: h100)")
def test_engines_ship_what_the_h100_tables_say():
    found = eager_launch_s(read_tables(tables_dir(), "h100-sxm", "vllm-0.24.0")[0])
    shipped = [load_engine(name).eager_launch_s for name in known_engines() if name.startswith("vllm")]
    assert shipped == [pytest.approx(found, rel=0.01)] * len(shipped)
