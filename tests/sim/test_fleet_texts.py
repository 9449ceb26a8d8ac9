"""Fleets as settings and flags say them: what is understood, what is refused, what a run tells of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stepline.sim import RunConfig, simulate, summary
from stepline.sim.cli.main import main
from stepline.sim.report.fleet_lines import fleet_lines
from stepline.sim.report.markdown import run_markdown
from stepline.sim.report.page_parts import fleet_section
from stepline.sim.report.run_tables import read_run
from stepline.sim.study.fleet_texts import (
    autoscaling_of,
    disaggregation_of,
    kinds_of,
    outages_of,
    parts_of,
    slow_replicas,
)
from stepline.sim.study.setup import resolve
from stepline.sim.study.sweep import sweep
from stepline.traces.errors import ConfigError
from stepline.traces.request import Request
from stepline.traces.trace import Trace


def chat(n: int = 40, gap_s: float = 0.05) -> Trace:
    return Trace.from_requests(Request(f"r{i}", gap_s * i, 50 + 31 * i % 700, 3 + i % 17) for i in range(n))


# -- texts --------------------------------------------------------------------------------------------------------------


def test_parts_are_pairs_joined_by_plus():
    assert parts_of("a=1,b=x+c=2", "--x") == [{"a": "1", "b": "x"}, {"c": "2"}]


def test_each_kind_of_replica_has_its_own_settings():
    config = RunConfig(fleet="gpu=h200,tp=2,count=3+gpu=l40s,max-num-seqs=64,usd-per-gpu-hour=1.5")
    kinds = kinds_of(config)
    assert [(k.config.gpu, k.config.tensor_parallel_size, k.count) for k in kinds] == [
        ("h200", 2, 3),
        ("l40s", 1, 1),
    ]
    assert (kinds[1].config.max_num_seqs, kinds[1].config.usd_per_gpu_hour) == (64, 1.5)


def test_the_rules_are_read_in_full():
    rule = disaggregation_of(
        "prefill=2,decode=1,link=ib-ndr,latency=0,overlap=yes,first-token=prefill,connector=p2p-nccl,hop=0.01"
    )
    assert (rule.prefill, rule.link.name, rule.link.latency_s) == (2, "ib-ndr", 0.0)
    assert (rule.overlap, rule.first_token, rule.connector, rule.hop_s) == (True, "prefill", "p2p-nccl", 0.01)
    scaling = autoscaling_of(
        "min=2,max=5,metric=kv,target=0.8,interval=5,startup=60,tolerance=0.2,scale-in=90"
    )
    assert (scaling.least, scaling.most, scaling.metric, scaling.target) == (2, 5, "kv", 0.8)
    assert (scaling.interval_s, scaling.startup_s, scaling.tolerance, scaling.scale_in_s) == (5, 60, 0.2, 90)
    outages = outages_of("replica=0,at=5,for=2+mtbf=3600,mttr=120+replica=1,at=7,for=1", seed=4)
    assert outages.planned == ((0, 5.0, 2.0), (1, 7.0, 1.0))
    assert (outages.mtbf_s, outages.mttr_s, outages.seed) == (3600, 120, 4)


def test_a_random_share_of_stragglers_is_the_seeds():
    text = "frac=0.25,factor=1.5"
    assert slow_replicas(text, 8, seed=1) == slow_replicas(text, 8, seed=1)
    drawn = {tuple(slow_replicas(text, 8, seed=s)) for s in range(20)}
    assert len(drawn) > 5
    assert {len(d) for d in drawn} == {2}
    assert slow_replicas("frac=1,factor=1.5+replica=0,factor=2", 2, seed=1) == {0: 2.0, 1: 1.5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fleet": "gpu"}, "--fleet gpu: got 'gpu', expected key=value"),
        ({"fleet": "gpu=h200,gpu=l40s"}, "each key once"),
        ({"fleet": "gpus=h200"}, "--fleet: unknown key 'gpus'; did you mean 'gpu'"),
        ({"fleet": "gpu=h200,count=0"}, "count: got 0"),
        ({"fleet": "gpu=h201"}, "--gpu: unknown gpu 'h201'"),
        ({"fleet": "gpu=h200,tp=two"}, "--fleet: tp: got 'two', expected an integer"),
        ({"fleet": "gpu=h200,count=2", "replicas": 3}, "got --fleet 2, --replicas 3"),
        ({"disaggregate": "prefill=2,decode=1", "replicas": 2}, "got --disaggregate 3, --replicas 2"),
        ({"disaggregate": "prefill=0"}, "prefill: got 0"),
        ({"disaggregate": "link=carrier-pigeon"}, "link: unknown name 'carrier-pigeon'"),
        ({"disaggregate": "overlap=maybe"}, "overlap: unknown value 'maybe'"),
        ({"disaggregate": "hop=-1"}, "hop: got -1"),
        ({"disaggregate": "bandwidth=0"}, "bandwidth: got 0"),
        ({"disaggregate": "prefill=1+decode=1"}, "got 2 parts"),
        ({"disaggregate": "prefill=1", "failures": "mtbf=9,mttr=1"}, "--failures: cannot be combined"),
        ({"disaggregate": "prefill=1", "policy": "static"}, "StaticPolicy pads"),
        ({"decode_routing": "random"}, "expected --disaggregate"),
        (
            {"disaggregate": "prefill=1", "decode_routing": "randon"},
            "--decode-routing: unknown name 'randon'",
        ),
        ({"failures": "mtbf=9"}, "expected replica=N,at=SECONDS,for=SECONDS or"),
        ({"failures": "mtbf=soon,mttr=1"}, "mtbf: got 'soon', expected a number"),
        ({"failures": "replica=1,at=1,for=1"}, "replica: got 1, expected 0..0"),
        ({"autoscale": "max=3"}, "got no target"),
        ({"autoscale": "max=3,target=2,metric=load"}, "metric: unknown name 'load'"),
        ({"autoscale": "max=3,target=2", "replicas": 4}, "got --autoscale 3, --replicas 4"),
        ({"stragglers": "factor=2"}, "expected replica=N,factor=X"),
        ({"stragglers": "replica=4,factor=2", "replicas": 2}, "replica: got 4, expected 0..1"),
        ({"stragglers": "frac=2,factor=2"}, "frac: got 2"),
        ({"stragglers": "replica=0,factor=0"}, "factor: got 0"),
    ],
)
def test_texts_that_say_nothing_sensible_are_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        resolve(RunConfig(**settings))
    assert message in str(error.value)


# -- runs ---------------------------------------------------------------------------------------------------------------


def test_replicas_that_differ_are_made_priced_and_described_each():
    config = RunConfig(fleet="gpu=h200,count=2+gpu=l40s,usd-per-gpu-hour=1", routing="least-tokens")
    setup = resolve(config)
    assert [r.gpu.name for r in setup.cluster.replicas] == ["h200", "h200", "l40s"]
    assert [r.name for r in setup.cluster.replicas] == ["replica-0", "replica-1", "replica-2"]
    assert setup.cluster.replicas[0].policy is not setup.cluster.replicas[1].policy
    assert [(k["gpu"], k["count"]) for k in setup.described["kinds"]] == [("h200", 2), ("l40s", 1)]
    assert setup.described["replicas"] == 3
    figures = summary(simulate(chat(), config))
    kinds = figures["fleet"]["hardware"]["kinds"]
    assert [(k["gpu"], k["replicas"], k["usd_per_gpu_hour"]) for k in kinds][1] == ("l40s", 1, 1.0)
    usd = sum(k["gpu_hours"] * k["usd_per_gpu_hour"] for k in kinds)
    tokens = sum(3 + i % 17 for i in range(40))
    assert figures["cost"]["usd_per_million_output_tokens"] == pytest.approx(usd * 1e6 / tokens)


def test_one_kind_is_the_plain_run():
    a = simulate(chat(), fleet="gpu=h200,count=2")
    b = simulate(chat(), gpu="h200", replicas=2)
    assert a.requests.equals(b.requests)
    assert a.fleet == b.fleet == {}


def test_pools_may_be_on_different_gpus():
    result = simulate(chat(), fleet="gpu=h100-sxm+gpu=h200", disaggregate="prefill=1,decode=1,link=ib-ndr")
    assert result.fleet["disaggregation"]["transfers"] == 40
    assert [k["gpu"] for k in result.fleet["hardware"]["kinds"]] == ["h100-sxm", "h200"]
    assert (result.requests["replica"] == 1).all()


def test_every_setting_shows_in_the_result_and_runs_are_repeatable():
    settings = {
        "autoscale": "max=3,target=4,startup=0.5,interval=0.5,scale-in=1",
        "failures": "replica=0,at=0.7,for=0.5",
        "stragglers": "frac=0.5,factor=1.5",
        "routing": "least-requests",
    }
    first, second = simulate(chat(), **settings), simulate(chat(), **settings)
    assert first.requests.equals(second.requests)
    assert first.config["autoscale"] == settings["autoscale"]
    assert first.config["replicas"] == 3
    assert set(first.fleet) == {"failures", "autoscaling", "hardware"}
    lines = dict(fleet_lines(summary(first)))
    assert set(lines) == {"failures", "scaling", "hardware"}
    assert lines["failures"].startswith("1 outage, 500 ms down; ")
    assert (first.requests["status"] == 0).all()


def test_a_slow_replica_takes_its_factor_longer():
    alone = [Request("a", 0.0, 100, 50)]
    plain = simulate(Trace.from_requests(alone), engine="ideal")
    slowed = simulate(Trace.from_requests(alone), engine="ideal", stragglers="replica=0,factor=1.5")
    assert slowed.requests["finish_s"][0] == pytest.approx(1.5 * plain.requests["finish_s"][0])


def test_layers_that_are_copied_within_steps_cost_what_the_engine_says():
    alone = Trace.from_requests([Request("a", 0.0, 100, 50)])
    beside, within = (
        simulate(alone, disaggregate=f"prefill=1,decode=1,connector={c}").requests.iloc[0]
        for c in ("nixl", "p2p-nccl")
    )
    engine, model = (resolve(RunConfig()).cluster.replicas[0], 32)
    copy_s = engine.engine.kv_layer_copy_s * model
    assert copy_s > 0
    assert within["finish_s"] - beside["finish_s"] == pytest.approx(2 * copy_s)


# -- the command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"timestamp": 50.0 * i, "input_length": 200, "output_length": 20} for i in range(40)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_flags_reach_manifest_summary_terminal_and_page(here, capsys):
    argv = ["--trace", "t.jsonl", "--replicas", "2", "--failures", "replica=0,at=0.5,for=1", "--out", "run"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "1 outage, 1.00 s down" in shown
    manifest = json.loads((here / "run/manifest.json").read_text())
    assert manifest["config"]["failures"] == "replica=0,at=0.5,for=1"
    figures = json.loads((here / "run/summary.json").read_text())
    assert figures["fleet"]["failures"]["outages"] == 1
    assert figures["requests"]["completed"] == 40
    assert "<td>1 outage, 1.00 s down" in fleet_section(figures)
    assert "- failures: 1 outage, 1.00 s down" in run_markdown(read_run(here / "run"))


def test_with_and_without_are_compared(here, capsys):
    argv = ["--trace", "t.jsonl", "--replicas", "2", "--no-save", "--json", "--disaggregate", "none"]
    assert main([*argv, "--disaggregate", "prefill=1,decode=1"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert list(runs) == ["disaggregate=none", "disaggregate=prefill=1,decode=1"]
    assert "fleet" not in runs["disaggregate=none"]
    assert runs["disaggregate=prefill=1,decode=1"]["fleet"]["disaggregation"]["transfers"] == 40


def test_sweeps_vary_fleets_and_none_stands_for_nothing(here):
    text = """
trace = "t.jsonl"
[base]
replicas = 2
[grid]
disaggregate = ["none", "prefill=1,decode=1"]
"""
    (here / "s.toml").write_text(text)
    found = sweep(here / "s.toml", here / "out")
    assert not found.failures
    assert found.table["fleet.disaggregation.transfers"].fillna(0).tolist() == [0, 40]


def test_a_plan_takes_equal_replicas_only(here, capsys):
    argv = [
        "plan",
        "--trace",
        "t.jsonl",
        "--slo",
        "ttft_p99<1",
        "--disaggregate",
        "prefill=1,decode=1",
        "--no-save",
    ]
    assert main(argv) == 2
    assert "expected no --disaggregate" in capsys.readouterr().err


def test_a_wrong_text_is_one_line(here, capsys):
    assert main(["--trace", "t.jsonl", "--autoscale", "max=2,target=x"]) == 2
    assert capsys.readouterr().err == "simulate: --autoscale: target: got 'x', expected a number\n"
