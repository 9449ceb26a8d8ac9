"""Where timings come from: the published tables, or a file of our own schema."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.sim.cost.catalogue import known_gpus, load_gpu
from stepline.sim.cost.specs import GpuSpec
from stepline.traces.errors import CalibrationError, ConfigError, nearest

from .schema import check_timings

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Timings of one GPU and library with their origin; `own_gpu`: the GPU's spec is measured, not a datasheet."""

    table: pd.DataFrame
    gpu: GpuSpec
    library: str
    provenance: dict[str, Any]
    own_gpu: bool = False


def read_source(
    source: str, gpu: str | None = None, library: str | None = None, tables: str | None = None
) -> Source:
    """Open `--source`: `aiconfigurator`, or a path to a `.parquet` or `.csv` in our own schema.

    Args:
        source: what to read.
        gpu: catalogue name (default h100-sxm) or a spec file; for a file of our own, by default what its rows say.
        library: NAME-VERSION; for a file of our own, by default that of its GEMM rows.
        tables: folder of the published tables; None: that of the installed package.

    Raises:
        CalibrationError: nothing there, or rows that are no timings.
    """
    if source == "aiconfigurator":
        return _published(gpu or "h100-sxm", library or "vllm-0.24.0", tables)
    if Path(source).suffix not in (".parquet", ".csv"):
        raise CalibrationError(
            f"--source: got {source!r}, expected aiconfigurator or a .parquet or .csv file"
        )
    return _own(Path(source), gpu, library)


def _published(gpu: str, library: str, tables: str | None) -> Source:
    from .tables import PACKAGE, package_version, read_tables, tables_dir

    spec = load_gpu(gpu)
    table, hashes = read_tables(tables_dir(tables), spec.name, library)
    version = package_version() if tables is None else "folder"
    provenance = {
        "source": f"{PACKAGE} {version} (Apache-2.0): fitted numbers and smoothed grids, none of its rows",
        "sha256": hashes,
        "command": f"calibrate fit --source aiconfigurator --gpu {spec.name} --library {library}",
    }
    return Source(table, spec, library, provenance)


def _own(path: Path, gpu: str | None, library: str | None) -> Source:
    import pandas as pd

    try:
        raw = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path}: cannot be read: {error}") from None
    table = check_timings(raw, str(path))
    if table.empty:
        raise CalibrationError(f"{path}: got no rows, expected timings")
    names = sorted(table["gpu"].dropna().unique())
    if len(names) != 1:
        raise CalibrationError(f"{path}: gpu: got {', '.join(names) or 'none'}, expected one GPU a file")
    measured = gpu is None and names[0] not in known_gpus()
    spec = _measured_spec(table, names[0]) if measured else load_gpu(gpu or names[0])
    gemm = table.loc[table["kernel"] == "gemm", "library"]
    chosen = library or (str(gemm.mode().iloc[0]) if len(gemm) else str(table["library"].iloc[0]))
    provenance = {
        "source": f"{path.name}: {len(table)} rows timed on {names[0]}",
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()},
        "command": f"calibrate fit --source {path.name}",
    }
    return Source(table, spec, chosen, provenance, own_gpu=measured)


CPU_MEMORY_BYTES = 64 * 2**30
"""Stated size of an unknown device's memory: a table of timings does not say; give --gpu FILE to say it."""


def _measured_spec(table: pd.DataFrame, name: str) -> GpuSpec:
    """A device outside the catalogue, described by the best rates in its own timings.

    Raises:
        CalibrationError: no GEMM row or no cold copy row to take a peak from.
    """
    import os

    from .measure.facts import gpu_spec, measured_peaks

    peaks = measured_peaks(table)
    if not peaks["flops_per_s"] or not peaks["bytes_per_s"]:
        raise CalibrationError(
            f"gpu {name!r} is in no catalogue{nearest(name, known_gpus())} and the table has no "
            "gemm or no cold copy rows to take its peaks from; give --gpu FILE"
        )
    rates = dict(peaks["flops_per_s"])
    rates.setdefault(
        "bf16", max(rates.values())
    )  # models are bf16 by default; this device computes them as it can
    # one CTA a processor: the wave and split terms of the forms then speak of processors
    spec = gpu_spec(name, {**peaks, "flops_per_s": rates}, CPU_MEMORY_BYTES, os.cpu_count() or 1, 0)
    if not isinstance(spec, GpuSpec):
        raise ConfigError(f"gpu {name!r}: no spec")
    return spec
