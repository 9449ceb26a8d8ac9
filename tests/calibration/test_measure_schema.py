"""The timing table: what is written is read back, and unusable rows are named."""

from __future__ import annotations

import pandas as pd
import pytest
from stepline.calibration.schema import COLUMNS, TimingRow, frame, read_table, row_key, write_table
from stepline.traces.errors import CalibrationError

GEMM = TimingRow("gemm", "h100-sxm", "torch-2.6.0", "bf16", 1e-5, m=1, n=4096, k=4096)
COPY = TimingRow("copy", "h100-sxm", "torch-2.6.0", "bf16", 1e-3, message_bytes=1 << 30)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_table_survives_the_file_with_its_absences(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    write_table(frame([GEMM, COPY]), path)
    back = read_table(path)
    assert tuple(back.columns) == COLUMNS
    assert back["m"].isna().tolist() == [False, True]
    assert back["median_s"].tolist() == [1e-5, 1e-3]
    assert [row_key(r) for r in back.to_dict("records")] == [row_key(GEMM), row_key(COPY)]
    assert list(tmp_path.iterdir()) == [path]  # no half-written file is left


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"median_s": 0.0}, "row 2: median_s: got 0.0"),
        ({"median_s": float("nan")}, "row 2: median_s: got nan"),
        ({"median_s": 450.0}, "ms or µs"),
        ({"m": None}, "row 2: m: absent"),
        ({"kernel": "gem"}, "did you mean 'gemm'"),
    ],
)
def test_unusable_rows_are_named(tmp_path, change, message):
    bad = {c: getattr(GEMM, c) for c in COLUMNS} | change
    frame([GEMM, bad]).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(CalibrationError, match=message):
        read_table(tmp_path / "t.parquet")


def test_missing_and_unknown_columns_are_refused(tmp_path):
    pd.DataFrame({"kernel": ["gemm"], "latency": [1.0]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(CalibrationError, match="dtype, median_s are missing"):
        read_table(tmp_path / "t.csv")
    frame([GEMM]).assign(median=1.0).to_csv(tmp_path / "u.csv", index=False)
    with pytest.raises(CalibrationError, match="unknown column 'median'; did you mean 'median_s'"):
        read_table(tmp_path / "u.csv")
    with pytest.raises(CalibrationError, match="no such file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_table(tmp_path / "x.parquet")
