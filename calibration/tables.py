"""Reader of the published kernel tables in the PyPI package `aiconfigurator-core` (Apache-2.0), without importing it.

Every row is brought to `schema.TIMING_COLUMNS`. The traps of that data, all handled here: latencies are
milliseconds (means of six CUDA-graph replays), collective sizes are elements, small GEMM and decode rows ran
L2-warm, fp8_block rows were launched eagerly, and a decode's `step` is the tokens before the new one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.sim.cost.catalogue import load_gpu
from stepline.traces.errors import CalibrationError, nearest

from .schema import check_timings

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = "aiconfigurator-core"
SYSTEMS: dict[str, str] = {
    "h100-sxm": "h100_sxm",
    "h200": "h200_sxm",
    "b200": "b200_sxm",
    "a100-80": "a100_sxm",
    "l40s": "l40s",
}
"""Our GPU name -> folder of the package."""

DTYPES: dict[str, str] = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "bf16",
    "int4_wo": "int4",
    "nvfp4": "fp4",
}
"""Their dtype name -> ours; other names stay."""

GEMM_BUFFERS = 6
"""The collector cycles six weight buffers: while 6 · n · k · bytes fit into L2 they all stay there."""

DECODE_L2_FRAC = 0.8
"""Decode rows whose KV is below this share of L2 (40 MB on an H100) are replayed out of it."""


def tables_dir(explicit: Path | str | None = None) -> Path:
    """Folder `systems/data` of the tables: the given one, else that of the installed package.

    Raises:
        CalibrationError: the folder does not exist, or the package is not installed.
    """
    if explicit is not None:
        path = Path(explicit)
        for candidate in (path, path / "systems" / "data", path / "aiconfigurator_core" / "systems" / "data"):
            if any((candidate / system).is_dir() for system in SYSTEMS.values()):
                return candidate
        raise CalibrationError(
            f"{path}: got no table folder, expected one with {', '.join(SYSTEMS.values())}"
        )
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise CalibrationError(
            f"source aiconfigurator: package {PACKAGE} is not installed; pip install 'stepline[h100]' "
            "or give --tables DIR"
        ) from None
    data = next((f for f in files if "/systems/data/" in f"/{f.as_posix()}"), None)
    if data is None:
        raise CalibrationError(f"source aiconfigurator: the installed {PACKAGE} holds no systems/data folder")
    parts = data.parts
    root = Path(*parts[: parts.index("data") + 1])
    return Path(str(importlib.metadata.distribution(PACKAGE).locate_file(root)))


def package_version() -> str:
    """Version of the installed package, or `unknown` for a bare folder of tables."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def table_file(root: Path, gpu: str, family: str, library: str, name: str) -> Path | None:
    """Path of one table, or None where the package has none for this GPU, kernel family and library.

    Raises:
        CalibrationError: unknown GPU, or a library that is not NAME-VERSION.
    """
    if gpu not in SYSTEMS:
        raise CalibrationError(f"--gpu: got {gpu!r}{nearest(gpu, SYSTEMS)}")
    vendor, _, version = library.partition("-")
    if not version:
        raise CalibrationError(f"--library: got {library!r}, expected NAME-VERSION such as vllm-0.24.0")
    path = root / SYSTEMS[gpu] / family / vendor / version / f"{name}.parquet"
    return path if path.is_file() else None


def known_libraries(root: Path, gpu: str) -> tuple[str, ...]:
    """Libraries (NAME-VERSION) that have GEMM tables for a GPU."""
    folder = root / SYSTEMS[gpu] / "gemm"
    found = sorted(folder.glob("*/*/gemm_perf.parquet"))
    return tuple(f"{path.parent.parent.name}-{path.parent.name}" for path in found)


def read_tables(root: Path, gpu: str, library: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """All tables of a GPU and library in the timing schema, and {file: sha256} of what was read.

    Raises:
        CalibrationError: unknown GPU or library, or rows that are no timings.
    """
    import pandas as pd

    if gpu not in SYSTEMS:
        raise CalibrationError(f"--gpu: got {gpu!r}{nearest(gpu, SYSTEMS)}")
    frames, hashes, read = [], {}, set()
    for family, name, convert in _TABLES:
        path = table_file(root, gpu, family, library, name)
        if path is None:
            continue
        read.add(name)
        hashes[path.relative_to(root).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
        frames.append(_converted(path, convert, gpu, library))
    if frames and not any(name == "custom_allreduce_perf" for name in read):
        # an all-reduce kernel changes little between releases; its rows carry the version they were timed with
        path = _latest(root / SYSTEMS[gpu] / "comm" / library.partition("-")[0], "custom_allreduce_perf")
        if path is not None:
            hashes[path.relative_to(root).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
            frames.append(_converted(path, _all_reduce, gpu, f"{path.parent.parent.name}-{path.parent.name}"))
    nccl = _latest(root / SYSTEMS[gpu] / "comm" / "nccl", "nccl_perf")
    if frames and nccl is not None:
        hashes[nccl.relative_to(root).as_posix()] = hashlib.sha256(nccl.read_bytes()).hexdigest()
        frames.append(_converted(nccl, _nccl, gpu, f"nccl-{nccl.parent.name}"))
    if not frames:
        raise CalibrationError(
            f"--library: got {library!r} for {gpu}{nearest(library, known_libraries(root, gpu))}"
        )
    return pd.concat(frames, ignore_index=True), hashes


def _converted(
    path: Path, convert: Callable[[pd.DataFrame, float], dict[str, Any]], gpu: str, library: str
) -> pd.DataFrame:
    import pandas as pd

    rows = pd.read_parquet(path)
    if "latency" not in rows.columns:
        raise CalibrationError(f"{path}: missing column 'latency'")
    try:
        columns = convert(rows, load_gpu(gpu).l2_bytes)
    except KeyError as error:
        raise CalibrationError(f"{path}: missing column {error}") from None
    frame = pd.DataFrame({"gpu": gpu, "library": library, "median_s": rows["latency"] * 1e-3, **columns})
    frame["repeats"] = 6
    return check_timings(frame[frame["kernel"] != ""], str(path))


def _dtype(names: pd.Series) -> pd.Series:
    return names.map(lambda name: DTYPES.get(name, name))


def _gemm(rows: pd.DataFrame, l2_bytes: float) -> dict[str, Any]:
    dtype = _dtype(rows["gemm_dtype"])
    width = dtype.map({"bf16": 2.0, "fp16": 2.0, "int4": 0.5}).fillna(1.0)
    return {
        "kernel": "gemm",
        "dtype": dtype,
        "m": rows["m"],
        "n": rows["n"],
        "k": rows["k"],
        "graph": dtype != "fp8_block",  # launched eagerly: below m = 1 k its time is the host's
        "cold": GEMM_BUFFERS * rows["n"] * rows["k"] * width >= l2_bytes,
    }


def _attention(rows: pd.DataFrame) -> dict[str, Any]:
    """Columns of both attention tables; older collections know no windows."""
    window = rows["window_size"] if "window_size" in rows else rows["batch_size"] * 0
    return {
        "dtype": _dtype(rows["attn_dtype"]),
        "kv_dtype": _dtype(rows["kv_cache_dtype"]),
        "batch": rows["batch_size"],
        "heads": rows["num_heads"],
        "kv_heads": rows["num_key_value_heads"].where(rows["num_key_value_heads"] > 0, rows["num_heads"]),
        "head_dim": rows["head_dim"],
        "window": window.where(window > 0),
        "graph": True,
    }


def _context_attention(rows: pd.DataFrame, l2_bytes: float) -> dict[str, Any]:
    del l2_bytes
    return {
        **_attention(rows),
        "kernel": "attention_prefill",
        "query_tokens": rows["isl"],
        "context_tokens": rows["isl"] + rows["step"],
        "history_tokens": rows["step"],
        "cold": True,
    }


def _generation_attention(rows: pd.DataFrame, l2_bytes: float) -> dict[str, Any]:
    columns = _attention(rows)
    context = rows["isl"] + rows["step"]
    width = columns["kv_dtype"].map({"bf16": 2.0, "fp16": 2.0}).fillna(1.0)
    read = context.where(columns["window"].isna(), context.clip(upper=columns["window"].fillna(1e12)))
    kv = 2 * rows["batch_size"] * read * columns["kv_heads"] * rows["head_dim"] * width
    return {
        **columns,
        "kernel": "attention_decode",
        "query_tokens": 1,
        "context_tokens": context,
        "history_tokens": rows["step"],
        "cold": kv >= DECODE_L2_FRAC * l2_bytes,
    }


def _all_reduce(rows: pd.DataFrame, l2_bytes: float) -> dict[str, Any]:
    del l2_bytes
    source = rows["backend"] if "backend" in rows else rows["kernel_source"]
    return {
        "kernel": "all_reduce",
        "dtype": _dtype(rows["allreduce_dtype"]),
        "world": rows["num_gpus"],
        "message_bytes": rows["message_size"] * 2,  # the table counts elements
        "graph": ~source.str.contains("eager"),
        "cold": True,
    }


NCCL_KERNELS = {"all_gather": "all_gather", "alltoall": "all_to_all", "reduce_scatter": "reduce_scatter"}


def _nccl(rows: pd.DataFrame, l2_bytes: float) -> dict[str, Any]:
    del l2_bytes
    kept = rows["op_name"].map(NCCL_KERNELS).where(rows["nccl_dtype"] == "half").fillna("")
    return {
        "kernel": kept,
        "dtype": "bf16",
        "world": rows["num_gpus"],
        "message_bytes": rows["message_size"] * 2,
        "graph": True,
        "cold": True,
    }


def _latest(folder: Path, name: str) -> Path | None:
    """The table of the highest version below a folder of versions."""
    found = list(folder.glob(f"*/{name}.parquet"))
    return (
        max(found, key=lambda p: tuple(int(x) for x in re.findall(r"\d+", p.parent.name))) if found else None
    )


ZIPF_OF_POWER_LAW = 0.6
"""The tables name the exponent of a sampled density of expert loads; a Zipf law of popularity with 0.6 of it touches as
many experts (found on H100 bf16 rows with EP 1: mean error 9-10 % with the balanced constants, 12-14 % with 1.0)."""


def _moe(rows: pd.DataFrame, l2_bytes: float) -> dict[str, Any]:
    del l2_bytes
    law = (
        rows["distribution"].str.extract(r"power_law_([\d.]+)")[0].astype(float).fillna(0.0)
        * ZIPF_OF_POWER_LAW
    )
    return {
        "kernel": "moe",
        "dtype": _dtype(rows["moe_dtype"]),
        "m": rows["num_tokens"],
        "n": rows["inter_size"] // rows["moe_tp_size"],
        "k": rows["hidden_size"],
        "n_experts": rows["num_experts"],
        "top_k": rows["topk"],
        "ep": rows["moe_ep_size"],
        "skew": law,
        "graph": True,
        "cold": True,
    }


def _mla(rows: pd.DataFrame) -> dict[str, Any]:
    """Columns of both latent-attention tables: whole modules, projections included, of DeepSeek-V3's shapes."""
    return {
        "dtype": _dtype(rows["gemm_type"]),
        "kv_dtype": _dtype(rows["kv_cache_dtype"]),
        "batch": rows["batch_size"],
        "heads": rows["num_heads"],
        "graph": True,
        "cold": True,
    }


def _mla_context(rows: pd.DataFrame, l2_bytes: float) -> dict[str, Any]:
    del l2_bytes
    columns = {"query_tokens": rows["isl"], "history_tokens": rows["step"]}
    return {**_mla(rows), **columns, "kernel": "mla_prefill", "context_tokens": rows["isl"] + rows["step"]}


def _mla_generation(rows: pd.DataFrame, l2_bytes: float) -> dict[str, Any]:
    del l2_bytes
    context = rows["isl"] + rows["step"]
    return {**_mla(rows), "kernel": "mla_decode", "query_tokens": 1, "context_tokens": context}


_TABLES: tuple[tuple[str, str, Callable[[Any, float], dict[str, Any]]], ...] = (
    ("gemm", "gemm_perf", _gemm),
    ("attention", "context_attention_perf", _context_attention),
    ("attention", "generation_attention_perf", _generation_attention),
    ("comm", "custom_allreduce_perf", _all_reduce),
    ("moe", "moe_perf", _moe),
    ("mla", "mla_context_module_perf", _mla_context),
    ("mla", "mla_generation_module_perf", _mla_generation),
)
