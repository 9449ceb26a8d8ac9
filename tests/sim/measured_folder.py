"""A folder of measured runs whose "measurements" are our own simulations: its errors are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from stepline.sim.study.measured import load_measured
from stepline.sim.study.validation_runs import run_experiment

SERVED = {
    "exp_key": "served-8b", "stage": 0, "replay_class": "B statistical (aggregates)", "hardware": "H100-80GB-HBM3 (SXM)",
    "model": "meta-llama/Llama-3.1-8B-Instruct", "arch": "dense", "tp": 1, "n_replicas": 1, "dp": 1,
    "precision": "BF16/FP16", "engine": "vllm", "engine_version": "0.15.1 (README)", "max_model_len": 4096,
    "max_num_batched_tokens": 2048, "max_num_seqs": 128, "block_size": 16, "gpu_memory_utilization": 0.9,
    "prefix_caching": "on", "kv_blocks_gpu": 20_000, "kv_blocks_source": "measured (log)", "workload": "general",
    "rate_rps": 4.0, "duration_s": 20.0, "n_requests": 80, "isl_spec": 500, "isl_mean_measured": None, "osl_spec": 40,
    "shared_prefix_len": 100, "n_prompts_per_group": 10, "prompt_cycle": 20, "request_timeout_s": 300.0,
    "concurrency": None, "trace_file": None,
}  # fmt: skip
"""One row of `experiments.csv`: a small statistical run."""


def write_folder(root: Path, rows: list[dict[str, Any]], peers: list[dict[str, Any]] | None = None) -> Path:
    """A folder with these experiments and no measurements yet."""
    root.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(root / "experiments.csv", index=False)
    columns = ["exp_key", "stage", "metric", "stat", "value", "unit"]
    pd.DataFrame([], columns=columns).to_csv(root / "metrics.csv", index=False)
    if peers is not None:
        pd.DataFrame(peers).to_csv(root / "peers.csv", index=False)
    return root


def measure_by_simulation(root: Path, factor: float = 1.0, seeds: int = 1) -> None:
    """Fill `metrics.csv` with what the simulator gives, times `factor`; closed loops as `unstated`."""
    rows = []
    for experiment in load_measured(root):
        for stage in run_experiment(experiment, seeds=seeds).stages:
            for name, value in stage.predicted.items():
                metric, _, stat = name.rpartition("_")
                if metric in ("ttft", "tpot", "e2e"):
                    stat = "unstated" if experiment.replay == "closed" and stat == "mean" else stat
                    rows.append((experiment.key, stage.stage, metric, stat, value * factor * 1e3, "ms"))
                elif name in ("throughput_requests", "failed_fraction"):
                    rows.append((experiment.key, stage.stage, name, "mean", value * factor, "1/s"))
    columns = ["exp_key", "stage", "metric", "stat", "value", "unit"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "metrics.csv", index=False)
