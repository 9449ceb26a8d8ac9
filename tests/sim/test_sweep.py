"""Sweeps: points, addresses, resumption after kill -9, failures, workers that die, Dask."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stepline.sim.cli.main import main
from stepline.sim.study.executors import Processes, open_executor
from stepline.sim.study.sweep import sweep
from stepline.sim.study.sweep_spec import read_sweep
from stepline.traces.errors import ConfigError

ROWS = [(i * 37.0, 20 + 7 * (i % 11), 3 + i % 5) for i in range(60)]

SPEC = """
name = "small"
trace = "t.jsonl"
[base]
model = "llama-3.1-8b"
num-gpu-blocks-override = 500
[grid]
policy = ["chunked", "static"]
max_num_batched_tokens = [256, 512]
seed = [0, 1]
"""


@pytest.fixture
def spec(tmp_path) -> Path:
    rows = "".join(f'{{"timestamp": {t}, "input_length": {i}, "output_length": {o}}}\n' for t, i, o in ROWS)
    (tmp_path / "t.jsonl").write_text(rows)
    path = tmp_path / "small.toml"
    path.write_text(SPEC)
    return path


def bytes_of(result) -> bytes:
    return (result.directory / "sweep.csv").read_bytes()


def test_the_grid_is_every_combination_and_points_come_after_it(spec):
    spec.write_text(SPEC + '[[point]]\ntp = 2\ngpu = "h200"\n')
    points = read_sweep(spec).points
    assert len(points) == 9
    assert len({p.address for p in points}) == 9
    assert points[8].settings == {
        "model": "llama-3.1-8b", "num_gpu_blocks_override": 500, "tensor_parallel_size": 2, "gpu": "h200",
    }  # fmt: skip


def test_addresses_follow_content(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = [p.address for p in read_sweep(spec).points]
    spec.write_text(SPEC.replace("256, 512", "512, 256"))
    assert sorted(p.address for p in read_sweep(spec).points) == sorted(before)
    (tmp_path / "mine.py").write_text("class Mine: pass\n")
    spec.write_text(SPEC.replace('"static"', '"mine.py:Mine"'))
    mine = {p.address for p in read_sweep(spec).points}
    (tmp_path / "mine.py").write_text("class Mine: x = 1\n")
    assert len(mine & {p.address for p in read_sweep(spec).points}) == 4  # those of the other policy
    (tmp_path / "t.jsonl").write_text('{"timestamp": 0, "input_length": 1, "output_length": 1}\n')
    assert not mine & {p.address for p in read_sweep(spec).points}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nam = 1", "unknown key 'nam'; did you mean 'name'"),
        ('trace = "nowhere.jsonl"', "trace: no file"),
        (
            'trace = "t.jsonl"\n[grid]\npolcy = ["chunked"]',
            "grid: unknown setting 'polcy'; did you mean 'policy'",
        ),
        ('trace = "t.jsonl"\n[grid]\nseed = []', "grid: seed: got no values"),
        ('trace = "t.jsonl"\n[base]\nblock_size = 0', "--block-size: got 0"),
        ('trace = "t.jsonl"\n[grid]\nseed = [1, 1]', "the same point twice"),
        ("trace = ", "Invalid value"),
        ("trace = 3", "trace: got 3, expected a file"),
        ('trace = "t.jsonl"\nbase = 1', r"expected a table \[base\]"),
    ],
)
def test_a_wrong_spec_is_refused_in_a_line(spec, text, message):
    spec.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_sweep(spec)


def test_results_are_kept_and_tables_do_not_depend_on_the_way(spec, tmp_path):
    whole = sweep(spec, tmp_path / "a")
    assert len(whole.table) == 8
    assert not whole.failures
    assert whole.table["requests.completed"].tolist() == [60] * 8
    for point in read_sweep(spec).points[::3]:
        (tmp_path / "b" / "points").mkdir(parents=True, exist_ok=True)
        kept = (tmp_path / "a" / "points" / f"{point.address}.json").read_bytes()
        (tmp_path / "b" / "points" / f"{point.address}.json").write_bytes(kept)
    (tmp_path / "b" / "points" / ".torn.json.1.tmp").write_text("{")
    rest = sweep(spec, tmp_path / "b")
    assert rest.progress.kept == 3
    assert bytes_of(rest) == bytes_of(whole)
    assert sweep(spec, tmp_path / "b", again=True).progress.kept == 0


def test_a_failing_point_is_reported_and_the_rest_stands(spec, tmp_path, capsys):
    spec.write_text(SPEC.replace('"static"', '"nobody"'))
    assert main(["sweep", str(spec), "--out", str(tmp_path / "a"), "--jobs", "1"]) == 1
    out, err = capsys.readouterr()
    assert "4 of 8 points" in out
    assert err.count("failed: policy=nobody, max_num_batched_tokens=256, seed=0: --policy: unknown name") == 1
    table = (tmp_path / "a" / "sweep.csv").read_text()
    assert table.count("unknown name") == 4


def test_processes_give_the_table_of_one_process(spec, tmp_path):
    with Processes(2) as pool:
        many = sweep(spec, tmp_path / "b", executor=pool)
    assert bytes_of(many) == bytes_of(sweep(spec, tmp_path / "a"))


def dies_on_three(x):
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def test_a_task_that_kills_its_worker_fails_alone():
    with Processes(2) as pool:
        outcomes = {o.key: o for o in pool.run(dies_on_three, [(str(i), i) for i in range(6)])}
        assert pool.losses >= 3
    assert outcomes["3"].error.startswith("its worker died 3 times")
    assert {k: o.value for k, o in outcomes.items() if k != "3"} == {
        str(i): i * i for i in range(6) if i != 3
    }


def test_executors_are_named_with_care():
    with pytest.raises(ConfigError, match="--executor: unknown name 'dusk'; did you mean 'dask'"):
        open_executor("dusk")
    with pytest.raises(ConfigError, match="--scheduler: got 'tcp://x:1', needs --executor dask"):
        open_executor("local", scheduler="tcp://x:1")
    with pytest.raises(ConfigError, match="--jobs: got 0"):
        open_executor(jobs=0)


def test_help_is_printed(capsys):
    assert main(["sweep", "--help"]) == 0
    assert "--scheduler" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_killed_at_any_moment_resumes_to_the_same_table(spec, tmp_path):
    spec.write_text(SPEC.replace("seed = [0, 1]", "seed = [0, 1, 2, 3, 4, 5, 6, 7]\nrate_scale = [40.0]"))
    whole = sweep(spec, tmp_path / "a")
    command = [
        sys.executable,
        "-m",
        "stepline.sim.cli.main",
        "sweep",
        str(spec),
        "--out",
        str(tmp_path / "b"),
        "--jobs",
        "2",
    ]
    for wanted in (1, 5, 11):
        child = subprocess.Popen([*command, "--quiet"])
        while child.poll() is None and len(list((tmp_path / "b").glob("points/*.json"))) < wanted:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
    done = len(list((tmp_path / "b").glob("points/*.json")))
    assert 11 <= done < 32
    assert not (tmp_path / "b" / "sweep.csv").exists()
    assert subprocess.run(command, check=True, capture_output=True).returncode == 0
    assert (tmp_path / "b" / "sweep.csv").read_bytes() == bytes_of(whole)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_dask_cluster_gives_the_same_table_even_if_a_worker_is_killed(spec, tmp_path, killed):
    pytest.importorskip("distributed", reason="optional extra dask is not installed")
    spec.write_text(SPEC.replace("seed = [0, 1]", "seed = [0, 1, 2, 3]\nrate_scale = [40.0]"))
    whole = sweep(spec, tmp_path / "a")
    with open_executor("dask", jobs=2) as executor:
        victims = [executor._cluster.workers[0].process.pid] if killed else []

        def kill(_):
            while victims:
                os.kill(victims.pop(), signal.SIGKILL)

        found = sweep(spec, tmp_path / "b", executor=executor, on_progress=kill)
        assert executor.losses == int(killed)
    assert not found.failures
    assert bytes_of(found) == bytes_of(whole)
