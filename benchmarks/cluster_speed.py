"""How fast a fleet is: requests per wall second and memory of 64 replicas under a million requests.

    python benchmarks/cluster_speed.py                         # 64 replicas, 1 M requests, round-robin
    python benchmarks/cluster_speed.py --requests 100000 --routing least-requests,prefix-affinity

The load is the azure_conv profile (or another) at 5 requests per second and replica. The bar is 5 000 requests per wall second on one
core and 1.5 GB.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace

from stepline.sim.study.config import RunConfig
from stepline.sim.study.run import simulate
from stepline.traces.synth import synth


def main() -> None:
    """Print one line a routing policy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--rate-per-replica", type=float, default=5.0)
    parser.add_argument("--profile", default="azure_conv", help="what is asked (azure_conv)")
    parser.add_argument("--routing", default="round-robin")
    args = parser.parse_args()
    trace = synth(args.profile, seed=1, n_requests=args.requests)
    native = len(trace) / (trace.arrival_s[-1] - trace.arrival_s[0])
    factor = args.rate_per_replica * args.replicas / native
    trace = replace(trace, arrival_s=trace.arrival_s / factor)
    base_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{len(trace)} requests at {native * factor:.0f}/s, {args.replicas} replicas; {base_mb:.0f} MB before"
    )
    for routing in args.routing.split(","):
        wall, cpu = time.perf_counter(), time.process_time()
        result = simulate(trace, RunConfig(replicas=args.replicas, routing=routing))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{routing:16s} {len(trace) / wall:8.0f} requests/s wall {len(trace) / cpu:8.0f} per CPU s "
            f"{result.totals.steps / cpu / 1e3:7.0f} k steps/s  peak {peak_mb:6.0f} MB"
        )


if __name__ == "__main__":
    main()
