"""`simulate validate`: the folder format, the replays, the scores and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stepline.sim.cli.main import main
from stepline.sim.study.measured import chosen, gpu_name, load_measured
from stepline.sim.study.run import simulate_resolved
from stepline.sim.study.setup import resolve
from stepline.sim.study.validate import validate
from stepline.sim.study.validation_runs import (
    HOST_KV_GIB,
    Timings,
    engine_for,
    last_served,
    run_experiment,
    settings_for,
    stage_metrics,
)
from stepline.sim.study.validation_traces import RETOKENISED, load_of
from stepline.traces.errors import ConfigError

from .measured_folder import SERVED, measure_by_simulation, write_folder

MEASURED = Path(__file__).resolve().parents[3] / "shared" / "measured"
development_runs = pytest.mark.skipif(
    not MEASURED.is_dir(), reason="no folder of measured runs beside the checkout"
)


def one(root, **changes):
    (experiment,) = load_measured(write_folder(root, [SERVED | changes]))
    return experiment


def test_a_run_measured_by_the_simulator_itself_has_no_error(tmp_path):
    measure_by_simulation(write_folder(tmp_path, [SERVED]))
    result = validate(tmp_path, seeds=1, jobs=1)
    assert set(result.values["metric"]) >= {
        "ttft_mean",
        "ttft_p90",
        "tpot_mean",
        "e2e_p99",
        "throughput_requests",
    }
    assert result.values["error"].abs().max() < 1e-9


def test_a_slower_truth_is_an_error_of_the_same_size_in_every_group(tmp_path):
    measure_by_simulation(write_folder(tmp_path, [SERVED]), factor=1.25)
    result = validate(tmp_path, seeds=1, jobs=1)
    for key in ("group", "tp", "engine", "gpu", "arch", "model"):
        groups = result.groups(key)
        assert len(groups) == 1
        assert groups["tpot_mean"].iloc[0] == pytest.approx(0.2)  # 1 - 1/1.25


def test_stages_are_averaged_before_experiments(tmp_path):
    rows = [SERVED, SERVED | {"stage": 1, "rate_rps": 8.0, "n_requests": 160}, SERVED | {"exp_key": "other"}]
    measure_by_simulation(write_folder(tmp_path, rows))
    table = pd.read_csv(tmp_path / "metrics.csv")
    off = (table["exp_key"] == "served-8b") & (table["stage"] == 1) & (table["metric"] == "tpot")
    table.loc[off, "value"] *= 2.0  # error 50 % on one of two stages of one of two experiments
    table.to_csv(tmp_path / "metrics.csv", index=False)
    assert validate(tmp_path, seeds=1, jobs=1).groups()["tpot_mean"].iloc[0] == pytest.approx(0.125)


def test_exact_replay_measures_what_the_log_says(tmp_path):
    log = pd.DataFrame(
        {"stage": 0, "arrival_s": [0.0, 1.0, 2.0], "prompt_id": [0, 1, 0], "input_tokens": 600, "output_tokens": 50,
         "error": [0, 0, 1], "ttft_s": [0.05, 0.04, np.nan], "e2e_s": [0.54, 0.53, 0.1]}
    )  # fmt: skip
    log.to_csv(tmp_path / "log.csv", index=False)
    experiment = one(tmp_path, replay_class="A exact", trace_file="log.csv")
    outcome = run_experiment(experiment)
    (stage,) = outcome.stages
    assert stage.measured["ttft_mean"] == pytest.approx(0.045)
    assert stage.measured["tpot_mean"] == pytest.approx(0.01)
    assert stage.measured["failed_fraction"] == pytest.approx(1 / 3)
    assert outcome.overloaded
    assert load_of(experiment).trace.arrival_s.tolist() == [0.0, 1.0, 2.0]


def test_prompts_of_a_cycle_hit_their_own_blocks_and_groups_share_a_prefix(tmp_path):
    trace = load_of(one(tmp_path)).trace
    rows = [trace.hash_ids.row(i) for i in range(21)]
    assert int(trace.block_size[0]) == 96  # the whole blocks of the shared prefix of 100 tokens
    assert rows[20] == rows[0]
    assert rows[0][0] == rows[9][0] != rows[10][0]
    assert rows[0][1] != rows[9][1]


def test_the_law_gives_the_exact_count_in_the_exact_time_and_another_seed_other_gaps(tmp_path):
    experiment = one(tmp_path)
    a, b = load_of(experiment, 0), load_of(experiment, 1)
    assert len(a.trace) == 80
    assert 0.0 == a.trace.arrival_s[0] < a.trace.arrival_s[-1] < 20.0
    assert not np.array_equal(a.trace.arrival_s, b.trace.arrival_s)
    assert set(a.trace.input_tokens.tolist()) == {round(500 * RETOKENISED)}


CLOSED = {
    "replay_class": "B closed-loop point",
    "concurrency": 4,
    "n_requests": None,
    "shared_prefix_len": 0,
    "prompt_cycle": 0,
}


def test_a_closed_loop_keeps_its_clients_busy(tmp_path):
    experiment = one(tmp_path, **CLOSED)
    load = load_of(experiment)
    assert (load.trace.output_tokens == 40).all()
    assert len(load.trace) == 4 * 10
    settings = settings_for(experiment)
    assert (settings.max_concurrency, settings.generation_config) == (4, "greedy")
    (stage,) = run_experiment(experiment).stages
    assert stage.predicted["tpot_p50"] == pytest.approx(stage.predicted["tpot_mean"], rel=0.2)


def test_a_recorded_number_of_requests_is_the_number_sent(tmp_path):
    assert len(load_of(one(tmp_path, **CLOSED | {"n_requests": 12})).trace) == 12


def test_a_published_sweep_is_replayed_with_the_server_flags_of_its_generator(tmp_path):
    bare = {"max_num_batched_tokens": None, "gpu_memory_utilization": None}
    sweep = CLOSED | {"source": "aiconfigurator silicon_sample.csv", "isl_spec": 1024.0} | bare
    rows = {
        engine: sweep | {"engine": engine, "engine_version": "1.0"} for engine in ("vllm", "trtllm", "sglang")
    }
    vllm, trtllm, sglang = (settings_for(one(tmp_path / name, **row)) for name, row in rows.items())
    assert (vllm.max_num_batched_tokens, trtllm.max_num_batched_tokens) == (4 + 1024 + 1500, 4 + 1024 + 500)
    assert trtllm.gpu_memory_utilization == 0.8
    assert (vllm.policy, trtllm.policy, sglang.policy) == ("chunked", "orca", "continuous")
    assert sglang.max_num_batched_tokens is None
    known = settings_for(one(tmp_path / "known", **rows["vllm"] | {"max_num_batched_tokens": 2048}))
    assert known.max_num_batched_tokens == 2048


def test_lengths_of_inferencemax_vary_and_all_others_are_alike(tmp_path):
    shape = CLOSED | {"source": "aiconfigurator", "engine_version": None, "isl_mean_measured": None}
    varied = load_of(one(tmp_path / "a", **shape, isl_spec=1024, osl_spec=8192)).trace
    assert 819 <= varied.input_tokens.min() < varied.input_tokens.max() <= 1024
    assert 6553 <= varied.output_tokens.min() < varied.output_tokens.max() <= 8192
    alike = load_of(one(tmp_path / "b", **shape, isl_spec=1024, osl_spec=512)).trace
    assert set(alike.input_tokens.tolist()) == {1024}


def test_estimated_blocks_are_not_taken_for_measured_ones(tmp_path):
    assert settings_for(one(tmp_path / "a")).num_gpu_blocks_override == 20_000
    assert settings_for(one(tmp_path / "b", kv_blocks_source="ESTIMATED")).num_gpu_blocks_override is None


@pytest.mark.parametrize(
    ("engine", "version", "replay", "profile"),
    [
        ("vllm", "0.15.1 per README", "A exact", "vllm-0.15.1"),
        ("vllm", "0.14.2", "A exact", "vllm-0.15.1"),
        ("vllm", "0.13.0", "A exact", "vllm-0.12"),
        ("vllm", "0.8.5", "B statistical", "vllm-0.12"),
        ("vllm", "0.6.3", "B statistical", "vllm-v0"),
        ("vllm", "0.20", "A exact", "vllm-0.15.1"),
        ("vllm", "not recorded", "A- exact trace", "vllm-unrecorded"),
        ("vllm", None, "B closed-loop", "vllm-v1"),
        ("sglang", "0.5.1.post1", "B closed-loop", "sglang"),
        ("trtllm", "1.0.0rc3", "B closed-loop", "trtllm"),
    ],
)
def test_the_newest_profile_whose_loop_is_the_versions_serves(tmp_path, engine, version, replay, profile):
    experiment = one(tmp_path, engine=engine, engine_version=version, replay_class=replay)
    assert engine_for(experiment) == profile


def test_fp8_checkpoints_of_tensorrt_llm_carry_an_fp8_cache(tmp_path):
    settings = settings_for(one(tmp_path, engine="trtllm", engine_version="1.0", precision="fp8"))
    assert (settings.dtype, settings.kv_cache_dtype) == ("fp8", "fp8")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("BF16/FP16", "auto"), ("FP8", "fp8"), ("w4a16", "int4"), ("AWQ-int4", "int4"), ("INT8 w8a8", "int8")],
)
def test_precisions_are_known_by_what_they_contain(tmp_path, precision, dtype):
    assert settings_for(one(tmp_path, precision=precision)).dtype == dtype


def test_servers_that_copied_kv_to_host_memory_get_some_where_they_can_use_it(tmp_path):
    sizes = [
        settings_for(
            one(tmp_path / f"{copied}-{caching}", cpu_kv_offload=copied, prefix_caching=caching)
        ).kv_offloading_size
        for copied, caching in ((True, "on"), (True, "off"), (False, "on"))
    ]
    assert sizes == [HOST_KV_GIB, None, None]


def test_data_parallel_engines_are_replicas(tmp_path):
    assert settings_for(one(tmp_path, dp=2)).replicas == 2


def write_requests(root, n=24):
    """A trace file of `n` requests, two a second."""
    rows = [
        {"timestamp": 500.0 * i, "input_length": 300 + 40 * (i % 5), "output_length": 30} for i in range(n)
    ]
    (root / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


TWO = {
    "replay_class": "A- exact trace",
    "trace_file": "requests.jsonl",
    "n_replicas": 2,
    "n_gpu": 2,
    "stage": -1,
}


def test_two_instances_take_turns_and_both_have_their_own_cache(tmp_path):
    experiment = one(tmp_path, **TWO, workload="requests 2 instances")
    write_requests(tmp_path)
    setup = resolve(settings_for(experiment))
    replicas = simulate_resolved(load_of(experiment).trace, setup).requests["replica"]
    assert np.bincount(replicas).tolist() == [12, 12]
    assert setup.cluster.disaggregation is None
    assert run_experiment(experiment).stages[0].predicted["throughput_requests"] > 0


def test_a_prefill_and_a_decode_instance_are_two_pools_and_the_assumption_is_told(tmp_path):
    experiment = one(tmp_path, **TWO, workload="requests 1 prefill + 1 decode instance")
    write_requests(tmp_path)
    setup = resolve(settings_for(experiment))
    rule = setup.cluster.disaggregation
    assert (rule.prefill, len(setup.cluster.replicas)) == (1, 2)
    assert (rule.link.name, rule.connector) == ("nvlink", "p2p-nccl")
    apart = run_experiment(experiment)
    assert "NVLink" in " ".join(apart.warnings)
    together = run_experiment(one(tmp_path / "b", **TWO | {"trace_file": str(tmp_path / "requests.jsonl")}))
    assert apart.stages[0].predicted["ttft_mean"] > together.stages[0].predicted["ttft_mean"]


@development_runs
def test_the_published_run_of_two_pools_is_within_its_goals():
    """Goals of a replay that assumes link and connector: TTFT 10 %, TPOT 5 %."""
    result = validate(MEASURED, ["ispass"], only="PDD", jobs=1)
    (errors,) = result.experiments().to_dict("records")
    assert errors["ttft_mean"] <= 0.10
    assert errors["tpot_mean"] <= 0.05


@pytest.mark.parametrize(
    ("finished", "last"),
    [
        ([1, 1, 1, 1], 3.0),
        ([1, 1, 0, 0], 1.0),
        ([1, 1, 1, 0, 0, 0, 0, 1], 2.0),  # one that slipped through at the end
        ([1, 1, 0, 1, 1, 1], 5.0),  # one that gave up in between
        ([0, 0, 0], None),
        ([0, 0, 1], None),
    ],
)
def test_the_last_arrival_before_a_collapse_is_not_moved_by_a_straggler(finished, last):
    n = len(finished)
    nothing = np.zeros(n)
    arrival_s = np.arange(n, dtype=float)
    ok = np.array(finished, dtype=bool)
    timings = Timings(ok, arrival_s, arrival_s + 1, nothing, nothing + 1, np.ones(n, dtype=int))
    assert last_served(timings) == last
    reverse = Timings(*(getattr(timings, f)[::-1] for f in Timings.__slots__))
    assert last_served(reverse) == last


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("BF16/FP16", "auto"),
        ("unstated (bf16 inferred)", "auto"),
        ("FP8", "fp8"),
        ("FP8 weights, BF16 KV", "fp8"),
        ("W4A16", "int4"),
        ("w8a8", "int8"),
    ],
)
def test_precision_as_checkpoints_call_it(tmp_path, precision, dtype):
    assert settings_for(one(tmp_path, precision=precision)).dtype == dtype


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "nobody/secret-9b"}, "unknown model"),
        ({"hardware": "TPU-v9"}, "unknown gpu"),
        ({"engine": "magic"}, "engine 'magic'"),
        ({"replay_class": "A exact"}, "trace_file"),
        ({"replay_class": "B closed-loop"}, "concurrency"),
        ({"rate_rps": None, "n_requests": None}, "n_requests"),
        ({"tp": 3}, "tensor-parallel-size"),
    ],
)
def test_what_cannot_be_replayed_is_skipped_with_the_reason(tmp_path, changes, reason):
    outcome = run_experiment(one(tmp_path, **changes))
    assert reason in outcome.skipped
    assert not outcome.stages


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda p: (p / "experiments.csv").unlink(), "got no experiments.csv"),
        (lambda p: pd.DataFrame([{"exp_key": "x"}]).to_csv(p / "experiments.csv", index=False), "missing column 'hardware'"),
        (lambda p: pd.DataFrame([SERVED | {"replay_class": "Z"}]).to_csv(p / "experiments.csv", index=False), "replay_class"),
        (lambda p: pd.DataFrame([SERVED | {"tp": "two"}]).to_csv(p / "experiments.csv", index=False), "tp: got 'two'"),
    ],
)  # fmt: skip
def test_a_wrong_folder_is_one_line(tmp_path, break_it, message):
    write_folder(tmp_path, [SERVED])
    break_it(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        load_measured(tmp_path)
    assert "\n" not in str(caught.value)


LOG = pd.DataFrame(
    {
        "stage": 0,
        "arrival_s": 0.1 * np.arange(12),
        "prompt_id": np.arange(12),
        "input_tokens": 300,
        "output_tokens": 20,
        "error": 0,
        "ttft_s": 0.05,
        "e2e_s": 0.4,
    }
)
LOGGED = {"replay_class": "A exact", "trace_file": "log.csv"}


def logged(root, table, **changes):
    """An experiment whose requests are those of `table`."""
    (experiment,) = load_measured(write_folder(root, [SERVED | LOGGED | changes]))
    table.to_csv(root / "log.csv", index=False)
    return experiment


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (LOG.drop(columns="input_tokens"), "log.csv: missing column 'input_tokens'"),
        (LOG.assign(output_tokens=0), "log.csv:2: output_tokens: got 0, expected a number >= 1"),
        (LOG.assign(input_tokens=[300] * 4 + [None] * 8), "log.csv:6: input_tokens: got nothing"),
        (LOG.assign(output_tokens=2.5), "log.csv:2: output_tokens: got 2.5, expected an integer"),
        (LOG.assign(arrival_s="noon"), "log.csv:2: arrival_s: got noon"),
        (LOG.assign(e2e_s=["soon", *[0.4] * 11]), "log.csv:2: e2e_s: got soon"),
        (LOG.head(0), "log.csv: got no requests"),
    ],
)
def test_a_wrong_log_of_requests_is_skipped_with_file_and_line(tmp_path, table, reason):
    outcome = run_experiment(logged(tmp_path, table))
    assert reason in outcome.skipped
    assert "\n" not in outcome.skipped


@pytest.mark.parametrize("error", [1, "timed out", True])
def test_a_run_of_which_every_request_failed_is_an_overload_that_was_missed(tmp_path, error):
    table = LOG.assign(error=error, ttft_s=np.nan, e2e_s=300.0)
    logged(tmp_path, table)
    values = validate(tmp_path, jobs=1).values.set_index("metric")
    assert set(values["group"]) == {"overload"}
    assert values.loc["failed_fraction", "error"] == -1.0
    assert values.loc["throughput_requests", "measured"] == 0.0


def test_a_log_without_optional_columns_counts_every_request(tmp_path):
    logged(tmp_path, LOG.drop(columns=["stage", "prompt_id", "error"]))
    values = validate(tmp_path, jobs=1).values.set_index("metric")
    assert values.loc["failed_fraction", "measured"] == 0.0
    assert values.loc["ttft_p90", "measured"] == pytest.approx(0.05)


def test_a_replay_that_nothing_measured_stands_against_is_told(tmp_path):
    warming_up = {"exp_key": "moe", "arch": "moe", "model": "mistralai/Mixtral-8x7B-v0.1", "tp": 2}
    rows = [SERVED, SERVED | LOGGED | warming_up]
    write_folder(tmp_path, rows)
    LOG.to_csv(tmp_path / "log.csv", index=False)  # 12 requests: scoring begins at number 300
    result = validate(tmp_path, seeds=1, jobs=1)
    assert result.values.empty
    assert {key: why[:16] for key, why in result.skipped.items()} == {
        "served-8b": "nothing to score",
        "moe": "nothing to score",
    }


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"value": "fast"}, "metrics.csv:3: value: got fast, expected a number"),
        ({"stage": "first"}, "metrics.csv:3: stage: got first, expected a number"),
        ({"value": ""}, ""),
    ],
)
def test_a_metric_is_a_number_or_absent(tmp_path, cells, message):
    write_folder(tmp_path, [SERVED])
    good = {"exp_key": "served-8b", "stage": 0, "metric": "tpot", "stat": "mean", "value": 7.0, "unit": "ms"}
    pd.DataFrame([good, good | {"stat": "p90"} | cells]).to_csv(tmp_path / "metrics.csv", index=False)
    if message:
        with pytest.raises(ConfigError, match=message):
            load_measured(tmp_path)
    else:
        (experiment,) = load_measured(tmp_path)
        assert experiment.stages[0].measured == {"tpot_mean": pytest.approx(0.007)}


def test_sets_choose_by_how_they_are_replayed(tmp_path):
    rows = [SERVED, SERVED | {"exp_key": "loop", "replay_class": "B closed-loop", "concurrency": 2}]
    experiments = load_measured(write_folder(tmp_path, rows))
    assert [e.key for e in chosen(experiments, ["silicon"])] == ["loop"]
    assert len(chosen(experiments, ["all"])) == 2
    with pytest.raises(ConfigError, match="silicon"):
        chosen(experiments, ["silicone"])


def test_names_of_gpus():
    names = ("H100-80GB-HBM3 (SXM)", "h100_sxm", "A100-80GB", "L40S", "NVIDIA H100 80GB HBM3")
    assert [gpu_name(n) for n in names] == ["h100-sxm", "h100-sxm", "a100-80", "l40s", "h100-sxm"]


def test_peers_are_scored_on_the_same_stages_beside_ours(tmp_path):
    peers = [{"peer": "rival", "exp_key": "served-8b", "stage": 0, "metric": "itl_mean", "predicted": 0.0}]
    write_folder(tmp_path, [SERVED], peers)
    measure_by_simulation(tmp_path)
    table = pd.read_csv(tmp_path / "metrics.csv")
    tpot = table[(table["metric"] == "tpot") & (table["stat"] == "mean")]["value"].iloc[0]
    peers[0]["predicted"] = 1.5 * tpot
    pd.DataFrame(peers).to_csv(tmp_path / "peers.csv", index=False)
    against = validate(tmp_path, seeds=1, jobs=1).against_peers()["tpot_mean"]
    assert against.tolist() == pytest.approx([0.5, 0.0])


@pytest.mark.slow
def test_processes_do_not_change_the_result(tmp_path):
    write_folder(tmp_path, [SERVED, SERVED | {"exp_key": "b", "rate_rps": 2.0, "n_requests": 40}])
    measure_by_simulation(tmp_path)
    alone, together = (validate(tmp_path, seeds=1, jobs=n).values for n in (1, 2))
    pd.testing.assert_frame_equal(alone, together)


def test_rates_count_from_the_first_arrival_to_the_last_end():
    from stepline.sim.study.validation_runs import Timings

    times = {"arrival_s": [1.0, 2.0], "finish_s": [3.0, 6.0], "ttft_s": [0.5, 1.0], "e2e_s": [2.0, 4.0]}
    timings = Timings(
        ok=np.array([True, True]),
        **{k: np.array(v) for k, v in times.items()},
        outputs=np.array([4, 1]),
    )
    found = stage_metrics(timings)
    assert found["throughput_requests"] == pytest.approx(2 / 5)
    assert found["throughput_output_tokens"] == pytest.approx(1.0)
    assert found["tpot_mean"] == pytest.approx(0.5)  # one output token has no gap


# --- the command


def test_the_command_prints_rules_groups_and_reasons(tmp_path, capsys):
    write_folder(tmp_path, [SERVED, SERVED | {"exp_key": "odd", "model": "nobody/secret-9b"}])
    measure_by_simulation(tmp_path)
    assert main(["validate", "--measured", str(tmp_path), "--jobs", "1", "--seeds", "1", "--quiet"]) == 0
    out = capsys.readouterr().out
    for text in ("Scoring rules", "served dense h100-sxm", "odd: --model: unknown model"):
        assert text in out


def test_the_command_writes_tables_and_pictures_without_measured_values(tmp_path, capsys):
    folder, out = write_folder(tmp_path / "in", [SERVED]), tmp_path / "out"
    measure_by_simulation(folder, factor=1.3)
    argv = [
        "validate",
        "--measured",
        str(folder),
        "--jobs",
        "1",
        "--seeds",
        "1",
        "--quiet",
        "--json",
        "--out",
        str(out),
    ]
    assert main(argv) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["groups"]["tp"][0]["tpot_mean"] == pytest.approx(0.3 / 1.3)
    assert {p.name for p in out.iterdir()} >= {
        "experiments.csv",
        "groups.csv",
        "skipped.csv",
        "scatter.png",
        "errors.png",
    }
    columns = set(pd.read_csv(out / "experiments.csv").columns)
    assert not columns & {"measured", "predicted"}
    page = (out / "README.md").read_text()
    assert "| served dense h100-sxm | 1 | 23.1 |" in page  # 0.3 / 1.3 of every time
    assert "`simulate validate --measured" in page


def test_groups_have_means_and_medians_over_experiments(tmp_path):
    rows = [SERVED | {"exp_key": name} for name in ("a", "b", "c")]
    folder = write_folder(tmp_path, rows)
    measure_by_simulation(folder, factor=1.0)
    table = pd.read_csv(folder / "metrics.csv")
    table.loc[(table["exp_key"] == "a") & (table["metric"] == "tpot"), "value"] *= 2.0
    table.to_csv(folder / "metrics.csv", index=False)
    result = validate(folder, seeds=1, jobs=1)
    assert result.groups()["tpot_mean"].iloc[0] == pytest.approx(0.5 / 3)
    assert result.groups(stat="median")["tpot_mean"].iloc[0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--measured: got none"),
        (["--measured", "nowhere"], "got no experiments.csv"),
        (["--measured", "{}", "--set", "C"], "--set: unknown set 'C'"),
        (["--measured", "{}", "--only", "zzz"], "--only: got 'zzz'"),
        (["--measured", "{}", "--sets", "A"], "--set"),
    ],
)
def test_wrong_flags_exit_2_with_one_line(tmp_path, capsys, argv, message):
    write_folder(tmp_path, [SERVED])
    assert main(["validate", *[a.replace("{}", str(tmp_path)) for a in argv]]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_folder_of_unknown_models_exits_1(tmp_path, capsys):
    write_folder(tmp_path, [SERVED | {"model": "nobody/secret-9b"}])
    assert main(["validate", "--measured", str(tmp_path), "--jobs", "1", "--quiet"]) == 1
    assert "Not replayed" in capsys.readouterr().out


@pytest.mark.slow
@development_runs
def test_two_logged_development_runs_are_within_twice_the_goals():
    result = validate(MEASURED, ["A"], only="7b-tp1-roleplay", jobs=1)
    errors = result.groups().loc["served dense h100-sxm"]
    assert errors["tpot_mean"] <= 0.045
    assert errors["e2e_mean"] <= 0.045
    assert errors["ttft_mean"] <= 0.075
