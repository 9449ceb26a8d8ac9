"""Opens a torch device: its kernels and its timer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError

from .facts import nvidia_facts
from .kernels import Call
from .timers import Timer, Timing, WallTimer, sample

if TYPE_CHECKING:
    from .torch_kernels import TorchKernels

GRAPH_S = 1e-3
"""A captured graph lasts at least this long (by repeating short rounds), so that its own launch does not count."""

MOST_ROUNDS = 16
WATCH_S = 15.0


def open_device(device: str, dtype: str) -> tuple[TorchKernels, Timer, str]:
    """Kernels, timer and element type of a torch device.

    Raises:
        ConfigError: the device is not there.
    """
    import torch

    from .torch_kernels import TorchKernels

    if device.startswith("cuda"):
        _, _, index = device.partition(":")
        n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not (index or "0").isdigit() or int(index or 0) >= n_gpus:
            raise ConfigError(
                f"--device: got {device}, but torch {torch.__version__} sees {n_gpus} CUDA devices"
            )
        torch.cuda.set_device(device)
        return (
            TorchKernels(torch, device, dtype),
            GraphTimer(torch, lambda: nvidia_facts(int(index or 0))),
            dtype,
        )
    return TorchKernels(torch, "cpu", dtype), WallTimer(), dtype


class GraphTimer:
    """Times calls as replays of a CUDA graph that holds whole rounds of them; CUDA events are the clock.

    `clocks`: what the driver said (`watch`) right after a timing, at most every `WATCH_S` seconds: the clocks under
    load, not those of an idle device.
    """

    def __init__(self, torch: Any, watch: Callable[[], dict[str, str]] = dict) -> None:
        self._torch, self._watch = torch, watch
        self._watched = -WATCH_S
        self.clocks: list[dict[str, str]] = []

    def time(self, calls: Sequence[Call], budget_s: float, *, graph: bool = True) -> Timing:
        """See `Timer.time`. Without `graph` (collectives, launch overhead) calls are launched one by one."""
        first = self._eager(calls, 2)  # warm-up: allocations, autotuning, lazy initialisation
        first = self._eager(calls, 1)
        if not graph:
            return sample(lambda n: self._eager(calls, n), len(calls), budget_s, graph=False)
        rounds = max(1, min(MOST_ROUNDS, math.ceil(GRAPH_S / max(first, 1e-9))))
        captured = self._capture([*calls] * rounds)
        timing = sample(lambda n: self._replay(captured, n), rounds * len(calls), budget_s, graph=True)
        self._look()
        return timing

    def _look(self) -> None:
        if time.monotonic() - self._watched >= WATCH_S and (seen := self._watch()):
            self.clocks.append(seen)
            self._watched = time.monotonic()

    def _eager(self, calls: Sequence[Call], rounds: int) -> float:
        def launch() -> None:
            for call in calls:
                call()

        return self._seconds(launch, rounds)

    def _replay(self, graph: Any, rounds: int) -> float:
        return self._seconds(graph.replay, rounds)

    def _seconds(self, launch: Call, rounds: int) -> float:
        event = self._torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        for _ in range(rounds):
            launch()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3  # CUDA counts milliseconds

    def _capture(self, calls: Sequence[Call]) -> Any:
        """Capture after a warm-up on a side stream, as CUDA demands; outputs live in the graph's own pool."""
        cuda = self._torch.cuda
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for call in calls[: len(set(calls))]:
                call()
        cuda.current_stream().wait_stream(side)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            for call in calls:
                call()
        return graph
