"""The README's Python runs, and its commands parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from stepline.sim.cli import run
from stepline.sim.cli.options import run_configs

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [
        line.split("#")[0].split("&&")[-1].strip() for block in blocks("sh") for line in block.splitlines()
    ]
    return [line.removeprefix(".venv/bin/") for line in lines if "simulate --" in line]


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(command):
    arguments = shlex.split(command)[1:]
    if "my_policy.py:MyPolicy:budget=512" in arguments:
        assert run._parser().parse_args(arguments).policy == ["my_policy.py:MyPolicy:budget=512"]
        return
    assert run_configs(run._parser().parse_args(arguments))


def test_there_are_commands_to_check():
    assert len(commands()) >= 6


def test_the_python_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (block,) = blocks("python")
    exec(compile(block, "README.md", "exec"), {})
    assert "arrival_s" in capsys.readouterr().out


def test_the_picture_is_there_and_needs_no_network():
    picture = (ROOT / "docs" / "terminal.svg").read_text(encoding="utf-8")
    assert "docs/terminal.svg" in README
    assert "@font-face" not in picture
