"""Completion scripts: every verb and flag is in them, and bash really completes."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from stepline.sim.cli.completion import FILES, commands
from stepline.sim.cli.main import main, verbs


@pytest.fixture(scope="module")
def found():
    return commands()


def test_every_verb_and_its_flags_are_known(found):
    assert set(verbs()) <= set(found)
    assert {"trace describe", "trace synth", "trace reuse"} <= set(found)
    flags = {flag.name: flag for flag in found[""]}
    assert {"--policy", "--tp", "--vllm-args", "--perfetto"} <= set(flags)
    assert {"chunked", "static"} <= set(flags["--policy"].values)
    assert flags["--trace"].values == FILES
    assert flags["--quiet"].values is None
    assert flags["--replay"].values == ("open", "closed")
    assert "--format" in {flag.name for flag in found["report"]}


def script(shell: str, capsys) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_takes_its_script(shell, capsys, tmp_path):
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"no {shell} on the PATH")
    file = tmp_path / "script"
    file.write_text(script(shell, capsys))
    done = subprocess.run([path, "-n", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


BASH = shutil.which("bash")


@pytest.mark.skipif(BASH is None, reason="no bash on the PATH")
def test_bash_completes(capsys, tmp_path):
    file = tmp_path / "script"
    file.write_text(script("bash", capsys))
    lines = {
        "simulate com": "compare completion",
        "simulate --policy stat": "static",
        "simulate --policy static,chunked-s": "static,chunked-slo",
        "simulate trace des": "describe",
        "simulate trace describe --js": "--json",
        "simulate --gpu h20": "h200",
        "simulate report DIR --form": "--format",
        "simulate --replay cl": "closed",
        "simulate models gpt-oss-1": "gpt-oss-120b",
    }
    calls = "".join(
        f'COMP_WORDS=({line}); COMP_CWORD={len(line.split()) - 1}; _simulate; echo "${{COMPREPLY[@]}}"\n'
        for line in lines
    )
    code = f"source {file}\ncompopt() {{ :; }}\n{calls}"
    done = subprocess.run([str(BASH), "-c", code], capture_output=True, text=True, check=True)
    assert dict(zip(lines, done.stdout.splitlines(), strict=True)) == lines


def test_an_unknown_shell_is_refused(capsys):
    assert main(["completion", "fsh"]) == 2
    assert "did you mean 'fish'?" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["", *[v for v in verbs() if v != "trace"]])
def test_a_mistyped_flag_is_one_line_with_the_nearest(verb, capsys):
    assert main([*filter(None, [verb]), "--quit"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("simulate: ")
    assert "--quit" in error or "expected" in error or "required" in error
