"""Every reader on its hand-written fixtures: what a good file means, and what the error for a bad one says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stepline.traces import read_trace
from stepline.traces.errors import ConfigError, TraceError
from stepline.traces.formats import format_named, formats

FIXTURES = Path(__file__).parent / "fixtures"

# file: format, arrivals in seconds, input tokens, output tokens
GOOD = {
    "native.jsonl": ("native", [0, 0.2505, 0.9, 2], [1100, 512, 7, 1200], [20, 1, 300, 4]),
    "azure_2023.csv": ("azure", [0, 4.314579, 4.541877], [374, 396, 879], [44, 109, 55]),
    "azure_2024.csv": ("azure", [0, 0.5, 0.75], [2162, 2399, 76], [5, 6, 15]),
    "burstgpt_v1.csv": ("burstgpt", [5, 118.5], [472, 417], [18, 276]),
    "burstgpt_v3.csv": ("burstgpt", [5, 45], [472, 417], [18, 276]),
    "vidur.csv": ("vidur", [0.036073, 0.109689], [1308, 165], [35, 125]),
    "vidur_lengths.csv": ("vidur", [0, 0], [1308, 165], [35, 125]),
    "splitwise.csv": ("splitwise", [0, 4.314], [374, 396], [44, 109]),
    "vllm_bench.json": ("vllm-bench", [0, 2], [100, 300], [3, 2]),
    "sglang_bench.jsonl": ("vllm-bench", [0, 0], [64, 128], [8, 1]),
    "sharegpt.json": ("sharegpt", [0, 0], [7, 15], [5, 2]),
    "openai_usage.jsonl": ("openai", [0, 2.5, 5], [12, 30, 5], [7, 9, 6]),
    "openai_messages.jsonl": ("openai", [0, 0], [20, 21], [2, 2]),
    "qwen_bailian.jsonl": ("qwen-bailian", [0.25, 1, 61.5], [20, 16, 33], [4, 4, 5]),
    "genai_perf_payload.jsonl": ("genai-perf", [0, 1.5], [4, 3], [9, 3]),
    "genai_perf_inputs.json": ("genai-perf", [0, 0], [3, 3], [5, 6]),
    "guidellm.json": ("guidellm", [0, 0.5], [512, 100], [256, 50]),
    "inference_perf.json": ("inference-perf", [0, 1.5], [40, 42], [3, 2]),
    "aiperf_results.jsonl": ("aiperf-results", [0, 2.5], [550, 10], [3, 1]),
    "llmservingsim.jsonl": ("llmservingsim", [0.5, 0.75], [18, 17], [2, 1]),
    "blis.csv": ("blis", [1, 1.5], [100, 120], [10, 12]),
    "otel.json": ("otel", [0], [321], [12]),
    "otel_spans.jsonl": ("otel", [0, 4], [10, 14], [2, 3]),
    "weka.json": ("weka", [0, 2.5], [100, 129], [5, 6]),
}

# file: how the message goes on behind the path
BAD = {
    "bad_native_negative.jsonl": ":3: input_length: got -3, expected an integer >= 1",
    "bad_native_ids.jsonl": ":2: hash_ids: got 2 ids for 512 input tokens, expected a stated block_size",
    "bad_native_twice.jsonl": ":1: input_length: the key appears twice",
    "bad_native_key.jsonl": ":1: input_length: got nothing, expected an integer >= 1; there is a key 'input_lenght'",
    "bad_azure_clock.csv": ':3: TIMESTAMP: got "2023-11-31 18:15:46.6805900", expected a date and time',
    "bad_azure_tokens.csv": ':3: ContextTokens: got "3.5", expected an integer >= 1',
    "bad_vidur_row.csv": ":3: got 2 values, expected 3",
    "bad_splitwise_time.csv": ':2: arrival_timestamp: got "soon", expected a number >= 0',
    "bad_burstgpt_time.csv": ":2: Timestamp: got -5.0, expected a number >= 0",
    "bad_vllm_bench_lens.json": ":3: output_lens: got 1 values, expected 2",
    "bad_sharegpt.json": ':3: conversations: got {"from":"human"}, expected messages',
    "bad_openai.jsonl": ':2: timestamp: got "yesterday", expected a date and time',
    "bad_qwen.jsonl": ":1: hash_ids: got 3 ids for 20 input tokens, expected 2 of 16 tokens each",
    "bad_genai_perf.jsonl": ":1: max_tokens: got nothing, expected a limit",
    "bad_guidellm.json": ":4: prompt_tokens: got nothing, expected an integer >= 1",
    "bad_inference_perf.json": ':3: start_time: got "x", expected a number',
    "bad_aiperf.jsonl": ":1: metrics.input_sequence_length: got 0, expected an integer >= 1",
    "bad_llmservingsim.jsonl": ":1: input_tok_ids: got 2 ids, expected input_toks = 3",
    "bad_blis.csv": ":2: time_unit: got 'ms', expected us",
    "bad_otel.json": ":1: gen_ai.usage.output_tokens: got nothing, expected an integer >= 1",
    "bad_weka.json": ":3: out: got 0, expected an integer >= 1",
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_is_recognised_and_means_what_it_says(name):
    trace_format, arrival_s, n_in, n_out = GOOD[name]
    trace = read_trace(FIXTURES / name)
    assert trace.meta["trace_format"] == trace_format
    assert trace.arrival_s.tolist() == pytest.approx(arrival_s, abs=1e-9)
    assert trace.input_tokens.tolist() == n_in
    assert trace.output_tokens.tolist() == n_out


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_file_line_and_field(name):
    with pytest.raises(TraceError) as caught:
        read_trace(FIXTURES / name)
    assert str(caught.value).startswith(f"{FIXTURES / name}{BAD[name]}")
    assert "\n" not in str(caught.value)


def test_every_format_has_a_fixture():
    seen = {trace_format for trace_format, *_ in GOOD.values()} | {"mooncake", "vllm-timed"}
    assert seen == {f.name for f in formats()}


def test_optional_fields_of_a_native_row_reach_the_request():
    first, second, third, fourth = read_trace(FIXTURES / "native.jsonl")
    assert (first.session_id, first.priority, first.hash_ids, first.block_size) == ("a", 1, (0, 1, 2), 512)
    assert second.tenant == "t1"
    assert second.observed == {"ttft_ms": 41.5, "itl_ms": [], "cached_tokens": 512}
    assert (third.hash_ids, third.block_size, third.max_output_tokens) == (None, None, 512)
    assert (fourth.session_id, fourth.turn, fourth.delay_s) == ("a", 1, 2.0)


def test_a_turn_with_a_delay_alone_follows_its_session_and_says_so():
    trace = read_trace(FIXTURES / "native.jsonl")
    assert trace.arrival_s[3] == trace.arrival_s[0] + 2.0
    assert trace.meta["closed_loop_rows"] == 1
    assert any("--replay closed" in warning for warning in trace.warnings)


def test_vllm_timed_traces_are_seconds_with_ids_of_16_tokens():
    trace = read_trace(FIXTURES / "vllm_timed.jsonl", trace_format="timed_trace")
    assert trace.arrival_s.tolist() == [0.25, 1.5]
    assert trace.block_size.tolist() == [16, 16]
    with pytest.raises(TraceError, match="hash_ids: got 3 ids for 33 input tokens"):
        read_trace(FIXTURES / "vllm_timed.jsonl")


def test_measured_results_become_observations():
    bench = read_trace(FIXTURES / "vllm_bench.json")
    assert bench[0].observed == {"ttft_ms": 50.0, "e2e_ms": pytest.approx(80.0), "itl_ms": [10.0, 20.0]}
    assert bench.warnings == ("1 failed request left out",)
    aiperf = read_trace(FIXTURES / "aiperf_results.jsonl")
    assert aiperf[0].observed == {"ttft_ms": 250.0, "e2e_ms": 300.0, "itl_ms": [20.0, 30.0]}
    perf = read_trace(FIXTURES / "inference_perf.json")
    assert perf[0].observed == {"ttft_ms": 500.0, "e2e_ms": 1000.0, "itl_ms": [250.0, 250.0]}
    assert read_trace(FIXTURES / "otel.json")[0].observed == {"ttft_ms": 250.0, "e2e_ms": 2000.0}
    assert read_trace(FIXTURES / "guidellm.json")[0].observed == {"ttft_ms": 35.5, "e2e_ms": 4000.0}
    assert read_trace(FIXTURES / "blis.csv")[0].observed == {"ttft_ms": 50.0, "e2e_ms": 200.0}
    assert read_trace(FIXTURES / "burstgpt_v3.csv")[0].observed == {"e2e_ms": 1250.0}
    assert read_trace(FIXTURES / "openai_usage.jsonl")[0].observed == {"cached_tokens": 4}


def test_chats_of_qwen_bailian_are_sessions():
    trace = read_trace(FIXTURES / "qwen_bailian.jsonl")
    assert trace.columns["session_id"] == ["7", "8", "7"]
    assert trace.columns["parent_id"] == [None, None, "7"]
    assert trace.block_size.tolist() == [16, 16, 16]


def test_prompts_whose_content_is_known_share_ids_exactly_as_far_as_they_agree():
    tokens = read_trace(FIXTURES / "llmservingsim.jsonl")
    assert [tokens.hash_ids.row(i) for i in range(2)] == [(0, 1), (0, 2)]
    texts = read_trace(FIXTURES / "openai_messages.jsonl")
    assert texts.hash_ids.row(0)[0] == texts.hash_ids.row(1)[0]
    assert texts.hash_ids.row(0)[1] != texts.hash_ids.row(1)[1]
    assert any("characters / 4" in warning for warning in texts.warnings)


def test_requests_without_times_arrive_at_zero_or_as_a_seeded_poisson_process():
    still = read_trace(FIXTURES / "vidur_lengths.csv")
    assert any("--request-rate" in warning for warning in still.warnings)
    drawn = read_trace(FIXTURES / "vidur_lengths.csv", request_rate=2.0, seed=4)
    again = read_trace(FIXTURES / "vidur_lengths.csv", request_rate=2.0, seed=4)
    assert 0 < drawn.arrival_s[0] < drawn.arrival_s[1]
    assert drawn.arrival_s.tolist() == again.arrival_s.tolist()
    assert not drawn.warnings


def test_request_rate_on_a_trace_that_has_times_is_refused():
    with pytest.raises(ConfigError, match=r"--request-rate: .* has arrival times"):
        read_trace(FIXTURES / "vidur.csv", request_rate=2.0)


def test_unknown_formats_and_options_name_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'native'"):
        read_trace(FIXTURES / "native.jsonl", trace_format="nativ")
    with pytest.raises(ConfigError, match="did you mean 'request_rate'"):
        read_trace(FIXTURES / "native.jsonl", request_rat=1)
    with pytest.raises(ConfigError, match="--hash-block-size"):
        read_trace(FIXTURES / "native.jsonl", hash_block_size=0)


def test_a_missing_column_is_named():
    with pytest.raises(TraceError, match=r":1: TIMESTAMP: no such column in the header"):
        read_trace(FIXTURES / "vidur.csv", trace_format="azure")


def test_a_result_file_with_several_results_is_refused(tmp_path):
    path = tmp_path / "appended.json"
    line = (FIXTURES / "sglang_bench.jsonl").read_text()
    path.write_text(line + line)
    with pytest.raises(TraceError, match=r":2: holds 2 results"):
        read_trace(path)


def test_aliases_name_formats():
    assert format_named("timed_trace").name == "vllm-timed"
    assert format_named("aiperf").name == "native"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"time": 0, "input_length": 9, "output_length": 5},
            "timestamp: got nothing, .*; there is a key 'time'$",
        ),
        ({"timestmp": 0, "input_length": 9, "output_length": 5}, "there is a key 'timestmp'$"),
        (
            {"timestamp": 0, "prompt_len": 9, "output_len": 5},
            "input_length: .*; there is a key 'prompt_len'$",
        ),
        ({"timestamp": 0, "input_tokens": 9, "output_tokens": 5}, "there is a key 'input_tokens'$"),
        (
            {"timestamp": 0, "input_length": 9, "output_len": 5},
            "output_length: .*; there is a key 'output_len'$",
        ),
        (
            {"timestamp": 0, "input_length": 9, "note": 5},
            "output_length: got nothing, expected an integer >= 1$",
        ),
    ],
)
def test_a_field_by_another_name_is_pointed_at(tmp_path, row, says):
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(TraceError, match=says):
        read_trace(tmp_path / "t.jsonl")
