"""What each policy costs: simulator time against `chunked` with `lru`, and prefix caching against none.

`python benchmarks/policy_speed.py [--data DIR] [--repeat N]` prints a table; `--data`: a folder with
mooncake_synthetic.jsonl.gz and azure_conv.jsonl.gz, for the price of prefix caching on them. Each figure is the best of
N runs, so that a busy machine shows least; `us_per_step` is wall time over engine steps, for policies that change how
many steps a run has.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stepline.sim import read_trace, simulate
from stepline.sim.engine.plugins import plugin_names
from stepline.traces.trace import Trace
from stepline.traces.transform import rate_scale

SAMPLE = Path(__file__).parents[1] / "traces" / "samples" / "longchat.jsonl"
GROUPS = {
    "policy": "stepline.batch_policies",
    "kv_eviction": "stepline.eviction_policies",
    "preemption": "stepline.preemption_policies",
}
REAL = ("mooncake_synthetic", "azure_conv")


def cost(trace: Trace, repeat: int, **settings: Any) -> tuple[float, int]:
    """Least wall seconds of a run, and its engine steps."""
    runs = [simulate(trace, **settings).simulator for _ in range(repeat)]
    return min([r["wall_s"] for r in runs]), int(runs[0]["steps"])


def policies(repeat: int) -> Iterator[tuple[str, float, int]]:
    """Every registered policy on a trace with shared prefixes, a full cache and preemption."""
    trace = rate_scale(read_trace(SAMPLE), 0.5)
    tight: Mapping[str, Any] = {"num_gpu_blocks_override": 12_000}
    yield ("chunked, lru, last-in", *cost(trace, repeat, **tight))
    for setting, group in GROUPS.items():
        for name in plugin_names(group):
            yield (f"{setting} {name}", *cost(trace, repeat, **tight, **{setting: name}))


def caching(folder: Path, repeat: int) -> Iterator[tuple[str, float]]:
    """Wall time with prefix caching over wall time without, on real loads."""
    for name in REAL:
        trace = read_trace(folder / f"{name}.jsonl.gz")
        on, off = (cost(trace, repeat, enable_prefix_caching=x)[0] for x in (True, False))
        yield f"{name}: prefix caching {on:.2f} s, none {off:.2f} s", on / off


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with the real traces")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs a figure (3)")
    args = parser.parse_args()
    base: float | None = None
    for name, wall_s, steps in policies(args.repeat):
        base = base or wall_s
        print(f"{name:36} {wall_s:7.3f} s {wall_s / base:6.2f}x {1e6 * wall_s / steps:8.1f} us_per_step")
    for name, ratio in caching(args.data, args.repeat) if args.data else ():
        print(f"{name}: {ratio:.2f}x")


if __name__ == "__main__":
    main()
