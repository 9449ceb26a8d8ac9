"""The cache-only replay: by hand, against independent reference hit rates, and at the command line."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stepline.sim.cli.main import main
from stepline.sim.engine.plugins import plugin_names
from stepline.sim.study.reuse import GROUP, ceiling, default_capacities, reuse
from stepline.traces.errors import ConfigError
from stepline.traces.reading import read_trace
from stepline.traces.trace import Ragged, Trace

SHARED = Path(__file__).parents[2].parent / "shared" / "traces"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the reference hit rates are not on this machine"
)
NAMES = {"fifo": "fifo", "lru": "lru", "optimal": "oracle-optimal"}
TOLERANCE = 1e-4  # far inside the 0.3 points that are asked for: the rules are the same


def small(rows, block=10):
    """Rows (tokens, ids), one a second."""
    n = len(rows)
    return Trace(
        np.arange(n, dtype=float),
        np.array([t for t, _ in rows], dtype=np.int64),
        np.ones(n, dtype=np.int64),
        hash_ids=Ragged.from_rows([i for _, i in rows]),
        block_size=np.full(n, block, dtype=np.int64),
    )


def test_hits_are_whole_prefixes_and_a_last_partial_block_counts_what_it_has():
    t = small([(25, [1, 2, 3]), (25, [1, 2, 3]), (30, [1, 2, 4]), (30, [9, 2, 4])])
    (point,) = reuse(t, ["lru"], [100])
    assert point.hit_token_frac == pytest.approx((25 + 20 + 0) / 110)
    assert ceiling(t) == point.hit_token_frac


def test_the_tail_of_a_prompt_goes_before_its_head_under_lru_and_after_it_under_fifo():
    t = small([(30, [1, 2, 3]), (30, [1, 2, 3])])
    lru, fifo = reuse(t, ["lru", "fifo"], [2])
    assert lru.hit_token_frac == pytest.approx(20 / 60)
    assert fifo.hit_token_frac == 0


def test_warm_up_requests_are_not_measured():
    t = small([(10, [1]), (10, [2]), (10, [1]), (10, [1])])
    assert reuse(t, ["lru"], [9], warmup_frac=0.5)[0].hit_token_frac == 1.0
    assert reuse(t, ["lru"], [9])[0].hit_token_frac == 0.5


def check_reference(name, smallest_capacity=0):
    reference = json.loads((SHARED / f"{name}.ref_hitrate.json").read_text())
    points = [p for p in reference["points"] if p["cacheBlocks"] >= smallest_capacity]
    trace = read_trace(SHARED / f"{name}.jsonl.gz")
    got = reuse(trace, list(NAMES.values()), [p["cacheBlocks"] for p in points], warmup_frac=0.5)
    rates = {(p.policy, p.capacity_blocks): p.hit_token_frac for p in got}
    for point in points:
        for theirs, ours in NAMES.items():
            want = point["results"][theirs]["hitRate"]
            assert rates[ours, point["cacheBlocks"]] == pytest.approx(want, abs=TOLERANCE), (
                name,
                ours,
                point,
            )
    assert ceiling(trace, 0.5) == pytest.approx(reference["hitRateCeiling"], abs=TOLERANCE)


@needs_shared
def test_reference_hit_rates_of_mooncake_conversation():
    check_reference("mooncake_conversation_first10min")


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["mooncake_synthetic", "claude_code_sessions"])
def test_reference_hit_rates_of_long_traces(name):
    check_reference(name)


# -- the optimum against every way of keeping blocks -------------------------------------------------------------------


def random_rows(seed):
    """Prompts in whole blocks of 10 over a small tree of prefixes, as (tokens, ids)."""
    rng = random.Random(seed)
    paths, ids, rows = [()], {}, []
    for _ in range(rng.randint(4, 9)):
        begun = rng.choice(paths)
        path = (*begun[: rng.randint(0, len(begun))], *[rng.randint(0, 2) for _ in range(rng.randint(1, 2))])[
            :4
        ]
        paths.append(path)
        rows.append((10 * len(path), [ids.setdefault(path[: i + 1], len(ids)) for i in range(len(path))]))
    return rows


def most_hits(rows, capacity):
    """Tokens that hit if every choice of what stays is tried: best hits so far by what the cache holds."""
    best = {frozenset(): 0}
    for _, ids in rows:
        after = {}
        for held, tokens in best.items():
            tokens += 10 * sum(1 for _ in itertools.takewhile(held.__contains__, ids))
            pool = held | set(ids)
            for kept in itertools.combinations(sorted(pool), min(capacity, len(pool))):
                after[frozenset(kept)] = max(after.get(frozenset(kept), 0), tokens)
        best = after
    return max(best.values())


@pytest.mark.parametrize("seed", range(12))
def test_the_optimum_is_the_best_of_all_choices_and_so_of_all_policies(seed):
    rows, capacity = random_rows(seed), 1 + seed % 3
    every = reuse(small(rows), sorted(plugin_names(GROUP)), [capacity])
    tokens = {p.policy: p.hit_token_frac * sum(t for t, _ in rows) for p in every}
    assert tokens["oracle-optimal"] == pytest.approx(most_hits(rows, capacity))
    assert max(tokens.values()) <= tokens["oracle-optimal"] + 1e-9


@pytest.mark.parametrize("policy", sorted(plugin_names(GROUP)))
def test_every_policy_serves_from_one_block_and_from_room_for_all(policy):
    t = small(random_rows(3) * 3)
    one, all_of_it = reuse(t, [policy], [1, 100])
    assert 0 <= one.hit_token_frac < all_of_it.hit_token_frac == ceiling(t)


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def trace_file(tmp_path):
    rows = [
        {"timestamp": 10 * i, "input_length": 1024, "output_length": 5, "hash_ids": [i % 3, 10 + i % 5]}
        for i in range(40)
    ]
    path = tmp_path / "small.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return path


def test_the_command_writes_the_table(trace_file, tmp_path, capsys):
    csv = tmp_path / "out.csv"
    argv = [
        "trace",
        "reuse",
        "--trace",
        str(trace_file),
        "--kv-eviction",
        "lru,lfu:aging=true",
        "--kv-eviction",
        "arc",
    ]
    assert main([*argv, "--capacity-blocks", "2,4", "--csv", str(csv)]) == 0
    table = pd.read_csv(csv)
    assert list(table.columns) == ["policy", "capacity_blocks", "hit_token_frac"]
    assert table["policy"].tolist() == ["lru", "lru", "lfu:aging=true", "lfu:aging=true", "arc", "arc"]
    assert table["capacity_blocks"].tolist() == [2, 4] * 3
    assert table["hit_token_frac"].between(0, 1).all()
    assert "lfu:aging=true" in capsys.readouterr().out


def test_without_capacities_powers_of_two_are_taken(trace_file):
    assert default_capacities(read_trace(trace_file)) == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--kv-eviction", "lri"], "--kv-eviction: unknown name 'lri'; did you mean 'lru'"),
        (["--kv-eviction", ","], "--kv-eviction: got ',', expected a value"),
        (["--capacity-blocks", "0"], "--capacity-blocks: got 0, expected integers >= 1"),
        (["--capacity-blocks", "few"], "--capacity-blocks: got 'few', expected an integer"),
        (["--warmup-frac", "1"], "--warmup-frac: got 1.0, expected a fraction in [0, 1)"),
        (["--csv", "/no/such/place.csv"], "--csv: no directory"),
        (["--capacity", "3"], "unknown option '--capacity'; did you mean '--capacity-blocks'"),
    ],
)
def test_wrong_flags_are_one_line(trace_file, capsys, flags, says):
    assert main(["trace", "reuse", "--trace", str(trace_file), *flags]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_trace_without_ids_is_refused(tmp_path, capsys):
    path = tmp_path / "plain.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 5, "output_length": 5}\n')
    assert main(["trace", "reuse", "--trace", str(path)]) == 2
    assert "no request has hash_ids" in capsys.readouterr().err


def test_mixed_block_sizes_are_refused():
    t = small([(10, [1]), (10, [2])])
    t.block_size[1] = 20
    with pytest.raises(ConfigError, match="block sizes"):
        reuse(t, ["lru"], [4])
