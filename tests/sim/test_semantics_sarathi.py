"""A schedule computed by another simulator's own engine, reproduced request by request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stepline.policies.batching.sarathi import SarathiPolicy
from stepline.sim.cost.work import Progression

from .engine_kit import by_index, run

FOLDER = Path(__file__).parents[2].parent / "shared" / "semantics"
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the shared reference schedule is not on this machine"
)


class ReferenceCost:
    """step_ms = max(7, 0.045·new) + 3.4e-4·ctx + 3e-6·pairs."""

    def step_s(self, work):
        ms = max(7.0, 0.045 * work.new_tokens) + 3.4e-4 * work.context_tokens[0] + 3e-6 * work.attention_pairs
        return ms / 1e3

    def leap(self, work, growth, n_steps):
        return Progression(self.step_s(work), 3.4e-7 * growth[0], n_steps)

    def explain_many(self, columns):
        new = columns["prefill_tokens"] + columns["n_decode"]
        ms = (
            np.maximum(7.0, 0.045 * new)
            + 3.4e-4 * columns["context_tokens"]
            + 3e-6 * columns["attention_pairs"]
        )
        return {"gemm": {"compute": ms / 1e3}}, 0 * ms, 0 * ms


@pytest.mark.parametrize(
    ("expected", "blocks"), [("expected_sarathi.csv", 6000), ("expected_sarathi_700_blocks.csv", 700)]
)
def test_sarathi_schedule_is_reproduced(expected, blocks):
    rows = pd.read_csv(FOLDER / "trace_1000.csv")
    want = pd.read_csv(FOLDER / expected)
    result = run(
        list(rows.itertuples(index=False, name=None)),
        ReferenceCost(),
        SarathiPolicy(),
        kv_blocks=blocks + 1,
        max_num_seqs=128,
        max_num_batched_tokens=512,
    )
    got = by_index(result).iloc[: len(want)]
    assert got["arrival_s"].to_numpy() == pytest.approx(want["arrived_at"].to_numpy(), rel=1e-12)
    ttft, e2e = got["first_token_s"] - got["arrival_s"], got["finish_s"] - got["arrival_s"]
    np.testing.assert_allclose(ttft, want["ttft_s"], rtol=1e-9)
    np.testing.assert_allclose(e2e, want["e2e_s"], rtol=1e-9)
    assert got["preemptions"].tolist() == want["restarts"].tolist()
