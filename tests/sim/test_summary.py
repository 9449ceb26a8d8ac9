"""summary.json: its keys, its sums, the verdict, the vLLM bench fields."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from stepline.sim.report.summary import summary
from stepline.sim.report.verdict import _lost, is_overloaded
from stepline.sim.report.vllm_bench import vllm_bench

from .run_results import NAN, gaps, run_result, totals

LATENCY = ["mean", "p50", "p90", "p95", "p99", "p99_9", "max"]

REJECTED = {
    "status": 1,
    "replica": -1,
    "scheduled_s": NAN,
    "first_token_s": NAN,
    "finish_s": 2.0,
    "output_tokens": 0,
}
TIMED_OUT = {"status": 2, "first_token_s": NAN, "finish_s": 9.0, "output_tokens": 0}


def test_the_keys_are_those_of_the_format():
    found = summary(run_result())
    assert found["schema_version"] == 1
    assert list(found["requests"])[:3] == ["submitted", "completed", "rejected"]
    for key in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s"):
        assert list(found[key]) == LATENCY
    assert list(found["throughput"]) == [
        "requests_per_s", "output_tokens_per_s", "total_tokens_per_s", "goodput_requests_per_s",
    ]  # fmt: skip
    assert list(found["kv"]) == ["blocks_total", "peak_used_frac", "prefix_hit_token_frac", "evicted_blocks"]
    assert list(found["time_frac"]) == [
        "compute_bound", "weight_bandwidth_bound", "kv_bandwidth_bound", "comm", "latency", "host_overhead", "idle",
    ]  # fmt: skip
    assert list(found["cost"]) == ["gpu_hours", "usd_per_million_output_tokens"]
    assert list(found["simulator"]) == ["wall_s", "steps", "requests_per_wall_s"]


def test_every_request_is_counted_and_only_finished_ones_are_timed():
    found = summary(run_result([{}, REJECTED, TIMED_OUT, {"preemptions": 2}]))
    assert found["requests"] == {
        "submitted": 4, "completed": 2, "rejected": 1, "timed_out": 1, "unfinished": 0, "preemptions": 2,
    }  # fmt: skip
    assert found["ttft_s"]["max"] == pytest.approx(0.5)
    assert found["duration_s"] == pytest.approx(9.0)


def test_time_shares_sum_to_one():
    shares = summary(run_result())["time_frac"]
    assert sum(shares.values()) == pytest.approx(1.0)
    assert (shares["weight_bandwidth_bound"], shares["idle"]) == (pytest.approx(0.2), pytest.approx(0.6))


def test_rates_cost_and_utilisation():
    found = summary(run_result())
    assert found["throughput"]["requests_per_s"] == pytest.approx(3 / 2.9)
    assert found["throughput"]["total_tokens_per_s"] == pytest.approx(39 / 2.9)
    assert found["cost"]["usd_per_million_output_tokens"] == pytest.approx(2.9 / 3600 * 3.6 / 9 * 1e6)
    assert (found["mfu_frac"], found["mbu_frac"]) == (pytest.approx(0.1), pytest.approx(0.1))


def test_goodput_counts_good_requests_against_all_submitted():
    rows = [{}, {"first_token_s": 1.9, "finish_s": 2.5}, TIMED_OUT]
    result = run_result(rows, config={**run_result().config, "slo": "ttft_p99<0.6,attainment>0.9"})
    found = summary(result)
    assert found["throughput"]["goodput_requests_per_s"] == pytest.approx(1 / 9.0)
    assert found["slo"]["attainment_frac"] == pytest.approx(1 / 3)
    assert found["slo"]["met"] is False


def test_a_run_without_price_or_work_has_nulls_not_zeros():
    empty = run_result(
        [], gaps=gaps(), totals=totals({"gemm": {"compute": 0.0}}, idle_s=0.0),
        config={**run_result().config, "usd_per_gpu_hour": None},
    )  # fmt: skip
    found = summary(empty)
    assert found["throughput"]["requests_per_s"] is None
    assert found["cost"]["usd_per_million_output_tokens"] is None
    assert found["mfu_frac"] is None
    assert found["itl_s"]["p99"] is None


def test_the_verdict_names_the_largest_bound_and_what_to_try():
    busy = totals({"gemm": {"compute": 1.0}, "attention_decode": {"kv_bandwidth": 5.0}}, idle_s=1.0)
    found = summary(run_result(totals=busy))["verdict"]
    assert (found["bound"], found["busy_bound"]) == ("KV bandwidth", "KV bandwidth")
    assert found["frac"] == pytest.approx(5 / 7)
    assert "--kv-cache-dtype fp8" in found["try_first"][0]


def test_advice_that_is_followed_already_is_not_given():
    busy = totals({"gemm": {"weight_bandwidth": 5.0}}, idle_s=1.0)
    config = {**run_result().config, "model_spec": {"weight_dtype": "fp8"}}
    assert any("--dtype fp8" in text for text in summary(run_result(totals=busy))["verdict"]["try_first"])
    assert not any(
        "--dtype" in t for t in summary(run_result(totals=busy, config=config))["verdict"]["try_first"]
    )


def test_a_small_load_is_called_idle():
    found = summary(run_result())["verdict"]
    assert (found["bound"], found["busy_bound"]) == ("idle", "weight bandwidth")
    assert "idles 60 %" in found["headline"].replace("60%", "60 %")


def test_a_run_that_served_nobody_says_so_and_why():
    config = {**run_result().config, "max_model_len": 100, "kv_blocks": 50, "block_size": 16}
    long = {**config, "model_spec": {"max_model_len": 4096}}
    found = [
        summary(run_result([{"status": 1}] * 3, config=c))["verdict"]
        for c in (config, long, config | {"kv_blocks": 5})
    ]
    assert {f["headline"] for f in found} == {"No request was completed."}
    assert "3 of 3 requests were rejected: longer than --max-model-len 100" in found[0]["because"]
    assert [f["try_first"][:1] for f in found[:2]] == [[], ["a longer --max-model-len"]]
    assert found[2]["try_first"][0].startswith("KV room for the longest request")


def test_a_full_cache_with_preemptions_is_named():
    result = run_result(
        [{"preemptions": 3}], kv={**run_result().kv, "peak_used_blocks": 99}, totals=totals(idle_s=1.0)
    )
    found = summary(result)["verdict"]
    assert "KV cache is full" in found["headline"]
    assert found["try_first"][0].startswith("more room for KV")


def test_an_overload_held_back_by_reserved_kv_says_so():
    series = pd.DataFrame(
        {"t_s": np.arange(8.0), "width_s": 1.0, "running": 3.0, "waiting": np.linspace(0, 80, 8)}
    )
    result = run_result(
        [{"arrival_s": float(i)} for i in range(8)],
        totals=totals(series=series, idle_s=0.0),
        kv={**run_result().kv, "peak_used_blocks": 87},
        config={**run_result().config, "max_num_seqs": 256},
    )
    found = summary(result)["verdict"]
    assert found["headline"].endswith("no KV room for more sequences.")
    reserving = summary(replace(result, config={**result.config, "policy": "static"}))["verdict"]
    assert reserving["headline"].endswith(
        "no KV room for more sequences: the policy reserves each one's longest possible output."
    )
    assert any("at most 3 of 256 seats" in fact for fact in found["because"])
    assert not any("larger batches" in text for text in found["try_first"])


@pytest.mark.parametrize(("waiting", "expected"), [(np.linspace(0, 80, 8), True), (np.full(8, 5.0), False)])
def test_a_growing_queue_is_overload(waiting, expected):
    series = pd.DataFrame({"t_s": np.arange(8.0), "width_s": 1.0, "running": 8.0, "waiting": waiting})
    result = run_result([{"arrival_s": float(i)} for i in range(8)], totals=totals(series=series))
    assert is_overloaded(result) is expected


def test_vllm_bench_fields_are_milliseconds_of_the_same_figures():
    result = run_result([{}, {"first_token_s": 1.7}, TIMED_OUT])
    found, ours = vllm_bench(result), summary(result)
    assert found["mean_ttft_ms"] == pytest.approx(ours["ttft_s"]["mean"] * 1000)
    assert found["p99_e2el_ms"] == pytest.approx(ours["e2e_s"]["p99"] * 1000)
    assert found["median_itl_ms"] == pytest.approx(200.0)
    assert (found["completed"], found["failed"], found["num_prompts"]) == (2, 1, 3)
    assert found["request_throughput"] == pytest.approx(2 / 9.0)
    assert found["max_concurrent_requests"] == 1


def test_all_at_once_is_an_infinite_request_rate():
    assert vllm_bench(run_result([{"arrival_s": 0.0}, {"arrival_s": 0.0}]))["request_rate"] == "inf"


def test_the_verdict_says_why_requests_were_rejected():
    lost = {"rejected": 3, "timed_out": 0, "submitted": 10}
    config = {"max_model_len": 4096, "kv_blocks": 1000, "block_size": 16}
    assert _lost(lost, config) == ["3 of 10 requests were rejected: longer than --max-model-len 4,096"]
    assert _lost(lost, config | {"kv_blocks": 100}) == [
        "3 of 10 requests were rejected: longer than the KV cache of 1,600 tokens"
    ]
    assert _lost(lost, config | {"admission": "queue-limit"}) == ["3 of 10 requests were rejected"]
    assert _lost({"rejected": 0, "timed_out": 2, "submitted": 10}, config) == ["2 of 10 requests timed out"]
