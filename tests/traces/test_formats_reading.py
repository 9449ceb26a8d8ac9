"""Reading: compression, disorder, block sizes, clocks, sidecars, streaming."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import zstandard
from stepline.traces import iter_trace, read_trace, write_trace
from stepline.traces.errors import ConfigError, TraceError
from stepline.traces.reading import UnsortedError, iter_chunks


def rows_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(at, n_in=10, n_out=5, **more):
    return {"timestamp": at, "input_length": n_in, "output_length": n_out, **more}


def plain(n, step_ms=100):
    return [row(i * step_ms, 1 + i % 7, 1 + i % 3) for i in range(n)]


@pytest.mark.parametrize("suffix", ["gz", "zst", "odd"])
def test_compression_is_recognised_by_content(tmp_path, suffix):
    text = rows_file(tmp_path / "t.jsonl", plain(50)).read_bytes()
    packed = zstandard.compress(text) if suffix == "zst" else gzip.compress(text)
    path = tmp_path / f"t.jsonl.{suffix}"
    path.write_bytes(packed)
    assert read_trace(path).sha256 == read_trace(tmp_path / "t.jsonl").sha256


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_truncated_compression_is_an_error_with_the_line(tmp_path, pack):
    rng = np.random.default_rng(0)
    text = "".join(json.dumps(row(i, int(rng.integers(1, 9**9)))) + "\n" for i in range(5000)).encode()
    path = tmp_path / "t.jsonl.x"
    packed = pack(text)
    path.write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(TraceError, match=r"t\.jsonl\.x:\d+: broken or truncated"):
        read_trace(path)


def test_several_compressed_members_are_one_trace(tmp_path):
    parts = [json.dumps(row(i)).encode() + b"\n" for i in range(4)]
    for name, pack in (("a.gz", gzip.compress), ("a.zst", zstandard.compress)):
        (tmp_path / name).write_bytes(b"".join(map(pack, parts)))
        assert len(read_trace(tmp_path / name)) == 4


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_ends_and_a_byte_order_mark_do_not_matter(tmp_path, end):
    lines = [json.dumps(row(i)).encode() for i in range(3)]
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines[0] + b"\r\n" + lines[1] + end + b"  " + end + lines[2])
    assert read_trace(path).arrival_s.tolist() == [0, 0.001, 0.002]


def test_lines_are_counted_over_every_kind_of_line_end(tmp_path):
    path = tmp_path / "t.jsonl"
    good = json.dumps(row(1)).encode()
    path.write_bytes(good + b"\r\n\r\n" + good + b"\r" + good + b"\n" + b'{"timestamp": 1}')
    with pytest.raises(TraceError, match=r"t\.jsonl:5: input_length"):
        read_trace(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n \n", "only blank lines"),
        ("hello\n", "1: no known trace format"),
        ('{"timestamp": 1, "inp\n{"timestamp": 2}\n', "1: not valid JSON"),
        ('{"timestamp": 1, "input_length": NaN, "output_length": 1}', "1: not valid JSON: got NaN, expected a finite"),
        ('{"timestamp": 1, "input_length": 1, "output_length": true}', "1: output_length: got true"),
        ('{"timestamp": 1, "input_length": 1.5, "output_length": 1}', "1: input_length: got 1.5"),
        ('{"timestamp": 1, "input_length": "7", "output_length": 1}', '1: input_length: got "7"'),
        ('{"timestamp": 1, "input_length": 99999999999999999999999, "output_length": 1}', "1: input_length: got 1e+23"),
        ('{"timestamp": 1, "input_length": 3000000000, "output_length": 1}', "1: input_length: got 3000000000, expected"),
        ('{"timestamp": -1, "input_length": 1, "output_length": 1}', "1: timestamp: got -1, expected a number >= 0"),
        ('{"timestamp": "0", "input_length": 1, "output_length": 1}', '1: timestamp: got "0"'),
        ('{"timestamp": 1e300, "input_length": 1, "output_length": 1}', "1: timestamp: got 1e+300"),
        ('{"input_length": 1, "output_length": 1}', "1: timestamp: got nothing"),
        ('{"input_length": 1, "output_length": 1, "delay": 4}', "1: timestamp: got nothing"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": 4}', "1: hash_ids: got 4, expected a list"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": [-4]}', "1: hash_ids: got -4"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1, "block_size": 0}', "1: block_size: got 0"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1, "session_id": [1]}', "1: session_id: got [1]"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1, "delay": -1, "session_id": "s"}', "1: delay: got -1"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1, "observed": {"ttft_ms": -1}}', "ttft_ms: got -1"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1, "observed": {"itl_ms": [-1]}}', "itl_ms: got -1"),
        ('{"a": {"b": 1, "b": 2}, "timestamp": 1, "input_length": 1, "output_length": 1}', "1: b: the key appears twice"),
        ("[1, 2]", "1: no known trace format"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1}\n[]', "2: got [], expected a JSON object"),
    ],
)  # fmt: skip
def test_bad_native_content_names_line_and_field(tmp_path, text, message):
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_missing_files_and_directories_are_one_line(tmp_path):
    with pytest.raises(TraceError, match="no such file"):
        read_trace(tmp_path / "none.jsonl")
    with pytest.raises(TraceError, match="is a directory"):
        read_trace(tmp_path)
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace("a\0b")
    (tmp_path / "wide.jsonl").write_text('{"timestamp": 1}', encoding="utf-16")
    with pytest.raises(TraceError, match="UTF-16"):
        read_trace(tmp_path / "wide.jsonl")


def test_optional_fields_misspelt_are_told_and_other_keys_are_not(tmp_path):
    odd = row(0, 1) | {"prority": 3, "hash_id": [1], "text": "x", "extra": 1, "colour": "red"}
    trace = read_trace(rows_file(tmp_path / "t.jsonl", [odd, odd]))
    assert trace.warnings == (
        "the key 'hash_id' has no meaning and is passed over; did you mean 'hash_ids'?",
        "the key 'prority' has no meaning and is passed over; did you mean 'priority'?",
    )
    both = row(0, 1) | {"model": "a", "models": "b"}
    assert read_trace(rows_file(tmp_path / "t.jsonl", [both])).warnings == ()


def test_whole_floats_count_as_integers(tmp_path):
    trace = read_trace(rows_file(tmp_path / "t.jsonl", [row(0, 12.0, 3.0)]))
    assert trace.input_tokens.tolist() == [12]


def test_disorder_is_sorted_stably_and_counted(tmp_path):
    rows = [row(5, 1), row(3, 2), row(5, 3), row(3, 4), row(9, 5)]
    trace = read_trace(rows_file(tmp_path / "t.jsonl", rows))
    assert trace.input_tokens.tolist() == [2, 4, 1, 3, 5]
    assert trace.warnings == ("2 rows behind a later one; sorted by arrival",)


def test_block_size_comes_from_row_then_sidecar_then_flag(tmp_path):
    rows = [row(0, 64, hash_ids=[1, 2]), row(1, 64, hash_ids=[3], block_size=64), row(2, 5)]
    path = rows_file(tmp_path / "t.jsonl", rows)
    assert read_trace(path, hash_block_size=32).block_size.tolist() == [32, 64, 0]
    (tmp_path / "t.meta.json").write_text('{"block_size": 32}')
    trace = read_trace(path, hash_block_size=16)
    assert trace.block_size.tolist() == [32, 64, 0]
    assert any("--hash-block-size 16 is not used" in warning for warning in trace.warnings)


def test_512_is_assumed_only_where_every_row_agrees(tmp_path):
    path = rows_file(tmp_path / "a.jsonl", [row(0, 513, hash_ids=[1, 2]), row(0, 512, hash_ids=[1])])
    assert read_trace(path).block_size.tolist() == [512, 512]
    path = rows_file(tmp_path / "b.jsonl", [row(0, 513, hash_ids=[1, 2]), row(0, 513, hash_ids=[1])])
    with pytest.raises(TraceError, match=r"b\.jsonl:2: hash_ids: got 1 ids for 513 input tokens"):
        read_trace(path)
    whole_blocks_only = read_trace(path, hash_block_size=512)
    assert any(
        warning.startswith("1 row without an id for the last") for warning in whole_blocks_only.warnings
    )


def test_an_unused_block_size_flag_is_said(tmp_path):
    trace = read_trace(rows_file(tmp_path / "t.jsonl", plain(3)), hash_block_size=16)
    assert trace.warnings == ("--hash-block-size is not used: no row has hash_ids",)


def test_a_coarse_clock_is_noticed_even_where_it_is_a_little_off(tmp_path):
    rows = [row(tick * 3000 + (tick % 3 == 0), i + 1) for tick in range(30) for i in range(9)]
    trace = read_trace(rows_file(tmp_path / "t.jsonl", rows))
    assert any("tick every 3 s, 9.0 requests a tick" in w and "--spread-quantum" in w for w in trace.warnings)
    assert not read_trace(rows_file(tmp_path / "u.jsonl", plain(300))).warnings


def test_probable_seconds_are_flagged_and_never_guessed(tmp_path):
    rows = [row(i * 0.25) for i in range(100)]
    path = rows_file(tmp_path / "t.jsonl", rows)
    trace = read_trace(path)
    assert trace.arrival_s[-1] == pytest.approx(99 * 0.25e-3)
    assert any("if the timestamps are seconds" in warning for warning in trace.warnings)
    (tmp_path / "t.meta.json").write_text('{"time_unit": "s"}')
    assert read_trace(path).arrival_s[-1] == pytest.approx(99 * 0.25)
    assert not read_trace(path).warnings


def test_wall_clock_timestamps_count_from_the_first_request(tmp_path):
    rows = [row(1_700_000_000_000 + i * 1000) for i in range(3)]
    trace = read_trace(rows_file(tmp_path / "t.jsonl", rows))
    assert trace.arrival_s.tolist() == pytest.approx([0, 1, 2])
    assert any("wall clock" in warning for warning in trace.warnings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"block_size": -1}', "block_size: got -1"),
        ('{"time_unit": "min"}', "time_unit: got 'min'"),
        ('{"timestamp_quantum_ms": 0}', "timestamp_quantum_ms: got 0"),
        ('{"version": 9}', "version: got 9"),
    ],
)
def test_a_wrong_sidecar_is_an_error_that_names_it(tmp_path, text, message):
    path = rows_file(tmp_path / "t.jsonl", plain(2))
    (tmp_path / "t.meta.json").write_text(text)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert message in str(caught.value)
    assert "t.meta.json" in str(caught.value)


def test_content_that_is_not_the_sidecars_is_said(tmp_path):
    write_trace(read_trace(rows_file(tmp_path / "t.jsonl", plain(3))), tmp_path / "u.jsonl")
    assert not read_trace(tmp_path / "u.jsonl").warnings
    rows_file(tmp_path / "u.jsonl", plain(4))
    assert any("sha256 differs" in warning for warning in read_trace(tmp_path / "u.jsonl").warnings)


def test_streaming_gives_the_same_rows_as_reading_whole(tmp_path):
    rng = np.random.default_rng(3)
    rows = [
        row(float(t), int(n), hash_ids=list(range(-(-int(n) // 512))), session_id=f"s{t % 5}")
        for t, n in zip(
            rng.integers(0, 400, 700) + np.arange(700) * 3, rng.integers(1, 3000, 700), strict=True
        )
    ]
    path = rows_file(tmp_path / "t.jsonl", rows)
    whole = read_trace(path)
    chunks = list(iter_chunks(path, rows=64, window=300))
    assert max(len(c.trace) for c in chunks) <= 64
    streamed = [r for c in chunks for r in c.trace]
    assert streamed == list(whole)
    assert chunks[-1].trace.warnings == whole.warnings
    assert chunks[-1].trace.sha256 == whole.sha256


def test_streaming_refuses_rows_beyond_its_window(tmp_path):
    path = rows_file(tmp_path / "t.jsonl", [*plain(50_000, 1), row(0)])
    with pytest.raises(UnsortedError, match=r"t\.jsonl:50001: timestamp: .* s behind a row"):
        list(iter_chunks(path, rows=1000, window=1000))
    assert len(read_trace(path)) == 50_001
    with pytest.raises(ConfigError, match="rows"):
        next(iter_trace(path, rows=0))


def test_request_ids_count_through_a_stream(tmp_path):
    path = rows_file(tmp_path / "t.jsonl", plain(10))
    assert [r.request_id for chunk in iter_trace(path, rows=4) for r in chunk] == [str(i) for i in range(10)]


def test_standard_input_is_a_trace_too(tmp_path):
    import subprocess
    import sys

    path = rows_file(tmp_path / "t.jsonl", plain(5))
    code = "from stepline.traces import read_trace; print(len(read_trace('-')))"
    with path.open("rb") as stdin:
        done = subprocess.run([sys.executable, "-c", code], stdin=stdin, capture_output=True, check=True)
    assert done.stdout.strip() == b"5"
