"""What each policy costs: simulator time against `chunked` with `lru`, and prefix caching against none.

`python benchmarks/policy_speed.py [--data DIR] [--repeat N] [--only NAME]` prints a table, one column a load; `--data`: a
folder with mooncake_synthetic.jsonl.gz and azure_conv.jsonl.gz, for the price of prefix caching on them. Each figure is
the least wall time of N runs, so that a busy machine shows least, over that of `chunked`, `lru`, `last-in`. Loads:

tight      the sample of long chats at half its rate with a cache of 12,000 blocks: full all the time, a short run
crowded    the same at twice its rate: long prompts, a long queue, preemption
chats      10,000 short chats, at six times the sample's rate: the queue grows
code       8,000 prompts of code editors at three times the rate: long prompts, short answers
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepline.sim import read_trace, simulate
from stepline.sim.engine.plugins import plugin_names
from stepline.traces.trace import Trace
from stepline.traces.transform import rate_scale

SAMPLES = Path(__file__).parents[1] / "traces" / "samples"
LOADS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "tight": ("longchat", 0.5, {"num_gpu_blocks_override": 12_000}),
    "crowded": ("longchat", 2.0, {}),
    "chats": ("chat", 6.0, {}),
    "code": ("code", 3.0, {}),
}
"""Name -> sample, multiple of its rate, settings."""
GROUPS = {
    "policy": "stepline.batch_policies",
    "kv_eviction": "stepline.eviction_policies",
    "preemption": "stepline.preemption_policies",
}
REAL = ("mooncake_synthetic", "azure_conv")


def cost(trace: Trace, repeat: int, **settings: Any) -> float:
    """Least wall seconds of a run."""
    return min([simulate(trace, **settings).simulator["wall_s"] for _ in range(repeat)])


def ratios(repeat: int, only: str | None) -> Iterator[tuple[str, list[float]]]:
    """Seconds of the base run, then each registered policy over it, on every load."""
    loads = [(rate_scale(read_trace(SAMPLES / f"{s}.jsonl"), rate), more) for s, rate, more in LOADS.values()]
    base = [cost(trace, repeat + 1, **more) for trace, more in loads]
    yield "seconds of chunked, lru, last-in", base
    for setting, group in GROUPS.items():
        for name in plugin_names(group):
            if only is None or name == only:
                walls = [cost(trace, repeat, **more, **{setting: name}) for trace, more in loads]
                yield f"{setting} {name}", [wall / b for wall, b in zip(walls, base, strict=True)]


def caching(folder: Path, repeat: int) -> Iterator[tuple[str, float]]:
    """Wall time with prefix caching over wall time without, on real loads."""
    for name in REAL:
        trace = read_trace(folder / f"{name}.jsonl.gz")
        on, off = (cost(trace, repeat, enable_prefix_caching=x) for x in (True, False))
        yield f"{name}: prefix caching {on:.2f} s, none {off:.2f} s", on / off


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with the real traces")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="runs a figure (3)")
    parser.add_argument("--only", metavar="NAME", help="one policy")
    args = parser.parse_args()
    print(f"{'':34}" + "".join([f"{name:>9}" for name in LOADS]))
    for name, row in ratios(args.repeat, args.only):
        print(f"{name:34}" + "".join([f"{value:9.2f}" for value in row]), flush=True)
    for name, ratio in caching(args.data, args.repeat) if args.data else ():
        print(f"{name}: {ratio:.2f}x")


if __name__ == "__main__":
    main()
