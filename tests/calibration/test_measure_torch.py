"""The torch back end: its logic with a stand-in for CUDA, its numbers where torch is installed."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from stepline.calibration.measure.cases import Case
from stepline.calibration.measure.kernels import Unsupported
from stepline.calibration.measure.torch_attention import Library, first_right, sequence_lengths, small_case
from stepline.calibration.measure.torch_back_end import GRAPH_S, GraphTimer, open_device
from stepline.traces.errors import ConfigError


class FakeCuda:
    """Streams, events and graphs of a device whose every call takes `call_s` seconds."""

    def __init__(self, call_s):
        self.call_s, self.now, self.recording, self.log = call_s, 0.0, None, []
        cuda = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = cuda.now

            def synchronize(self):
                cuda.log.append("synchronize")

            def elapsed_time(self, end):
                return (end.at - self.at) * 1e3

        class Graph:
            def __init__(self):
                self.calls = 0

            def replay(self):
                cuda.log.append("replay")
                cuda.now += self.calls * cuda.call_s

        class Context:
            def __init__(self, graph=None):
                self.graph = graph

            def __enter__(self):
                cuda.recording = self.graph

            def __exit__(self, *_):
                cuda.recording = None

            def wait_stream(self, other):
                cuda.log.append("wait")

        self.Event, self.CUDAGraph, self.Stream = Event, Graph, Context
        self.graph, self.stream = Context, lambda s: s

    def current_stream(self):
        return self.Stream()

    def launch(self):
        if self.recording is not None:
            self.recording.calls += 1
        else:
            self.now += 10 * self.call_s  # launched one by one, a call takes ten times as long


def test_a_graph_holds_rounds_enough_and_its_time_is_per_call():
    cuda = FakeCuda(2e-6)
    timing = GraphTimer(SimpleNamespace(cuda=cuda)).time([cuda.launch] * 4, budget_s=0.01)
    assert timing.median_s == pytest.approx(2e-6)
    assert timing.graph is True
    assert timing.repeats > 3
    assert cuda.log.count("wait") == 2  # a warm-up on a side stream, waited for on both sides


def test_the_clocks_are_looked_at_under_load_and_not_at_every_timing():
    cuda, looks = FakeCuda(2e-6), []
    timer = GraphTimer(SimpleNamespace(cuda=cuda), watch=lambda: looks.append(1) or {"clocks.sm": "1980 MHz"})
    for _ in range(3):
        timer.time([cuda.launch], budget_s=0.001)
    assert timer.clocks == [{"clocks.sm": "1980 MHz"}]
    assert len(looks) == 1


def test_a_round_that_is_long_enough_is_captured_once():
    cuda = FakeCuda(GRAPH_S)
    GraphTimer(SimpleNamespace(cuda=cuda)).time([cuda.launch], budget_s=0.001)
    assert cuda.log.count("replay") == 1 + 3


def test_what_cannot_be_captured_is_launched_one_by_one():
    cuda = FakeCuda(2e-6)
    timing = GraphTimer(SimpleNamespace(cuda=cuda)).time([cuda.launch], budget_s=0.01, graph=False)
    assert timing.median_s == pytest.approx(20e-6)
    assert timing.graph is False
    assert "replay" not in cuda.log


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, __version__="2.9"))
    with pytest.raises(ConfigError, match=r"got cuda:2, but torch 2\.9 sees 2 CUDA devices"):
        open_device("cuda:2", "bf16")
    with pytest.raises(ConfigError, match="got cuda:x"):
        open_device("cuda:x", "bf16")


class Number(float):
    """Enough of a tensor for a check."""

    def float(self):
        return self

    def __sub__(self, other):
        return Number(float.__sub__(self, other))

    def abs(self):
        return Number(abs(float(self)))

    def max(self):
        return self


def test_the_first_library_that_is_right_is_taken_and_the_others_say_why_not():
    source = SimpleNamespace(
        small_case=lambda kernel, dtype: None, operands=lambda k, c: None, reference=lambda given: Number(2.0)
    )
    kernels = SimpleNamespace(dtype="bf16", notes={})

    def missing():
        raise ImportError("flashinfer is not installed")

    def wrong():
        return Library("wrong-1", lambda given: lambda: Number(2.5))

    def right():
        return Library("right-1", lambda given: lambda: Number(2.01))

    assert first_right(kernels, "norm", [missing, wrong, right], source).name == "right-1"
    assert kernels.notes == {
        "norm: choice 1": "ImportError: flashinfer is not installed",
        "norm: wrong-1": "off by 0.25 of the largest output",
    }
    with pytest.raises(Unsupported, match="no library runs norm correctly"):
        first_right(kernels, "norm", [missing, wrong], source)


def test_a_mixed_step_is_decodes_then_chunks():
    case = Case("attention_mixed", "bf16", batch=2, decode_context_tokens=50, prefill_batch=1, query_tokens=8,
                history_tokens=4)  # fmt: skip
    assert sequence_lengths(case) == ((1, 1, 8), (50, 50, 12))


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch, an optional extra, is not installed")


@pytest.mark.parametrize("kernel", ["attention_prefill", "attention_decode", "attention_mixed"])
@pytest.mark.parametrize("ragged", [False, True])
def test_torch_attention_agrees_with_float32(torch, kernel, ragged):
    from dataclasses import replace

    from stepline.calibration.measure import torch_attention
    from stepline.calibration.measure.torch_kernels import TorchKernels

    kernels = TorchKernels(torch, "cpu", "fp32", arena_bytes=2**24)
    given = torch_attention.operands(kernels, replace(small_case(kernel, "fp32"), ragged=ragged))
    got = torch_attention._torch_sdpa(given)()
    torch.testing.assert_close(got, torch_attention.reference(given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operation", ["norm", "add_norm", "rope", "act", "residual"])
def test_torch_elementwise_agrees_with_float32(torch, operation):
    from stepline.calibration.measure.torch_kernels import TorchKernels

    kernels = TorchKernels(torch, "cpu", "bf16", arena_bytes=2**24)
    assert kernels.library(Case("elementwise", "bf16", m=2, n=8, operation=operation)).startswith("torch-")
    assert kernels.notes == {}


@pytest.mark.gpu
def test_a_gpu_measures_a_few_cases(torch, tmp_path):
    import argparse

    from stepline.calibration.measure.cli import add_arguments, run
    from stepline.calibration.measure.table import TimingTable

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = [
        "--device",
        "cuda:0",
        "--size",
        "quick",
        "--budget-s",
        "20",
        "--out",
        str(tmp_path / "t.parquet"),
    ]
    assert run(parser.parse_args(flags)) == 0
    assert len(TimingTable(tmp_path / "t.parquet")) > 50
