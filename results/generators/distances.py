"""How near the shipped profiles come to their traces: `python results/generators/distances.py DATA_DIR`.

Prints the tables of README.md: medians (and worst) over seeds 0..14 of generated traces of the same span.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from stepline.traces import Trace, read_trace, spread_quantum
from stepline.traces.synth import synth
from stepline.traces.synth.measure import index_of_dispersion, ks_distance, ks_distance_2d, lru_hit_rates

SEEDS = range(15)
WINDOWS_S = (1.0, 10.0, 60.0)
CASES = {
    "azure_conv": ("azure_conv", 3502.0),
    "azure_code": ("azure_code_first20min", 3600.0),
    "mooncake_conv": ("mooncake_conversation_first10min", 600.0),
    "claude_code": ("claude_code_sessions", 9600.0),
}


def main(data: Path) -> None:
    """Print both tables."""
    print(
        "| profile | requests (trace) | input | output | (input, output) | gap | dispersion at 1/10/60 s (trace) |"
    )
    print("|--|--|--|--|--|--|--|")
    curves = []
    for name, (file, span_s) in CASES.items():
        trace = read_trace(data / f"{file}.jsonl.gz")
        if trace.meta.get("timestamp_quantum_ms"):
            trace = spread_quantum(trace)
        made = [synth(name, seed=seed, duration_s=span_s) for seed in SEEDS]
        print(row(name, trace, made, span_s))
        if trace.hash_ids is not None:
            curves.append((name, trace, made, data / f"{file}.ref_hitrate.json"))
    print("\n| profile | blocks of 512 tokens | trace | generated |\n|--|--|--|--|")
    for name, trace, made, reference in curves:
        points = json.loads(reference.read_text())["points"]
        blocks = [*(point["cacheBlocks"] for point in points), 10**9]
        real = lru_hit_rates(trace, blocks)
        found = np.median([lru_hit_rates(one, blocks) for one in made[:9]], axis=0)
        for capacity, a, b in zip(blocks, real, found, strict=True):
            size = "unbounded" if capacity == 10**9 else f"{capacity}"
            print(f"| {name} | {size} | {a:.3f} | {b:.3f} |")


def row(name: str, trace: Trace, made: list[Trace], span_s: float) -> str:
    """One line of the table of distances."""

    def ks(column: str) -> str:
        return spread([ks_distance(getattr(trace, column), getattr(one, column)) for one in made])

    pairs = [
        ks_distance_2d((trace.input_tokens, trace.output_tokens), (m.input_tokens, m.output_tokens))
        for m in made
    ]
    gaps = [ks_distance(np.diff(trace.arrival_s), np.diff(one.arrival_s)) for one in made]
    bursts = []
    for window in WINDOWS_S:
        real = index_of_dispersion(trace.arrival_s, window)
        found = np.median([index_of_dispersion(one.arrival_s, window, span_s) for one in made])
        bursts.append(f"{found:.3g} ({real:.3g})")
    requests = f"{np.median([len(one) for one in made]):.0f} ({len(trace)})"
    cells = (
        name,
        requests,
        ks("input_tokens"),
        ks("output_tokens"),
        spread(pairs),
        spread(gaps),
        ", ".join(bursts),
    )
    return f"| {' | '.join(cells)} |"


def spread(values: list[float]) -> str:
    """Median and worst."""
    return f"{np.median(values):.3f} ({max(values):.3f})"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
