"""Plans: bounds hold, pruning keeps the winner, saturation is a growing queue, prices, the command."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.sim.cli.main import main
from stepline.sim.cost.catalogue import known_gpus, load_gpu
from stepline.sim.report.slo import parse_slo
from stepline.sim.study.config import RunConfig
from stepline.sim.study.executors import Processes
from stepline.sim.study.plan import plan
from stepline.sim.study.plan_bounds import bounds, demand_of, rate_bound
from stepline.sim.study.plan_capacity import Effort, Search, interval
from stepline.sim.study.plan_money import mark_pareto
from stepline.sim.study.plan_probe import Probe, at_rate, mean_rate, pile_up_frac
from stepline.sim.study.plan_report import as_json
from stepline.sim.study.plan_types import Row
from stepline.sim.study.prices import read_prices
from stepline.sim.study.run import simulate_resolved
from stepline.sim.study.setup import resolve
from stepline.traces.errors import ConfigError
from stepline.traces.trace import Trace

from .engine_kit import Affine, run, trace

QUICK = Effort(requests=150, bracket_frac=0.1, least=2, most=2)
SLO = "ttft_p99<1,tpot_p99<0.05"


def load(n=400, rate=8.0, seed=0) -> Trace:
    rng = np.random.default_rng(seed)
    return Trace(
        np.cumsum(rng.exponential(1 / rate, n)), rng.integers(20, 2000, n), rng.integers(2, 250, n), source="made"
    )  # fmt: skip


def choices(gpus=("h100-sxm", "l40s", "a100-80"), tps=(1, 2, 4), policies=("chunked",), slo=SLO):
    return {
        f"{g},{t},{p}": RunConfig(gpu=g, tensor_parallel_size=t, policy=p, slo=slo)
        for g in gpus
        for t in tps
        for p in policies
    }


# -- bounds -------------------------------------------------------------------------------------------------------------


@given(
    hardware=st.sampled_from([("h100-sxm", 1), ("l40s", 4), ("b200", 1)]),
    model=st.sampled_from(["llama-3.1-8b", "qwen3-30b-a3b"]),
    policy=st.sampled_from(["chunked", "continuous", "orca"]),
    lengths=st.tuples(st.integers(1, 3000), st.integers(1, 300)),
)
@settings(max_examples=10, deadline=None)
def test_no_run_is_faster_than_the_bound(hardware, model, policy, lengths):
    """Everything at once: whatever the engine makes of it, it takes at least requests / bound seconds."""
    gpu, tp = hardware
    n = 300
    rng = np.random.default_rng(1)
    burst = Trace(
        np.zeros(n), rng.integers(1, lengths[0] + 1, n), rng.integers(1, lengths[1] + 1, n), source="burst"
    )
    setup = resolve(RunConfig(model=model, gpu=gpu, tensor_parallel_size=tp, policy=policy, engine="ideal"))
    rate = rate_bound(setup.cluster.replicas[0], demand_of(burst, caching=False))
    took = simulate_resolved(burst, setup).requests["finish_s"].max()
    assert n / took <= rate


def test_the_bound_of_a_cached_prompt_leaves_out_what_the_cache_saves():
    ids = [[1, 2, 3], [1, 2, 3], [1, 2, 9], [7]]
    requests = trace([(0, 300, 5), (1, 300, 5), (2, 300, 5), (3, 100, 5)], ids, 100)
    assert demand_of(requests, caching=True).uncached.tolist() == [300, 1, 100, 100]
    assert demand_of(requests, caching=False).uncached.tolist() == [300, 300, 300, 100]


def test_objectives_below_the_floor_are_known_to_be_missed():
    spec = resolve(RunConfig()).cluster.replicas[0]
    demand = demand_of(load(), caching=False)
    assert bounds(spec, demand, parse_slo("tpot_p50<0.004")).misses.startswith("tpot_p50 >= 0.00452")
    assert bounds(spec, demand, parse_slo("tpot_p50<0.02,ttft_p99<1")).misses is None
    assert bounds(spec, demand, parse_slo("ttft_mean<0.005")).misses.startswith("ttft_mean >= 0.0")


def test_a_cost_model_without_flops_has_no_bound():
    spec = replace(resolve(RunConfig()).cluster.replicas[0], cost_model=Affine(0.01))
    assert rate_bound(spec, demand_of(load(), caching=False)) == float("inf")


# -- saturation and search ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "expected"), [(0.5, 0.0), (2.0, 0.5), (4.0, 0.75)])
def test_a_queue_grows_by_what_is_not_served(rate, expected):
    """One seat, one second a request: at twice the capacity half of the arrivals stay behind."""
    rows = [(i / rate, 1, 1) for i in range(400)]
    assert pile_up_frac(run(rows, Affine(1.0), max_num_seqs=1)) == pytest.approx(expected, abs=0.01)


def test_patient_clients_do_not_hide_saturation():
    rows = [(i / 1.2, 1, 1) for i in range(400)]
    assert pile_up_frac(run(rows, Affine(1.0), max_num_seqs=1)) > 0.05


@given(
    edge=st.floats(0.02, 90),
    ceiling=st.sampled_from([100.0, 1000.0]),
    guess=st.floats(0.01, 120),
    step=st.floats(1.05, 2),
)
def test_the_search_brackets_the_edge(edge, ceiling, guess, step):
    search = Search(
        lambda rate: Probe(rate <= edge, None if rate <= edge else "x", {"rate": rate}),
        ceiling,
        ceiling / 1e5,
    )
    found = search.run(guess, step, 0.05)
    assert edge / 1.05 <= found <= edge * 1.05
    assert search.best.figures["rate"] <= edge
    assert search.limit == "x"


def test_a_search_without_an_edge_ends_at_the_ceiling_or_at_nothing():
    assert Search(lambda _: Probe(True, None, {}), 50.0, 0.01).run(3.0, 1.5, 0.1) == 50.0
    assert Search(lambda _: Probe(False, "x", {}), 50.0, 0.01).run(3.0, 1.5, 0.1) == 0.0


def test_the_interval_is_students():
    assert interval([9.0, 10.0, 11.0]) == pytest.approx((10 - 2.4841, 10 + 2.4841), abs=1e-3)
    assert interval([4.0]) == (0.0, float("inf"))


def test_loads_are_samples_at_the_wanted_rate():
    whole = load(400)
    some = at_rate(whole, 20.0, 150, seed=3)
    assert mean_rate(some) == pytest.approx(20.0)
    assert 100 < len(some) < 200
    assert not np.array_equal(some.input_tokens, at_rate(whole, 20.0, 150, seed=4).input_tokens)
    talks = replace(whole, columns={"session_id": [f"s{i // 4}" for i in range(400)]})
    kept = at_rate(talks, 4.0, 300, seed=3)
    assert mean_rate(kept) == pytest.approx(4.0)
    assert {kept.columns["session_id"].count(s) for s in set(kept.columns["session_id"])} == {4}


# -- the plan -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    return plan(load(), choices(), effort=QUICK, max_replicas=8)


def test_the_winner_carries_the_load_and_nothing_cheaper_did(made):
    assert made.winner.ok
    assert made.winner.figures["ttft_p99"] < 1
    for fleet in made.fleets[:-1]:
        assert not fleet.ok or fleet.usd_per_hour >= made.winner.usd_per_hour
    setup = resolve(replace(choices()[made.winner.label], replicas=made.winner.replicas))
    again = simulate_resolved(load(), setup)
    assert (again.requests["status"] == 0).all()


def test_rows_add_up(made):
    row = next(r for r in made.rows if r.replicas)
    price = load_gpu(row.settings["gpu"]).usd_per_hour
    assert row.usd_per_hour == pytest.approx(price * row.gpus)
    tokens_per_hour = made.load_per_s * made.tokens_per_request * 3600
    assert row.usd_per_million_tokens == pytest.approx(row.usd_per_hour / tokens_per_hour * 1e6)
    busy = row.at_load["busy_frac"]
    cost = read_prices().of(load_gpu(row.settings["gpu"]))
    kw = row.gpus * (cost.idle_w + (cost.tdp_w - cost.idle_w) * busy) / 1000
    assert row.kwh_per_million_tokens == pytest.approx(kw / tokens_per_hour * 1e6)
    assert row.low_per_s <= row.rate_per_s <= min(row.high_per_s, row.bound_per_s * 1.05)


@pytest.mark.parametrize(
    "seeds", [(1,), pytest.param((0, 2, 3, 4, 5, 6, 7), marks=pytest.mark.slow)], ids=["one", "more"]
)
def test_pruning_never_drops_the_winner(seeds):
    """Whatever load and objectives: the plan that may prune everything it can ends where the exhaustive one does."""
    pruned = [_pruned_beside_the_exhaustive_plan(seed) for seed in seeds]
    assert max(pruned) > 0, "no load at which there is something to prune: the comparison says nothing"


def _pruned_beside_the_exhaustive_plan(seed: int) -> int:
    rng = np.random.default_rng(seed)
    requests = load(300, rate=float(rng.uniform(2, 30)), seed=seed)
    slo = f"ttft_p99<{rng.uniform(0.3, 2):.2f},tpot_p99<{rng.uniform(0.03, 0.1):.3f}"
    candidates = choices(slo=slo)
    lean = plan(requests, candidates, effort=QUICK, max_price_factor=1.0, max_replicas=16)
    full = plan(requests, candidates, effort=QUICK, max_price_factor=1e9, max_replicas=16)
    assert lean.winner == full.winner
    assert sum(r.status == "pruned" for r in full.rows) == 0
    return sum(r.status == "pruned" for r in lean.rows)


def test_a_plan_does_not_depend_on_its_workers():
    candidates = choices(gpus=("h100-sxm", "l40s"), tps=(1, 2))
    with Processes(2) as pool:
        other = plan(load(), candidates, effort=QUICK, max_replicas=8, executor=pool)
    assert as_json(other) == as_json(plan(load(), candidates, effort=QUICK, max_replicas=8))


def test_candidates_that_cannot_be_are_listed_with_the_reason():
    candidates = choices(gpus=("l40s",), tps=(1, 3)) | {
        "big": RunConfig(model="llama-3.1-70b", gpu="l40s", slo=SLO)
    }
    rows = {r.label: r for r in plan(load(), candidates, effort=QUICK, max_replicas=8).rows}
    assert rows["l40s,3,chunked"].status == "infeasible"
    assert "expected a divisor" in rows["l40s,3,chunked"].why
    assert "does not fit" in rows["big"].why


def test_a_load_beyond_the_largest_fleet_has_no_winner():
    made = plan(load(rate=60.0), choices(gpus=("l40s",), tps=(1,)), effort=QUICK, max_replicas=2)
    assert made.winner is None
    assert "replicas" in made.rows[0].why


def test_calibration_draws_spread_the_rates():
    fine = Effort(requests=150, bracket_frac=0.005, least=2, most=2)
    made = plan(load(), choices(gpus=("h100-sxm",), tps=(1,)), effort=fine, calibration_draws=3)
    table = made.cost_sensitivity
    assert len(table) == 1
    assert (table["lowest_per_s"] < table["highest_per_s"]).all()
    assert table["lowest_per_s"][0] > table["rate_per_s"][0] / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slo": "ttft_p99<9"}, "slo differs"),
        ({"replay": "closed"}, "closed loops have no rate"),
        ({"max_concurrency": 4}, "closed loops have no rate"),
    ],
)
def test_candidates_that_are_no_plan_are_refused(changes, message):
    candidates = choices(tps=(1,))
    with pytest.raises(ConfigError, match=message):
        plan(load(), candidates | {"odd": replace(candidates["l40s,1,chunked"], **changes)})


def test_a_bracket_is_sought_with_few_requests_where_few_say_enough():
    assert (Effort().coarse_requests, Effort(requests=799).coarse_requests) == (1000, 200)
    assert Effort(requests=150).coarse_requests == 0


def test_too_little_to_plan_for_is_refused():
    with pytest.raises(ConfigError, match="40 requests, a plan needs at least 100"):
        plan(load(40), choices())


def test_the_front_holds_who_is_best_in_something():
    def row(label, usd, ttft, tpot):
        at = {"ttft_p99": ttft, "tpot_p99": tpot}
        return Row(label, {}, 1, "simulated", usd_per_hour=usd, at_load=at)

    rows = [
        row("cheap", 1, 9, 9),
        row("fast", 9, 1, 9),
        row("worse", 9, 9, 9),
        row("even", 5, 5, 9),
        row("smooth", 9, 9, 1),
    ]
    assert [r.label for r in mark_pareto(rows) if r.pareto] == ["cheap", "fast", "even", "smooth"]


# -- prices -------------------------------------------------------------------------------------------------------------


def test_a_price_file_overrides_rows_and_keeps_the_rest(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text(
        '[site]\nusd_per_kwh = 0.2\n[gpu.h100-sxm]\nusd_per_gpu_hour = 2.0\ndate = "2030-01"\nsource = "me"\n'
    )
    prices = read_prices(path)
    cost = prices.of(load_gpu("h100-sxm"))
    assert (cost.usd_per_gpu_hour, cost.idle_w, cost.source) == (2.0, 120, "me")
    assert prices.usd_per_hour(cost, 8, 1.0) == pytest.approx(8 * (2.0 + 0.7 * 0.2))
    assert prices.of(load_gpu("l40s")).usd_per_gpu_hour == load_gpu("l40s").usd_per_hour


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gpu.h100-sxm]\nusd_per_hour = 1", "unknown key; did you mean 'usd_per_gpu_hour'"),
        ("[gpu.h100-sxm]\nusd_per_gpu_hour = -1", "got -1, expected a number >= 0"),
        ("[gpu.h100-sxm]\nidle_w = 9000", "idle_w: got 9000, expected at most tdp_w"),
        ("[gpus]\n", "unknown key"),
        ("gpu.h100 = 3", r"expected a table \[gpu.h100\]"),
        ("[", "p.toml:"),
    ],
)
def test_a_wrong_price_file_is_refused_in_a_line(tmp_path, text, message):
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_prices(path).of(load_gpu("h100-sxm"))


# -- the command --------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_plan(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    requests = load(250)
    rows = zip(requests.arrival_s, requests.input_tokens, requests.output_tokens, strict=True)
    (tmp_path / "t.jsonl").write_text(
        "".join(
            f'{{"timestamp": {1e3 * t}, "input_length": {i}, "output_length": {o}}}\n' for t, i, o in rows
        )
    )
    command = [
        "plan",
        "--trace",
        "t.jsonl",
        "--slo",
        SLO,
        "--gpu",
        "h100-sxm,l40s",
        "--tp",
        "1",
        "--requests",
        "150",
    ]
    command += ["--jobs", "1", "--rate", "12"]
    assert main([*command, "--out", "p"]) == 0
    out, err = capsys.readouterr()
    assert "carries 12.00 requests/s" in " ".join(out.split())
    assert "plan: capacity" in err
    assert {p.name for p in (tmp_path / "p").iterdir()} == {
        "plan.csv", "plan.json", "plan.html", "plan.svg", "manifest.json",
    }  # fmt: skip
    found = json.loads((tmp_path / "p" / "plan.json").read_text())
    assert found["winner"]["ok"]
    assert main([*command, "--json", "--no-save", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main([*command, "--replicas", "3"]) == 2
    assert "a plan finds them" in capsys.readouterr().err
    assert main([*command, "--gpu", "h100-sxm,h20o"]) == 2
    assert "did you mean 'h200'?" in capsys.readouterr().err


def test_the_printed_prices_are_the_default_ones_and_can_be_given_back(tmp_path, capsys):
    """Every GPU has its price, power, date and source in the table that a user edits."""
    assert main(["plan", "--print-prices"]) == 0
    path = tmp_path / "p.toml"
    path.write_text(capsys.readouterr().out)
    table = tomllib.loads(path.read_text())["gpu"]
    assert set(table) == set(known_gpus())
    assert all({"tdp_w", "idle_w", "date", "source"} <= set(row) for row in table.values())
    given, default = read_prices(path), read_prices()
    for gpu in map(load_gpu, known_gpus()):
        a, b = given.of(gpu), default.of(gpu)
        assert (a.usd_per_gpu_hour, a.tdp_w, round(a.idle_w, 3)) == (
            b.usd_per_gpu_hour,
            b.tdp_w,
            round(b.idle_w, 3),
        )
