"""Run directories: whole or absent, equal bytes for equal runs, nobody else's files touched."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from stepline.sim.report.run_dir import atomic_dir, json_bytes, write_run
from stepline.traces.errors import ConfigError

from .run_results import NAN, requests, run_result


def write(target: Path, result=None) -> Path:
    with atomic_dir(target) as work:
        write_run(result or run_result(), work, command="simulate --trace x")
    return target


def test_a_run_directory_holds_manifest_summary_and_requests(tmp_path):
    made = write(tmp_path / "deep" / "run")
    assert sorted(p.name for p in made.iterdir()) == [
        "histograms.parquet", "manifest.json", "preemptions.parquet", "requests.parquet", "series.parquet",
        "summary.json",
    ]  # fmt: skip
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["config"]["trace"]["sha256"] == "ab"
    assert manifest["versions"]["stepline"]
    assert json.loads((made / "summary.json").read_text())["requests"]["completed"] == 3


def test_request_columns_and_nulls(tmp_path):
    rows = [
        {"request_index": 1},
        {"request_index": 0, "replica": -1, "status": 1, "scheduled_s": NAN, "first_token_s": NAN},
    ]
    result = run_result(rows, trace_columns={"request_id": ["x", "y"], "session_id": ["s", None]})
    frame = pd.read_parquet(write(tmp_path / "r", result) / "requests.parquet")
    assert list(frame.columns) == [
        "request_id", "session_id", "replica", "arrival_s", "scheduled_s", "first_token_s", "finish_s",
        "input_tokens", "output_tokens", "cached_tokens", "preemptions", "status",
    ]  # fmt: skip
    assert frame["request_id"].tolist() == ["x", "y"]
    assert frame["status"].tolist() == ["rejected", "finished"]
    assert frame["replica"].isna().tolist() == [True, False]
    assert frame["session_id"].isna().tolist() == [False, True]


def test_recorded_steps_are_written(tmp_path):
    steps = pd.DataFrame({"replica": [0], "start_s": [0.5], "duration_s": [0.01]})
    made = write(tmp_path / "r", run_result(steps=steps))
    pd.testing.assert_frame_equal(pd.read_parquet(made / "steps.parquet"), steps)


def test_equal_runs_give_equal_bytes(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    for name in sorted(p.name for p in a.iterdir()):
        assert (a / name).read_bytes() == (b / name).read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_nothing(tmp_path, error):
    def broken():
        with atomic_dir(tmp_path / "run") as work:
            (work / "summary.json").write_text("{")
            raise error

    with pytest.raises(error):
        broken()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_rewrite_keeps_the_old_run(tmp_path):
    made = write(tmp_path / "run")
    before = (made / "summary.json").read_bytes()

    def broken():
        with atomic_dir(made) as work:
            (work / "summary.json").write_text("{")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert (made / "summary.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_run_replaces_an_older_run_whole(tmp_path):
    write(tmp_path / "run", run_result(steps=pd.DataFrame({"a": [1]})))
    made = write(tmp_path / "run")
    assert not (made / "steps.parquet").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_foreign_directories_and_files_are_left_alone(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is no run directory"):
        write(tmp_path / "home")
    with pytest.raises(ConfigError, match="is a file"):
        write(tmp_path / "home" / "thesis.tex")
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


def test_json_has_no_nan():
    assert json.loads(json_bytes({"a": float("nan"), "b": float("inf")})) == {"a": None, "b": None}


def test_no_request_gives_an_empty_table(tmp_path):
    made = write(tmp_path / "r", run_result([]))
    assert len(pd.read_parquet(made / "requests.parquet")) == len(requests([])) == 0
