"""`calibrate fit` and `calibrate validate` as a user runs them, on a small table of our own."""

import importlib.metadata
import json
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from stepline.calibration.cli import VERBS, main
from stepline.calibration.fit import fit_task
from stepline.calibration.sources import read_source
from stepline.calibration.tables import PACKAGE
from stepline.calibration.tasks import DECODE, PREFILL, columns_of, rows_for
from stepline.calibration.whole_step import LogTable
from stepline.sim.cost.calibration import load_calibration, registered_calibrations
from stepline.sim.cost.catalogue import load_gpu, load_model
from stepline.sim.cost.roofline import RooflineCostModel
from stepline.sim.cost.work import StepWork
from test_fit_kernels import TRUTH, timings

try:
    importlib.metadata.version(PACKAGE)
    TABLES = True
except importlib.metadata.PackageNotFoundError:
    TABLES = False

needs_tables = pytest.mark.skipif(not TABLES, reason=f"{PACKAGE} is not installed (extra h100)")


@cache
def h100_tables():
    return read_source("aiconfigurator", "h100-sxm", "vllm-0.24.0")


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.parquet"
    timings(noise=0.02).to_parquet(path)
    return path


def test_a_table_becomes_a_calibration_that_prices_steps(table, tmp_path, capsys):
    out = tmp_path / "c.json"
    assert main(["fit", "--source", str(table), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "gemm" in printed.out
    assert f"wrote {out}" in printed.err
    calibration = load_calibration(out)
    assert calibration.id == "h100-sxm/test-1.0/bf16"
    assert calibration.kernels["gemm"].constants["memory_eff"] == pytest.approx(
        TRUTH["gemm"]["memory_eff"], rel=0.1
    )
    model = RooflineCostModel(load_model("llama-3.1-8b"), load_gpu("h100-sxm"), calibration)
    assert 4.5e-3 < model.step_s(StepWork(0, 0, 0, 0, 1, (1000,), 1)) < 9e-3


def test_a_csv_is_as_good_as_a_parquet(table, tmp_path):
    csv = tmp_path / "t.csv"
    timings(noise=0.02).to_csv(csv, index=False)
    for source, out in ((table, "a.json"), (csv, "b.json")):
        assert main(["fit", "--source", str(source), "--out", str(tmp_path / out)]) == 0
    a, b = (load_calibration(tmp_path / name) for name in ("a.json", "b.json"))
    assert dict(a.kernels["gemm"].constants) == pytest.approx(dict(b.kernels["gemm"].constants), rel=1e-5)


def test_held_out_errors_are_recorded_on_request(table, tmp_path):
    out = tmp_path / "c.json"
    assert main(["fit", "--source", str(table), "--out", str(out), "--validate", "2"]) == 0
    errors = json.loads(out.read_text())["kernels"]["gemm"]["errors"]
    assert {"train", "random", "unseen", "largest", "family_sd"} <= set(errors)
    assert 0 < errors["unseen"]["all"]["formula"] < 0.1


def test_validate_prints_each_split_and_writes_the_table(table, tmp_path, capsys):
    out = tmp_path / "v.csv"
    arguments = ["validate", "--source", str(table), "--seeds", "2", "--kernel", "gemm", "--out", str(out)]
    assert main([*arguments, "--no-steps"]) == 0
    printed = capsys.readouterr().out
    for word in ("random", "unseen", "largest", "large-nk", "m <= 16", "datasheet", "formula"):
        assert word in printed
    assert out.read_text().startswith("kernel,split,regime")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt"], "unknown verb 'fitt'; did you mean 'fit'"),
        (["fit", "--source", "t.xlsx"], "--source: got 't.xlsx'"),
        (["fit", "--source", "absent.parquet"], "absent.parquet: cannot be read"),
        (["fit", "--source", "aiconfigurator", "--tables", "nowhere"], "nowhere: got no table folder"),
        (
            ["validate", "--source", "absent.csv", "--split", "unsen"],
            "--split: got 'unsen'; did you mean 'unseen'",
        ),
        (
            ["validate", "--source", "absent.csv", "--kernel", "gem"],
            "--kernel: got 'gem'; did you mean 'gemm'",
        ),
        (["validate", "--source", "absent.csv", "--seeds", "0"], "--seeds: got 0"),
    ],
)
def test_a_mistake_is_one_line_and_exits_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err


def test_two_gpus_in_one_file_are_refused(tmp_path, capsys):
    both = timings().assign(gpu=lambda f: np.where(f.index % 2 == 0, "h100-sxm", "h200"))
    both.to_parquet(tmp_path / "t.parquet")
    assert main(["fit", "--source", str(tmp_path / "t.parquet")]) == 2
    assert "gpu: got h100-sxm, h200, expected one GPU a file" in capsys.readouterr().err


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in VERBS)
    assert main([]) == 2


@needs_tables
@pytest.mark.parametrize("task", [PREFILL, DECODE], ids=lambda t: t.name)
def test_the_committed_constants_are_those_of_the_tables(task):
    source = h100_tables()
    rows = rows_for(task, source.table, source.gpu, "bf16")
    fresh = fit_task(task, rows, source.gpu, "bf16", residual=False).fit.constants
    committed = next(c for c in registered_calibrations() if (c.gpu, c.dtype) == ("h100-sxm", "bf16"))
    assert dict(committed.kernels[task.name].constants) == pytest.approx(fresh, rel=1e-3)


@needs_tables
def test_unseen_heads_are_within_the_gates_on_the_h100_tables():
    from stepline.calibration.validate import validate

    source = h100_tables()
    kernels = ("attention_decode", "attention_prefill")
    scores = validate(source, "bf16", seeds=2, splits=("unseen",), kernels=kernels)
    error = {(s.kernel, s.model): s.mape for s in scores if s.regime == "all"}
    assert error["attention_decode", "formula"] < 0.085
    assert error["attention_decode", "residual"] < 0.03
    assert error["attention_prefill", "formula"] < 0.10
    assert error["attention_prefill", "residual"] < 0.05


def test_a_log_table_interpolates_powers_exactly_and_scales_beyond_its_end():
    import pandas as pd

    rows = pd.DataFrame([{"m": m, "n": n, "median_s": m**0.5 * n**2.0} for m in (1, 4, 16) for n in (2, 8)])
    table = LogTable(rows, ("m", "n"))
    assert table.seconds(m=8, n=3) == pytest.approx(8**0.5 * 9)
    assert table.seconds(m=1, n=2) == pytest.approx(4)
    assert table.seconds(m=1, n=16) == pytest.approx(2 * 64)


def test_columns_are_floats_of_the_selected_rows():
    rows = rows_for(DECODE, timings(), load_gpu("h100-sxm"), "bf16")
    assert set(columns_of(rows, DECODE)) == set(DECODE.shapes)
    assert all(column.dtype == float for column in columns_of(rows, DECODE).values())


def test_a_reader_that_goes_away_ends_the_command_quietly():
    code = "import sys; from stepline.calibration.cli import main; sys.exit(main(['seeds', '--all']))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait() == 141
    assert "Traceback" not in said
