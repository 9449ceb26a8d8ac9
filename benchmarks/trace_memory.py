"""Peak memory and speed of describing a long trace: `python benchmarks/trace_memory.py [ROWS] [--sessions]`.

Writes a generated native trace of ROWS plain requests (10 million by default) to a temporary directory, describes it
with `simulate trace describe` in a process of its own, and prints that process's peak resident memory. The bound of
the project is 500 MB at 10 million rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LIMIT_MB = 500
_BATCH = 100_000


def main(argv: list[str]) -> int:
    """Measure once; 0 where the peak is within the limit."""
    sessions = "--sessions" in argv
    rows = next((int(text) for text in argv if text.isdigit()), 10_000_000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.jsonl"
        write(path, rows, sessions=sessions)
        size_mb = path.stat().st_size / 1e6
        start = time.perf_counter()
        command = [sys.executable, "-m", "stepline.sim.cli.main", "trace", "describe", str(path), "--json"]
        with (
            (Path(folder) / "figures.json").open("wb") as out,
            subprocess.Popen(command, stdout=out) as child,
        ):
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        seen = (
            json.loads((Path(folder) / "figures.json").read_text())["requests"] if not child.returncode else 0
        )
        wall_s = time.perf_counter() - start
    peak_mb = usage.ru_maxrss * 1024 / 1e6
    print(
        f"{rows:,} rows, {size_mb:,.0f} MB: peak {peak_mb:,.0f} MB (limit {LIMIT_MB}), "
        f"{wall_s:.1f} s, {wall_s / rows * 1e6:.2f} us a row"
    )
    return int(seen != rows or peak_mb > LIMIT_MB)


def write(path: Path, rows: int, *, sessions: bool) -> None:
    """A Poisson stream of 20 requests/s with lognormal lengths; with `sessions`, five turns each."""
    rng = np.random.default_rng(1)
    at_ms, session = 0.0, ""
    with path.open("w") as out:
        for start in range(0, rows, _BATCH):
            n = min(_BATCH, rows - start)
            arrivals = at_ms + np.cumsum(rng.exponential(50.0, n))
            at_ms = float(arrivals[-1])
            n_in = np.clip(rng.lognormal(6.5, 1.0, n), 1, 130_000).astype(int)
            n_out = np.clip(rng.lognormal(5.0, 0.8, n), 1, 8_000).astype(int)
            lines = []
            for i, (t, a, b) in enumerate(zip(arrivals.tolist(), n_in.tolist(), n_out.tolist(), strict=True)):
                if sessions:
                    session = f',"session_id":"s{(start + i) // 5}"'
                lines.append(f'{{"timestamp":{t:.3f},"input_length":{a},"output_length":{b}{session}}}\n')
            out.writelines(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
