"""Copies of KV to host memory that find no room: the scheduler's search, in prices, leaps, breakdowns and runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stepline.calibration.host_fit import with_engine
from stepline.sim.cost.breakdown import columns_of
from stepline.sim.cost.calibration import find_calibration
from stepline.sim.cost.catalogue import load_engine, load_gpu, load_model
from stepline.sim.cost.roofline import RooflineCostModel
from stepline.sim.cost.specs import EngineProfile
from stepline.sim.cost.storing import CROWDED, StoringCostModel
from stepline.sim.cost.work import StepWork
from stepline.sim.study.config import RunConfig
from stepline.sim.study.run import simulate_resolved
from stepline.sim.study.setup import resolve
from stepline.traces.request import Request
from stepline.traces.trace import Trace

BLOCKS, BLOCK, SCAN_S = 100, 16, 2e-6
PROFILE = EngineProfile("e", step_host_s=1e-3, host_overlaps_gpu=True, store_scan_s=SCAN_S)


def price(profile: EngineProfile) -> RooflineCostModel:
    return RooflineCostModel(
        load_model("llama-3.1-8b"), load_gpu("h100-sxm"), find_calibration("h100-sxm"), engine=profile
    )


def work(generated: int, n: int = 64) -> StepWork:
    return StepWork(0, 0, 0, 0, n, (n * 500 + generated,), n, generated)


def test_a_crowded_pool_costs_a_search_of_all_its_blocks_for_each_sequence():
    model = StoringCostModel.of(price, PROFILE, BLOCKS, BLOCK)
    fits, crowded = work(BLOCKS * BLOCK), work(BLOCKS * BLOCK + 1)
    assert model.step_s(fits) == price(PROFILE).step_s(fits)
    assert model.step_s(crowded) == pytest.approx(1e-3 + 64 * BLOCKS * SCAN_S)
    assert model.step_s(crowded) > price(PROFILE).step_s(crowded)


@pytest.mark.parametrize("generated", [0, 1500, 1599, 1600, 5000])
def test_leaps_end_where_the_pool_gets_too_small_and_last_as_long_as_steps(generated):
    model = StoringCostModel.of(price, PROFILE, BLOCKS, BLOCK)
    first, left, now = 0, 60, work(generated)
    while left:
        run = model.leap(now, (now.n_decode,), left)
        for i in range(run.n):
            later = work(generated + (first + i) * now.n_decode)
            assert run.first_s + i * run.delta_s == pytest.approx(model.step_s(later), rel=1e-9)
        first, left = first + run.n, left - run.n
        now = work(generated + first * now.n_decode)


def test_breakdowns_sum_to_the_step_on_both_sides_and_a_crowded_pool_is_told():
    model = StoringCostModel.of(price, PROFILE, BLOCKS, BLOCK)
    works = [work(10), work(1601), work(900), work(9000)]
    assert model.explain(works[0]).total_s == pytest.approx(model.step_s(works[0]))
    assert CROWDED not in model.warnings
    columns = {k: np.concatenate([columns_of(w)[k] for w in works]) for k in columns_of(works[0])}
    seconds, _, moved = model.explain_many(columns)
    totals = sum(s for split in seconds.values() for s in split.values())
    assert totals == pytest.approx([model.step_s(w) for w in works])
    assert (moved > 0).all()
    assert CROWDED in model.warnings


def trace() -> Trace:
    return Trace.from_requests([Request(f"r{i}", 0.01 * i, 200, 300) for i in range(48)])


def finished(gib: float | None, scan_s: float) -> float:
    setup = resolve(RunConfig(engine="vllm-0.15.1", kv_offloading_size=gib))
    engine = replace(load_engine("vllm-0.15.1"), store_scan_s=scan_s)
    return simulate_resolved(trace(), with_engine(setup, engine)).requests["finish_s"].max()


def test_a_run_is_slower_only_where_host_memory_is_small_and_its_search_costs_something():
    plain = finished(None, 1e-6)
    assert finished(0.5, 1e-5) > 1.2 * plain  # 256 blocks of 128 KiB a token: 4096 tokens of up to 14 400
    assert finished(4.0, 1e-5) == pytest.approx(plain, rel=1e-3)
    assert finished(0.5, 0.0) == pytest.approx(plain, rel=1e-3)


def test_the_pool_is_that_of_all_gpus_of_a_group():
    one, two = (
        resolve(RunConfig(engine="vllm-0.15.1", kv_offloading_size=1.0, tensor_parallel_size=tp))
        for tp in (1, 2)
    )
    rooms = [setup.cluster.replicas[0].cost_model.room_tokens for setup in (one, two)]
    assert rooms == [8192, 8192]


def test_other_profiles_have_no_such_search():
    setup = resolve(RunConfig(engine="vllm-v1", kv_offloading_size=1.0))
    assert isinstance(setup.cluster.replicas[0].cost_model, RooflineCostModel)
