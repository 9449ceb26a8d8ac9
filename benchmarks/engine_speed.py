"""How fast the engine is, as ratios to bare SimPy in the same run.

    python benchmarks/engine_speed.py                     # everything but the long runs
    python benchmarks/engine_speed.py --long              # 300 k and 1 M requests too
    python benchmarks/engine_speed.py --trace FILE        # a trace of yours instead of the generated azure_conv one

"Bare" is one process that yields `env.timeout(1)` for ever: SimPy's own price of an event. Every figure is measured
next to its own bare run (before and after, the mean of both), in CPU seconds of this process, the best of `--repeat`.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import simpy
from stepline.sim.compiled import form
from stepline.sim.study.config import RunConfig
from stepline.sim.study.run import simulate
from stepline.traces import read_trace
from stepline.traces.trace import Trace


def bare_timeouts_per_s(n: int = 200_000) -> float:
    """Timeouts per CPU second of a SimPy process that does nothing else."""
    env = simpy.Environment()

    def clock():
        for _ in range(n):
            yield env.timeout(1)

    env.process(clock())
    began = time.process_time()
    env.run()
    return n / (time.process_time() - began)


def poisson(n: int, rate: float, inputs: int, outputs: int, seed: int = 1) -> Trace:
    """Requests of constant lengths at a Poisson rate."""
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, n))
    return Trace(arrivals, np.full(n, inputs), np.full(n, outputs), source="generated")


def azure_like(n: int) -> Trace:
    """A generated azure_conv workload of n requests."""
    from stepline.traces.synth import synth

    return synth("azure_conv", seed=1, n_requests=n)


class Stopwatch:
    """Best of several runs, each next to bare SimPy."""

    def __init__(self, repeat: int) -> None:
        self.repeat = repeat

    def __call__(self, trace: Trace, config: RunConfig) -> dict[str, float]:
        best: dict[str, float] = {}
        for _ in range(self.repeat):
            before = bare_timeouts_per_s()
            began = time.process_time()
            result = simulate(trace, config)
            spent = time.process_time() - began
            bare = (before + bare_timeouts_per_s()) / 2
            steps = result.totals.steps
            mean_batch = result.totals.series["running"].mean()
            row = {
                "us_per_request": spent / len(trace) * 1e6,
                "us_per_step": spent / steps * 1e6,
                "requests_ratio": len(trace) / spent / bare,
                "steps_ratio": steps / spent / bare,
                "bare_per_s": bare,
                "steps": steps,
                "running": mean_batch,
            }
            if not best or row["requests_ratio"] > best["requests_ratio"]:
                best = row
        return best


def million() -> tuple[dict[str, float], float]:
    """A run of a million requests, and the peak memory of this process in GB, its trace included."""
    row = Stopwatch(1)(azure_like(1_000_000), RunConfig())
    return row, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def line(name: str, row: dict[str, float], goal: str) -> None:
    print(
        f"{name:44s} {row['us_per_request']:7.1f} µs/request {row['us_per_step']:6.2f} µs/step  "
        f"requests/bare {row['requests_ratio']:.4f}  steps/bare {row['steps_ratio']:.3f}  "
        f"running {row['running']:5.1f}  {goal}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, help="trace for the azure_conv line (default: generated)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--long", action="store_true", help="also 300 k and 1 M requests")
    args = parser.parse_args()
    print(f"the engine's core is {form()}")
    watch: Callable[[Trace, RunConfig], dict[str, float]] = Stopwatch(args.repeat)
    config = RunConfig()
    conv = read_trace(args.trace) if args.trace else azure_like(19_366)
    line("azure_conv", watch(conv, config), "goal: requests/bare >= 0.04")
    few = watch(poisson(20_000, 22.0, 512, 256), config)
    line("512 in, 256 out, ~64 running", few, "goal: steps/bare >= 0.2")
    many = watch(poisson(10_000, 17.0, 512, 1024), config)
    line(
        "512 in, 1024 out, ~256 running",
        many,
        f"goal: µs/step <= 1.5x, is {many['us_per_step'] / few['us_per_step']:.2f}x",
    )
    short = watch(poisson(10_000, 10.0, 512, 128), config)
    long = watch(poisson(10_000, 1.0, 512, 1280), config)
    line("128 out at 10/s", short, "")
    line(
        "1280 out at 1/s",
        long,
        f"goal: µs/request < 2x, is {long['us_per_request'] / short['us_per_request']:.2f}x",
    )
    if args.long:
        sizes = [10_000, 100_000, 300_000]
        costs = []
        for n in sizes:
            row = watch(azure_like(n), config)
            costs.append(row["us_per_request"])
            line(f"azure_conv profile, {n:,} requests", row, "")
        print(f"flatness 10 k to 300 k: {min(costs):.1f} to {max(costs):.1f} µs/request (goal: ±25 %)")
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # whose memory holds nothing else
            row, peak = apart.submit(million).result()
        line("azure_conv profile, 1,000,000 requests", row, "")
        print(f"peak memory of that run: {peak:.2f} GB (goal: <= 1 GB)")


if __name__ == "__main__":
    main()
