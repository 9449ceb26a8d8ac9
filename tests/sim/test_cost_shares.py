"""The largest share of a step: the same for one step as for columns of steps, and never less than an equal share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepline.sim.cost.breakdown import add_seconds, columns_of, explained
from stepline.sim.cost.shares import largest_share, largest_shares
from stepline.sim.cost.work import StepWork


@st.composite
def works(draw):
    seqs, n = draw(st.integers(0, 9)), draw(st.integers(0, 300))
    tokens = draw(st.integers(seqs, 9000)) if seqs else 0
    context = (n * draw(st.integers(1, 4000)), n * draw(st.integers(1, 500)))
    rows = n + draw(st.integers(0, seqs))
    return StepWork(tokens, seqs, 7 * tokens, 2 * tokens, n, context, rows, 3 * n)


@given(works(), st.integers(2, 8), st.integers(0, 5))
def test_one_step_and_columns_of_it_agree(work, parts, more):
    pieces = work.prefill_seqs + (more if work.prefill_seqs else 0)
    one = largest_share(work, parts, pieces)
    many = largest_shares(columns_of(work), parts, np.array([float(pieces)]))
    for name, column in columns_of(one).items():
        assert column == pytest.approx(many[name], rel=1e-12), name


@given(works(), st.integers(2, 8))
def test_shares_of_all_parts_cover_the_step(work, parts):
    one = largest_share(work, parts, work.prefill_seqs)
    for name in (
        "prefill_tokens",
        "prefill_seqs",
        "n_decode",
        "attention_pairs",
        "prefill_kv_tokens",
        "generated_tokens",
    ):
        assert parts * getattr(one, name) >= getattr(work, name) * (1 - 1e-12), name
    assert one.logits_rows >= one.n_decode


def test_a_breakdown_of_one_leaves_out_what_takes_no_time():
    def explain_many(columns):
        assert set(columns) == {*StepWork._fields, "context_tokens_1"}
        n = columns["n_decode"]
        return {"gemm": {"compute": n, "latency": 0 * n}, "moe": {"compute": 0 * n}}, 2 * n, 3 * n

    cost = explained(explain_many, StepWork(n_decode=4, context_tokens=(40, 8)))
    assert (cost.seconds, cost.flops, cost.hbm_bytes) == ({"gemm": {"compute": 4.0}}, 8.0, 12.0)


def test_breakdowns_add_up_row_by_row():
    seconds = {"gemm": {"compute": np.array([1.0, 2.0])}}
    add_seconds(
        seconds,
        {"gemm": {"compute": np.array([1.0, 1.0])}, "comm": {"comm": np.array([5.0, 5.0])}},
        np.array([2.0, 0.0]),
    )
    assert seconds["gemm"]["compute"].tolist() == [3.0, 2.0]
    assert seconds["comm"]["comm"].tolist() == [10.0, 0.0]
