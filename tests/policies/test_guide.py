"""The policy author's guide is run as it is printed: its files, then its commands; its policies pass conformance."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from stepline.sim.cli.main import main

from .conformance import check, simulate, worlds

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "write-a-policy.md").read_text()
FILES = re.findall(r"```python\n# file: (\S+)\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = [
    line for block in re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()
]
ROWS = 150


def write_sample(name, folder):
    """The first rows of a shipped sample."""
    plain, packed = (ROOT / "traces" / "samples" / f"{name}.jsonl{suffix}" for suffix in ("", ".gz"))
    with plain.open() if plain.exists() else gzip.open(packed, "rt") as source:
        lines = [line for line, _ in zip(source, range(ROWS), strict=False)]
    (folder / f"{name}.jsonl").write_text("".join(lines))
    meta = json.loads(plain.with_name(f"{name}.meta.json").read_text())
    kept = {k: meta[k] for k in ("version", "time_unit", "block_size") if k in meta}
    (folder / f"{name}.meta.json").write_text(json.dumps(kept))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("guide")
    for name, text in FILES:
        (place / name).write_text(text)
    for name in ("chat", "longchat"):
        write_sample(name, place)
    return place


def test_the_guide_has_files_and_commands():
    assert len(FILES) == 4
    assert len(COMMANDS) == 6


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_guide_runs(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = shlex.split(command)
    assert words[0] == "simulate"
    assert main(words[1:]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("target", ["gentle.py:Gentle", "gentle.py:Gentle:most=1", "loyal.py:Loyal"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(world=worlds())
def test_the_batching_policies_of_the_guide_conform(target, folder, world):
    check(world, simulate(world, f"{folder}/{target}"))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(world=worlds(caching=True))
def test_the_other_policies_of_the_guide_conform(folder, world):
    eviction, victims = f"{folder}/short_first.py:ShortFirst", f"{folder}/spare_the_old.py:SpareTheOld"
    check(world, simulate(world, eviction=eviction, preemption=victims))
