"""`simulate compare`: grids, lists, replications, the Pareto set, the files."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepline.sim.cli.main import main
from stepline.sim.study.config import RunConfig
from stepline.sim.study.grid import pareto_set, run_grid
from stepline.traces.errors import ConfigError

from .browser import browser, needs_browser
from .engine_kit import trace

SETTINGS = {"cost_model": "datasheet", "num_gpu_blocks_override": 400}


def rows(n=60):
    rng = np.random.default_rng(3)
    gaps, inputs, outputs = rng.exponential(0.05, n), rng.integers(50, 900, n), rng.integers(5, 80, n)
    return trace(list(zip(np.cumsum(gaps).tolist(), inputs.tolist(), outputs.tolist(), strict=True)))


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12))
def test_the_pareto_set_is_what_nobody_beats(points):
    costs = {str(i): p for i, p in enumerate(points)}
    chosen = pareto_set(costs)
    assert chosen
    for label, own in costs.items():
        beaten = any(all(x <= y for x, y in zip(o, own, strict=True)) and o != own for o in costs.values())
        assert (label in chosen) == (not beaten)


def test_one_replication_is_the_trace_itself():
    from stepline.sim.report.summary import summary
    from stepline.sim.study.run import simulate

    configs = {p: RunConfig(policy=p, **SETTINGS) for p in ("chunked", "sjf")}
    grid = run_grid(rows(), configs)
    alone = summary(simulate(rows(), configs["sjf"]))
    assert grid.find("sjf", "ttft_p99").value == alone["ttft_s"]["p99"]
    assert grid.find("sjf", "ttft_mean").low is not None
    assert grid.find("chunked", "ttft_mean").low is None


def test_replications_are_paired():
    """The same policy twice differs by nothing in every replication, though replications differ."""
    configs = {"a": RunConfig(**SETTINGS), "b": RunConfig(policy="chunked", **SETTINGS)}
    row = run_grid(rows(), configs, 4).find("b", "e2e_mean")
    assert row.difference == row.low == row.high == 0.0
    assert row.value_high > row.value_low
    assert row.replications == 4


def test_a_bad_policy_is_found_out():
    configs = {p: RunConfig(policy=p, **SETTINGS) for p in ("chunked", "control-serial")}
    grid = run_grid(rows(), configs, 3)
    assert grid.find("control-serial", "e2e_mean").is_clear
    assert grid.find("control-serial", "e2e_mean").difference > 0
    assert "chunked" in grid.pareto


def test_replications_below_one_are_refused():
    with pytest.raises(ConfigError, match="--replications: got 0"):
        run_grid(rows(), {"a": RunConfig(), "b": RunConfig(policy="sjf")}, 0)


@pytest.fixture
def trace_file(tmp_path):
    t = rows(30)
    lines = [
        {"timestamp": 1e3 * a, "input_length": int(i), "output_length": int(o)}
        for a, i, o in zip(t.arrival_s, t.input_tokens, t.output_tokens, strict=True)
    ]
    path = tmp_path / "small.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def compare(trace_file, *flags):
    return main(["compare", "--trace", str(trace_file), "--cost-model", "datasheet", *flags])


def test_the_command_writes_one_table_and_one_page(trace_file, tmp_path, capsys):
    out = tmp_path / "grid"
    flags = ["--policy", "chunked,sjf", "--kv-eviction", "lru,arc", "--replications", "2", "--out", str(out)]
    assert compare(trace_file, *flags) == 0
    table = pd.read_csv(out / "comparison.csv")
    assert set(table["run"]) == {f"{p},kv-eviction={e}" for p in ("chunked", "sjf") for e in ("lru", "arc")}
    assert {"policy", "kv_eviction", "figure", "value", "difference", "low", "high", "pareto"} <= set(
        table.columns
    )
    page = (out / "comparison.html").read_text()
    assert "Pareto set" in page
    assert 'src="http' not in page
    assert json.loads((out / "manifest.json").read_text())["pareto"]
    assert "★" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"comparison.csv", "comparison.html", "manifest.json"}


@needs_browser
def test_the_page_is_drawn_on_a_phone(trace_file, tmp_path):
    out = tmp_path / "grid"
    assert compare(trace_file, "--policy", "chunked,sjf", "--out", str(out), "--quiet") == 0
    with browser() as page:
        page.open(out / "comparison.html", width=390)
        assert page.script("return [...stepline.views.keys()]") == ["tokens_ttft", "tokens_tpot"]
        assert not page.script("return document.documentElement.scrollWidth > 390"), "wider than a phone"
        assert page.console == []


def test_a_list_takes_the_values_together(trace_file, capsys):
    flags = [
        "--policy",
        "chunked,sjf",
        "--preemption",
        "last-in,most-blocks",
        "--combine",
        "list",
        "--no-save",
    ]
    assert compare(trace_file, *flags) == 0
    out = capsys.readouterr().out
    assert "chunked,preemption=last-in" in out
    assert "sjf,preemption=most-blocks" in out
    assert "chunked,preemption=most-blocks" not in out


def test_with_and_without_as_json_and_what_is_not_modelled_is_said(trace_file, capsys):
    flags = ["--kv-compression", "none,h2o", "--no-enable-prefix-caching", "--no-save", "--json"]
    assert compare(trace_file, *flags) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["baseline"] == "kv-compression=none"
    assert {row["run"] for row in found["rows"]} == {"kv-compression=none", "kv-compression=h2o"}
    assert "kv-compression=h2o: --kv-compression h2o: tokens are dropped" in captured.err


def test_requests_that_timed_out_are_shown(trace_file, capsys):
    assert compare(trace_file, "--policy", "chunked,sjf", "--client-timeout", "0.001", "--no-save") == 0
    assert "timed out" in capsys.readouterr().out


def test_an_eviction_policy_without_a_cache_is_told(trace_file, capsys):
    flags = ["--kv-eviction", "lru,lfu", "--no-enable-prefix-caching", "--no-save"]
    assert compare(trace_file, *flags) == 0
    assert "--kv-eviction lfu: without effect while prefix caching is off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "compare: got 1 run"),
        (["--policy", "chunked,sjf", "--replications", "0"], "--replications: got 0"),
        (
            ["--policy", "chunked,sjf", "--tp", "1,2,4", "--combine", "list"],
            "--combine list: --policy (2), --tensor",
        ),
        (["--policy", "chunked,sjff"], "unknown name 'sjff'; did you mean 'sjf'"),
    ],
)
def test_wrong_calls_are_one_line(trace_file, capsys, flags, says):
    assert compare(trace_file, *flags) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
