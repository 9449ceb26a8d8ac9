"""The measuring loop with a timer and kernels of our own making: order, budget, resumption, what reaches the disk."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
from stepline.calibration.measure.cases import ELEMENTWISE, Case, Grid, cases, interleave
from stepline.calibration.measure.cli import add_arguments, collectives, only, run
from stepline.calibration.measure.facts import facts_path, gpu_name, measured_peaks, nvidia_facts, slug
from stepline.calibration.measure.grids import CPU_GRIDS, GPU_GRIDS, catalogue_weights, grid
from stepline.calibration.measure.kernels import Unsupported, lengths, prepare, stream_bytes
from stepline.calibration.measure.loop import run as run_loop
from stepline.calibration.measure.table import TimingTable
from stepline.calibration.measure.timers import FEWEST_SAMPLES, Timing, WallTimer, sample
from stepline.calibration.schema import TIMING_COLUMNS, TIMING_KERNELS, check_timings
from stepline.traces.errors import CalibrationError, ConfigError


@dataclass
class FakeKernels:
    """A device whose calls do nothing; FP32 only, so that some cases are unsupported."""

    gpu: str = "fake-gpu"
    cache_bytes: int = 2**20
    operand_bytes: int = 2**30
    most_copies: int = 64
    round_flops: float = 1e15
    failures: tuple = (RuntimeError,)
    made: list[Case] = field(default_factory=list)

    def library(self, case):
        if case.operation == "sampling":
            raise Unsupported("cannot draw")
        return "fake-1.0"

    def make(self, case):
        self.made.append(case)
        return lambda: None

    def reserve(self, n_bytes):
        if n_bytes > self.operand_bytes:
            raise Unsupported("too large")

    def facts(self):
        return {"device": "fake"}


@dataclass
class FakeTimer:
    """Takes 3 µs a call and moves a clock of its own by a second a case."""

    now: float = 0.0
    calls: list[int] = field(default_factory=list)

    def time(self, calls, budget_s, *, graph=True):
        self.now += 1.0
        self.calls.append(len(calls))
        return Timing(3e-6, 1e-7, 5, graph)


class Silent:
    def __init__(self):
        self.labels = []

    def advance(self, label):
        self.labels.append(label)


GRID = Grid(
    gemm_m=(1, 8, 64), gemm_nk=((512, 512), (1024, 512)), heads=((8, 2, 64),), prompts=((1, 64),), chunks=(32,),
    histories=(128,), decodes=((1, 256), (4, 256)), mixed=((4, 256, 64, 256),), rows=(1,), widths=(512,),
    samples=(2,), vocab=1000, copies=(2**20,), peak=256,
)  # fmt: skip


def measure(table, todo, *, budget_s=None, kernels=None, timer=None):
    timer = timer or FakeTimer()
    return run_loop(
        todo, kernels or FakeKernels(), timer, table, case_s=0.01, budget_s=budget_s, progress=Silent(),
        clock=lambda: timer.now,
    )  # fmt: skip


def test_every_case_is_timed_once_and_the_table_is_in_the_schema(tmp_path):
    todo = cases(GRID, "fp32")
    table = TimingTable(tmp_path / "t.parquet")
    outcome = measure(table, todo)
    assert outcome.unsupported == {"host: cannot draw": 1}
    assert outcome.timed == len(todo) - 1 == len(table)
    read = check_timings(pd.read_parquet(tmp_path / "t.parquet"), "t")
    assert list(read.columns) == list(TIMING_COLUMNS)
    assert set(read["kernel"]) == {c.kernel for c in todo}
    assert not list(tmp_path.glob(".*"))


def test_a_budget_leaves_the_rest_and_the_same_command_resumes(tmp_path):
    todo = cases(GRID, "fp32")
    first = measure(TimingTable(tmp_path / "t.parquet"), todo, budget_s=4.5)
    assert (first.timed, first.kept, first.left, first.complete) == (5, 0, len(todo) - 5, False)
    again = TimingTable(tmp_path / "t.parquet")
    assert again.resumed == 5
    kernels = FakeKernels()
    second = measure(again, todo, kernels=kernels)
    assert (second.kept, second.timed) == (5, len(todo) - 6)
    assert not set(kernels.made) & set(todo[:5])
    third = measure(TimingTable(tmp_path / "t.parquet"), todo)
    assert (third.timed, third.kept, third.complete) == (0, len(todo) - 1, True)


class Failing(FakeKernels):
    """A library that cannot run prefill attention; `says` is its error."""

    says = "head size 64 is not supported\nlong traceback"

    def make(self, case):
        if case.kernel == "attention_prefill":
            raise RuntimeError(self.says)
        return super().make(case)


def test_a_shape_that_the_library_fails_on_is_counted_and_the_rest_is_measured(tmp_path):
    todo = cases(GRID, "fp32")
    outcome = measure(TimingTable(tmp_path / "t.parquet"), todo, kernels=Failing())
    failed = sum(c.kernel == "attention_prefill" for c in todo)
    assert outcome.unsupported["attention_prefill: RuntimeError: head size 64 is not supported"] == failed
    assert outcome.timed == len(todo) - failed - 1


def test_a_device_that_broke_stops_the_run_with_its_rows_kept(tmp_path):
    broken = Failing()
    broken.says = "CUDA error: an illegal memory access was encountered"
    with pytest.raises(CalibrationError, match="rows so far are kept, run again"):
        measure(TimingTable(tmp_path / "t.parquet"), cases(GRID, "fp32"), kernels=broken)
    assert len(TimingTable(tmp_path / "t.parquet")) > 0


def test_rows_survive_an_interruption(tmp_path):
    class Interrupted(FakeTimer):
        def time(self, calls, budget_s, *, graph=True):
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().time(calls, budget_s, graph=graph)

    with pytest.raises(KeyboardInterrupt):
        measure(TimingTable(tmp_path / "t.parquet"), cases(GRID, "fp32"), timer=Interrupted())
    assert len(TimingTable(tmp_path / "t.parquet")) == 3


def test_a_table_of_another_machine_is_refused(tmp_path):
    measure(TimingTable(tmp_path / "t.parquet"), cases(GRID, "fp32")[:2])
    with pytest.raises(CalibrationError, match="holds rows of fake-gpu, this device is other"):
        measure(TimingTable(tmp_path / "t.parquet"), [], kernels=FakeKernels(gpu="other"))


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(CalibrationError, match="cannot be read to resume"):
        TimingTable(tmp_path / "t.parquet")
    with pytest.raises(CalibrationError, match=r"ends in \.parquet"):
        TimingTable(tmp_path / "t.csv")


def test_kernels_take_turns_so_that_a_cut_run_lacks_none():
    todo = cases(GPU_GRIDS["standard"], "bf16", ("fp8",))
    assert len(set(todo)) == len(todo)
    priorities = [c.priority for c in todo]
    assert priorities == sorted(priorities)
    first = todo[: len(todo) // 20]
    assert {c.kernel for c in first} >= {
        "gemm",
        "attention_prefill",
        "attention_decode",
        "elementwise",
        "copy",
    }
    assert any(c.kernel == "attention_prefill" and c.history_tokens for c in todo[:300])


def test_interleave_keeps_all_and_alternates():
    given = [Case("gemm", "fp32", 1, m=i) for i in range(1, 4)] + [Case("copy", "fp32", 1, message_bytes=8)]
    assert [c.kernel for c in interleave(given)] == ["gemm", "copy", "gemm", "gemm"]


@pytest.mark.parametrize("grids", [GPU_GRIDS, CPU_GRIDS])
def test_larger_sizes_measure_more_and_all_shapes_are_in_the_schema(grids):
    found = {size: cases(g, "bf16") for size, g in grids.items()}
    counts = [len(found[size]) for size in ("quick", "standard", "full")]
    assert counts == sorted(counts)
    for case in found["full"]:
        columns = case.columns()
        assert set(columns) <= set(TIMING_COLUMNS)
        assert all(columns[c] is not None for c in TIMING_KERNELS[case.kernel]), case


def test_the_heart_of_chunked_prefill_is_covered():
    todo = cases(GPU_GRIDS["standard"], "bf16")
    pairs = {
        (c.query_tokens, c.history_tokens) for c in todo if c.kernel == "attention_prefill" and c.batch == 1
    }
    assert {(q, h) for q in (128, 2048) for h in (512, 65536)} <= pairs
    assert {c.operation for c in todo if c.kernel == "elementwise"} == set(ELEMENTWISE)


def test_weights_of_the_catalogue_are_in_the_grid_without_repeats():
    weights = catalogue_weights("standard")
    assert len(set(weights)) == len(weights)
    assert {(6144, 4096), (28672, 4096), (4096, 14336), (128256, 4096)} <= set(weights)  # 8B at TP 1
    assert {(1280, 8192), (7168, 8192), (8192, 3584), (16032, 8192)} <= set(weights)  # 70B at TP 8
    assert set(catalogue_weights("quick")) <= set(weights) <= set(catalogue_weights("full"))
    assert len(set(grid("standard", gpu=True).gemm_nk)) == len(grid("standard", gpu=True).gemm_nk)


def test_cold_calls_overflow_the_cache_and_warm_ones_say_so():
    kernels = FakeKernels()
    cold = prepare(Case("gemm", "fp32", m=1, n=512, k=512), kernels)  # 1 MiB of weights, 1 MiB of cache
    assert (len(cold.calls), cold.cold) == (2, True)
    warm = prepare(Case("gemm", "fp32", m=1, n=32, k=32), kernels)  # 4 KiB: 64 copies are 256 KiB
    assert (len(warm.calls), warm.cold) == (64, False)
    heavy = prepare(Case("gemm", "fp32", m=4096, n=512, k=512), FakeKernels(round_flops=1e9))
    assert (len(heavy.calls), heavy.cold) == (1, False)
    with pytest.raises(Unsupported, match=r"exceed the 1\.0 GiB"):
        prepare(Case("copy", "fp32", message_bytes=2**31), kernels)


def test_collectives_and_launches_are_kept_out_of_graphs():
    kernels = FakeKernels()
    assert not prepare(Case("host", "fp32", operation="launch"), kernels).graph
    assert not prepare(Case("all_reduce", "fp32", world=2, message_bytes=1024), kernels).graph
    assert prepare(Case("gemm", "fp32", m=1, n=512, k=512), kernels).graph


@pytest.mark.parametrize("batch", [2, 3, 17, 256])
def test_ragged_contexts_keep_the_mean(batch):
    case = Case(
        "attention_decode", "bf16", batch=batch, context_tokens=1000, ragged=True, kv_heads=2, head_dim=64
    )
    spread = lengths(case)
    assert len(spread) == batch
    assert sum(spread) == 1000 * batch
    assert min(spread) < 500 < 1500 < max(spread)


def test_streamed_bytes_are_those_of_weights_and_keys():
    assert stream_bytes(Case("gemm", "bf16", m=7, n=100, k=30)) == 6000
    decode = Case("attention_decode", "bf16", batch=4, context_tokens=100, kv_heads=2, head_dim=64)
    assert stream_bytes(decode) == 4 * 100 * 2 * 2 * 64 * 2
    assert stream_bytes(Case("host", "bf16", operation="launch")) == 0


def test_short_calls_are_sampled_many_to_a_sample():
    asked = []

    def rounds(n):
        asked.append(n)
        return n * 10e-6

    timing = sample(rounds, n_calls=2, budget_s=0.002)
    assert asked[:3] == [1, 1, 20]
    assert timing.median_s == pytest.approx(5e-6)
    assert timing.repeats == 10
    assert sample(lambda n: 1.0 * n, 1, 0.01).repeats == FEWEST_SAMPLES


def test_spread_is_half_the_16_to_84_percent_range():
    times = iter([1.0, *np.linspace(1.0, 2.0, 40)])
    timing = sample(lambda n: next(times), 1, 40.0)
    assert timing.median_s == pytest.approx(1.5)
    assert timing.spread_s == pytest.approx(0.34, abs=0.01)


def test_wall_timer_divides_by_calls():
    ticks = iter(np.arange(0.0, 100.0, 0.5))
    timing = WallTimer(clock=lambda: float(next(ticks))).time([lambda: None] * 5, 0.01)
    assert timing.median_s == pytest.approx(0.1)
    assert timing.graph is None


def test_facts_know_the_catalogue_and_the_measured_peaks(tmp_path):
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert gpu_name("NVIDIA H100 80GB HBM3") == "h100-sxm"
    assert gpu_name("Strange Card 9") == "strange-card-9"
    assert facts_path(tmp_path / "t.parquet") == tmp_path / "t.machine.json"
    rows = [
        Case("gemm", "bf16", m=1000, n=1000, k=1000).columns() | {"median_s": 1e-3, "cold": True},
        Case("gemm", "bf16", m=1, n=1000, k=1000).columns() | {"median_s": 1e-5, "cold": True},
        Case("copy", "bf16", message_bytes=10**9).columns() | {"median_s": 1e-3, "cold": True},
        Case("copy", "bf16", message_bytes=10**3).columns() | {"median_s": 1e-12, "cold": False},
        Case("host", "bf16", operation="launch").columns() | {"median_s": 5e-6, "cold": False},
    ]
    peaks = measured_peaks(pd.DataFrame(rows))
    assert peaks["flops_per_s"] == {"bf16": pytest.approx(2e12)}
    assert peaks["bytes_per_s"] == pytest.approx(1e12)  # a copy inside the cache is no bandwidth of memory
    assert peaks["launch_s"] == 5e-6


def test_a_machine_without_a_driver_has_no_driver_facts(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert nvidia_facts() == {}


def arguments(*flags):
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([*flags])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--device", "tpu"), "expected cuda:N or cpu"),
        (("--device", "cuda:0", "--backend", "numpy"), "expected torch on a GPU"),
        (("--device", "cpu", "--backend", "numpy", "--dtype", "bf16", "--out", "t.parquet"), "expected fp32"),
        (("--device", "cpu", "--backend", "numpy"), "--out: missing"),
        (
            ("--device", "cpu", "--backend", "numpy", "--model", "llama-3-8b"),
            "--model: only used with --phase",
        ),
        (
            ("--device", "cpu", "--backend", "numpy", "--kernels", "gem", "--out", "t.parquet"),
            "did you mean 'gemm'",
        ),
    ],
)
def test_bad_flags_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        run(arguments(*flags))


def test_without_torch_a_gpu_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr("stepline.calibration.measure.cli._has_torch", lambda: False)
    with pytest.raises(ConfigError, match=r"pip install 'stepline\[gpu\]'"):
        run(arguments("--device", "cuda:0", "--out", "t.parquet"))


def test_collectives_follow_the_number_of_gpus():
    kernels = FakeKernels()
    assert collectives(kernels, "bf16") == []
    kernels.n_gpus = 4
    assert {c.world for c in collectives(kernels, "bf16")} == {2, 4}
    assert only(collectives(kernels, "bf16"), "gemm") == []


def test_the_command_measures_this_cpu_end_to_end(tmp_path, capsys):
    out = tmp_path / "t.parquet"
    flags = ("--device", "cpu", "--backend", "numpy", "--size", "quick", "--out", str(out))
    assert run(arguments(*flags, "--kernels", "elementwise,host", "--budget-s", "20")) == 0
    table = check_timings(pd.read_parquet(out), "t")
    assert set(table["kernel"]) == {"elementwise", "host"}
    assert (table["gpu"] == "cpu").all()
    assert table["graph"].isna().all()
    facts = json.loads(facts_path(out).read_text())
    assert facts["rows"] == len(table)
    assert facts["libraries"]["numpy"] == np.__version__
    assert "rows" in capsys.readouterr().err
