"""The published tables' traps, each on a table of a few made-up rows: units, elements, warm rows, eager rows."""

import pandas as pd
import pytest
from stepline.calibration.schema import TIMING_COLUMNS, check_timings
from stepline.calibration.tables import known_libraries, read_tables, table_file, tables_dir
from stepline.calibration.tasks import GEMM
from stepline.traces.errors import CalibrationError

META = {"framework": "VLLM", "version": "0.24.0", "device": "NVIDIA H100 80GB HBM3"}


def write(root, family, version, name, rows):
    folder = root / "h100_sxm" / family / version
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([{**META, **row} for row in rows]).to_parquet(folder / f"{name}.parquet")


@pytest.fixture
def root(tmp_path):
    def gemm(dtype, m, n, k, latency):
        return {"gemm_dtype": dtype, "m": m, "n": n, "k": k, "latency": latency}

    write(
        tmp_path,
        "gemm",
        "vllm/0.24.0",
        "gemm_perf",
        [
            gemm("bfloat16", 8, 4096, 4096, 0.0155),
            gemm("bfloat16", 8, 512, 512, 0.003),
            gemm("fp8_block", 512, 4096, 4096, 0.2),
            gemm("fp8_block", 2048, 4096, 4096, 0.3),
        ],
    )
    attention = {
        "batch_size": 4,
        "num_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "attn_dtype": "bfloat16",
        "kv_cache_dtype": "bfloat16",
        "window_size": 0,
    }
    write(
        tmp_path,
        "attention",
        "vllm/0.24.0",
        "generation_attention_perf",
        [
            {**attention, "isl": 1, "step": 1023, "latency": 0.02},
            {**attention, "isl": 1, "step": 65535, "latency": 0.35},
            {**attention, "isl": 1, "step": 65535, "window_size": 128, "latency": 0.02},
        ],
    )
    write(
        tmp_path,
        "comm",
        "vllm/0.24.0",
        "custom_allreduce_perf",
        [
            {
                "allreduce_dtype": "bfloat16",
                "num_gpus": 2,
                "message_size": 1024,
                "latency": 0.0043,
                "backend": "vllm_graph",
            },
            {
                "allreduce_dtype": "bfloat16",
                "num_gpus": 2,
                "message_size": 1024,
                "latency": 0.0206,
                "backend": "vllm_eager",
            },
        ],
    )
    return tmp_path


def rows_of(root, kernel):
    table, hashes = read_tables(root, "h100-sxm", "vllm-0.24.0")
    assert len(hashes) == 3
    assert all(len(digest) == 64 for digest in hashes.values())
    return table[table["kernel"] == kernel]


def test_milliseconds_become_seconds(root):
    assert rows_of(root, "gemm")["median_s"].tolist() == pytest.approx([15.5e-6, 3e-6, 2e-4, 3e-4])


def test_collective_sizes_are_elements_and_become_bytes(root):
    assert rows_of(root, "all_reduce")["message_bytes"].tolist() == [2048, 2048]


def test_eager_collectives_are_told_from_graphs(root):
    assert rows_of(root, "all_reduce")["graph"].tolist() == [True, False]


def test_weights_that_fit_into_l2_are_marked_warm(root):
    assert rows_of(root, "gemm")["cold"].tolist()[:2] == [True, False]  # six buffers of 32 MB and of 0.5 MB


def test_a_decode_sees_the_tokens_before_it_and_itself(root):
    assert rows_of(root, "attention_decode")["context_tokens"].tolist() == [1024, 65536, 65536]


def test_decodes_whose_kv_fits_into_l2_are_marked_warm_windows_included(root):
    assert rows_of(root, "attention_decode")["cold"].tolist() == [False, True, False]


def test_eager_fp8_block_rows_count_from_a_thousand_rows_up(root):
    table, _ = read_tables(root, "h100-sxm", "vllm-0.24.0")
    assert GEMM.select(table, "fp8_block")["m"].tolist() == [2048]


def test_the_result_is_in_our_schema(root):
    table, _ = read_tables(root, "h100-sxm", "vllm-0.24.0")
    assert list(table.columns) == list(TIMING_COLUMNS)
    check_timings(table, "again")


def test_libraries_gpus_and_folders_that_are_not_there_are_named(root, tmp_path):
    assert known_libraries(root, "h100-sxm") == ("vllm-0.24.0",)
    with pytest.raises(CalibrationError, match=r"vllm-0.25.0.*did you mean 'vllm-0.24.0'"):
        read_tables(root, "h100-sxm", "vllm-0.25.0")
    with pytest.raises(CalibrationError, match="did you mean 'h200'"):
        read_tables(root, "h201", "vllm-0.24.0")
    with pytest.raises(CalibrationError, match="expected NAME-VERSION"):
        table_file(root, "h100-sxm", "gemm", "vllm", "gemm_perf")
    with pytest.raises(CalibrationError, match="got no table folder"):
        tables_dir(tmp_path / "nothing")


def test_a_table_without_a_column_names_file_and_column(root):
    path = root / "h100_sxm/gemm/vllm/0.24.0/gemm_perf.parquet"
    pd.read_parquet(path).drop(columns="n").to_parquet(path)
    with pytest.raises(CalibrationError, match=r"gemm_perf.parquet: missing column 'n'"):
        read_tables(root, "h100-sxm", "vllm-0.24.0")


# --- our own schema


def own(**columns):
    base = {"kernel": "gemm", "gpu": "cpu", "library": "numpy-2.0", "dtype": "fp32", "m": 1, "n": 8, "k": 8}
    return pd.DataFrame([{**base, "median_s": 1e-4, **columns}])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (own().drop(columns="median_s"), "t.csv: missing column 'median_s'"),
        (own().drop(columns="k"), "missing column 'k', which gemm rows need"),
        (own(k=None), "row 0: k: got nothing"),
        (own(m=0), "row 0: m: got 0, expected >= 1"),
        (own(median_s=float("nan")), "median_s: got"),
        (own(median_s=0.0), "row 0: median_s: got 0.0, expected seconds > 0"),
        (own(median_s=-1.0), "median_s: got -1.0"),
        (own(median_s=15.5), "wrong unit suspected"),
        (own(median_s=1e-9), "wrong unit suspected"),
        (
            own(gpu="h100-sxm", dtype="bf16", m=4096, n=4096, k=4096, median_s=0.24),
            "at 0.00058 of the roofline of h100-sxm",
        ),
        (
            own(gpu="h100-sxm", dtype="bf16", m=4096, n=4096, k=4096, median_s=2.4e-7),
            "wrong unit suspected, expected seconds",
        ),
        (own(kernel="gem"), "kernel: got 'gem'; did you mean 'gemm'"),
        (own(m="many"), "column 'm': expected Int64"),
    ],
)
def test_rows_that_cannot_be_timings_are_refused(frame, message):
    with pytest.raises(CalibrationError) as caught:
        check_timings(frame, "t.csv")
    assert message in str(caught.value)


def test_a_slow_machine_is_no_wrong_unit():
    """One GEMM of an 8B model takes a second on a busy CPU; a launch-bound one tells nothing about units."""
    check_timings(own(m=16, n=4096, k=4096, median_s=1.2), "t.csv")
    check_timings(own(gpu="h100-sxm", dtype="bf16", median_s=2.6e-6), "t.csv")
