"""The machine beside the timings: what it is, what it ran at, its measured peaks, as JSON next to the parquet."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from stepline.sim.cost.specs import GpuSpec

NVIDIA_FIELDS = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.limit",
    "temperature.gpu",
)


def facts_path(out: Path) -> Path:
    """Where the facts of `t.parquet` go: `t.machine.json`."""
    return out.with_suffix(".machine.json")


def write_facts(out: Path, facts: Mapping[str, Any]) -> Path:
    """Write facts as JSON beside the table and return the path."""
    path = facts_path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(facts, indent=2, sort_keys=True, default=str) + "\n")
    part.replace(path)
    return path


def write_gpu(out: Path, name: str, facts: Mapping[str, Any]) -> Path | None:
    """Write a device that is in no catalogue as `t.gpu.json`, for `simulate --gpu`; None if nothing is to be written.

    Needs a matmul and a cold copy among the rows, from which its peaks come.
    """
    from stepline.sim.cost.catalogue import known_gpus

    peaks = facts["measured_peaks"]
    if name in known_gpus() or not peaks["flops_per_s"] or not peaks["bytes_per_s"]:
        return None
    rates = dict(peaks["flops_per_s"])
    rates.setdefault(
        "bf16", max(rates.values())
    )  # models are bf16 by default; this device computes them as it can
    spec = gpu_spec(
        name, {**peaks, "flops_per_s": rates}, memory_bytes=int(facts["memory_bytes"]), n_sm=int(facts["n_sm"]),
        cache_bytes=int(facts["cache_bytes"]),
    )  # fmt: skip
    path = out.with_suffix(".gpu.json")
    stated = {field: value for field, value in dataclasses.asdict(spec).items() if value is not None}
    path.write_text(json.dumps(stated, indent=2) + "\n")
    return path


def host_facts() -> dict[str, Any]:
    """Date, Python and operating system."""
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    return {"date": now.isoformat(), "python": platform.python_version(), "system": platform.platform()}


def nvidia_facts(index: int = 0) -> dict[str, str]:
    """What the NVIDIA driver says of a GPU now (clocks, limits, temperature); empty where it cannot be asked."""
    command = [
        "nvidia-smi",
        f"--id={index}",
        f"--query-gpu={','.join(NVIDIA_FIELDS)}",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(NVIDIA_FIELDS, (v.strip() for v in done.stdout.split(",")), strict=False))


def slug(name: str) -> str:
    """Driver's name as a catalogue-style name.

    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def gpu_name(device_name: str) -> str:
    """Catalogue name of a GPU known there by the driver's name, else the slug of that name."""
    from stepline.sim.cost.catalogue import load_gpu
    from stepline.traces.errors import ConfigError

    try:
        return load_gpu(slug(device_name)).name
    except ConfigError:
        return slug(device_name)


def measured_peaks(table: pd.DataFrame) -> dict[str, Any]:
    """Best rates in the table: FLOP/s by GEMM type, bytes/s of copies that leave the cache, seconds of a launch."""
    import numpy as np

    gemm = table[table["kernel"] == "gemm"]
    flops = 2 * (gemm["m"] * gemm["n"] * gemm["k"]).to_numpy(float) / gemm["median_s"].to_numpy(float)
    copy = table[(table["kernel"] == "copy") & table["cold"].fillna(False)]
    rates = copy["message_bytes"].to_numpy(float) / copy["median_s"].to_numpy(float)
    launch = table.loc[table["operation"] == "launch", "median_s"].to_numpy(float)
    by_type = {
        str(d): float(flops[(gemm["dtype"] == d).to_numpy(bool)].max()) for d in gemm["dtype"].unique()
    }
    return {
        "flops_per_s": by_type,
        "bytes_per_s": float(rates.max()) if rates.size else None,
        "launch_s": float(np.min(launch)) if launch.size else None,
    }


def gpu_spec(name: str, peaks: Mapping[str, Any], memory_bytes: int, n_sm: int, cache_bytes: int) -> GpuSpec:
    """The device as a spec for `--gpu FILE.json`: measured peaks where no datasheet is known.

    A device outside the catalogue (a CPU, a new card) is described by what it was seen to do. Links and power
    are not
    measured: 64 GB/s (PCIe 5 x16) and 0 W.
    """
    from stepline.sim.cost.specs import GpuSpec

    return GpuSpec(
        name=name,
        peak_flops=dict(peaks["flops_per_s"]),
        hbm_bytes_per_s=peaks["bytes_per_s"],
        memory_bytes=memory_bytes,
        n_sm=n_sm,
        l2_bytes=cache_bytes,
        nvlink_bytes_per_s=64e9,
        pcie_bytes_per_s=64e9,
        tdp_w=0.0,
        source="measured by `calibrate measure`: best matmul and copy; links and power not measured",
    )
