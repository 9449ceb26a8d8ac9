"""Reading the command line: lists, labels, one-line errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
from stepline.sim.cli import main as cli
from stepline.sim.cli.help import short_help
from stepline.sim.cli.options import add_run_options, add_trace_options, run_configs
from stepline.sim.cli.parser import Parser
from stepline.traces.errors import ConfigError


def configs(*flags: str):
    parser = Parser(prog="simulate")
    add_trace_options(parser)
    add_run_options(parser)
    return run_configs(parser.parse_args(list(flags)))


def test_defaults_are_those_of_the_design():
    found = configs()["chunked"]
    assert (found.model, found.gpu, found.tensor_parallel_size, found.engine) == (
        "llama-3.1-8b",
        "h100-sxm",
        1,
        "vllm-v1",
    )


@pytest.mark.parametrize(
    "flags", [("--policy", "static,chunked"), ("--policy", "static", "--policy", "chunked")]
)
def test_lists_come_by_commas_or_by_repeating(flags):
    assert list(configs(*flags)) == ["static", "chunked"]


def test_several_lists_make_every_combination_with_labels_of_what_differs():
    found = configs("--policy", "static,chunked", "--tp", "1,2", "--gpu", "h200")
    assert list(found) == ["static,tp=1", "static,tp=2", "chunked,tp=1", "chunked,tp=2"]
    assert {c.gpu for c in found.values()} == {"h200"}


def test_policy_parameters_survive_commas():
    assert list(configs("--policy", "sarathi:budget=256,x=1,static")) == ["sarathi:budget=256,x=1", "static"]


def test_a_repeated_value_counts_once():
    assert list(configs("--policy", "static,static,chunked")) == ["static", "chunked"]


def test_numbers_may_be_short():
    assert configs("--max-num-batched-tokens", "8k")["chunked"].max_num_batched_tokens == 8000


def test_prefix_caching_has_both_flags():
    assert configs("--no-enable-prefix-caching")["chunked"].enable_prefix_caching is False
    assert configs()["chunked"].enable_prefix_caching is None


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--polcy", "x"], r"unknown option '--polcy'; did you mean '--policy'\?$"),
        (["chat.jsonl"], "unexpected argument 'chat.jsonl'"),
        (["--tp", "two"], "--tensor-parallel-size: got 'two', expected an integer"),
        (["--tp", "0"], "--tensor-parallel-size: got 0, expected an integer >= 1"),
        (["--gpu-memory-utilization", "1.5"], "--gpu-memory-utilization: got 1.5, expected a fraction"),
        (["--gpu-memory-utilization", "nan"], "--gpu-memory-utilization: got 'nan', expected a number"),
        (["--kv-offloading-size", "20GB"], "got '20GB', expected a number of GiB, without a unit$"),
        (["--max-num", "3"], "did you mean '--max-num-batched-tokens' or '--max-num-seqs'"),
        (["--rate-scale", "0"], "--rate-scale: got 0.0, expected a number > 0"),
        (["--client-timeout", "-3"], "--client-timeout: got -3.0, expected a number > 0"),
        (["--dtype", "bf61"], r"--dtype: unknown value 'bf61'; did you mean 'bf16'\?"),
        (["--replay", "both"], "--replay: invalid choice: 'both'"),
        (["--slo", "ttft_p99<fast"], "--slo: got 'ttft_p99<fast'"),
        (["--policy", ","], "--policy: got ',', expected a value"),
        (["--max-num-seqs", ",".join(map(str, range(1, 66)))], "65 runs, expected at most 64"),
        (["--seed", "1.5"], "--seed: got '1.5', expected an integer"),
        (["--model"], "--model: expected one argument"),
    ],
)
def test_wrong_flags_are_one_line(flags, says):
    with pytest.raises(ConfigError, match=says) as caught:
        configs(*flags)
    assert "\n" not in str(caught.value)


def test_an_unknown_verb_is_an_error_with_the_nearest(capsys):
    assert cli.main(["trcae"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("simulate: unknown verb 'trcae'")
    assert error.count("\n") == 1


def test_only_verbs_that_exist_are_listed():
    assert set(cli.verbs()) <= set(cli.VERBS)
    for verb in cli.verbs():
        __import__(f"stepline.sim.cli.{verb}")


def test_help_fits_a_screen(capsys):
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120
    assert "simulate --trace chat.jsonl --policy chunked" in "\n".join(lines)


def test_the_short_help_names_every_flag():
    parser = Parser(prog="simulate")
    add_trace_options(parser)
    add_run_options(parser)
    shown = short_help().replace(
        "--[no-]enable-prefix-caching", "--enable-prefix-caching --no-enable-prefix-caching"
    )
    assert [f for f in parser.flags() if f not in shown] == []


def test_help_imports_nothing_heavy():
    """`simulate --help` must answer at once: no NumPy, pandas, rich."""
    code = (
        "import sys\n"
        "from stepline.sim.cli.main import main\n"
        "main(['--help'])\n"
        "heavy = {'numpy', 'pandas', 'rich', 'altair', 'scipy', 'pyarrow', 'simpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_facade_is_lazy_and_complete():
    import stepline.sim

    assert {"simulate", "compare", "read_trace"} <= set(dir(stepline.sim))
    for name in stepline.sim.__all__:
        assert getattr(stepline.sim, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        _ = stepline.sim.simulat
