"""Files beside a run: Prometheus text, Perfetto timeline, imported vLLM flags."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict

import numpy as np
import pytest
from stepline.sim import simulate, summary
from stepline.sim.cli.main import main
from stepline.sim.cli.vllm_args import imported
from stepline.sim.report.prometheus import TOKEN_BUCKETS, TTFT_BUCKETS, prometheus_text
from stepline.traces.errors import ConfigError, InvariantError

from .run_results import expanded


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> str:
    """Shared prefixes and too few blocks: hits, evictions, preemptions, prompts in several chunks."""
    rows = [
        {"timestamp": i * 40, "input_length": 200 + 97 * i % 1500, "output_length": 20 + i % 90,
         "hash_ids": [i % 5] + [1000 * i + j for j in range((200 + 97 * i % 1500 + 511) // 512 - 1)], "block_size": 512}
        for i in range(120)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


TIGHT = {"num_gpu_blocks_override": 300, "max_num_batched_tokens": 512}


@pytest.fixture(scope="module")
def run(trace):
    return simulate(trace, record_steps=True, record_blocks=True, **TIGHT)


@pytest.fixture(scope="module")
def samples(run) -> dict[str, float]:
    """Samples of the Prometheus text by name, the labels that every sample has left out."""
    found = {}
    for line in prometheus_text(run).splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[
                name.replace('model_name="llama-3.1-8b",engine="0"', "").replace("{,", "{").replace("{}", "")
            ] = float(value)
    return found


def histogram(samples: dict[str, float], name: str) -> list[float]:
    return [v for k, v in samples.items() if k.startswith(f"vllm:{name}_bucket")]


def test_counters_are_those_of_the_run(run, samples):
    figures = summary(run)
    assert (
        samples['vllm:request_success_total{finished_reason="stop"}']
        == 120
        == figures["requests"]["completed"]
    )
    assert samples["vllm:num_preemptions_total"] == figures["requests"]["preemptions"] > 0
    assert samples["vllm:generation_tokens_total"] == run.requests["output_tokens"].sum()
    assert samples["vllm:prefix_cache_hits_total"] == run.kv["hit_tokens"] > 0
    assert 0 < samples["vllm:kv_cache_usage_perc"] <= 1


def test_histograms_count_exactly_at_their_borders(run, samples):
    ttft = (run.requests["first_token_s"] - run.requests["arrival_s"]).to_numpy()
    assert histogram(samples, "time_to_first_token_seconds") == [
        *[float((ttft <= edge).sum()) for edge in TTFT_BUCKETS], 120.0,
    ]  # fmt: skip
    gaps = expanded(run.gaps)
    assert histogram(samples, "inter_token_latency_seconds")[:-1] == [
        float((gaps <= e).sum()) for e in TOKEN_BUCKETS
    ]
    assert samples["vllm:inter_token_latency_seconds_sum"] == pytest.approx(gaps.sum())


def test_every_histogram_is_cumulative_and_ends_at_its_count(samples):
    names = {k.removeprefix("vllm:").split("_bucket")[0] for k in samples if "_bucket" in k}
    assert len(names) == 15
    for name in names:
        counts = histogram(samples, name)
        assert counts == sorted(counts), name
        assert counts[-1] == samples[f"vllm:{name}_count"], name


def test_steps_are_counted_by_their_tokens(run, samples):
    steps = run.steps
    tokens = np.repeat(steps["prefill_tokens"] + steps["n_decode"], steps["n_steps"])
    assert samples['vllm:iteration_tokens_total_bucket{le="16.0"}'] == (tokens <= 16).sum()
    assert samples["vllm:iteration_tokens_total_count"] == len(tokens)


def test_blocks_are_counted_when_they_are_evicted(run, samples):
    evicted = run.kv["evicted_blocks"]
    assert evicted > 0
    assert samples["vllm:kv_block_lifetime_seconds_count"] == evicted
    assert samples["vllm:kv_block_idle_before_evict_seconds_count"] == evicted
    assert (
        samples["vllm:kv_block_idle_before_evict_seconds_sum"]
        <= samples["vllm:kv_block_lifetime_seconds_sum"]
    )
    assert samples["vllm:kv_block_reuse_gap_seconds_count"] > 0
    assert (run.block_times.idle[:, 0] >= 0).all()


@pytest.mark.parametrize("eviction", ["lru", "arc", "ttl:ttl_s=0.5", "oracle-optimal"])
def test_watching_changes_nothing(trace, eviction):
    watched, alone = (
        simulate(trace, kv_eviction=eviction, record_blocks=on, **TIGHT) for on in (True, False)
    )
    assert watched.requests.equals(alone.requests)
    assert dict(watched.kv) == dict(alone.kv)
    assert watched.block_times.lifetime[:, 1].sum() == watched.kv["evicted_blocks"]


def test_a_run_that_was_not_watched_is_refused(trace):
    with pytest.raises(InvariantError, match="record_blocks"):
        prometheus_text(simulate(trace))


# -- Perfetto


@pytest.fixture(scope="module")
def events(trace, tmp_path_factory):
    path = tmp_path_factory.mktemp("timeline") / "t.json.gz"
    flags = ["--num-gpu-blocks-override", "300", "--max-num-batched-tokens", "512", "--no-save", "--quiet"]
    assert main(["--trace", trace, *flags, "--perfetto", str(path)]) == 0
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def slices(events, name: str):
    return [e for e in events if e["ph"] == "X" and e["name"].startswith(name)]


def test_every_request_and_step_is_on_the_timeline(run, events):
    assert len(slices(events, "#")) == 120
    steps = [e for e in events if e["ph"] == "X" and e["tid"] == 1]
    assert sum(e["args"]["n_steps"] for e in steps) == run.totals.steps
    assert sum(e["dur"] for e in steps) / 1e6 == pytest.approx(run.totals.busy_s)
    chunks = [e for e in slices(events, "prefill") if e["tid"] > 1]
    assert sum(e["args"]["tokens"] for e in chunks) == run.steps["prefill_tokens"].sum()
    assert len(slices(events, "preempted")) == run.requests["preemptions"].sum() > 0


def test_slices_of_a_thread_nest(events):
    threads = defaultdict(list)
    for e in events:
        if e["ph"] == "X":
            threads[e["pid"], e["tid"]].append((e["ts"], -e["dur"]))
    for spans in threads.values():
        open_ends: list[float] = []
        for begin, minus_dur in sorted(spans):
            end = begin - minus_dur
            while open_ends and open_ends[-1] <= begin + 1e-3:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1] + 1e-3
            open_ends.append(end)


def test_seats_are_no_more_than_ran_at_once(run, events):
    seats = {e["tid"] for e in events if e["ph"] == "X" and e["tid"] > 1}
    assert len(seats) <= run.steps["n_running"].max() + 2  # leaving one plan later, and the output path


def test_a_timeline_from_a_directory_is_the_same(trace, events, tmp_path):
    flags = [
        "--num-gpu-blocks-override",
        "300",
        "--max-num-batched-tokens",
        "512",
        "--record-steps",
        "--quiet",
    ]
    assert main(["--trace", trace, *flags, "--out", str(tmp_path / "r")]) == 0
    assert main(["report", str(tmp_path / "r"), "--format", "perfetto", "--quiet"]) == 0
    again = json.loads(gzip.decompress((tmp_path / "r" / "timeline.json.gz").read_bytes()))["traceEvents"]
    assert again == events


# -- flags of a server


def test_flags_of_a_server_become_settings():
    found = imported(
        "vllm serve meta-llama/Llama-3.1-8B-Instruct -tp 2 --max_num_seqs=64 --max-model-len 16K "
        "--quantization fp8 --scheduling-policy fcfs --no-enable-prefix-caching --port 8000 --trust-remote-code"
    )
    assert found.settings == {
        "model": "meta-llama/Llama-3.1-8B-Instruct", "tensor_parallel_size": "2", "max_num_seqs": "64",
        "max_model_len": "16384", "dtype": "fp8", "policy": "chunked",
    }  # fmt: skip
    assert found.prefix_caching is False
    assert found.passed_over == ("--port", "--trust-remote-code")


def test_flags_of_a_server_reach_the_run_and_ours_win(trace, tmp_path, capsys):
    flags = [
        "--trace",
        trace,
        "--vllm-args",
        "--max-num-seqs 7 --tensor-parallel-size 2 --port 80",
        "--max-num-seqs",
        "9",
    ]
    assert main([*flags, "--out", str(tmp_path / "r")]) == 0
    config = json.loads((tmp_path / "r" / "manifest.json").read_text())["config"]
    assert (config["max_num_seqs"], config["tensor_parallel_size"]) == (9, 2)
    assert "--vllm-args: --port: without effect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            "--tensor-paralel-size 2",
            "unknown flag --tensor-paralel-size; did you mean 'tensor-parallel-size'?",
        ),
        ("--cpu-offload-gb 4", "weights in host memory are not simulated"),
        ("--max-num-partial-prefills 2", "concurrent partial prefills are not simulated"),
        ("--max-num-seqs", "--max-num-seqs: expected a value"),
        ("--quantization fp9", "did you mean 'fp8'"),
        ("--no-enable-chunked-prefill", "not simulated"),
        ("--host 'open", "No closing quotation"),
        ("--enable-prefix-caching=maybe", "--enable-prefix-caching: got 'maybe', expected no value"),
        ("--no-enable-prefix-caching=true", "--no-enable-prefix-caching: got 'true', expected no value"),
        ("--enable-chunked-prefill=false", "--no-enable-chunked-prefill: not simulated"),
        ("--num-scheduler-steps 8", "scheduling several steps at once is not simulated"),
    ],
)
def test_other_flags_are_refused(flags, says):
    with pytest.raises(ConfigError, match=r"^--vllm-args: ") as caught:
        imported(flags)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "caching", "settings"),
    [
        ("--enable-prefix-caching=False", False, {}),
        ("--enable-prefix-caching false --max-num-seqs 8", False, {"max_num_seqs": "8"}),
        ("--enable-prefix-caching --enable-chunked-prefill=True", True, {}),
        ("--no-enforce-eager --no-enable-lora", None, {"enforce_eager": "false", "enable_lora": "false"}),
    ],
)
def test_switches_say_no_in_every_way_that_servers_know(flags, caching, settings):
    found = imported(flags)
    assert (found.prefix_caching, found.settings) == (caching, settings)


def test_parallelism_and_switches_of_a_server_are_taken_over():
    found = imported(
        "-pp 2 -tp 4 --enforce-eager --enable-expert-parallel --enable-lora --attention-backend FLASHINFER"
    )
    assert found.settings == {
        "pipeline_parallel_size": "2", "tensor_parallel_size": "4", "enforce_eager": "true",
        "enable_expert_parallel": "true", "enable_lora": "true", "attention_backend": "auto",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "setting"), [("mixtral-8x7b", "data_parallel_size"), ("llama-3.1-8b", "replicas")]
)
def test_ranks_that_share_no_experts_are_replicas(model, setting, trace, tmp_path):
    flags = ["--trace", trace, "--vllm-args", f"{model} -tp 2 -dp 2", "--out", str(tmp_path / "r")]
    assert main(flags) == 0
    config = json.loads((tmp_path / "r" / "manifest.json").read_text())["config"]
    assert (config[setting], config["replicas"] * config["data_parallel_size"]) == (2, 2)
