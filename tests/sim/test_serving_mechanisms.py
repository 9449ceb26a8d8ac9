"""Mechanisms that only served engines have: sampling, joined launches, serving kernels, the output path."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from stepline.calibration.host_fit import with_engine
from stepline.sim import simulate
from stepline.sim.cost.calibration import find_calibration
from stepline.sim.cost.catalogue import load_engine, load_gpu, load_model
from stepline.sim.cost.roofline import RooflineCostModel
from stepline.sim.cost.sampler import GREEDY, NEUTRAL, chosen_sampling, sampling_of
from stepline.sim.cost.specs import EngineProfile, Sampling
from stepline.sim.cost.work import StepWork
from stepline.sim.study.config import RunConfig
from stepline.sim.study.setup import resolve
from stepline.traces.errors import ConfigError
from stepline.traces.request import Request
from stepline.traces.trace import Trace

DECODE = StepWork(n_decode=20, context_tokens=(14_000,), logits_rows=20)
MIXED = StepWork(10, 1, 10 * 600 + 55, 610, 20, (14_000,), 21)


def priced(engine: EngineProfile, model: str = "llama-3.1-8b", sampling: Sampling | None = None, tp: int = 1):
    from dataclasses import replace

    spec = load_model(model)
    spec = spec if sampling is None else replace(spec, sampling=sampling)
    return RooflineCostModel(spec, load_gpu("h100-sxm"), find_calibration("h100-sxm"), engine=engine, tp=tp)


def test_sampling_defaults_are_those_of_the_repositories():
    assert sampling_of("llama-3.1-8b") == Sampling(0.6, 0.9)
    assert load_model("Qwen/Qwen3-14B").sampling == Sampling(0.6, 0.95, 20)
    assert sampling_of("mistral-nemo-12b") == NEUTRAL
    assert [s.truncated for s in (NEUTRAL, GREEDY, Sampling(top_p=0.9), Sampling(0.0, 0.9))] == [
        False,
        False,
        True,
        False,
    ]


def test_generation_config_chooses_the_sampling():
    model = Sampling(0.6, 0.9)
    assert [chosen_sampling(model, n) for n in ("auto", "vllm", "greedy")] == [model, NEUTRAL, GREEDY]
    with pytest.raises(ConfigError, match="--generation-config"):
        chosen_sampling(model, "random")
    assert resolve(RunConfig(generation_config="greedy")).cluster.replicas[0].model.sampling == GREEDY


def test_truncation_costs_a_part_per_vocabulary_and_a_part_per_row():
    engine = EngineProfile(
        "e", sampler_kernels=True, truncation_per_vocab_s=4e-9, truncation_per_logit_s=5e-11
    )
    plain, cut = priced(engine, sampling=NEUTRAL), priced(engine, sampling=Sampling(top_p=0.9))
    vocab = plain.model.vocab_size
    for rows in (1, 20):
        work = StepWork(n_decode=rows, context_tokens=(rows * 700,), logits_rows=rows)
        assert cut.step_s(work) - plain.step_s(work) == pytest.approx(vocab * (4e-9 + rows * 5e-11))


def test_greedy_is_cheaper_than_drawing_and_ideal_engines_sample_for_nothing():
    engine = EngineProfile("e", sampler_kernels=True)
    seconds = [priced(engine, sampling=s).step_s(DECODE) for s in (GREEDY, NEUTRAL)]
    bare = priced(EngineProfile("ideal"), sampling=NEUTRAL).step_s(DECODE)
    assert bare < seconds[0] < seconds[1]


def test_a_joined_chunk_saves_one_launch_a_layer_and_only_beside_decodes():
    apart, joined = priced(EngineProfile("a")), priced(EngineProfile("j", varlen_attention=True))
    apart_plain = RooflineCostModel(
        apart.model, apart.gpu, apart.calibration, engine=apart.engine, residual=False
    )
    joined_plain = RooflineCostModel(
        apart.model, apart.gpu, apart.calibration, engine=joined.engine, residual=False
    )
    launch_s = apart.calibration.kernel("attention_prefill").constants["t0_s"]
    saved = apart_plain.step_s(MIXED) - joined_plain.step_s(MIXED)
    assert saved == pytest.approx(apart.model.n_layers * launch_s)
    assert joined.step_s(MIXED) < apart.step_s(MIXED)
    alone = MIXED._replace(n_decode=0, context_tokens=(0,), logits_rows=1)
    assert joined.step_s(alone) == apart.step_s(alone)


@pytest.mark.parametrize("work", [DECODE, MIXED])
@pytest.mark.parametrize("name", ["vllm-v1", "vllm-0.15.1", "vllm-0.12", "trtllm", "sglang"])
def test_the_breakdown_of_every_engine_sums_to_the_step(name, work):
    model = priced(load_engine(name))
    assert model.explain(work).total_s == pytest.approx(model.step_s(work), rel=1e-12)


def test_step_gpu_seconds_add_to_every_step():
    plain, slower = priced(EngineProfile("a")), priced(EngineProfile("b", step_gpu_s=2e-4))
    assert slower.step_s(DECODE) - plain.step_s(DECODE) == pytest.approx(2e-4)
    assert slower.leap(DECODE, (20,), 10).first_s == pytest.approx(slower.step_s(DECODE))


def test_serving_kernels_are_priced_where_the_profile_says_so():
    table, serving = priced(EngineProfile("a")), priced(EngineProfile("b", serving_kernels=True))
    gemm = [m.explain(DECODE).seconds["gemm"] for m in (table, serving)]
    assert sum(gemm[1].values()) < sum(gemm[0].values())  # without the slow branch of the tables
    floor = serving.explain(DECODE)
    assert floor.total_s > floor.hbm_bytes / serving.gpu.hbm_bytes_per_s


def decode_s(attention, n, context):
    """Seconds of `n` decodes over Σ context tokens, on the piece that holds them."""
    ends, bases, slopes = attention.segments(n)
    piece = bisect_left(ends, context)
    return bases[piece] + slopes[piece] * context


def test_many_heads_read_the_residual_of_as_many_tasks():
    """A decode kernel is one task a sequence and KV head: 4 sequences of 32 heads cost what 16 of 8 do."""
    many = priced(EngineProfile("s", serving_kernels=True), "llama-2-7b")._decode[0]
    few = priced(EngineProfile("s", serving_kernels=True), "llama-2-7b", tp=4)._decode[0]

    def ratio(attention, rows, context):
        formula = attention._fixed_s(float(rows)) + attention.slope * rows * context
        return decode_s(attention, rows, rows * context) / (attention.layers * float(formula))

    assert ratio(many, 4, 2048) == pytest.approx(ratio(few, 16, 2048), rel=1e-3)


@pytest.mark.parametrize("model", ["llama-2-7b", "llama-3.1-8b"])
def test_more_context_is_never_cheaper(model):
    attention = priced(load_engine("vllm-v1"), model)._decode[0]
    for rows in (1, 7, 64):
        seconds = [decode_s(attention, rows, rows * c) for c in (1, 4, 16, 100, 700, 5_000, 60_000)]
        assert seconds == sorted(seconds)


def test_a_first_token_waits_for_the_output_of_the_sequences_before_it(tmp_path):
    rows = [Request(f"r{i}", 0.0 if i < 10 else 0.5, 64, 400 if i < 10 else 5) for i in range(11)]
    trace = Trace.from_requests(rows)
    text = '[[engine]]\nname = "{}"\nmemory = "vllm-0.19"\noutput_per_seq_s = {}\ncuda_graphs = []\n'
    first = []
    for seconds in (0.0, 1e-3):
        path = tmp_path / f"e{seconds}.toml"
        path.write_text(text.format("mine", seconds))
        table = simulate(trace, engine=str(path)).requests.set_index("request_index")
        first.append(table.loc[10, "first_token_s"])
        assert (table["first_token_s"] <= table["finish_s"]).all()
    assert first[1] - first[0] == pytest.approx(11e-3)


def test_tp_adds_to_the_way_of_a_token():
    engine = EngineProfile("e", output_delay_s=1e-3, tp_output_delay_s=5e-4)
    assert engine.for_tp(1) is engine
    assert engine.for_tp(4).output_delay_s == pytest.approx(1.5e-3)


def test_switches_of_a_file_must_be_true_or_false(tmp_path):
    path = tmp_path / "e.toml"
    path.write_text('name = "e"\nserving_kernels = 1\n')
    with pytest.raises(ConfigError, match="serving_kernels: got 1, expected true or false"):
        load_engine(path)


def served(trace: Trace, generated_token_s: float, **settings):
    """The run of a trace on vLLM 0.15.1 with other costs a generated token."""
    from dataclasses import replace

    from stepline.sim.study.run import simulate_resolved

    setup = resolve(RunConfig(engine="vllm-0.15.1", record_steps=True, **settings))
    engine = replace(load_engine("vllm-0.15.1"), generated_token_s=generated_token_s)
    return simulate_resolved(trace, with_engine(setup, engine))


def test_each_step_costs_a_bit_more_for_every_token_generated_before_it():
    trace = Trace.from_requests([Request("a", 0.0, 300, 101)])
    without, with_it = served(trace, 0.0), served(trace, 1e-6)
    extra_s = with_it.requests["finish_s"][0] - without.requests["finish_s"][0]
    assert extra_s == pytest.approx(1e-6 * 100 * 101 / 2)
    host = with_it.totals.seconds["host"]["host"] - without.totals.seconds.get("host", {}).get("host", 0.0)
    assert host == pytest.approx(extra_s)


def test_steps_count_the_generated_tokens_of_their_decodes_under_preemption_too():
    trace = Trace.from_requests([Request(f"r{i}", 0.02 * i, 200 + 7 * i, 60 + i) for i in range(40)])
    steps = served(trace, 3e-8, num_gpu_blocks_override=300).steps
    assert served(trace, 3e-8, num_gpu_blocks_override=300).requests["preemptions"].sum() > 0
    decodes, n = steps["n_decode"], steps["n_steps"]
    counted = (n * steps["generated_tokens"] + decodes * n * (n - 1) // 2).sum()
    # a preempted sequence emits its next token at the end of its recomputation: that step is not a decode
    outputs = trace.output_tokens
    assert counted <= (outputs * (outputs - 1) // 2).sum()
    assert (steps["generated_tokens"] >= decodes).all()
    assert (steps["generated_tokens"] < steps["context_tokens"]).loc[decodes > 0].all()


def test_a_repetition_penalty_costs_its_counts_over_the_vocabulary():
    from stepline.sim.cost.sampler import PENALTY_BYTES

    engine = EngineProfile("e", sampler_kernels=True)
    plain, penalised = (
        priced(engine, sampling=NEUTRAL),
        priced(engine, sampling=Sampling(repetition_penalty=1.05)),
    )
    few, many = (StepWork(n_decode=n, context_tokens=(n * 700,), logits_rows=n) for n in (8, 64))
    extra = [penalised.step_s(work) - plain.step_s(work) for work in (few, many)]
    a_row_s = plain.model.vocab_size * PENALTY_BYTES / plain.gpu.hbm_bytes_per_s
    assert extra[0] > 8 * a_row_s
    assert 56 * a_row_s < extra[1] - extra[0] < 3 * 56 * a_row_s
