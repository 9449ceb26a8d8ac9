"""The engine's core as C and as Python: the same tables to the byte, and no doubt about which of them runs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stepline.sim import compiled
from stepline.sim.engine import replica
from stepline.sim.engine.plugins import plugin_names
from stepline.sim.study.config import RunConfig
from stepline.sim.study.run import simulate
from stepline.traces.trace import Ragged, Trace

HERE = Path(__file__).parent
FEATURES: tuple[dict[str, Any], ...] = (
    {"enable_prefix_caching": True},
    {"kv_offloading_size": 2.0, "num_gpu_blocks_override": 500},
    {"preemption": "most-blocks:mode=swap", "num_gpu_blocks_override": 300},
    {"kv_compression": "streaming-llm:recent=512", "enable_prefix_caching": False},
    {"speculative_config": '{"method": "ngram", "num_speculative_tokens": 3, "acceptance": 0.6}'},
    {"max_num_seqs": 8, "client_timeout": 5.0},
    {"model": "mistral-7b", "max_model_len": 8192},
    {"replicas": 2, "routing": "least-requests"},
)
"""Settings that take a path of their own through the core."""


def chats() -> Trace:
    """Bursts of prompts, some of which share what they begin with."""
    rng = np.random.default_rng(11)
    n = 80
    inputs = rng.integers(1, 3000, n)
    rows = [
        [1000 * family + i for i in range(-(-int(tokens) // 512))]
        for family, tokens in zip(rng.integers(0, 6, n), inputs, strict=True)
    ]
    return Trace(
        np.cumsum(rng.exponential(0.15, n) * (rng.random(n) < 0.7)), inputs, rng.integers(1, 200, n),
        source="generated", hash_ids=Ragged.from_rows(rows), block_size=np.full(n, 512),
    )  # fmt: skip


def fingerprints() -> Iterator[str]:
    """One line a run: what it was, and a digest of all that it says."""
    trace = chats()
    policies = [{"policy": name} for name in sorted(plugin_names("stepline.batch_policies"))]
    for settings in (*policies, *FEATURES):
        config = RunConfig(
            **{"max_model_len": 4096, "num_gpu_blocks_override": 700, "record_steps": True} | settings
        )
        result = simulate(trace, config)
        assert result.steps is not None
        total = hashlib.sha256(repr(sorted(result.kv.items())).encode())
        for frame in (result.requests, result.steps):
            for name in frame:
                total.update(frame[name].to_numpy().tobytes() if frame[name].dtype != object else b"")
        for part in (result.gaps.first_s, result.gaps.delta_s, result.gaps.n, result.gaps.weight):
            total.update(part.tobytes())
        yield f"{settings} {len(result.steps)} {total.hexdigest()}"


def interpreted(*command: str) -> str:
    """What a Python prints that leaves the C alone."""
    run = subprocess.run(
        [sys.executable, *command], cwd=HERE.parents[1], env={**os.environ, compiled.SWITCH: "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return run.stdout


needs_c = pytest.mark.skipif(
    not compiled.is_compiled(), reason="the core is interpreted here: nothing to compare"
)


def test_the_form_is_what_it_says() -> None:
    assert replica.__file__ is not None
    assert (compiled.form() == "compiled") == (not replica.__file__.endswith(".py"))


@needs_c
def test_both_forms_give_the_same_bytes() -> None:
    there = interpreted("-c", "from tests.sim import test_compiled as t; print(*t.fingerprints(), sep='\\n')")
    assert there.splitlines() == list(fingerprints())


@needs_c
def test_the_interpreted_form_passes_what_only_it_can_be_asked() -> None:
    assert "passed" in interpreted(
        "-m", "pytest", "-o", "addopts=", "-q", "tests/sim/test_fast_lane.py", "-k", "most_steps"
    )


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder with the core's sources and a library that says it was made of them."""
    for name in compiled.MODULES:
        copy = compiled.source(tmp_path, name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(compiled.source(compiled.HERE, name).read_bytes())
    (tmp_path / compiled.HOME / (compiled.library(tmp_path) + EXTENSION_SUFFIXES[0])).touch()
    return tmp_path


def test_an_edit_counts_at_once(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiled.SWITCH, raising=False)
    assert compiled.is_compiled(sources)
    with compiled.source(sources, "sim.engine.lane").open("a") as file:
        file.write("# an edit\n")
    assert not compiled.is_compiled(sources)


def test_the_switch_leaves_the_c_alone(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.SWITCH, "1")
    assert not compiled.is_compiled(sources)
