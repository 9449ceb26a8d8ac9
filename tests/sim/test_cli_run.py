"""The command end to end: tables, files, JSON, and every kind of wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from stepline.sim.cli.main import main
from stepline.sim.cli.run import in_short

CHAT = Path(__file__).parents[2] / "traces" / "samples" / "chat.jsonl"


def write_trace(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(n: int = 40, gap_ms: float = 100.0) -> list[dict[str, object]]:
    return [
        {"timestamp": i * gap_ms, "input_length": 100 + 37 * i % 900, "output_length": 5 + i % 23}
        for i in range(n)
    ]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_trace(tmp_path / "t.jsonl", rows())
    return tmp_path


def made(here: Path) -> list[str]:
    """Everything in the directory but the trace."""
    return sorted(str(p.relative_to(here)) for p in here.rglob("*") if p.is_file() and p.name != "t.jsonl")


def fails(capsys, *argv: str) -> str:
    """The one line on stderr of a call that must exit with 2."""
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("simulate: ")
    return captured.err


def test_one_run_prints_tables_and_writes_a_directory(here, capsys):
    assert main(["--trace", "t.jsonl", "--policy", "chunked"]) == 0
    out = capsys.readouterr().out
    for word in (
        "40 of 40 completed",
        "TTFT",
        "TPOT",
        "ITL",
        "E2E",
        "GPU time",
        "verdict",
        "results/runs/t-chunked-",
    ):
        assert word in out
    assert [Path(p).name for p in made(here)] == [
        "histograms.parquet", "manifest.json", "preemptions.parquet", "requests.parquet", "series.parquet",
        "summary.json",
    ]  # fmt: skip


def test_json_is_the_summary_and_nothing_else(here, capsys):
    assert main(["--trace", "t.jsonl", "--json", "--no-save"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["requests"]["completed"] == 40
    assert made(here) == []


def test_quiet_prints_nothing_but_writes(here, capsys):
    assert main(["--trace", "t.jsonl", "--quiet", "--out", "r"]) == 0
    assert capsys.readouterr() == ("", "")
    assert json.loads((here / "r" / "summary.json").read_text())["requests"]["submitted"] == 40


def test_the_directory_agrees_with_the_summary(here):
    assert main(["--trace", "t.jsonl", "--quiet", "--out", "r", "--record-steps"]) == 0
    summary = json.loads((here / "r" / "summary.json").read_text())
    manifest = json.loads((here / "r" / "manifest.json").read_text())
    requests, steps = (pd.read_parquet(here / "r" / f"{name}.parquet") for name in ("requests", "steps"))
    assert (requests["first_token_s"] - requests["arrival_s"]).mean() == pytest.approx(
        summary["ttft_s"]["mean"]
    )
    assert steps["n_steps"].sum() == summary["simulator"]["steps"]
    assert requests["output_tokens"].sum() == sum(int(r["output_length"]) for r in rows())
    assert manifest["config"]["max_num_batched_tokens"] == 8192
    assert len(manifest["config"]["trace"]["sha256"]) == 64
    assert manifest["config"]["calibration"]
    assert manifest["config"]["kv_ledger"]["n_blocks"] == manifest["config"]["kv_blocks"]


def test_the_same_call_gives_the_same_bytes(here):
    for name in ("a", "b"):
        assert main(["--trace", "t.jsonl", "--quiet", "--out", name, "--record-steps"]) == 0
    for table in ("requests.parquet", "steps.parquet"):
        assert (here / "a" / table).read_bytes() == (here / "b" / table).read_bytes()
    a, b = (json.loads((here / n / "summary.json").read_text()) for n in "ab")
    a.pop("simulator"), b.pop("simulator")
    assert a == b


def test_several_policies_are_compared_on_the_same_arrivals(here, capsys):
    assert main(["--trace", "t.jsonl", "--policy", "continuous,chunked", "--out", "c"]) == 0
    out = capsys.readouterr().out
    assert "ranking by requests completed" in out
    assert "chunked - continuous" in out
    assert "paired block bootstrap" in out
    names = {str(Path(p).relative_to("c")) for p in made(here)}
    assert {"comparison.csv", "comparison.html", "manifest.json", "chunked/summary.json"} <= names
    frame = pd.read_csv(here / "c" / "comparison.csv")
    assert set(frame["run"]) == {"continuous", "chunked"}


def test_a_comparison_as_json(here, capsys):
    assert main(["--trace", "t.jsonl", "--policy", "continuous,chunked", "--json", "--no-save"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["runs"]) == {"continuous", "chunked"}
    assert found["baseline"] == "continuous"
    assert {p["run"] for p in found["ranking"]["places"]} == {"continuous", "chunked"}


def test_vllm_bench_json(here):
    assert main(["--trace", "t.jsonl", "--quiet", "--no-save", "--vllm-bench-json", "b.json"]) == 0
    found = json.loads((here / "b.json").read_text())
    assert found["completed"] == 40
    assert found["p99_ttft_ms"] > 0
    assert found["model_id"] == "llama-3.1-8b"


def test_an_slo_adds_goodput_and_is_judged(here, capsys):
    assert main(["--trace", "t.jsonl", "--slo", "ttft_p99<0.000001", "--no-save"]) == 0
    assert "missed; ttft_p99" in capsys.readouterr().out


def test_a_policy_of_the_users_own(here, capsys):
    (here / "mine.py").write_text(
        "from stepline.policies.batching.chunked import ChunkedPolicy\nclass Mine(ChunkedPolicy):\n    pass\n"
    )
    for text in ("mine:Mine", "mine.py:Mine"):
        assert main(["--trace", "t.jsonl", "--policy", text, "--json", "--no-save"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n}\n")[0] + "}")["requests"]["completed"] == 40


def test_a_cost_model_of_the_users_own(here, capsys):
    (here / "price.py").write_text("class Flat:\n    def step_s(self, work):\n        return 0.01\n")
    assert (
        main(
            [
                "--trace",
                "t.jsonl",
                "--cost-model",
                "price.py:Flat",
                "--engine",
                "ideal",
                "--json",
                "--no-save",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["itl_s"]["max"] == pytest.approx(0.01)


def test_a_request_longer_than_the_cache_is_rejected_and_counted(here, capsys):
    write_trace(here / "t.jsonl", [*rows(5), {"timestamp": 900, "input_length": 5000, "output_length": 5}])
    assert main(["--trace", "t.jsonl", "--num-gpu-blocks-override", "200", "--no-save"]) == 0
    assert "5 of 6 completed; 1 rejected" in capsys.readouterr().out


def test_rates_scale_by_flag(here, capsys):
    assert main(["--trace", "t.jsonl", "--rate-scale", "2", "--json", "--no-save"]) == 0
    assert json.loads(capsys.readouterr().out)["requests"]["submitted"] == 80


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--policy", "chunked"], "--trace: expected a file"),
        (["--trace", "nowhere.jsonl"], "--trace: no file 'nowhere.jsonl'"),
        (["--trace", "t.jsonl", "--trace-format", "azuer"], "azure"),
        (
            ["--trace", "t.jsonl", "--model", "llama-3.1-8bb"],
            "--model: unknown model 'llama-3.1-8bb'; did you mean",
        ),
        (["--trace", "t.jsonl", "--gpu", "h1000"], "--gpu: unknown gpu 'h1000'"),
        (
            ["--trace", "t.jsonl", "--policy", "chunkd"],
            "--policy: unknown name 'chunkd'; did you mean 'chunked'?",
        ),
        (
            ["--trace", "t.jsonl", "--kv-eviction", "lruu"],
            "--kv-eviction: unknown name 'lruu'; did you mean 'lru'?",
        ),
        (
            ["--trace", "t.jsonl", "--preemption", "last"],
            "--preemption: unknown name 'last'; did you mean 'last-in'?",
        ),
        (
            ["--trace", "t.jsonl", "--routing", "robin"],
            "--routing: unknown name 'robin'; did you mean 'round-robin'?",
        ),
        (
            ["--trace", "t.jsonl", "--engine", "vlm-v1"],
            "--engine: unknown engine 'vlm-v1'; did you mean 'vllm-v1'?",
        ),
        (["--trace", "t.jsonl", "--cost-model", "roofine"], "did you mean 'roofline'?"),
        (["--trace", "t.jsonl", "--calibration", "nowhere.json"], "--calibration: nowhere.json"),
        (["--trace", "t.jsonl", "--model", "llama-3.1-70b"], "does not fit"),
        (["--trace", "t.jsonl", "--tp", "3"], "--tensor-parallel-size: got 3"),
        (
            ["--trace", "t.jsonl", "--max-num-batched-tokens", "8"],
            "--max-num-batched-tokens: got 8, expected at least a block",
        ),
        (["--trace", "t.jsonl", "--max-model-len", "9000000"], "--max-model-len: got 9000000"),
        (["--trace", "t.jsonl", "--no-save", "--out", "r"], "--no-save: cannot be combined with --out"),
        (["--trace", "t.jsonl", "--out", "t.jsonl"], "--out t.jsonl: is a file"),
        (
            ["--trace", "t.jsonl", "--policy", "static,chunked", "--vllm-bench-json", "b.json"],
            "holds one run, got 2",
        ),
        (["--trace", "t.jsonl", "--vllm-bench-json", "no/b.json"], "--vllm-bench-json: no directory 'no'"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(here, capsys, flags, says):
    assert says in fails(capsys, *flags)
    assert made(here) == []


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('{"timestamp": 0, "input_length": -3, "output_length": 5}', "input_length"),
        ('{"timestamp": 0, "input_length": 0, "output_length": 5}', "input_length"),
        ('{"timestamp": 0, "input_length": 3, "output_length": NaN}', ""),
        ('{"timestamp": 0, "input_length": 3.5, "output_length": 5}', "input_length"),
        ('{"timestamp": -1, "input_length": 3, "output_length": 5}', "timestamp"),
        ('{"timestamp": 0, "input_length": 3}', "output_length"),
        ('{"timestamp": 0, "input_length": ', ""),
    ],
)
def test_wrong_rows_name_file_line_and_field(here, capsys, line, field):
    good = json.dumps(rows(1)[0])
    (here / "t.jsonl").write_text(f"{good}\n{line}\n")
    error = fails(capsys, "--trace", "t.jsonl")
    assert "t.jsonl:2" in error
    assert field in error
    assert made(here) == []


def test_an_empty_trace_is_refused(here, capsys):
    (here / "t.jsonl").write_text("")
    assert "t.jsonl" in fails(capsys, "--trace", "t.jsonl")


def run_process(*argv: str, cwd: Path, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "stepline.sim.cli.main", *argv],
        cwd=cwd,
        text=True,
        stderr=subprocess.PIPE,
        **options,
    )


def test_ctrl_c_leaves_no_directory_and_exits_130(here):
    write_trace(here / "t.jsonl", rows(200_000, gap_ms=60.0))
    process = run_process(
        "--trace", "t.jsonl", "--out", "r", cwd=here, stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests run in the background ignore it
    )  # fmt: skip
    time.sleep(1.5)
    assert process.poll() is None, "the run is meant to be long enough to be interrupted"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == "simulate: interrupted, nothing written\n"
    assert [p.name for p in here.iterdir()] == ["t.jsonl"]


def test_a_full_disk_is_one_line(here, capsys):
    flags = ["--trace", "t.jsonl", "--no-save"]
    assert "No space left on device" in fails(capsys, *flags, "--quiet", "--vllm-bench-json", "/dev/full")
    with Path("/dev/full").open("w") as full:
        done = run_process(*flags, cwd=here, stdout=full)
    assert done.communicate(timeout=60)[1] == "simulate: cannot be written: No space left on device\n"
    assert done.returncode == 2


def test_a_device_is_written_and_not_replaced(here, capsys):
    os.mkfifo(here / "pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, cwd=here)
    flags = ["--no-save", "--quiet", "--vllm-bench-json", "pipe"]
    assert main(["--trace", "t.jsonl", *flags]) == 0
    assert json.loads(reader.communicate(timeout=60)[0])["completed"] == 40
    assert (here / "pipe").is_fifo()


def test_a_link_keeps_its_place(here):
    (here / "real.json").write_text("old")
    (here / "link.json").symlink_to(here / "real.json")
    flags = ["--no-save", "--quiet", "--vllm-bench-json", "link.json"]
    assert main(["--trace", "t.jsonl", *flags]) == 0
    assert (here / "link.json").is_symlink()
    assert json.loads((here / "real.json").read_bytes())["completed"] == 40


def test_a_closed_pipe_is_no_error(here):
    process = run_process("--help-all", cwd=here, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.wait(timeout=30)
    process.stderr.close()


def test_the_shipped_sample_ranks_the_classic_policies(tmp_path, monkeypatch, capsys):
    """Chunked lowers p99 ITL against continuous; static, which reserves and pads, wastes most GPU time a token."""
    monkeypatch.chdir(tmp_path)
    assert main(["--trace", str(CHAT), "--policy", "static,continuous,chunked", "--json", "--no-save"]) == 0
    found = json.loads(capsys.readouterr().out)
    p99 = {run: s["itl_s"]["p99"] for run, s in found["runs"].items()}
    cost = {run: s["cost"]["usd_per_million_output_tokens"] for run, s in found["runs"].items()}
    assert p99["chunked"] < p99["continuous"]
    assert max(cost, key=cost.get) == "static"
    places = found["ranking"]["places"]
    assert [p["run"] for p in places] == ["chunked", "continuous", "static"]
    assert "GPU time per output token" in places[2]["why"]
    assert "the policy reserves each one's longest possible output" in places[2]["why"]
    assert "Overloaded" not in places[0]["why"] + places[1]["why"]


def test_a_long_warning_ends_in_how_much_more_there_is_and_where():
    parts = [f"k{i} m 99 (data: to 9)" for i in range(5)]
    long = "outside: " + "; ".join(parts)
    assert in_short(long, saved=True) == f"outside: {parts[0]}; {parts[1]}; and 3 more (all in summary.json)"
    assert "saved run" in in_short(long, saved=False)
    three = "; ".join(parts[:3])
    assert in_short(three, saved=True) == three
