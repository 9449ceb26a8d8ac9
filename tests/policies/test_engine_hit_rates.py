"""The engine's hit rates under LRU against independent replays of real traces, by the code of the study."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from stepline.sim import read_trace

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "traces"
pytestmark = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the traces and reference hit rates are not on this machine"
)
SLOW = pytest.mark.slow


def studies():
    """results/policies/studies.py."""
    spec = importlib.util.spec_from_file_location("studies", ROOT / "results" / "policies" / "studies.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    [
        "mooncake_conversation_first10min",
        pytest.param("mooncake_synthetic", marks=SLOW),
        pytest.param("claude_code_sessions", marks=SLOW),
    ],
)
def test_pinning_alone_costs_less_than_half_a_point(name):
    """What the replays read: blocks of 512, prompts alone. All that the engine adds is to hold what runs."""
    study = studies()
    prompts = study.one_token_each(read_trace(SHARED / f"{name}.jsonl.gz"))
    for point in json.loads((SHARED / f"{name}.ref_hitrate.json").read_text())["points"]:
        hit = study.second_half_hits(prompts, "lru", point["cacheBlocks"], 512)
        assert hit == pytest.approx(point["results"]["lru"]["hitRate"], abs=0.004), point["cacheBlocks"]
