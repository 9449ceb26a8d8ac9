"""LoRA adapters: slots and who waits for one, loads over the host link, what a step costs, memory."""

import json
from functools import cache

import numpy as np
import pytest
from stepline.sim import simulate, summary
from stepline.sim.cost.calibration import find_calibration
from stepline.sim.cost.catalogue import load_engine, load_gpu, load_model
from stepline.sim.cost.lora import LoraCostModel, adapter_params
from stepline.sim.cost.roofline import RooflineCostModel, context_column
from stepline.sim.cost.work import StepWork
from stepline.sim.engine.adapters import AdapterSlots
from stepline.sim.engine.sequence import Sequence
from stepline.sim.study.config import RunConfig
from stepline.sim.study.setup import resolve
from stepline.traces.errors import ConfigError

from .engine_kit import GPU, MODEL, Affine, by_index, run, trace

H100 = load_gpu("h100-sxm")
LOAD_S = 2 * adapter_params(MODEL, 16) / GPU.pcie_bytes_per_s


def served(rows, adapters, **kw):
    """One slot unless said otherwise, a second a step."""
    kw = {"max_loras": 1, "cost": Affine()} | kw
    return by_index(run(trace(rows, adapter=adapters), **kw))


# --- slots


def test_an_adapter_of_llama_8b_at_rank_16_has_the_known_parameters():
    """41 943 040: what `peft` prints for r = 16 on all seven projections of Llama-3 8B."""
    assert adapter_params(load_model("llama-3.1-8b"), 16) == 41_943_040


def test_a_group_of_gpus_splits_one_side_of_each_adapter():
    """Column-parallel layers keep A whole and cut B, row-parallel ones cut A and keep B whole (vLLM, not fully sharded)."""
    whole, half = (adapter_params(load_model("llama-3.1-8b"), 16, tp) for tp in (1, 2))
    kept = 32 * 16 * (3 * 4096 + 2 * 4096 + 4096 + 4096)  # A of q, k, v, gate, up; B of out and down
    assert half == (whole - kept) / 2 + kept


def sequence(index, adapter):
    seq = Sequence(index, 0.0, 0.0, 10, 10)
    seq.adapter = adapter
    return seq


def test_the_adapter_unused_for_longest_gives_up_its_slot():
    slots = AdapterSlots(2, 0.5)
    a, b, c, again = (sequence(i, name) for i, name in enumerate("abca"))
    for seq in (a, b):
        slots.take(seq)
        slots.leave(seq)
    assert slots.stretch(1.0) == 2.0
    slots.take(again)
    assert slots.stretch(1.0) == 1.0  # still there
    slots.take(c)
    assert list(slots.resident) == ["a", "c"]
    assert slots.stretch(1.0) == 1.5
    assert slots.active == 2


def test_who_finds_no_slot_waits_and_others_pass():
    """a: prompt in [0, 1 + load], 2 decodes; b waits for its slot; the second a joins the first at once."""
    done = served([(0.0, 10, 3), (0.0, 10, 1), (0.0, 10, 3)], ["a", "b", "a"])
    assert done["scheduled_s"].tolist() == pytest.approx([0.0, 3 + LOAD_S, 0.0])
    assert done["first_token_s"].tolist() == pytest.approx([1 + LOAD_S, 4 + 2 * LOAD_S, 1 + LOAD_S])


def test_requests_without_an_adapter_never_wait_for_one():
    done = served([(0.0, 10, 3), (0.0, 10, 3)], ["a", None])
    assert done["scheduled_s"].tolist() == [0.0, 0.0]


def test_two_slots_serve_two_adapters_together():
    done = served([(0.0, 10, 3), (0.0, 10, 3), (0.0, 10, 3)], ["a", "b", "c"], max_loras=2)
    assert done["scheduled_s"].tolist() == pytest.approx([0.0, 0.0, 3 + 2 * LOAD_S])


def test_traces_without_adapters_are_unaffected():
    rows = [(0.7 * i, 30 + i, 5 + i % 7) for i in range(30)]
    plain, ready = (by_index(run(rows, Affine(), **kw)) for kw in ({}, {"max_loras": 4}))
    assert np.array_equal(plain["finish_s"], ready["finish_s"])


@pytest.mark.parametrize(
    "policy", ["chunked", "continuous", "sarathi", "decode-first", "sjf", "fair", "orca", "static"]
)
def test_every_request_is_served_once_whatever_the_order(policy, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {"timestamp": 20 * i, "input_length": 300, "output_length": 30, "adapter": f"a{i % 5}"}
            )
            + "\n"
            for i in range(40)
        )
    )
    settings = {
        "policy": policy,
        "max_loras": 2,
        "enable_lora": True,
        "num_gpu_blocks_override": 1600,
        "max_model_len": 2048,
    }
    result = simulate(path, **settings)
    assert summary(result)["requests"]["completed"] == 40
    assert (
        summary(result)["queue_s"]["max"]
        > summary(simulate(path, **settings | {"max_loras": 5}))["queue_s"]["max"]
    )


def test_a_prefix_is_not_shared_between_adapters():
    rows = [(100.0 * i, 64, 2) for i in range(4)]
    shared = trace(rows, hash_ids=[[1, 2, 3, 4]] * 4, block_size=16, adapter=["a", "b", "a", None])
    cached = [
        by_index(run(shared, Affine(), caching=True, **kw))["cached_tokens"].tolist()
        for kw in ({}, {"max_loras": 2})
    ]
    assert cached == [[0, 48, 48, 48], [0, 0, 48, 0]]


# --- cost


@cache
def priced(engine="vllm-v1", rank=16):
    model, calibration = load_model("llama-3.1-8b"), find_calibration("h100-sxm")
    return LoraCostModel(RooflineCostModel(model, H100, calibration, engine=load_engine(engine)), rank)


def columns(work):
    found = {k: np.array([float(v)]) for k, v in work._asdict().items() if k != "context_tokens"}
    return found | {context_column(i): np.array([float(c)]) for i, c in enumerate(work.context_tokens)}


WORKS = (
    StepWork(n_decode=8, context_tokens=(4000, 3), logits_rows=8),
    StepWork(n_decode=8, context_tokens=(4000, 0), logits_rows=8),
    StepWork(4000, 1, 4000 * 4001 // 2, 4000, 0, (0, 1), 1),
    StepWork(700, 1, 700 * 600 + 350 * 701, 1300, 12, (9_000, 5), 13),
)


@pytest.mark.parametrize("engine", ["ideal", "vllm-v1", "vllm-v0"])
@pytest.mark.parametrize("work", WORKS)
def test_breakdowns_sum_to_the_step_and_stay_above_the_floor(engine, work):
    cost = priced(engine).explain(work)
    assert cost.total_s == pytest.approx(priced(engine).step_s(work))
    assert cost.total_s > max(cost.flops / H100.peak_flops["bf16"], cost.hbm_bytes / H100.hbm_bytes_per_s)


def test_a_leap_is_its_steps():
    model, work = priced(), WORKS[0]
    first, delta, steps = model.leap(work, (8, 0), 300)
    assert steps > 1
    last = work._replace(context_tokens=(4000 + 8 * (steps - 1), 3))
    assert first + delta * (steps - 1) == pytest.approx(model.step_s(last), rel=1e-9)


def test_each_adapter_of_a_step_is_read_once_and_every_token_computes():
    model, (work, without, *_) = priced("ideal"), WORKS
    _, flops, moved = model.explain_many(columns(work))
    _, plain_flops, plain_bytes = model.explain_many(columns(without))
    assert flops[0] - plain_flops[0] == 8 * 2 * 41_943_040
    assert moved[0] - plain_bytes[0] == pytest.approx(3 * 2 * 41_943_040 + 8 * model.bytes_per_token)
    assert model.step_s(without) == model.inner.step_s(without._replace(context_tokens=(4000,)))


# --- whole runs


def adapted(tmp_path):
    path = tmp_path / "t.jsonl"
    row = '{{"timestamp": {}, "input_length": 200, "output_length": 50, "adapter": "{}"}}\n'
    path.write_text("".join(row.format(100 * i, "abc"[i % 3]) for i in range(12)))
    return path


def test_adapters_slow_a_run_and_without_the_flag_it_says_so(tmp_path):
    path = adapted(tmp_path)
    plain, lora = (simulate(path, enable_lora=on, max_loras=3) for on in (False, True))
    assert any("--enable-lora" in text for text in plain.warnings)
    assert not any("--enable-lora" in text for text in lora.warnings)
    assert summary(lora)["tpot_s"]["mean"] > 1.02 * summary(plain)["tpot_s"]["mean"]
    assert lora.config["max_loras"] == 3
    assert summary(lora)["lora"]["loads"] == 3
    assert lora.totals.seconds["comm"]["comm"] == pytest.approx(summary(lora)["lora"]["load_s"])
    assert "lora" not in summary(plain)


def test_slots_take_their_room_from_the_kv_cache():
    plain, lora = (
        resolve(RunConfig(enable_lora=on, max_loras=8, max_lora_rank=64)).described["kv_ledger"]
        for on in (False, True)
    )
    assert lora["weights_bytes"] - plain["weights_bytes"] == 8 * 2 * 4 * 41_943_040
    assert lora["n_blocks"] < plain["n_blocks"]


@pytest.mark.parametrize(
    "settings",
    [
        {"speculative_config": '{"method": "ngram", "num_speculative_tokens": 2, "acceptance": 0.5}'},
        {"policy": "srpt"},
        {"preemption": "last-in:mode=swap"},
        {"kv_compression": "sliding-window:window=512", "enable_prefix_caching": False},
    ],
)
def test_what_does_not_go_together_is_refused(settings, tmp_path):
    with pytest.raises(ConfigError, match="--enable-lora: cannot be combined with"):
        simulate(adapted(tmp_path), enable_lora=True, **settings)


def test_bounds_of_a_plan_need_no_adapters():
    from stepline.sim.study.plan_bounds import bounds, demand_of

    demand = demand_of(trace([(0.0, 500, 100)] * 4), caching=False)
    rates = [
        bounds(resolve(RunConfig(enable_lora=on)).cluster.replicas[0], demand, None).rate_per_s
        for on in (False, True)
    ]
    assert rates[1] == pytest.approx(rates[0], rel=1e-6)


def test_flags_without_an_effect_are_told(tmp_path):
    from stepline.traces.trace import Trace

    plain = Trace(np.array([0.0, 1.0]), np.array([10, 10]), np.array([2, 2]), source="made")
    assert any(
        "no request of the trace names an adapter" in w for w in simulate(plain, enable_lora=True).warnings
    )
    assert any("nothing without --enable-lora" in w for w in simulate(plain, max_lora_rank=8).warnings)
    assert not any("lora" in w for w in simulate(plain).warnings)
