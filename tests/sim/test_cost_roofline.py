"""The roofline cost model: one answer on every path, leaps that equal steps, never below the floor."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.sim.cost import forms, operators
from stepline.sim.cost.calibration import find_calibration
from stepline.sim.cost.catalogue import load_engine, load_gpu, load_model
from stepline.sim.cost.datasheet import DatasheetCostModel
from stepline.sim.cost.roofline import RooflineCostModel, context_column
from stepline.sim.cost.specs import EngineProfile
from stepline.sim.cost.work import BOUNDS, KERNELS, StepWork
from stepline.traces.errors import ConfigError

MODELS = ("llama-3.1-8b", "llama-2-7b", "llama-3.1-70b", "mixtral-8x7b", "gpt-oss-20b", "deepseek-v2-lite")
GPUS = ("h100-sxm", "h200", "a100-80", "l40s", "b200")
SERIAL = EngineProfile(name="serial", step_host_s=1e-3, step_host_per_seq_s=1e-5)


@cache
def cost_model(name="llama-3.1-8b", gpu="h100-sxm", tp=1, dtype=None, kv=None, engine="ideal", **options):
    spec = load_gpu(gpu)
    model = load_model(name)
    model = model if dtype is None else replace(model, weight_dtype=dtype)
    profile = SERIAL if engine == "serial" else load_engine(engine)
    calibration = find_calibration(spec.name, model.weight_dtype)
    return RooflineCostModel(model, spec, calibration, tp=tp, engine=profile, kv_dtype=kv, **options)


@st.composite
def works(draw, windows=1):
    """A step that an engine could run: chunks on histories beside decodes."""
    decodes = draw(st.integers(0, 300))
    mean = draw(st.integers(1, 8000))
    chunks = draw(st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 20000)), max_size=4))
    if not chunks and not decodes:
        decodes = 1
    contexts = tuple(decodes * max(1, mean // (i + 1)) for i in range(windows))
    return StepWork(
        prefill_tokens=sum(c for c, _ in chunks),
        prefill_seqs=len(chunks),
        attention_pairs=sum(int(operators.causal_pairs(c, d)) for c, d in chunks),
        prefill_kv_tokens=sum(c + d for c, d in chunks),
        n_decode=decodes,
        context_tokens=contexts,
        logits_rows=decodes + len(chunks),
    )


def columns_of(items):
    fields = [f for f in StepWork._fields if f != "context_tokens"]
    columns = {name: np.array([getattr(w, name) for w in items], dtype=float) for name in fields}
    for i in range(len(items[0].context_tokens)):
        columns[context_column(i)] = np.array([w.context_tokens[i] for w in items], dtype=float)
    return columns


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ["ideal", "vllm-v1", "serial"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_breakdowns_sum_to_the_step(name, engine, data):
    model = cost_model(name, tp=2, engine=engine)
    items = data.draw(st.lists(works(len(model.model.windows)), min_size=1, max_size=4))
    seconds, flops, bytes_ = model.explain_many(columns_of(items))
    assert set(seconds) <= set(KERNELS)
    assert {bound for split in seconds.values() for bound in split} <= set(BOUNDS)
    for i, work in enumerate(items):
        parts = [s[i] for split in seconds.values() for s in split.values()]
        assert min(parts) >= 0
        step_s, alone = model.step_s(work), model.explain(work)
        assert sum(parts) == pytest.approx(step_s, rel=1e-9)
        assert alone.total_s == pytest.approx(step_s, rel=1e-9)
        assert alone.flops == pytest.approx(flops[i])
        assert alone.hbm_bytes == pytest.approx(bytes_[i])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("engine", ["ideal", "vllm-v1", "serial"])
@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 200), mean=st.integers(1, 20000), n=st.integers(1, 3000))
def test_a_leap_is_its_steps(name, engine, batch, mean, n):
    model = cost_model(name, tp=2, engine=engine)
    windows = len(model.model.windows)
    context = tuple(batch * max(1, mean // (i + 1)) for i in range(windows))
    growth = (batch,) * windows
    leap = model.leap(StepWork(0, 0, 0, 0, batch, context, batch), growth, n)
    assert 1 <= leap.n <= n
    for j in {0, 1, leap.n // 2, leap.n - 1} - set(range(leap.n, leap.n + 2)):
        later = tuple(c + j * g for c, g in zip(context, growth, strict=True))
        step = model.step_s(StepWork(0, 0, 0, 0, batch, later, batch))
        assert leap.first_s + j * leap.delta_s == pytest.approx(step, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 200), context=st.integers(1, 10**7))
@pytest.mark.parametrize("engine", ["ideal", "vllm-v1"])
def test_a_decode_line_is_the_step_up_to_its_limit(engine, batch, context):
    model = cost_model(engine=engine)
    ends, pieces = model.decode_lines[batch]
    assert ends == sorted(ends)
    assert len(ends) == len(pieces)
    assert ends[-1] == math.inf
    fixed, slope = pieces[next(i for i, end in enumerate(ends) if context <= end)]
    step = model.step_s(StepWork(0, 0, 0, 0, batch, (context,), batch))
    assert fixed + slope * context == pytest.approx(step, rel=1e-9)


def floor_s(model, gpu, tp, kv_bytes, work):
    """Least seconds of a dense model's step, worked out from shapes alone."""
    heads, kv_heads = model.n_heads // tp, max(1, model.n_kv_heads // tp)
    per_layer = model.hidden_size * (heads + 2 * kv_heads) * model.head_dim
    per_layer += heads * model.head_dim * model.hidden_size
    per_layer += (3 if model.gated_ffn else 2) * model.hidden_size * model.ffn_size // tp
    weight = {"bf16": 2.0, "fp8": 1.0, "int4": 0.5}[model.weight_dtype]
    head = model.hidden_size * model.vocab_size // tp
    keys = 2 * kv_heads * model.head_dim * kv_bytes
    pairs = work.attention_pairs + work.context_tokens[0]
    peak = max(gpu.peak_flops["bf16"], gpu.peak_flops.get("fp8", 0) if weight == 1 else 0)
    flops = model.n_layers * (2 * per_layer * work.new_tokens + 4 * pairs * heads * model.head_dim)
    flops += 2 * head * work.logits_rows
    read = model.n_layers * (per_layer * weight + keys * (work.context_tokens[0] + work.prefill_kv_tokens))
    read += 2 * head if work.logits_rows else 0
    return max(flops / peak, read / gpu.hbm_bytes_per_s)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("dtype", ["bf16", "fp8", "int4"])
@settings(max_examples=20, deadline=None)
@given(
    work=works(),
    name=st.sampled_from(["llama-3.1-8b", "llama-2-7b", "llama-3.1-70b", "qwen3-32b"]),
    tp=st.sampled_from([1, 2, 4, 8]),
    kv=st.sampled_from(["bf16", "fp8"]),
)
def test_no_step_is_faster_than_physics(gpu, dtype, work, name, tp, kv):
    model = cost_model(name, gpu=gpu, tp=tp, dtype=dtype, kv=kv)
    least = floor_s(model.model, model.gpu, tp, {"bf16": 2, "fp8": 1}[kv], work)
    assert model.step_s(work) >= least * (1 - 1e-9)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=30, deadline=None)
@given(data=st.data(), tp=st.sampled_from([1, 2, 4]), history=st.sampled_from(["work", "split-kv"]))
def test_every_model_stays_above_its_own_floor(name, data, tp, history):
    model = cost_model(name, tp=tp, chunk_history=history)
    work = data.draw(works(len(model.model.windows)))
    cost = model.explain(work)
    datasheet = DatasheetCostModel(model.model, model.gpu, tp=tp, chunk_history=history)
    assert model.step_s(work) >= cost.hbm_bytes / model.gpu.hbm_bytes_per_s * (1 - 1e-9)
    assert model.step_s(work) >= cost.flops / model.gpu.peak_flops["bf16"] * (1 - 1e-9)
    assert model.step_s(work) >= (
        datasheet.step_s(work) - sum(datasheet.explain(work).seconds.get("comm", {}).values())
    ) * (1 - 1e-9)


def test_the_8b_decode_floor_is_the_textbook_figure():
    model = DatasheetCostModel(load_model("llama-3.1-8b"), load_gpu("h100-sxm"))
    cost = model.explain(StepWork(0, 0, 0, 0, 1, (1000,), 1))
    assert sum(cost.seconds["gemm"].values()) == pytest.approx(4.17e-3, rel=0.01)
    assert sum(cost.seconds["lm_head"].values()) == pytest.approx(0.314e-3, rel=0.01)
    assert sum(cost.seconds["attention_decode"].values()) == pytest.approx(0.039e-3, rel=0.02)


def test_the_8b_decode_step_on_h100_is_near_what_engines_measure():
    step = cost_model().step_s(StepWork(0, 0, 0, 0, 1, (1000,), 1))
    assert step == pytest.approx(6.2e-3, rel=0.06)  # PHYSICS anchor: floor 4.52 ms, real about 6.2 ms


def test_one_gpu_has_no_communication_and_two_have():
    work = StepWork(0, 0, 0, 0, 8, (8000,), 8)
    assert "comm" not in cost_model().explain(work).seconds
    assert cost_model(tp=2).explain(work).seconds["comm"]["comm"] > 0


def test_more_bandwidth_never_lengthens_a_step():
    base = cost_model()
    faster = RooflineCostModel(
        base.model, replace(base.gpu, hbm_bytes_per_s=2 * base.gpu.hbm_bytes_per_s), base.calibration
    )
    for work in (
        StepWork(0, 0, 0, 0, 16, (64000,), 16),
        StepWork(2048, 1, 2048 * 1024, 2048, 0, (0,), 1),
        StepWork(512, 1, 512 * 9000, 9000, 100, (100000,), 101),
    ):
        assert faster.step_s(work) <= base.step_s(work)


def test_cuda_graphs_pad_a_batch_to_the_next_captured_size():
    engine = EngineProfile(name="graphs", cuda_graph_sizes=(1, 2, 4, 8, 16), max_graph_tokens=16)
    base = cost_model()
    padded = RooflineCostModel(base.model, base.gpu, base.calibration, engine=engine)

    def gemm(model, n):
        return sum(model.explain(StepWork(0, 0, 0, 0, n, (n * 100,), n)).seconds["gemm"].values())

    assert gemm(padded, 9) == pytest.approx(gemm(base, 16))
    assert gemm(padded, 17) == pytest.approx(gemm(base, 17))


def test_host_time_hides_behind_the_gpu_or_adds_to_it():
    work = StepWork(0, 0, 0, 0, 4, (400,), 4)
    base = cost_model()
    host_s = 20e-3
    hidden = EngineProfile(name="async", step_host_s=host_s, host_overlaps_gpu=True)
    adds = EngineProfile(name="serial", step_host_s=host_s)
    overlapped = RooflineCostModel(base.model, base.gpu, base.calibration, engine=hidden)
    serial = RooflineCostModel(base.model, base.gpu, base.calibration, engine=adds)
    assert overlapped.step_s(work) == pytest.approx(host_s)
    assert overlapped.explain(work).seconds["host"]["host"] == pytest.approx(host_s - base.step_s(work))
    assert serial.step_s(work) == pytest.approx(base.step_s(work) + host_s)


def test_history_rules_agree_on_fresh_prompts_and_differ_on_long_histories():
    work_rule, split_rule = cost_model("llama-2-7b"), cost_model("llama-2-7b", chunk_history="split-kv")
    fresh = StepWork(2048, 1, int(operators.causal_pairs(2048)), 2048, 0, (0,), 1)
    late = StepWork(256, 1, int(operators.causal_pairs(256, 30000)), 30256, 0, (0,), 1)
    assert work_rule.step_s(fresh) == split_rule.step_s(fresh)
    assert work_rule.step_s(late) > 1.1 * split_rule.step_s(late)


def test_a_window_caps_what_a_long_chunk_reads():
    full = load_model("llama-3.1-8b")
    windowed = replace(full, attention_windows=((1024, full.n_layers),))
    gpu = load_gpu("h100-sxm")
    work = StepWork(8192, 1, int(operators.causal_pairs(8192)), 8192, 0, (0,), 1)
    narrow = DatasheetCostModel(windowed, gpu).explain(work)
    wide = DatasheetCostModel(full, gpu).explain(work)
    pairs = operators.windowed_pairs(8192, 0, 1024)
    saved = full.n_layers * 4 * (work.attention_pairs - pairs) * full.n_heads * full.head_dim
    assert wide.flops - narrow.flops == pytest.approx(saved)


def test_fp8_weights_halve_the_weight_bytes_of_the_layers():
    gpu = load_gpu("h100-sxm")
    work = StepWork(0, 0, 0, 0, 1, (1,), 1)
    model = load_model("llama-3.1-8b")
    bf16 = DatasheetCostModel(model, gpu).explain(work).seconds["gemm"]
    fp8 = DatasheetCostModel(replace(model, weight_dtype="fp8"), gpu).explain(work).seconds["gemm"]
    assert sum(fp8.values()) == pytest.approx(sum(bf16.values()) / 2, rel=0.01)


def test_expert_parallelism_trades_an_all_reduce_for_all_to_alls():
    work = StepWork(0, 0, 0, 0, 64, (64000,), 64)
    spread = cost_model("mixtral-8x7b", tp=2, ep=2).explain(work)
    sliced = cost_model("mixtral-8x7b", tp=2).explain(work)
    assert spread.seconds["comm"] != sliced.seconds["comm"]
    assert spread.hbm_bytes == pytest.approx(
        sliced.hbm_bytes, rel=0.05
    )  # half the experts whole = all in halves


def test_skewed_routing_reads_fewer_experts():
    work = StepWork(0, 0, 0, 0, 8, (8000,), 8)
    even, skewed = cost_model("qwen3-30b-a3b"), cost_model("qwen3-30b-a3b", moe_skew=1.2)
    assert skewed.explain(work).hbm_bytes < even.explain(work).hbm_bytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tp": 3}, "tp: got 3"),
        ({"ep": 4}, "ep: got 4"),
        ({"chunk_history": "magic"}, "chunk_history: got 'magic'"),
        ({"moe_skew": -1.0}, "moe_skew: got -1.0"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        cost_model(**options)


def test_a_step_is_priced_fast_enough_for_the_engine():
    import timeit

    model = cost_model(engine="vllm-v1")
    work = StepWork(0, 0, 0, 0, 64, (64000,), 64)
    model.step_s(work)
    best = min(timeit.repeat(lambda: model.step_s(work), number=2000, repeat=5)) / 2000
    nothing = min(timeit.repeat(lambda: sum((1, 2, 3, 4)), number=2000, repeat=5)) / 2000
    assert best < 60 * nothing  # about 1 us where an empty sum takes 0.1: no NumPy on this path


def test_a_write_to_the_cache_costs_no_more_from_four_heads_on():
    gpu, constants = load_gpu("h100-sxm"), {"store_block_s": 2e-6}
    one, two, four, eight = (forms.kv_store_s(132.0, 128 * heads, constants, gpu) for heads in (1, 2, 4, 8))
    assert (one, two, four) == pytest.approx((2e-6 / 16, 2e-6 / 8, 2e-6 / 4))
    assert eight == four
    assert forms.kv_store_s(132.0, 512, {}, gpu) == 0.0


def test_sums_of_numpy_cost_what_plain_ones_do():
    """Whoever prices steps from arrays has such numbers; the compiled pricing takes Python's."""
    model, sums = cost_model(), (512, 1, 131328, 512, 3, (100,), 4, 7)
    numpy = StepWork(*[tuple(map(np.int64, s)) if isinstance(s, tuple) else np.int64(s) for s in sums])
    assert model.step_s(numpy) == model.step_s(StepWork(*sums))
    decodes = StepWork(n_decode=np.int64(3), context_tokens=(np.float64(100.0),), logits_rows=np.int64(3))
    assert model.leap(decodes, (3,), 5) == model.leap(
        StepWork(n_decode=3, context_tokens=(100.0,), logits_rows=3), (3,), 5
    )
