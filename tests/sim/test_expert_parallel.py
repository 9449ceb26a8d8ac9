"""Experts spread over GPUs, and ranks of data-parallel attention that share them."""

from functools import cache

import numpy as np
import pytest
from stepline.sim import simulate, summary
from stepline.sim.cost import operators
from stepline.sim.cost.calibration import find_calibration
from stepline.sim.cost.catalogue import load_engine, load_gpu, load_model
from stepline.sim.cost.data_parallel import DataParallelCostModel
from stepline.sim.cost.memory import kv_ledger
from stepline.sim.cost.roofline import RooflineCostModel, context_column
from stepline.sim.cost.specs import EngineProfile
from stepline.sim.cost.token_costs import CollectivePart, MoePart
from stepline.sim.cost.weight_tensors import ExpertSplit
from stepline.sim.cost.work import StepWork
from stepline.sim.study.config import RunConfig
from stepline.sim.study.setup import resolve
from stepline.traces.errors import ConfigError

H100 = load_gpu("h100-sxm")
MIXTRAL = load_model("mixtral-8x7b")
SERIAL = EngineProfile(name="serial", step_host_s=1e-3, step_host_per_seq_s=1e-5)
STEPS = (
    StepWork(n_decode=1, context_tokens=(100,), logits_rows=1),
    StepWork(n_decode=41, context_tokens=(40_000,), logits_rows=41),
    StepWork(700, 3, 500_000, 1300, 0, (0,), 2),
    StepWork(700, 1, 700 * 600 + 350 * 701, 1300, 12, (9_000,), 13),
)


@cache
def priced(dp=1, tp=1, ep=1, engine="ideal", name="mixtral-8x7b", skew=0.0):
    profile = SERIAL if engine == "serial" else load_engine(engine)
    options = {"tp": tp, "ep": ep, "engine": profile, "moe_skew": skew}
    args = load_model(name), H100, find_calibration("h100-sxm")
    return DataParallelCostModel(*args, dp=dp, **options) if dp > 1 else RooflineCostModel(*args, **options)


def columns(work):
    found = {k: np.array([float(v)]) for k, v in work._asdict().items() if k != "context_tokens"}
    return found | {context_column(i): np.array([float(c)]) for i, c in enumerate(work.context_tokens)}


@pytest.mark.parametrize("engine", ["ideal", "vllm-v1", "serial"])
@pytest.mark.parametrize(("dp", "tp", "ep"), [(4, 1, 1), (4, 1, 4), (2, 2, 4)])
@pytest.mark.parametrize("work", STEPS)
def test_breakdowns_sum_to_the_step_and_stay_above_the_floor(engine, dp, tp, ep, work):
    model = priced(dp, tp, ep, engine)
    seconds, flops, moved = model.explain_many(columns(work))
    assert sum(s[0] for split in seconds.values() for s in split.values()) == pytest.approx(
        model.step_s(work)
    )
    assert model.step_s(work) > max(flops[0] / H100.peak_flops["bf16"], moved[0] / H100.hbm_bytes_per_s)


@pytest.mark.parametrize("engine", ["vllm-v1", "serial"])
def test_a_leap_is_its_steps_and_its_line(engine):
    model = priced(4, 1, 4, engine)
    n, context = 30, 60_000
    first, delta, steps = model.leap(
        StepWork(n_decode=n, context_tokens=(context,), logits_rows=n), (n,), 900
    )
    assert steps > 1
    for i in (0, steps - 1):
        then = context + i * n
        one = model.step_s(StepWork(n_decode=n, context_tokens=(then,), logits_rows=n))
        assert first + i * delta == pytest.approx(one, rel=1e-9)
        ends, pieces = model.decode_lines[n]
        fixed, slope = pieces[next(k for k, end in enumerate(ends) if end >= then)]
        assert fixed + slope * then == pytest.approx(one, rel=1e-9)


def test_the_busiest_rank_has_its_share_rounded_up():
    rank = priced(4, 1, 4).rank_work(StepWork(900, 3, 3000, 1200, 41, (41_000,), 43))
    assert rank == StepWork(300, 1, 1000, 400, 11, (11_000.0,), 12)


def test_ranks_read_the_same_weights_and_each_its_own_context():
    """Attention of 64 decodes on 4 ranks costs a rank what 16 decodes cost one GPU."""
    all_, one = (
        StepWork(n_decode=64, context_tokens=(64_000,), logits_rows=64),
        StepWork(n_decode=16, context_tokens=(16_000,), logits_rows=16),
    )
    ranks, alone = priced(4, 1, 4).explain(all_).seconds, priced().explain(one).seconds
    for kernel in ("gemm", "attention_decode", "elementwise", "lm_head"):
        assert sum(ranks[kernel].values()) == pytest.approx(sum(alone[kernel].values()))


def parts(model, kind):
    return [p for p in (*model.kernels.by_token(), *model.kernels.by_group_token()) if isinstance(p, kind)]


def test_two_all_to_alls_a_layer_carry_each_copy_once():
    """A token's 2 copies of 4096 bf16 values, an 8th of them on each GPU."""
    (exchange,) = parts(priced(8, 1, 8), CollectivePart)
    assert (exchange.kind, exchange.count, exchange.world) == ("all_to_all", 2 * 32, 8)
    assert exchange.bytes_per_token == 2 * 4096 * 2 / 8


def test_with_tp_the_attention_keeps_its_all_reduce():
    reduce, exchange = parts(priced(1, 8, 8), CollectivePart)
    assert (reduce.kind, reduce.count) == ("all_reduce", 32)
    assert exchange.count == 64
    (both,) = parts(priced(1, 8, 1), CollectivePart)
    assert both.count == 64


def test_cut_experts_gather_and_scatter_the_tokens_of_all_ranks():
    gather, scatter = parts(priced(4, 1, 1), CollectivePart)
    assert [gather.kind, scatter.kind] == ["all_gather", "reduce_scatter"]
    assert gather.bytes_per_token == scatter.bytes_per_token == 4096 * 2


@pytest.mark.parametrize(("dp", "tp", "ep"), [(1, 8, 1), (1, 8, 8), (8, 1, 8), (8, 1, 1), (4, 2, 8)])
def test_a_group_computes_each_copy_and_holds_each_expert_once(dp, tp, ep):
    """8 x 3 x 4096 x 14336 weights a layer; a token's 2 copies through 2 x 3 x 4096 x 14336 FLOPs each."""
    (moe,) = parts(priced(dp, tp, ep), MoePart)
    flops, moved = moe.amounts(np.array([4096.0]))
    assert 8 * flops[0] == pytest.approx(32 * 4096 * 2 * 2 * 3 * 4096 * 14336)
    weights = operators.expert_bytes(moe._shape()) * 8 / ep
    assert 8 * weights == 8 * 3 * 4096 * 14336 * 2
    assert moved[0] > 32 * weights


def test_a_hot_gpu_sets_the_pace_of_experts_and_exchange():
    even, skewed = priced(8, 1, 8, name="qwen3-30b-a3b"), priced(8, 1, 8, name="qwen3-30b-a3b", skew=1.0)
    shape = parts(skewed, MoePart)[0]._shape()
    hot = operators.busiest_share(shape) * 8
    assert hot > 1.2
    (exchange,), (balanced,) = parts(skewed, CollectivePart), parts(even, CollectivePart)
    assert exchange.bytes_per_token == pytest.approx(hot * balanced.bytes_per_token)
    work = StepWork(16_384, 8, 8 * (2048 * 2049 // 2), 16_384, 0, (0,), 8)
    slower = [sum(m.explain(work).seconds["moe"].values()) for m in (even, skewed)]
    assert slower[1] / slower[0] == pytest.approx(hot, rel=0.1)


def test_a_gpu_holds_an_eighth_of_experts_spread_over_eight():
    experts = 32 * 8 * 3 * 4096 * 14336 * 2
    flags = {"gpu_memory_utilization": 0.9, "max_num_batched_tokens": 8192}
    whole = kv_ledger(MIXTRAL, load_gpu("b200"), **flags).weights_bytes
    for split in (ExpertSplit(8, 1), ExpertSplit(1, 8)):
        held = kv_ledger(MIXTRAL, load_gpu("b200"), experts=split, **flags).weights_bytes
        assert whole - held == pytest.approx(experts * 7 / 8, rel=0.001)


SETTINGS = {"model": "mixtral-8x7b", "data_parallel_size": 4, "enable_expert_parallel": True}


def test_flags_of_the_ranks_add_up_and_a_prompt_stays_on_one():
    spec = resolve(RunConfig(**SETTINGS, max_num_seqs=64, max_num_batched_tokens=2048)).cluster.replicas[0]
    assert (spec.max_num_seqs, spec.max_num_batched_tokens, spec.gpus) == (256, 8192, 4)
    assert spec.long_prefill_token_threshold == 2048
    one = resolve(RunConfig(**SETTINGS, num_gpu_blocks_override=1001)).cluster.replicas[0]
    assert one.kv_blocks == 4001
    assert one.max_model_len == 16_000  # a sequence's KV is on one rank


def test_a_run_on_four_ranks_reports_four_gpus_and_skew_slows_it(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(
        "".join(f'{{"timestamp": {i}, "input_length": 500, "output_length": 40}}\n' for i in range(64))
    )
    even, skewed = (summary(simulate(path, **SETTINGS, expert_skew=s)) for s in (0.0, 1.5))
    assert even["n_gpus"] == 4
    assert even["requests"]["completed"] == 64
    assert even["kernel_s"]["comm"]["comm"] > 0
    assert skewed["tpot_s"]["mean"] > even["tpot_s"]["mean"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data_parallel_size": 2}, r"--data-parallel-size: got 2: .* give --replicas 2"),
        ({"enable_expert_parallel": True}, "--enable-expert-parallel: llama-3.1-8b has no experts"),
        ({"expert_skew": 1.0}, "--expert-skew: llama-3.1-8b has no experts"),
        ({**SETTINGS, "data_parallel_size": 1}, "got one GPU"),
        ({**SETTINGS, "data_parallel_size": 3}, "expected a divisor of mixtral-8x7b's 8 experts"),
        ({**SETTINGS, "preemption": "last-in:mode=swap"}, "cannot be combined with --preemption"),
        ({**SETTINGS, "cost_model": f"{__name__}:Flat"}, "--cost-model: .*unknown parameter 'dp'"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        resolve(RunConfig(**settings)).cluster.check()


class Flat:
    def step_s(self, work):
        return 1.0
