"""simulate() and compare() from Python."""

from __future__ import annotations

import pytest
from stepline.sim import RunConfig, compare, simulate, summary
from stepline.sim.cost import calibration
from stepline.sim.study.setup import resolve
from stepline.traces.errors import CalibrationError, ConfigError, TraceError
from stepline.traces.request import Request
from stepline.traces.trace import Trace


def chat(n: int = 30) -> Trace:
    return Trace.from_requests(Request(f"r{i}", 0.05 * i, 50 + 31 * i % 700, 3 + i % 17) for i in range(n))


def sessions() -> Trace:
    rows = [
        Request(
            f"{s}-{t}", 0.1 * s + 0.001 * t, 100, 10, session_id=f"s{s}", delay_s=2.0 if t else None, turn=t
        )
        for s in range(4)
        for t in range(3)
    ]
    return Trace.from_requests(rows)


def test_settings_win_over_the_config():
    result = simulate(chat(), RunConfig(policy="static", max_num_seqs=8), policy="chunked")
    assert (result.config["policy"], result.config["max_num_seqs"]) == ("chunked", 8)
    assert result.config["trace"]["requests"] == 30


def test_the_same_run_twice_gives_the_same_tables():
    a, b = simulate(chat()), simulate(chat())
    assert a.requests.equals(b.requests)
    assert summary(a)["itl_s"] == summary(b)["itl_s"]


def test_engine_defaults_fill_what_is_not_set():
    old, new = (
        resolve(RunConfig(engine="vllm-0.15.1")),
        resolve(RunConfig(engine="vllm-0.15.1", max_num_seqs=64)),
    )
    assert (old.config.max_num_batched_tokens, old.config.max_num_seqs) == (2048, 128)
    assert (new.config.max_num_batched_tokens, new.config.max_num_seqs) == (2048, 64)


def test_blocks_come_from_the_ledger_or_the_override():
    ledger, override = resolve(RunConfig()), resolve(RunConfig(num_gpu_blocks_override=500))
    assert ledger.cluster.replicas[0].kv_blocks == ledger.described["kv_ledger"]["n_blocks"]
    assert override.cluster.replicas[0].kv_blocks == 500
    assert override.described["kv_ledger"] is None


@pytest.mark.parametrize("model", ["gemma-2-9b", "gemma-3-27b"])
def test_a_pool_shared_by_windowed_groups_counts_token_blocks(model):
    setup = resolve(RunConfig(model=model))
    ledger, blocks = setup.described["kv_ledger"], setup.cluster.replicas[0].kv_blocks
    assert ledger["n_groups"] > 1
    assert blocks == ledger["n_blocks"] // ledger["n_groups"]
    # what the engine will hold fits the pool: one block a group for each block_size tokens
    assert blocks * ledger["n_groups"] * ledger["block_bytes"] <= ledger["kv_bytes"]


def test_calibration_errors_name_their_flag_or_what_was_looked_up(monkeypatch):
    with pytest.raises(CalibrationError, match=r"^--calibration: "):
        resolve(RunConfig(calibration="nowhere.json"))
    monkeypatch.setattr(calibration, "registered_calibrations", lambda: ())
    with pytest.raises(CalibrationError, match=r"^--model llama-3.1-8b, --gpu h100-sxm: "):
        resolve(RunConfig())


def test_prefix_caching_off_means_no_eviction_policy():
    assert resolve(RunConfig(enable_prefix_caching=False)).cluster.replicas[0].eviction is None
    assert resolve(RunConfig()).cluster.replicas[0].eviction is not None


def test_replicas_share_the_load():
    result = simulate(chat(), replicas=3)
    assert set(result.requests["replica"]) == {0, 1, 2}
    assert result.n_gpus == 3


def test_closed_replay_waits_for_the_turn_before_and_its_think_time():
    table = simulate(sessions(), replay="closed").requests.sort_values("request_index")
    for _, group in table.groupby(table["request_index"] // 3):
        gaps = group["arrival_s"].to_numpy()[1:] - group["finish_s"].to_numpy()[:-1]
        assert gaps == pytest.approx(2.0)


def test_clients_give_up_and_are_counted():
    found = summary(simulate(chat(), client_timeout=0.02))["requests"]
    assert found["timed_out"] > 0
    assert found["completed"] + found["timed_out"] == found["submitted"]


def test_concurrency_is_bounded():
    result = simulate(chat(), max_concurrency=1)
    table = result.requests.sort_values("arrival_s")
    assert (table["arrival_s"].to_numpy()[1:] >= table["finish_s"].to_numpy()[:-1] - 1e-12).all()


def test_a_narrower_kv_cache_holds_twice_the_blocks():
    wide, narrow = (
        resolve(RunConfig(kv_cache_dtype=d)).cluster.replicas[0].kv_blocks for d in ("auto", "fp8")
    )
    assert narrow == pytest.approx(2 * wide, rel=0.001)


def test_progress_is_reported():
    seen = []
    simulate(chat(20_000), on_progress=seen.append)
    assert seen
    assert all(0 <= p.done <= p.total == 20_000 for p in seen)
    assert [p.now_s for p in seen] == sorted(p.now_s for p in seen)


def test_compare_takes_policies_or_configs():
    found = compare(chat(), policies=["continuous", "chunked"], max_num_seqs=16)
    assert list(found.results) == ["continuous", "chunked"]
    assert {r.config["max_num_seqs"] for r in found.results.values()} == {16}
    again = compare(chat(), {"small": RunConfig(max_num_seqs=2), "large": RunConfig(max_num_seqs=64)})
    assert again.baseline == "small"


def test_equal_runs_differ_by_nothing():
    found = compare(chat(200), {"a": RunConfig(), "b": RunConfig()})
    differences = [d for d in found.differences if d.run == "b" and d.difference is not None]
    assert differences
    assert {d.difference for d in differences} == {0.0}
    assert not any(d.is_clear for d in differences)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: simulate(chat(), polcy="x"), "unknown setting 'polcy'; did you mean 'policy'"),
        (lambda: simulate([1, 2]), "trace: got list"),
        (lambda: simulate("nowhere.jsonl"), "no file 'nowhere.jsonl'"),
        (lambda: compare(chat(), policies=["chunked"]), "expected at least two"),
        (
            lambda: compare(chat(), {"a": RunConfig(), "b": RunConfig(rate_scale=2.0)}),
            "rate_scale differs between runs",
        ),
        (lambda: RunConfig(tensor_parallel_size=0), "--tensor-parallel-size: got 0"),
        (lambda: RunConfig(gpu_memory_utilization=float("nan")), "--gpu-memory-utilization: got nan"),
        (lambda: resolve(RunConfig(model="llama-3.1-70b")), "does not fit on 1 x h100-sxm.*would fit: --tp"),
    ],
)
def test_wrong_calls_say_what_is_wrong(call, says):
    with pytest.raises((ConfigError, TraceError), match=says):
        call()
