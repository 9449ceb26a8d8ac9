"""Slicing, rate scaling, spreading a coarse clock: what stays, what changes, by how much."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from stepline.traces import rate_scale, read_trace, slice_trace, spread_quantum
from stepline.traces.conversations import conversation_numbers
from stepline.traces.describe import describe
from stepline.traces.errors import ConfigError
from stepline.traces.request import Request
from stepline.traces.ticks import quantum_of
from stepline.traces.trace import Trace

SHARED = Path(__file__).parents[2] / ".." / "shared" / "traces"


def poisson(n=4000, rate_per_s=5.0, seed=1, **columns):
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1 / rate_per_s, n))
    return Trace(at_s, rng.integers(1, 900, n), rng.integers(1, 90, n), columns=columns)


def sessions(n=60, turns=5):
    """Sessions of chained turns, all beginning with the shared block 0."""
    rows = []
    for s in range(n):
        ids = [0]
        for turn in range(turns):
            ids.append(1000 * (s + 1) + turn)
            rows.append(Request(
                f"{s}.{turn}", 20.0 * s + 3.0 * turn, 16 * len(ids), 4, hash_ids=tuple(ids), block_size=16,
                session_id=f"s{s}", turn=turn, delay_s=2.0 if turn else None,
                parent_id=f"{s}.{turn - 1}" if turn else None,
            ))  # fmt: skip
    return Trace.from_requests(rows)


def without(trace, name):
    columns = {k: v for k, v in trace.columns.items() if k != name}
    return Trace(
        trace.arrival_s,
        trace.input_tokens,
        trace.output_tokens,
        trace.hash_ids,
        None,
        trace.block_size,
        columns,
    )


def test_a_slice_keeps_a_span_and_starts_at_zero():
    trace = Trace.from_requests([Request(str(i), i * 1.0, 10 + i, 1) for i in range(10)])
    part = slice_trace(trace, 3.0, 8.0, rows=4)
    assert part.arrival_s.tolist() == [0, 1, 2, 3]
    assert part.input_tokens.tolist() == [13, 14, 15, 16]
    assert [r.request_id for r in part] == ["3", "4", "5", "6"]
    assert slice_trace(trace, rows=2).arrival_s.tolist() == [0, 1]


@pytest.mark.parametrize("bounds", [(20.0, None, None), (3.0, 3.0, None), (0.0, None, 0)])
def test_an_empty_slice_is_refused(bounds):
    trace = Trace.from_requests([Request("0", 1.0, 1, 1)])
    with pytest.raises(ConfigError, match=r"slice: no request|--rows: got 0"):
        slice_trace(trace, *bounds)


def test_compressing_divides_times_and_delays():
    scaled = rate_scale(sessions(), 4.0, "compress")
    assert scaled.arrival_s[-1] == sessions().arrival_s[-1] / 4
    assert {d for d in scaled.columns["delay_s"] if d is not None} == {0.5}
    assert len(scaled) == len(sessions())


@pytest.mark.parametrize("factor", [0.3, 1.7, 3.0])
def test_scaling_a_poisson_stream_gives_a_poisson_stream_of_the_new_rate(factor):
    trace = poisson()
    scaled = rate_scale(trace, factor, seed=3)
    assert abs(len(scaled) - factor * len(trace)) <= 4 * (factor * len(trace)) ** 0.5
    assert scaled.arrival_s[-1] <= trace.arrival_s[-1]
    assert (np.diff(scaled.arrival_s) >= 0).all()
    short = describe(scaled)["windows"][0]["dispersion"]
    assert short == pytest.approx(1.0, abs=4 * (2 / scaled.arrival_s[-1]) ** 0.5)


def test_whole_sessions_are_thinned_with_their_think_times_and_reuse():
    trace = sessions()
    thin = rate_scale(trace, 0.5, seed=2)
    kept = set(thin.columns["session_id"])
    assert 15 < len(kept) < 45
    assert len(thin) == 5 * len(kept)
    assert {d for d in thin.columns["delay_s"] if d is not None} == {2.0}
    assert set(np.diff([r.arrival_s for r in thin if r.session_id == next(iter(kept))])) == {3.0}


def test_clones_are_sessions_of_their_own_that_share_only_what_sessions_shared():
    trace = sessions()
    more = rate_scale(trace, 3.0, seed=2)
    assert len(more) == 3 * len(trace)
    assert len(set(more.columns["session_id"])) == 180
    assert len(set(more.columns["request_id"])) == len(more)
    by_session = {}
    for r in more:
        by_session.setdefault(r.session_id, []).append(r)
    for turns in by_session.values():
        assert [r.turn for r in turns] == [0, 1, 2, 3, 4]
        assert all(r.hash_ids[0] == 0 for r in turns)
        assert all(r.hash_ids == turns[-1].hash_ids[: len(r.hash_ids)] for r in turns)
        assert all(r.parent_id == p.request_id for p, r in itertools.pairwise(turns))
    last = [turns[-1].hash_ids[1:] for turns in by_session.values()]
    assert len({i for ids in last for i in ids}) == sum(map(len, last))
    before, after = (describe(t)["reuse"]["ideal_hit_token_frac"] for t in (trace, more))
    assert after == pytest.approx(before, abs=0.02)


def test_conversations_are_inferred_from_chained_ids():
    trace = sessions()
    stated = conversation_numbers(trace)
    inferred = conversation_numbers(without(trace, "session_id"))
    # the first turn of each session shares only the system prompt, half of the one before it: that is no conversation
    assert len(set(stated.tolist())) == 60
    pairs = set(zip(stated.tolist(), inferred.tolist(), strict=True))
    assert len({s for s, _ in pairs}) == 60
    assert all(len({i for s, i in pairs if s == k}) == 1 for k in range(60))


def test_scaling_is_a_function_of_its_seed():
    trace = poisson(500)
    one, same, other = (rate_scale(trace, 1.5, seed=s).arrival_s.tolist() for s in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(
    ("factor", "mode", "message"),
    [(0.0, "sessions", "--rate-scale: got"), (float("nan"), "sessions", "--rate-scale: got"),
     (float("inf"), "compress", "--rate-scale: got"), (2.0, "session", "did you mean 'sessions'"),
     (1e-12, "sessions", "leaves none of")],
)  # fmt: skip
def test_wrong_scales_are_refused(factor, mode, message):
    with pytest.raises(ConfigError, match=message):
        rate_scale(poisson(5), factor, mode)


def ticking(per_tick=8, ticks=200, quantum_s=3.0):
    rng = np.random.default_rng(5)
    counts = rng.poisson(per_tick, ticks)
    at_s = np.repeat(np.arange(ticks) * quantum_s, counts)
    return Trace(at_s, np.arange(1, len(at_s) + 1), np.ones(len(at_s), dtype=np.int64))


def test_spreading_a_tick_makes_poisson_arrivals_in_the_same_order():
    trace = ticking()
    assert quantum_of(trace.arrival_s) == 3.0
    smooth = spread_quantum(trace, seed=1)
    assert smooth.input_tokens.tolist() == trace.input_tokens.tolist()
    assert (np.diff(smooth.arrival_s) >= 0).all()
    assert (np.floor(smooth.arrival_s / 3.0) == trace.arrival_s / 3.0).all()
    assert quantum_of(smooth.arrival_s) is None
    dispersion = describe(smooth)["windows"][0]["dispersion"]
    assert dispersion == pytest.approx(1.0, abs=4 * (2 / 600) ** 0.5)
    assert describe(trace)["windows"][0]["dispersion"] > 4
    assert spread_quantum(trace, seed=1).arrival_s.tolist() == smooth.arrival_s.tolist()


def test_spreading_a_fine_clock_is_refused_unless_the_tick_is_given():
    with pytest.raises(ConfigError, match="do not tick coarsely"):
        spread_quantum(poisson(100))
    with pytest.raises(ConfigError, match="got -1"):
        spread_quantum(poisson(100), -1.0)
    assert len(spread_quantum(poisson(100), 0.5)) == 100


@pytest.mark.parametrize("rate_per_s", [0.2, 1.0, 20.0])
def test_ticks_are_found_at_every_rate_and_only_where_there_are_any(rate_per_s):
    at_s = poisson(3000, rate_per_s).arrival_s
    assert quantum_of(np.floor(at_s)) == 1.0
    assert quantum_of(at_s) is None
    assert quantum_of(np.arange(100) / rate_per_s) is None
    assert quantum_of(np.zeros(100)) is None


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real traces are not here")
def test_the_mooncake_cut_is_spread_without_its_sidecar_too(tmp_path):
    copy = tmp_path / "m.jsonl.gz"
    copy.write_bytes((SHARED / "mooncake_conversation_first10min.jsonl.gz").read_bytes())
    trace = read_trace(copy)
    assert any("tick every 3 s" in warning and "--spread-quantum" in warning for warning in trace.warnings)
    smooth = spread_quantum(trace, seed=0)
    assert not any("tick" in warning for warning in smooth.warnings)
    assert describe(smooth)["windows"][0]["dispersion"] < 1.5 < describe(trace)["windows"][0]["dispersion"]
