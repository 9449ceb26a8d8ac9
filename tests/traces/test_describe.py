"""Figures of a description against values counted another way, and against what is published of the real traces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from stepline.traces import iter_trace, read_trace
from stepline.traces.describe import check, describe, describe_file
from stepline.traces.errors import TraceError
from stepline.traces.request import Request
from stepline.traces.trace import Trace

FIXTURES = Path(__file__).parent / "fixtures"
SHARED = Path(__file__).parents[2] / ".." / "shared" / "traces"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real traces are not here")


def random_trace(n=3000, seed=0):
    rng = np.random.default_rng(seed)
    n_in = np.maximum(1, rng.lognormal(6, 1, n).astype(np.int64))
    n_out = np.maximum(1, (rng.lognormal(4, 0.5, n) * n_in**0.3).astype(np.int64))
    return Trace(np.cumsum(rng.gamma(0.5, 0.4, n)), n_in, n_out)


def chunks(trace, size):
    return [trace.take(np.arange(i, min(i + size, len(trace)))) for i in range(0, len(trace), size)]


def test_lengths_and_gaps_are_those_numpy_counts():
    trace = random_trace()
    figures = describe(trace)
    for name in ("input_tokens", "output_tokens"):
        values = getattr(trace, name)
        for percent in (1, 10, 50, 90, 99):
            expected = np.percentile(values, percent, method="inverted_cdf")
            assert figures[name][f"p{percent}"] == expected
        assert figures[name]["mean"] == pytest.approx(values.mean())
        assert figures[name]["std"] == pytest.approx(values.std())
    gaps = np.diff(trace.arrival_s)
    for percent in (1, 50, 99):
        expected = np.percentile(gaps, percent, method="inverted_cdf")
        assert figures["gap_s"][f"p{percent}"] == pytest.approx(expected, rel=1e-3)
    assert figures["gap_s"]["cv"] == pytest.approx(gaps.std() / gaps.mean())
    assert figures["gap_s"]["max"] == gaps.max()


def test_windows_count_every_whole_window_from_the_first_arrival():
    trace = random_trace()
    since = trace.arrival_s - trace.arrival_s[0]
    for window in describe(trace)["windows"]:
        whole = int(since[-1] // window["width_s"])
        counts = np.bincount((since // window["width_s"]).astype(int))[:whole]
        assert window["windows"] == whole
        assert window["dispersion"] == pytest.approx(counts.var() / counts.mean())
        assert window["empty_frac"] == pytest.approx((counts == 0).mean())
        assert window["peak"] == counts.max()


def test_rank_correlation_is_spearmans_up_to_binning():
    trace = random_trace()
    rho = stats.spearmanr(trace.input_tokens, trace.output_tokens).statistic
    assert describe(trace)["dependence"]["rank_correlation"] == pytest.approx(rho, abs=0.005)


def test_conditional_medians_follow_the_output():
    n_in = np.repeat([100, 1000, 10_000], 400)
    trace = Trace(np.arange(1200.0), n_in, np.where(n_in == 1000, 800, 50))
    rows = describe(trace)["dependence"]["output_by_input"]
    for row in rows:
        expected = 800 if row["input_from"] <= 1000 < row["input_below"] else 50
        assert row["output_p50"] == pytest.approx(expected, rel=0.05)
    assert sum(row["requests"] for row in rows) == 1200


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_chunks_give_the_same_figures_as_the_whole(size):
    rng = np.random.default_rng(2)
    base = random_trace(400)
    rows = [
        Request(str(i), r.arrival_s, r.input_tokens, r.output_tokens, session_id=f"s{i % 9}", delay_s=float(i % 5),
                hash_ids=tuple(int(x) for x in np.cumsum(rng.integers(0, 3, -(-r.input_tokens // 64)))), block_size=64)
        for i, r in enumerate(base)
    ]  # fmt: skip
    trace = Trace.from_requests(rows)
    whole, parts = describe(trace), describe(chunks(trace, size))
    assert _close(parts, whole)


def _close(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_close(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_close, a, b))
    return a == pytest.approx(b, rel=1e-9, abs=1e-9) if isinstance(a, float) else a == b


def test_reuse_is_what_an_unlimited_cache_of_whole_blocks_hits():
    rows = [
        Request("a", 0.0, 40, 1, hash_ids=(1, 2, 3), block_size=16),
        Request("b", 2.0, 40, 1, hash_ids=(1, 2, 3), block_size=16),
        Request("c", 5.0, 48, 1, hash_ids=(1, 2, 4), block_size=16),
        Request("d", 6.0, 20, 1),
    ]
    reuse = describe(Trace.from_requests(rows))["reuse"]
    # b and c find blocks 1 and 2; the third block of a is not whole
    assert reuse["ideal_hit_token_frac"] == pytest.approx(64 / 148)
    assert reuse["repeated_token_frac"] == pytest.approx(72 / 148)
    assert (reuse["blocks"], reuse["distinct_blocks"], reuse["requests_with_ids"]) == (9, 4, 3)
    assert reuse["reuse_gap_s"]["max"] == 3.0
    assert reuse["block_sizes"] == [16]


def test_reuse_counts_large_ids_too():
    rows = [Request(str(i), float(i), 32, 1, hash_ids=(7, 2**60 + i % 2), block_size=16) for i in range(4)]
    assert describe(Trace.from_requests(rows))["reuse"]["distinct_blocks"] == 3


def test_sessions_count_turns_and_gaps():
    rows = [
        Request(f"{s}{t}", 100.0 * s + 10.0 * t, 10 + t, 1, session_id=s_name, delay_s=4.0 if t else None)
        for s, s_name in enumerate(("x", "y"))
        for t in range(s + 2)
    ]
    figures = describe(Trace.from_requests(rows))["sessions"]
    assert figures["sessions"] == 2
    assert (figures["turns"]["min"], figures["turns"]["max"]) == (2, 3)
    assert figures["turn_gap_s"]["mean"] == pytest.approx(10.0)
    assert figures["delay_s"]["max"] == 4.0
    assert figures["shrinking_turn_frac"] == 0.0


def test_one_request_and_a_batch_at_zero_have_figures_too():
    one = describe(Trace.from_requests([Request("0", 5.0, 7, 2)]))
    assert (one["requests"], one["span_s"], one["gap_s"], one["windows"]) == (1, 0.0, None, [])
    assert one["rate"]["requests_per_s"] is None
    batch = describe(Trace.from_requests([Request(str(i), 0.0, 7, 2) for i in range(30)]))
    assert batch["gap_s"]["mean"] == 0.0
    assert batch["dependence"]["rank_correlation"] is None
    with pytest.raises(TraceError, match="no requests"):
        describe([])


def test_the_curve_over_time_holds_every_request():
    trace = random_trace(5000)
    figures = describe(trace)
    rows = figures["series"]["over_time"]
    width = rows[1]["start_s"]
    assert len(rows) <= 240
    assert sum(row["requests_per_s"] * width for row in rows[:-1]) <= 5000
    assert sum(cell["requests"] for cell in figures["series"]["lengths"]) == 5000
    assert figures["series"]["input_tokens"][-1] == {"tokens": int(trace.input_tokens.max()), "share": 1.0}


def test_disorder_beyond_the_window_is_described_from_the_whole_file(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [*range(1, 140_000), 0]
    path.write_text("".join(f'{{"timestamp":{t},"input_length":1,"output_length":1}}\n' for t in rows))
    figures = describe_file(path)
    assert figures["requests"] == 140_000
    assert check(path)["requests"] == 140_000


def test_check_finds_what_is_odd(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [
        {"timestamp": 0, "input_length": 32, "output_length": 9, "hash_ids": [1, 2], "request_id": "a"},
        {"timestamp": 1, "input_length": 32, "output_length": 9, "hash_ids": [3, 2], "request_id": "a"},
        {
            "timestamp": 2,
            "input_length": 1,
            "output_length": 9,
            "max_output_length": 8,
            "session_id": "s",
            "turn": 2,
        },
        {"timestamp": 3, "input_length": 1, "output_length": 9, "session_id": "s", "turn": 1},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = check(path, hash_block_size=16)
    assert found["requests"] == 4
    assert set(found["warnings"]) == {
        "1 hash id follows another id than before: it is not prefix-chained",
        "1 row has a request_id that was used before",
        "1 row has an output_length over its max_output_length",
        "1 turn arrives before an earlier turn of its session, or twice",
    }


@needs_shared
def test_the_published_figures_of_azure_conv():
    figures = describe_file(SHARED / "azure_conv.jsonl.gz")
    assert figures["requests"] == 19_366
    assert figures["rate"]["requests_per_s"] == pytest.approx(5.53, abs=0.005)
    dispersion = [window["dispersion"] for window in figures["windows"]]
    assert dispersion == pytest.approx([1.39, 3.9, 16], rel=0.02)


@needs_shared
@pytest.mark.parametrize(
    "name", ["mooncake_conversation_first10min", "mooncake_synthetic", "claude_code_sessions"]
)
def test_ideal_reuse_is_the_published_ceiling_of_the_second_half(name):
    ceiling = json.loads((SHARED / f"{name}.ref_hitrate.json").read_text())["ceiling"]
    trace = read_trace(SHARED / f"{name}.jsonl.gz")
    half = ceiling["measurementStartRequest"]
    hits = [
        describe(t)["reuse"]["repeated_token_frac"] * t.input_tokens.sum()
        for t in (trace.take(np.arange(half)), trace)
    ]
    assert round(hits[1] - hits[0]) == ceiling["hitTokens"]


@needs_shared
@pytest.mark.parametrize(
    "path", sorted(SHARED.glob("*.jsonl.gz")) if SHARED.is_dir() else [], ids=lambda p: p.name
)
def test_the_real_traces_are_read_without_errors(path):
    found = check(path)
    assert [w for w in found["warnings"] if "tick" not in w] == []
    meta = json.loads(Path(str(path).replace(".jsonl.gz", ".meta.json")).read_text())
    assert (found["requests"], found["sha256"]) == (meta["rows"], meta["sha256"])


def test_streaming_memory_is_bounded(tmp_path):
    import subprocess
    import sys

    rng = np.random.default_rng(0)
    path = tmp_path / "t.jsonl"
    with path.open("w") as out:
        for start in range(0, 200_000, 20_000):
            sizes = rng.integers(1, 5000, (20_000, 2)).tolist()
            out.writelines(
                f'{{"timestamp":{(start + i) * 50},"input_length":{a},"output_length":{b}}}\n'
                for i, (a, b) in enumerate(sizes)
            )
    code = (
        "import resource, sys; from stepline.traces.describe import describe_file as d\n"
        "base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "n = d(sys.argv[1])['requests']\n"
        "print(n, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=True, text=True)
    rows, growth_mib = map(int, done.stdout.split())
    assert rows == 200_000
    # 65 536 rows of the sorting window and a chunk, and one parsed block; all 200 000 rows as dicts would be 90 MiB
    assert growth_mib < 80
    assert next(iter_trace(path)).arrival_s[0] == 0
