"""Pipeline parallelism: stages, rounds of micro-batches, bubbles, memory."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.sim import simulate, summary
from stepline.sim.cost.calibration import find_calibration
from stepline.sim.cost.catalogue import load_engine, load_gpu, load_model
from stepline.sim.cost.memory import kv_ledger
from stepline.sim.cost.pipeline import pipeline, stage_specs
from stepline.sim.cost.roofline import RooflineCostModel, context_column
from stepline.sim.cost.work import StepWork
from stepline.sim.study.config import RunConfig
from stepline.sim.study.setup import resolve
from stepline.traces.errors import ConfigError

H100 = load_gpu("h100-sxm")
LLAMA = load_model("llama-3.1-70b")
BUDGET = 8192


@cache
def stage_of(spec, engine, tp):
    return RooflineCostModel(spec, H100, find_calibration("h100-sxm"), engine=load_engine(engine), tp=tp)


@cache
def priced(pp, name="llama-3.1-70b", engine="vllm-v1", tp=4):
    return pipeline(load_model(name), pp, BUDGET, lambda spec: stage_of(spec, engine, tp))


def columns(work):
    found = {k: np.array([float(v)]) for k, v in work._asdict().items() if k != "context_tokens"}
    return found | {context_column(i): np.array([float(c)]) for i, c in enumerate(work.context_tokens)}


def decodes(n, mean=1000, windows=1):
    return StepWork(n_decode=n, context_tokens=(n * mean,) * windows, logits_rows=n)


def prompt(tokens, n=1):
    return StepWork(tokens * n, n, n * tokens * (tokens + 1) // 2, tokens * n, 0, (0,), n)


WORKS = (
    decodes(1),
    decodes(41),
    prompt(700, 3),
    StepWork(700, 1, 665_000, 1300, 12, (9_000,), 13),
    prompt(20_000),
)


# --- stages


@pytest.mark.parametrize(
    "name", ["llama-3.1-70b", "deepseek-v2", "gemma-2-27b", "gpt-oss-120b", "llama-4-maverick"]
)
@pytest.mark.parametrize("pp", [2, 3, 4, 8])
def test_stages_hold_every_layer_once(name, pp):
    model = load_model(name)
    stages = stage_specs(model, pp)
    assert sum(s.n_layers for s in stages) == model.n_layers
    assert [sum(n for _, n in s.windows) for s in stages] == [s.n_layers for s in stages]
    for kind, (window, layers) in enumerate(model.windows):
        assert [s.windows[kind][0] for s in stages] == [window] * pp
        assert sum(s.windows[kind][1] for s in stages) == layers
        assert min(s.windows[kind][1] for s in stages) >= 0
    if model.moe is not None:
        assert sum(s.moe.n_dense_layers for s in stages) == model.moe.n_dense_layers


def test_two_stages_read_a_models_weights_between_them():
    alone = stage_of(LLAMA, "ideal", 4).explain(decodes(1))
    halves = priced(2, engine="ideal").explain(decodes(1))
    assert 2 * halves.hbm_bytes == pytest.approx(
        alone.hbm_bytes, rel=1e-3
    )  # one stage idles while the other reads
    assert 2 * halves.flops == pytest.approx(alone.flops, rel=1e-3)


# --- rounds


@pytest.mark.parametrize("engine", ["ideal", "vllm-v1", "vllm-v0"])
@pytest.mark.parametrize("pp", [2, 3])
@pytest.mark.parametrize("work", WORKS)
def test_breakdowns_sum_to_the_round(engine, pp, work):
    model = priced(pp, engine=engine)
    seconds, flops, moved = model.explain_many(columns(work))
    assert sum(s[0] for split in seconds.values() for s in split.values()) == pytest.approx(
        model.step_s(work)
    )
    assert model.step_s(work) > max(flops[0] / H100.peak_flops["bf16"], moved[0] / H100.hbm_bytes_per_s)


@pytest.mark.parametrize("name", ["llama-3.1-70b", "llama-3.1-8b"])
def test_a_leap_is_its_rounds(name):
    model = priced(4, name)
    n, at, done = 64, 64_000, 0
    while done < 3000:
        first, delta, steps = model.leap(
            StepWork(n_decode=n, context_tokens=(at + done * n,), logits_rows=n), (n,), 3000 - done
        )
        for i in (0, steps - 1):
            one = StepWork(n_decode=n, context_tokens=(at + (done + i) * n,), logits_rows=n)
            assert first + i * delta == pytest.approx(model.step_s(one), rel=1e-9)
        done += steps


def test_a_round_is_the_stages_times_the_slowest_on_its_micro_batch():
    """Four stages, 64 decodes: 16 in each micro-batch; the last stage has the LM head on top of its 20 layers."""
    model = priced(4)
    micro = decodes(16)
    last = model.stages[-1].cost.step_s(micro)
    others = model._stage_s(model.stages[0], micro)
    assert last > others
    assert model.step_s(decodes(64)) == pytest.approx(4 * last)


def _round_by_events(stage_s: list[float], n_stages: int, rounds: int = 200) -> float:
    """Seconds between the starts of a cohort whose micro-batches keep each of the stages busy for `stage_s[cohort]`:
    first come, first served, and a cohort starts anew when it has left the last stage."""
    free = [0.0] * n_stages
    ready = [0.0] * len(stage_s)
    begun = []
    for _ in range(rounds):
        for cohort, lasts in enumerate(stage_s):
            at = ready[cohort]
            for stage in range(n_stages):
                at = max(at, free[stage])
                if cohort == stage == 0:
                    begun.append(at)
                at = free[stage] = at + lasts
            ready[cohort] = at
    return (begun[-1] - begun[rounds // 2]) / (rounds - 1 - rounds // 2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 12).map(lambda quarters: quarters / 4), min_size=2, max_size=6))
def test_a_pipeline_walked_by_events_keeps_the_pace_of_its_largest_micro_batch(stage_s):
    """Whole quarters of a second: two that differ by next to nothing would take for ever to settle."""
    assert _round_by_events(stage_s, len(stage_s)) == pytest.approx(len(stage_s) * max(stage_s))


def test_a_lone_request_gains_nothing_from_stages_and_leaves_them_idle():
    """One micro-batch in flight: each of 4 GPUs works a fourth of the round at most."""
    model, alone = priced(4), stage_of(LLAMA, "vllm-v1", 4)
    assert model.step_s(decodes(1)) > alone.step_s(decodes(1))
    bubble = model.explain(decodes(1)).seconds["comm"]["bubble"]
    assert bubble >= 0.75 * model.step_s(decodes(1))
    full = model.explain(decodes(64))
    assert full.seconds["comm"]["bubble"] < 0.25 * full.total_s


def test_a_prompt_of_k_budgets_leaves_after_k_minus_1_more_stage_times():
    model = priced(4)
    one, three = model.step_s(prompt(BUDGET)), model.step_s(prompt(3 * BUDGET))
    slower = model.micro_batch(prompt(3 * BUDGET))
    assert slower.prefill_tokens == BUDGET
    stage = max(model._stage_s(s, slower) for s in model.stages)
    assert three == pytest.approx(6 * stage)
    assert three < 3 * one


def test_what_is_sent_on_is_two_tensors_of_the_model_width():
    (part,) = priced(2, tp=1)._send.parts
    assert (
        part.bytes_per_token / 2 == 2 * 2 * 8192
    )  # one shot of two GPUs: half of the buffer crosses the link


# --- whole runs


def flood(tmp_path, n=160):
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 400, "output_length": 100}\n' * n)
    return path


def test_throughput_of_stages_nears_that_of_replicas_and_latency_that_of_one(tmp_path):
    """Weights that fit one GPU: two stages carry about what two replicas do, at about a lone GPU's time a token."""
    common = {"model": "llama-3.1-8b", "max_num_seqs": 64, "elementwise": "fused"}
    staged = summary(simulate(flood(tmp_path), pipeline_parallel_size=2, **common | {"max_num_seqs": 128}))
    twins = summary(simulate(flood(tmp_path), replicas=2, **common))
    assert staged["n_gpus"] == twins["n_gpus"] == 2
    rates = [s["throughput"]["output_tokens_per_s"] for s in (staged, twins)]
    assert 0.7 < rates[0] / rates[1] < 1.05
    assert staged["tpot_s"]["mean"] == pytest.approx(twins["tpot_s"]["mean"], rel=0.35)
    assert 0 < staged["time_frac"]["pipeline_bubble"] < 0.3
    assert sum(staged["time_frac"].values()) == pytest.approx(1.0)
    assert "pipeline_bubble" not in twins["time_frac"]


def test_weights_and_kv_are_divided_by_the_stages():
    config = RunConfig(model="llama-3.1-70b", tensor_parallel_size=2, pipeline_parallel_size=2)
    spec = resolve(config).cluster.replicas[0]
    books = kv_ledger(
        LLAMA, H100, engine=spec.engine, tp=2, pp=2, max_num_batched_tokens=8192, max_num_seqs=256
    )
    assert spec.kv_blocks == books.n_blocks
    assert (spec.gpus, spec.max_num_batched_tokens, spec.max_num_seqs) == (4, 16_384, 256)
    assert spec.engine.pipeline_depth == 0


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"pipeline_parallel_size": 33}, "pipeline_parallel_size: got 33"),
        ({"data_parallel_size": 2, "model": "mixtral-8x7b"}, "cannot be combined with --data-parallel-size"),
        ({"enable_lora": True}, "cannot be combined with --enable-lora"),
        ({"cost_model": f"{__name__}:Flat"}, "--pipeline-parallel-size: got cost model"),
    ],
)
def test_what_does_not_go_together_is_refused(asked, says):
    with pytest.raises(ConfigError, match=says):
        resolve(RunConfig(**{"pipeline_parallel_size": 2, **asked}))


class Flat:
    def step_s(self, work):
        return 1.0
