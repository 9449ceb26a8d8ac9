"""The same run in another process, under another hash seed: the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import hashlib
from pandas.util import hash_pandas_object
from stepline.sim import simulate
from stepline.sim.engine.plugins import plugin_names
from stepline.traces.request import Request
from stepline.traces.trace import Trace

rows = []
for i in range(120):
    shared = [100 * (i % 5) + b for b in range(i % 7)]
    ids = shared + [10_000 + 100 * i + b for b in range(9 - len(shared))]
    rows.append(Request(f"r{i}", 0.004 * i, 140 - 16 * (i % 3 == 0), 5 + 13 * i % 90, hash_ids=tuple(ids[: 9 - (i % 3 == 0)]),
                        block_size=16, tenant=f"t{i % 4}", priority=i % 3, session_id=f"s{i % 11}", delay_s=0.01,
                        slo_class=("interactive", "batch")[i % 2]))
trace = Trace.from_requests(rows)
plain = {"num_gpu_blocks_override": 90, "max_num_seqs": 16, "replicas": 2, "record_steps": True}
skip = {"token-bucket"}
for policy in plugin_names("stepline.batch_policies"):
    result = simulate(trace, policy=policy, max_model_len=400, **plain)
    print(policy, digest(result))
for eviction in plugin_names("stepline.eviction_policies"):
    print(eviction, digest(simulate(trace, kv_eviction=eviction, replay="closed", client_timeout=1.5, **plain)))
for preemption in plugin_names("stepline.preemption_policies"):
    print(preemption, digest(simulate(trace, preemption=preemption, **plain)))
for routing in plugin_names("stepline.routing_policies"):
    print(routing, digest(simulate(trace, routing=routing, max_concurrency=40, **plain)))
"""

DIGEST = """
def digest(result):
    seen = hashlib.sha256()
    for table in (result.requests, result.steps, result.totals.series, result.totals.step_bins, result.preemptions):
        seen.update(repr(list(table)).encode() + hash_pandas_object(table).to_numpy().tobytes())
    return seen.hexdigest()
"""


def output(hash_seed: str) -> list[str]:
    program = PROGRAM.replace("\nrows = []", DIGEST + "\nrows = []", 1)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_no_policy_depends_on_the_hash_seed():
    one, two = output("1"), output("20250731")
    assert len(one) > 30
    assert one == two
