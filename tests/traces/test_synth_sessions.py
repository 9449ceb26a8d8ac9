"""Sessions, agents and closed-loop users: block ids are prefix chains, turns follow their laws."""

from itertools import pairwise

import numpy as np
import pytest
from stepline.traces.errors import ConfigError
from stepline.traces.synth import Profile, synth
from stepline.traces.synth.conversations import Draws
from stepline.traces.synth.laws import Uniform
from stepline.traces.synth.measure import ks_distance
from stepline.traces.synth.tables import quantile_table

SESSION = {
    "kind": "sessions", "arrivals": {"kind": "renewal", "rate_per_s": 1.0}, "first_input": 2000, "outputs": 100,
    "continue_first": 0.5, "continue_later": [0.5], "gap_s": {"kind": "uniform", "low": 5, "high": 15},
    "append": 1.0, "append_delta": 0, "branch_ratio": 1.0, "branch_kept_frac": 0.5, "block_size": 100,
}  # fmt: skip
AGENT = {
    "kind": "agents", "arrivals": {"kind": "renewal", "rate_per_s": 0.2}, "turns": 4, "first_input": 1000,
    "growth": 250, "outputs": 50, "think_s": 3, "block_size": 100, "service": {"base_s": 1, "per_output_token_s": 0.1},
}  # fmt: skip


def make(workload, **options):
    return synth(
        Profile(name="t", duration_s=2000.0, source="test", workload=workload), **({"seed": 1} | options)
    )


def by_session(trace):
    rows = {}
    for i, name in enumerate(trace.columns["session_id"]):
        rows.setdefault(name, []).append(i)
    return rows


def assert_chained(trace):
    """Each row has ⌈input/size⌉ ids, and an id always follows the same id: equal id, equal whole prefix."""
    before = {}
    for i in range(len(trace)):
        ids = trace.hash_ids.row(i)
        assert len(ids) == -(-int(trace.input_tokens[i]) // int(trace.block_size[i]))
        assert len(set(ids)) == len(ids)
        for last, block in zip((None, *ids), ids, strict=False):
            assert before.setdefault(block, last) == last


@pytest.mark.parametrize("name", ["mooncake_conv", "claude_code"])
def test_ids_of_shipped_profiles_are_prefix_chains(name):
    assert_chained(synth(name, seed=4, n_requests=1500))


def test_ids_are_small_numbers_in_order_of_appearance():
    trace = make(SESSION | {"warmup_s": 500.0, "systems": [{"blocks": 2, "weight": 1}]})
    first_seen = list(dict.fromkeys(trace.hash_ids.values.tolist()))
    assert sorted(first_seen) == list(range(len(first_seen)))
    assert_chained(trace)


def test_an_appended_turn_keeps_all_whole_blocks_of_the_last_prompt_and_grows_by_its_output():
    trace = make(SESSION)
    for rows in by_session(trace).values():
        for a, b in pairwise(rows):
            assert trace.input_tokens[b] == trace.input_tokens[a] + trace.output_tokens[a]
            whole = int(trace.input_tokens[a]) // 100
            assert trace.hash_ids.row(b)[:whole] == trace.hash_ids.row(a)[:whole]
            assert 5.0 <= trace.arrival_s[b] - trace.arrival_s[a] <= 15.0


def test_a_branch_keeps_the_share_of_blocks_it_is_told():
    trace = make(SESSION | {"append": 0.0})
    for rows in by_session(trace).values():
        for a, b in pairwise(rows):
            shared = [x == y for x, y in zip(trace.hash_ids.row(a), trace.hash_ids.row(b), strict=True)]
            assert shared == [True] * 10 + [False] * 10


def test_turns_follow_the_chance_to_continue():
    trace = make(SESSION, duration_s=20_000.0)
    turns = np.array([len(rows) for rows in by_session(trace).values()])
    assert turns.mean() == pytest.approx(2.0, abs=4 * turns.std() / np.sqrt(len(turns)))


def test_a_warm_trace_begins_in_mid_traffic():
    cold, warm = make(SESSION), make(SESSION | {"warmup_s": 300.0})
    early = [int((trace.arrival_s < 10).sum()) for trace in (cold, warm)]
    assert early[1] > early[0]
    assert len(warm) / 2000 == pytest.approx(2.0, rel=0.1)  # one session a second, two turns each
    assert min(turn for turn, t in zip(warm.columns["turn"], warm.arrival_s, strict=True) if t < 10) == 0
    assert max(turn for turn, t in zip(warm.columns["turn"], warm.arrival_s, strict=True) if t < 5) > 0


def test_first_prompts_can_change_with_time():
    trace = make(SESSION | {"first_input": [[1000, 500], [1e9, 900]]})
    first = np.array(trace.columns["turn"]) == 0
    assert set(trace.input_tokens[first & (trace.arrival_s < 1000)]) == {500}
    assert set(trace.input_tokens[first & (trace.arrival_s >= 1000)]) == {900}


def test_system_prompts_are_shared_by_their_weight():
    systems = [{"blocks": 3, "weight": 3}, {"blocks": 5, "weight": 1}]
    trace = make(SESSION | {"systems": systems, "continue_first": 0.0})
    lead = np.array([trace.hash_ids.row(i)[0] for i in range(len(trace))])
    names, counts = np.unique(lead, return_counts=True)
    assert len(names) == 2
    assert counts.max() / counts.sum() == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / len(trace)))
    by_lead = {name: {trace.hash_ids.row(i)[:5] for i in np.flatnonzero(lead == name)} for name in names}
    big, small = names[np.argmax(counts)], names[np.argmin(counts)]
    assert len({ids[:3] for ids in by_lead[big]}) == 1
    assert len({ids[:4] for ids in by_lead[big]}) > 1
    assert len(by_lead[small]) == 1


def test_an_agent_takes_its_turns_with_think_time_between():
    trace = make(AGENT)
    whole = [rows for rows in by_session(trace).values() if trace.arrival_s[rows[0]] < 1900]
    for rows in whole:
        assert [trace.columns["turn"][i] for i in rows] == [0, 1, 2, 3]
        assert trace.input_tokens[rows].tolist() == [1000, 1250, 1500, 1750]
        assert [trace.columns["delay_s"][i] for i in rows] == [None, 3.0, 3.0, 3.0]
        np.testing.assert_allclose(np.diff(trace.arrival_s[rows]), 1 + 50 * 0.1 + 3, atol=1e-6)
        assert trace.hash_ids.row(rows[2])[:12] == trace.hash_ids.row(rows[1])[:12]


def test_contexts_are_compacted_at_their_limit_and_keep_what_they_are_told():
    spec = AGENT | {"max_input_tokens": 1600, "compact_frac": 0.5, "break_kept_blocks": 4, "turns": 8}
    trace = make(spec)
    rows = next(r for r in by_session(trace).values() if len(r) == 8)
    assert trace.input_tokens[rows].tolist() == [1000, 1250, 1500, 750, 1000, 1250, 1500, 750]
    before, after = trace.hash_ids.row(rows[2]), trace.hash_ids.row(rows[3])
    assert before[:4] == after[:4]
    assert not set(before[4:]) & set(after[4:])


def test_sessions_end_at_their_number_and_their_age():
    assert len(by_session(make(AGENT | {"sessions": 7}))) == 7
    aged = make(AGENT | {"turns": 100, "max_session_s": 30.0})
    spans = [np.ptp(aged.arrival_s[rows]) for rows in by_session(aged).values()]
    assert max(spans) <= 30.0
    assert max(spans) > 20.0


def test_the_session_share_makes_sessions_differ():
    law = {"kind": "lognormal", "median": 10, "sigma": 1}
    spreads = []
    for share in (0.0, 0.8):
        trace = make(
            AGENT | {"think_s": law, "turns": 20, "session_frac": {"think_s": share}}, duration_s=20_000.0
        )
        sessions = [r for r in by_session(trace).values() if len(r) == 20]
        spreads.append(
            np.std([np.mean([np.log(trace.columns["delay_s"][i]) for i in r[1:]]) for r in sessions])
        )
    assert spreads[1] > 2.5 * spreads[0]


def test_sessions_with_a_law_of_all_prompts_come_near_it():
    spread = {"first_input": {"kind": "uniform", "low": 500, "high": 5000}, "sessions": 60}
    turns = {
        "turns": {"kind": "uniform", "low": 1, "high": 9},
        "growth": {"kind": "exponential", "mean": 400},
    }
    free = make(AGENT | spread | turns, duration_s=5000.0)
    wanted = make(AGENT | spread | turns | {"sessions": 1500}, seed=7, duration_s=50_000.0).input_tokens
    even = make(AGENT | spread | turns | {"inputs": quantile_table(wanted, 0.003)}, duration_s=5000.0)
    assert ks_distance(even.input_tokens, wanted) < 0.03 < ks_distance(free.input_tokens, wanted)


def test_scores_of_a_session_hang_together_as_told():
    ties = np.eye(5)
    ties[0, 1] = ties[1, 0] = 0.95
    laws = {
        key: {"kind": "uniform", "low": 1, "high": high}
        for key, high in (("turns", 30), ("first_input", 900))
    }
    trace = make(AGENT | laws | {"correlation": ties.tolist()}, duration_s=4000.0)
    rows = [r for r in by_session(trace).values() if trace.arrival_s[r[0]] < 3000]
    turns, first = [len(r) for r in rows], [trace.input_tokens[r[0]] for r in rows]
    assert np.corrcoef(turns, first)[0, 1] > 0.85


def test_an_early_prompt_does_not_wait_for_answer_and_pause():
    trace = make(AGENT | {"early_chance": [[3, 0], [1e9, 1]], "early_gap_s": 2, "think_s": 3})
    late = make(AGENT | {"early_chance": [[4, 0], [1e9, 1]], "early_gap_s": 2, "think_s": 3})
    gaps = [
        {round(float(g), 6) for r in by_session(t).values() for g in np.diff(t.arrival_s[r])}
        for t in (trace, late)
    ]
    assert gaps == [{2.0}, {9.0}]


def test_even_draws_give_each_part_of_their_law_in_turn():
    draws = Draws(Uniform(0.0, 1.0), np.random.Generator(np.random.PCG64(1)), even=8)
    values = [[draws() for _ in range(8)] for _ in range(600)]
    assert all(sorted(int(8 * v) for v in part) == list(range(8)) for part in values)
    assert len({tuple(int(8 * v) for v in part) for part in values}) > 500


def test_users_are_never_more_than_their_number_and_think_between_requests():
    lengths = {"kind": "independent", "input": {"kind": "uniform", "low": 1, "high": 9}, "output": 3}
    service = {"base_s": 2, "per_output_token_s": 0}
    workload = {
        "kind": "users",
        "users": 5,
        "within_s": 10.0,
        "think_s": 4,
        "service": service,
        "lengths": lengths,
    }
    trace = make(workload, n_requests=200)
    rows = by_session(trace)
    assert len(rows) == 5
    assert sorted(trace.arrival_s[r[0]] for r in rows.values()) == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert trace.hash_ids is None
    assert all(np.allclose(np.diff(trace.arrival_s[r]), 6.0) for r in rows.values())
    assert len(set(trace.input_tokens.tolist())) == 9
    assert {trace.columns["delay_s"][i] for r in rows.values() for i in r[1:]} == {4.0}


def test_users_who_come_back_start_anew():
    arrivals = {"kind": "users", "count": 3}
    trace = make(AGENT | {"arrivals": arrivals, "restart_s": 60}, duration_s=500.0)
    rows = by_session(trace)
    assert set(rows) == {"s0", "s1", "s2"}
    for r in rows.values():
        starts = [i for i in r if trace.columns["turn"][i] == 0]
        assert len(starts) >= 5
        assert all(trace.input_tokens[i] == 1000 for i in starts)
        first_ids = [set(trace.hash_ids.row(i)) for i in starts]
        assert not set.intersection(*first_ids)
        assert {trace.columns["delay_s"][i] for i in starts[1:]} == {60.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"continue_later": [1.0]}, "continue_later[0]: got 1.0"),
        ({"append": 1.5}, "append[0]: got 1.5"),
        ({"append": [[10, 0.5], [5, 0.5]]}, "append bounds"),
        ({"systems": [{"blocks": 2}]}, "systems[0]: got"),
        ({"block_size": 0}, "block_size: got 0"),
        ({"warmup_s": -1}, "warmup_s: got -1"),
    ],
)
def test_wrong_sessions_are_refused(change, message):
    with pytest.raises(ConfigError) as caught:
        make(SESSION | change)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"session_frac": {"growth": 2}}, "session_frac.growth: got 2"),
        ({"session_frac": {"grwth": 0.2}}, "session_frac: unknown key 'grwth'"),
        ({"break_chance": -0.1}, "break_chance: got -0.1"),
        ({"service": {"base": 1}}, "service: unknown key 'base'"),
        ({"sessions": 0}, "sessions: got 0"),
        ({"candidates": 0}, "candidates: got 0"),
        ({"early_chance": 1.5}, "early_chance[0]: got 1.5"),
        ({"correlation": [[1.0]]}, "correlation: got [[1.0]]"),
        ({"correlation": np.ones((5, 5)).tolist()}, "positive definite"),
        ({"max_session_s": 0}, "max_session_s: got 0"),
    ],
)
def test_wrong_agents_are_refused(change, message):
    with pytest.raises(ConfigError) as caught:
        make(AGENT | change)
    assert message in str(caught.value)
