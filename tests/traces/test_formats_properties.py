"""Laws of every format: there and back loses nothing it can hold, and no bytes whatsoever give a traceback."""

from __future__ import annotations

import gzip
import json
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepline.traces import iter_trace, read_trace, write_trace
from stepline.traces.errors import ConfigError, InputError, TraceError
from stepline.traces.formats import formats
from stepline.traces.formats.chaining import ChainedIds
from stepline.traces.reblocking import reblocked
from stepline.traces.request import Request
from stepline.traces.trace import Trace

FIXTURES = Path(__file__).parent / "fixtures"
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

tokens = st.integers(1, 2**31 - 1)
lengths = st.integers(1, 3000)
names = st.one_of(st.none(), st.text(max_size=8))
milliseconds = st.one_of(
    st.integers(0, 10**9), st.floats(0, 1e9, allow_nan=False), st.decimals(0, 10**6, places=3).map(float)
)


@st.composite
def traces(draw, *, block_sizes=(16, 512)):
    """Traces with all optional fields, whose times come from milliseconds as every file's do."""
    rows = []
    for i in range(draw(st.integers(1, 8))):
        n_in = draw(lengths)
        size = draw(st.sampled_from(block_sizes))
        ids = draw(
            st.one_of(
                st.none(),
                st.lists(st.integers(0, 2**40), min_size=-(-n_in // size), max_size=-(-n_in // size)),
            )
        )
        rows.append(
            Request(
                request_id=f"r{i}",
                arrival_s=draw(milliseconds) / 1000,
                input_tokens=n_in,
                output_tokens=draw(tokens),
                hash_ids=None if ids is None else tuple(ids),
                block_size=None if ids is None else size,
                output_hash_ids=draw(st.one_of(st.none(), st.tuples(st.integers(0, 99)))),
                session_id=draw(names),
                delay_s=draw(st.one_of(st.none(), milliseconds.map(lambda ms: ms / 1000))),
                turn=draw(st.one_of(st.none(), st.integers(0, 50))),
                parent_id=draw(names),
                max_output_tokens=draw(st.one_of(st.none(), tokens)),
                priority=draw(st.integers(-5, 5)),
                tenant=draw(names),
                model=draw(names),
                adapter=draw(names),
                slo_class=draw(names),
                observed=draw(st.one_of(st.none(), st.just({"ttft_ms": 1.5, "itl_ms": [1, 2.5], "mine": "x"}))),
            )
        )  # fmt: skip
    return Trace.from_requests(rows)


@QUICK
@given(traces())
def test_native_holds_everything(tmp_path, trace):
    for suffix in (".jsonl", ".jsonl.gz", ".jsonl.zst"):
        path = tmp_path / f"t{suffix}"
        assert write_trace(trace, path) == {}
        assert list(read_trace(path)) == list(trace)


@st.composite
def chained(draw, size):
    """Traces of prompts made of few different blocks of `size` tokens, with the ids their contents give them."""
    chains, rows = ChainedIds(), []
    for i in range(draw(st.integers(1, 6))):
        blocks = draw(st.lists(st.sampled_from("ab"), max_size=6))
        rest = draw(st.integers(0 if blocks else 1, size - 1))
        ids = chains.of([*blocks, f"rest {rest}"] if rest else blocks)
        at_s = draw(milliseconds) / 1000
        n_in = len(blocks) * size + rest
        rows.append(Request(f"r{i}", at_s, n_in, draw(tokens), hash_ids=tuple(ids), block_size=size))
    return Trace.from_requests(rows)


def sharing(trace):
    """For each pair of rows: how many whole leading tokens their ids say they have in common."""
    ids = [trace.hash_ids.row(i) for i in range(len(trace))]
    size = trace.block_size.tolist()
    return [
        [
            sum(
                n
                for n in takewhile(
                    bool, (x == y and s for x, y, s in zip(a, b, [size[i]] * 99, strict=False))
                )
            )
            for b in ids
        ]
        for i, a in enumerate(ids)
    ]


@QUICK
@given(chained(512))
def test_mooncake_and_vllm_timed_hold_times_lengths_and_ids(tmp_path, trace):
    for name in ("mooncake", "vllm-timed"):
        path = tmp_path / f"{name}.jsonl"
        assert set(write_trace(trace, path, name)) == {"request_id"}
        back = read_trace(path, trace_format=name)
        assert back.arrival_s.tolist() == trace.arrival_s.tolist()
        assert back.input_tokens.tolist() == trace.input_tokens.tolist()
        assert back.output_tokens.tolist() == trace.output_tokens.tolist()
        assert sharing(reblocked(back, 512)) == sharing(trace)


@QUICK
@given(chained(16))
def test_larger_blocks_share_what_whole_large_blocks_share(trace):
    coarse = reblocked(trace, 64)
    assert np.diff(coarse.hash_ids.offsets).tolist() == (-(-trace.input_tokens // 64)).tolist()
    for fine_row, coarse_row in zip(sharing(trace), sharing(coarse), strict=True):
        # a coarse block is shared where all of it is; a prompt's unfilled last block counts as one
        assert all(c // 64 >= f // 64 for f, c in zip(fine_row, coarse_row, strict=True))
        assert all(c // 64 <= -(-f // 64) for f, c in zip(fine_row, coarse_row, strict=True))


@QUICK
@given(traces())
def test_vidur_and_azure_hold_times_and_lengths(tmp_path, trace):
    for name, resolution_s in (("vidur", 0.0), ("azure", 1e-7)):
        path = tmp_path / f"{name}.csv"
        write_trace(trace, path, name)
        back = read_trace(path)
        since_first = trace.arrival_s - (trace.arrival_s[0] if name == "azure" else 0.0)
        np.testing.assert_allclose(back.arrival_s, since_first, rtol=0, atol=2 * resolution_s)
        assert back.input_tokens.tolist() == trace.input_tokens.tolist()
        assert back.output_tokens.tolist() == trace.output_tokens.tolist()


@pytest.mark.parametrize("name", ["azure_2023.csv", "azure_2024.csv"])
def test_azure_keeps_its_wall_clock_through_native(tmp_path, name):
    original = read_trace(FIXTURES / name)
    write_trace(original, tmp_path / "t.jsonl")
    write_trace(read_trace(tmp_path / "t.jsonl"), tmp_path / "t.csv", "azure")
    back = read_trace(tmp_path / "t.csv")
    assert back.meta["origin"] == original.meta["origin"]
    assert back.arrival_s.tolist() == pytest.approx(original.arrival_s.tolist(), abs=1e-7)
    if name == "azure_2023.csv":
        assert (tmp_path / "t.csv").read_bytes() == (FIXTURES / name).read_bytes()


def test_blocks_of_sizes_that_do_not_divide_are_refused(tmp_path):
    trace = Trace.from_requests([Request("a", 0.0, 100, 1, hash_ids=(1,), block_size=100)])
    with pytest.raises(TraceError, match="blocks of 100 tokens, expected a size that divides 512"):
        write_trace(trace, tmp_path / "t.jsonl", "mooncake")
    assert list(tmp_path.iterdir()) == []


def test_formats_that_can_only_be_read_say_so(tmp_path):
    trace = read_trace(FIXTURES / "vidur.csv")
    with pytest.raises(ConfigError, match="'burstgpt', which can only be read"):
        write_trace(trace, tmp_path / "t.csv", "burstgpt")
    with pytest.raises(TraceError, match="cannot be written"):
        write_trace(trace, tmp_path / "no" / "t.jsonl")


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip
known_keys = st.sampled_from(
    [
        "timestamp", "input_length", "output_length", "hash_ids", "block_size", "session_id", "delay", "observed",
        "output_hash_ids", "turn", "priority", "usage", "messages", "payload", "text_input", "input_lens",
        "output_lens", "ttfts", "itls", "errors", "benchmarks", "resourceSpans", "attributes", "metadata", "metrics",
        "chat_id", "parent_chat_id", "t", "in", "out", "requests", "data", "conversations", "start_time", "info",
        "input_toks", "output_toks", "arrival_time_ns", "input_tok_ids", "max_tokens", "created",
    ]
)  # fmt: skip
rows = st.dictionaries(known_keys, json_values, max_size=8)


@settings(QUICK, max_examples=300)
@given(st.one_of(
    st.binary(max_size=300),
    st.lists(rows, min_size=1, max_size=4).map(lambda r: "\n".join(map(json.dumps, r)).encode()),
    rows.map(lambda r: json.dumps(r, indent=1).encode()),
    st.lists(rows, max_size=3).map(lambda r: json.dumps(r, indent=1).encode()),
    st.binary(max_size=120).map(gzip.compress).flatmap(lambda b: st.integers(0, len(b)).map(lambda n: b[:n])),
))  # fmt: skip
def test_random_content_never_gives_a_traceback(tmp_path, content):
    path = tmp_path / "t.any"
    path.write_bytes(content)
    for trace_format in (None, *(f.name for f in formats())):
        trace, message = outcome(partial(read_trace, path, trace_format=trace_format))
        if trace is None:
            assert message
            assert "\n" not in message
        else:
            assert (trace.input_tokens >= 1).all()
            assert (np.diff(trace.arrival_s) >= 0).all()


def outcome(reading):
    """What `reading` returns, or the message with which it refuses; anything else is a traceback."""
    try:
        return reading(), ""
    except InputError as error:
        return None, str(error)


SPOILERS = (
    b"",
    b"-",
    b"NaN",
    b"Infinity",
    b"0",
    b"9" * 40,
    b"\r",
    b"\n",
    b"\xff",
    b'"',
    b"{",
    b"]",
    b",",
    b"\x00",
)
SPOILERS += (b"1e999", b"null")


@settings(QUICK, max_examples=150)
@given(st.data(), st.sampled_from(sorted(p.name for p in FIXTURES.iterdir())))
def test_damaged_fixtures_never_give_a_traceback(tmp_path, data, name):
    content = bytearray((FIXTURES / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(st.sampled_from(SPOILERS))
        content[at : at + data.draw(st.integers(0, 3))] = piece
    path = tmp_path / name
    path.write_bytes(bytes(content))
    for reading in (lambda: read_trace(path), lambda: list(iter_trace(path, rows=2))):
        assert "\n" not in outcome(reading)[1]
