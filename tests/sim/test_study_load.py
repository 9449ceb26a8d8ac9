"""Other arrival rates: thinning, cloning, squeezing."""

from __future__ import annotations

import numpy as np
import pytest

from stepline.sim.study.load import CLONE_SHIFT_S, scaled
from stepline.traces.errors import ConfigError
from stepline.traces.request import Request
from stepline.traces.trace import Trace


def sessions(n: int, turns: int = 3) -> Trace:
    """`n` sessions of some turns; id 0 is shared by all, the others are the session's own."""
    rows = [
        Request(
            f"r{s}-{t}", 10.0 * s + t, 48, 5, hash_ids=(0, 100 + 10 * s, 101 + 10 * s + t), block_size=16,
            session_id=f"s{s}", delay_s=1.0 if t else None, turn=t,
        )
        for s in range(n)
        for t in range(turns)
    ]  # fmt: skip
    return Trace.from_requests(rows, source="made")


def test_factor_one_is_the_same_trace():
    trace = sessions(3)
    assert scaled(trace, 1.0) is trace


def test_thinning_keeps_whole_sessions_and_the_rate():
    thin = scaled(sessions(2000), 0.25, seed=1)
    names, turns = np.unique(thin.columns["session_id"], return_counts=True)
    assert set(turns) == {3}
    assert len(names) == pytest.approx(500, abs=4 * np.sqrt(2000 * 0.25 * 0.75))
    assert (np.diff(thin.arrival_s) >= 0).all()


def test_cloning_gives_each_clone_names_and_private_blocks_of_its_own():
    more = scaled(sessions(40), 3.0, seed=1)
    assert len(more) == 360
    assert len(set(more.columns["request_id"])) == 360
    assert len(set(more.columns["session_id"])) == 120
    users: dict[int, set[str]] = {}
    for request in more:
        for block in request.hash_ids or ():
            users.setdefault(block, set()).add(request.session_id or "")
    assert len(users.pop(0)) == 120, "the shared prefix stays shared"
    assert {len(u) for u in users.values()} == {1}, "private blocks are never shared with a clone"


def test_clones_move_as_a_whole_and_stay_near_their_original():
    more = scaled(sessions(40), 2.0, seed=3)
    starts = {r.session_id: r.arrival_s for r in reversed(list(more))}
    for session, start in starts.items():
        own = [r.arrival_s for r in more if r.session_id == session]
        assert np.diff(own) == pytest.approx([1.0, 1.0])
        assert abs(start - 10.0 * int(session[1:].split("~")[0])) <= CLONE_SHIFT_S
    assert more.arrival_s.min() >= 0


def test_squeezing_divides_times_and_delays():
    fast = scaled(sessions(3), 2.0, "compress")
    assert fast.arrival_s[-1] == 11.0
    assert set(fast.columns["delay_s"]) == {None, 0.5}
    assert len(fast) == 9


def test_fractional_cloning_hits_the_rate_on_average():
    assert len(scaled(sessions(2000, turns=1), 1.5, seed=2)) == pytest.approx(
        3000, abs=4 * np.sqrt(2000 * 0.25)
    )


def test_the_same_seed_gives_the_same_requests():
    a, b, c = (scaled(sessions(100), 1.7, seed=s) for s in (5, 5, 6))
    assert a.columns["request_id"] == b.columns["request_id"]
    assert np.array_equal(a.arrival_s, b.arrival_s)
    assert a.columns["request_id"] != c.columns["request_id"]


def test_thinning_everything_away_is_an_error():
    with pytest.raises(ConfigError, match="--rate-scale: 1e-09 leaves no request of 3"):
        scaled(sessions(1), 1e-9)
