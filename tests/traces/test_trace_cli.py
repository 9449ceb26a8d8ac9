"""`simulate trace`: what each verb prints, writes and refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from stepline.sim.cli import trace as cli
from stepline.sim.cli.main import main
from stepline.traces import read_trace

FIXTURES = Path(__file__).parent / "fixtures"
NATIVE = str(FIXTURES / "native.jsonl")


def ticking(tmp_path):
    path = tmp_path / "ticks.jsonl"
    rows = [{"timestamp": 3000 * (i // 8), "input_length": 5 + i, "output_length": 2} for i in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(capsys, *argv):
    """The one line on stderr with which the command refuses."""
    assert main(["trace", *map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    errors = [line for line in err.splitlines() if not line.startswith("simulate trace: warning: ")]
    assert len(errors) == 1
    assert errors[0].startswith("simulate: ")
    return errors[0]


def test_help_lists_verbs_and_formats(capsys):
    assert main(["trace"]) == 0
    text = capsys.readouterr().out
    for word in ("describe", "check", "convert", "slice", "synth", "fit", "azure", "burstgpt", "otel"):
        assert word in text


def test_an_unknown_verb_names_the_nearest(capsys):
    assert "did you mean 'describe'" in refused(capsys, "describ", NATIVE)


def test_verbs_live_where_the_table_says():
    assert cli.VERBS["synth"][0] == "stepline.sim.cli.trace_synth:main"
    assert cli.VERBS["fit"][0] == "stepline.sim.cli.trace_synth:fit_main"


def test_describe_prints_tables_and_warnings_apart(capsys):
    assert main(["trace", "describe", NATIVE]) == 0
    out, err = capsys.readouterr()
    assert "4 requests in 2 s" in out
    assert "input tokens" in out
    assert "reuse:" in out
    assert "gap between arrivals, s" in out
    assert "simulate trace: warning: 1 turn has a delay" in err


def test_describe_json_is_json_alone(capsys):
    assert main(["trace", "describe", NATIVE, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["requests"] == 4
    assert figures["trace_format"] == "native"


def test_describe_draws_one_picture(tmp_path, capsys):
    png, html = tmp_path / "p.png", tmp_path / "p.html"
    assert main(["trace", "describe", NATIVE, "--png", str(png), "--html", str(html)]) == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    page = html.read_text()
    assert "Output length by input length" in page
    assert "<script src=" not in page
    capsys.readouterr()
    assert "cannot be written" in refused(capsys, "describe", NATIVE, "--png", tmp_path / "no" / "p.png")


def test_describe_applies_changes_before_it_looks(tmp_path, capsys):
    path = ticking(tmp_path)
    assert main(["trace", "describe", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["quantum_s"] == 3.0
    assert "--spread-quantum" in err
    assert main(["trace", "describe", str(path), "--json", "--spread-quantum", "--rows", "100"]) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out)
    assert (figures["quantum_s"], figures["requests"]) == (None, 100)
    assert "tick" not in err


def test_check_passes_good_files_and_names_the_line_of_a_bad_one(capsys):
    assert main(["trace", "check", NATIVE, str(FIXTURES / "vidur.csv")]) == 0
    out = capsys.readouterr().out
    assert "native.jsonl: native, 4 requests, no errors, 1 warning" in out
    assert "vidur.csv: vidur, 2 requests, no errors\n" in out
    assert ":3: input_length: got -3" in refused(capsys, "check", FIXTURES / "bad_native_negative.jsonl")


def test_check_json(capsys):
    assert main(["trace", "check", NATIVE, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["requests"] == 4


def test_convert_to_native_keeps_unknown_keys(tmp_path, capsys):
    out = tmp_path / "o.jsonl"
    assert main(["trace", "convert", NATIVE, str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0]["note"] == "kept"
    assert rows[2]["type"] == "text"
    assert rows[3]["extra"] == {"x": 1}
    assert list(read_trace(out)) == list(read_trace(NATIVE))
    assert json.loads((tmp_path / "o.meta.json").read_text())["block_size"] == 512
    assert "cannot hold" not in capsys.readouterr().err


def test_convert_keeps_the_columns_a_csv_has_beside_its_own(tmp_path):
    out = tmp_path / "o.jsonl"
    assert main(["trace", "convert", str(FIXTURES / "burstgpt_v3.csv"), str(out)]) == 0
    first = json.loads(out.read_text().splitlines()[0])
    assert first["Log Type"] == "Conversation log"
    assert first["session_id"] == "s1"
    again = tmp_path / "again.jsonl"
    assert main(["trace", "convert", str(out), str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize("to", ["mooncake", "azure", "vidur", "vllm-timed"])
def test_convert_writes_every_format_and_counts_what_it_cannot_hold(tmp_path, capsys, to):
    out = tmp_path / "o.any"
    assert main(["trace", "convert", NATIVE, str(out), "--to", to]) == 0
    err = capsys.readouterr().err
    assert f"the {to} format cannot hold" in err
    assert "session_id (2 rows)" in err
    assert "unknown keys (3 rows)" in err
    back = read_trace(out, trace_format=to)
    assert back.input_tokens.tolist() == [1100, 512, 7, 1200]


def test_convert_sorts_what_a_stream_cannot(tmp_path):
    path, out = tmp_path / "t.jsonl", tmp_path / "o.jsonl"
    rows = [*range(1, 140_000), 0]
    path.write_text("".join(f'{{"timestamp":{t},"input_length":{t + 1},"output_length":1}}\n' for t in rows))
    assert main(["trace", "convert", str(path), str(out)]) == 0
    assert read_trace(out).input_tokens[0] == 1
    assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []


def test_a_failed_convert_leaves_nothing(tmp_path, capsys):
    out = tmp_path / "o.jsonl"
    refused(capsys, "convert", FIXTURES / "bad_native_negative.jsonl", out)
    refused(capsys, "convert", NATIVE, out, "--to", "burstgpt")
    refused(capsys, "convert", NATIVE, out, "--to", "nativ")
    refused(capsys, "convert", tmp_path / "none", out)
    assert list(tmp_path.iterdir()) == []


def test_a_trace_can_be_converted_onto_itself(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(Path(NATIVE).read_bytes())
    assert main(["trace", "convert", str(path), str(path)]) == 0
    assert list(read_trace(path)) == list(read_trace(NATIVE))


def test_slice_writes_a_part(tmp_path, capsys):
    out = tmp_path / "o.jsonl"
    assert main(["trace", "slice", NATIVE, str(out), "--start", "0.2", "--end", "1"]) == 0
    assert read_trace(out).arrival_s.tolist() == pytest.approx([0.0505, 0.7])
    assert "unknown keys are not kept" in capsys.readouterr().err
    assert "expected --start, --end or --rows" in refused(capsys, "slice", NATIVE, out)
    assert "no request arrives" in refused(capsys, "slice", NATIVE, out, "--start", "99")


def test_scaling_and_spreading_are_seeded(tmp_path):
    path = ticking(tmp_path)
    made = []
    for seed in ("1", "1", "2"):
        out = tmp_path / "o.jsonl"
        argv = ["convert", path, out, "--spread-quantum", "--rate-scale", "1.5", "--seed", seed]
        assert main(["trace", *map(str, argv)]) == 0
        made.append(out.read_bytes())
    assert made[0] == made[1] != made[2]
    meta = json.loads((tmp_path / "o.meta.json").read_text())
    assert meta["rate_scale"] == {"factor": 1.5, "mode": "sessions", "seed": 2}
    assert meta["spread_quantum"] == {"quantum_ms": 3000.0, "seed": 2}


def test_flags_that_mean_nothing_are_refused(tmp_path, capsys):
    out = tmp_path / "o.jsonl"
    assert "--rate-scale-mode: expected --rate-scale" in refused(
        capsys, "convert", NATIVE, out, "--rate-scale-mode", "compress"
    )
    assert "unknown option '--rate-scal'" in refused(capsys, "convert", NATIVE, out, "--rate-scal", "2")
    assert "do not tick coarsely" in refused(capsys, "describe", FIXTURES / "vidur.csv", "--spread-quantum")
    assert "--quantum: expected --spread-quantum" in refused(capsys, "describe", NATIVE, "--quantum", "2")
    assert "--request-rate" in refused(capsys, "describe", NATIVE, "--request-rate", "2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /dev/stdin")
def test_standard_input_is_described(tmp_path):
    import subprocess

    with Path(NATIVE).open("rb") as stdin:
        command = [sys.executable, "-m", "stepline.sim.cli.main", "trace", "describe", "-", "--json"]
        done = subprocess.run(command, stdin=stdin, capture_output=True, check=True)
    assert json.loads(done.stdout)["requests"] == 4
