"""The engine against a naive vLLM V1 (`naive_engine.py`) on random small worlds: every figure the same to 1e-9."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from .engine_kit import Affine, by_index, run, trace
from .naive_engine import Ask, NaiveEngine, Rules

COST = Affine(0.11, 0.0123, 3.1e-4, 1.7e-5)


@dataclass(frozen=True)
class World:
    """A trace whose prompts share prefixes, and a replica that is too small for it."""

    arrivals: tuple[float, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    families: tuple[int, ...]
    shared: tuple[int, ...]  # leading trace blocks that belong to the family
    trace_block: int
    block_size: int
    blocks: int
    seats: int
    budget: int
    threshold: int
    depth: int
    caching: bool
    timeout_s: float | None

    @property
    def ids(self) -> list[list[int]]:
        """Chained ids: the family's for the shared trace blocks, then the request's own."""
        out = []
        for i, (n, family, shared) in enumerate(zip(self.inputs, self.families, self.shared, strict=True)):
            count = -(-n // self.trace_block)
            whole = n // self.trace_block
            out.append(
                [
                    1000 * family + b if b < min(shared, whole) else 100_000 + 1000 * i + b
                    for b in range(count)
                ]
            )
        return out


@st.composite
def worlds(
    draw, *, trace_blocks=(4, 8, 16), block_sizes=(4, 8, 16), timeouts=(None,), budgets=(6, 24, 10_000)
):
    n = draw(st.integers(1, 14))
    column = lambda s: tuple(draw(st.lists(s, min_size=n, max_size=n)))  # noqa: E731
    gaps = column(st.sampled_from([0.0, 0.0, 0.0137, 0.377, 2.91]))
    seats = draw(st.sampled_from([1, 2, 3, 6]))
    size = draw(st.sampled_from(block_sizes))
    inputs = column(st.integers(1, 60))
    return World(
        arrivals=tuple(np.cumsum(gaps).tolist()),
        inputs=inputs,
        outputs=column(st.integers(1, 25)),
        families=column(st.integers(0, 2)),
        shared=column(st.integers(0, 12)),
        trace_block=draw(st.sampled_from([t for t in trace_blocks if t <= size])),
        block_size=size,
        blocks=draw(st.integers(1 + -(-84 // size), 2 + -(-150 // size))),
        seats=seats,
        budget=max(draw(st.sampled_from(budgets)), seats),
        threshold=draw(st.sampled_from([0, 0, 5])),
        depth=draw(st.integers(0, 1)),
        caching=draw(st.booleans()),
        timeout_s=draw(st.sampled_from(timeouts)),
    )


def engine(world: World, **kw):
    rows = list(zip(world.arrivals, world.inputs, world.outputs, strict=True))
    t = trace(rows, world.ids, world.trace_block) if world.caching else trace(rows)
    settings = {
        "depth": world.depth,
        "caching": world.caching,
        "block_size": world.block_size,
        "kv_blocks": world.blocks,
        "max_num_seqs": world.seats,
        "max_num_batched_tokens": world.budget,
        "long_prefill_token_threshold": world.threshold,
        "client_timeout_s": world.timeout_s,
        "record_steps": True,
    }
    return run(t, kw.pop("cost", COST), **(settings | kw))


def naive(world: World, rules: Rules = Rules(), **kw) -> NaiveEngine:  # noqa: B008
    asks = []
    for i, (at, n, m) in enumerate(zip(world.arrivals, world.inputs, world.outputs, strict=True)):
        ids, tb, bs = world.ids[i], world.trace_block, world.block_size
        contents = [(ids[((b + 1) * bs - 1) // tb], b) for b in range(n // bs)] if world.caching else []
        asks.append(Ask(i, at, n, m, contents))
    settings = {
        "n_blocks": world.blocks,
        "block_size": world.block_size,
        "max_num_seqs": world.seats,
        "budget": world.budget,
        "threshold": world.threshold,
        "caching": world.caching,
        "depth": world.depth,
        "timeout_s": inf if world.timeout_s is None else world.timeout_s,
        "rules": rules,
    }
    out = NaiveEngine(asks, kw.pop("cost", COST).step_s, **(settings | kw))
    out.run()
    return out


def gaps_of(result) -> np.ndarray:
    g = result.gaps
    rows = zip(g.first_s, g.delta_s, g.n, g.weight, strict=True)
    parts = [np.repeat(f + d * np.arange(n), w) for f, d, n, w in rows]
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0)


def same(result, other: NaiveEngine) -> None:
    got = by_index(result)
    want = sorted(other.asks, key=lambda a: a.index)
    close = lambda a, b, what: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=what)  # noqa: E731
    close(got["status"], [a.status for a in want], "status")
    seen = lambda a, t: t if t <= a.finish_s else np.nan  # noqa: E731 - while its client was there
    close(got["scheduled_s"], [seen(a, a.scheduled_s) for a in want], "scheduled")
    close(got["first_token_s"], [seen(a, (a.token_s or [np.nan])[0]) for a in want], "first token")
    close(got["finish_s"], [a.finish_s for a in want], "finish")
    close(got["output_tokens"], [a.emitted for a in want], "output tokens")
    close(got["cached_tokens"], [a.cached or 0 for a in want], "cached tokens")
    close(got["preemptions"], [a.preemptions for a in want], "preemptions")
    close(gaps_of(result), np.sort(np.concatenate([np.diff(a.token_s) for a in want])), "gaps")
    # with an async pipeline the peak may or may not count what leaves while the next step's blocks are taken
    during = max([step.held for step in other.steps], default=0)
    assert during <= result.kv["peak_used_blocks"] <= other.pool.peak
    if other.pool.caching:
        assert result.kv["hit_tokens"] == other.hits
        assert result.kv["query_tokens"] == other.queried
    same_steps(result, other)
    away = result.preemptions[["request_index", "preempted_s", "resumed_s"]].to_numpy()
    close(away, np.array(other.preempted, dtype=float).reshape(-1, 3), "preemption table")


def same_steps(result, other: NaiveEngine) -> None:
    s = result.steps.sort_values("start_s", kind="stable")
    j = np.concatenate([np.arange(n) for n in s["n_steps"]]) if len(s) else np.zeros(0)
    s = s.loc[s.index.repeat(s["n_steps"])]
    got = np.column_stack(
        [
            s["start_s"] + j * s["first_s"] + s["delta_s"] * j * (j - 1) / 2,
            s["first_s"] + j * s["delta_s"],
            s["prefill_tokens"],
            s["prefill_seqs"],
            s["attention_pairs"],
            s["prefill_kv_tokens"],
            s["n_decode"],
            s["context_tokens"] + j * s["n_decode"],
            s["logits_rows"],
        ]
    )
    want = [
        (t.start_s, t.duration_s, t.work.prefill_tokens, t.work.prefill_seqs, t.work.attention_pairs,
         t.work.prefill_kv_tokens, t.work.n_decode, t.work.context_tokens[0], t.work.logits_rows)
        for t in other.steps
    ]  # fmt: skip
    np.testing.assert_allclose(got, np.array(want, dtype=float).reshape(-1, 9), rtol=1e-9, atol=1e-9)


def world(inputs, outputs, *, arrivals=None, shared=None, families=None, **kw) -> World:
    """A world by hand; by default everything arrives at once and nothing is shared."""
    n = len(inputs)
    columns = {
        "arrivals": arrivals or (0.0,) * n,
        "shared": shared or (0,) * n,
        "families": families or (0,) * n,
    }
    limits = {
        "trace_block": 4,
        "block_size": 4,
        "threshold": 0,
        "depth": 0,
        "caching": True,
        "timeout_s": None,
    }
    return World(inputs=inputs, outputs=outputs, **columns, **(limits | kw))


DECODES_TAKE_ITS_PREFIX = world(
    (1,) * 11 + (16, 52), (1,) * 10 + (9, 7, 2), blocks=22, seats=3, budget=24, depth=1
)
BLOCKED_UNTIL_ITS_PREFIX_IS_GONE = world(
    (1, 1, 1, 1, 1, 42, 1, 2, 1, 21),
    (1, 10, 13, 1, 1, 25, 1, 16, 1, 5),
    block_size=8,
    blocks=13,
    seats=3,
    budget=24,
)
ALONE_AND_GIVES_WAY = world(
    (41, 41) + (1,) * 8,
    (23,) + (1,) * 9,
    block_size=8,
    blocks=12,
    seats=2,
    budget=6,
    threshold=5,
    depth=1,
    caching=False,
)


@settings(max_examples=150, deadline=None)
@given(worlds())
@example(DECODES_TAKE_ITS_PREFIX)
@example(BLOCKED_UNTIL_ITS_PREFIX_IS_GONE)
@example(ALONE_AND_GIVES_WAY)
def test_the_engine_does_what_vllm_v1_does(world):
    same(engine(world), naive(world))


@settings(max_examples=60, deadline=None)
@given(worlds(timeouts=(0.2517, 0.7531, 2.1234)))
def test_clients_that_give_up_are_heard_of_as_arrivals_are(world):
    same(engine(world), naive(world))
