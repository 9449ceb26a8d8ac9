"""`GpuSpec` and `EngineProfile` from a mapping (a row of the catalogue or a user's file), every field checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from typing import Any, get_args

from ...traces.errors import ConfigError, nearest
from .specs import Dtype, EngineProfile, GpuSpec, ModelSpec

Row = Mapping[str, Any]

_SWITCHES = {"serving_kernels", "varlen_attention", "sampler_kernels", "host_overlaps_gpu"}
_WHOLE = {"memory_bytes", "n_sm", "l2_bytes"}
_MAY_BE_ZERO = {"l2_bytes", "tdp_w", "nvlink_bytes_per_s", "pcie_bytes_per_s", "usd_per_hour"}


def gpu_from(row: Row, where: str) -> GpuSpec:
    """The GPU a mapping with the fields of `GpuSpec` describes.

    Raises:
        ConfigError: unknown, missing or wrong field.
    """
    _check_keys(row, GpuSpec, where, extra=())
    peaks = row["peak_flops"]
    if not isinstance(peaks, dict) or not peaks:
        raise ConfigError(f"{where}: peak_flops: got {peaks!r}, expected a table of FLOP/s by dtype")
    for dtype, rate in peaks.items():
        if dtype not in get_args(Dtype):
            raise ConfigError(f"{where}: peak_flops.{dtype}: unknown dtype{nearest(dtype, get_args(Dtype))}")
        _number(rate, f"{where}: peak_flops.{dtype}", zero=False)
    numbers: dict[str, Any] = {}
    for key, value in row.items():
        if key not in ("name", "source", "aliases", "peak_flops"):
            number = _number(value, f"{where}: {key}", zero=key in _MAY_BE_ZERO)
            numbers[key] = int(number) if key in _WHOLE else number
    return GpuSpec(
        name=str(row["name"]),
        peak_flops={k: float(v) for k, v in peaks.items()},
        aliases=tuple(row.get("aliases", ())),
        source=str(row.get("source", where)),
        **numbers,
    )


def engine_from(row: Row, where: str) -> EngineProfile:
    """The engine profile a mapping describes: the fields of `EngineProfile`, with `cuda_graphs` as ranges.

    `cuda_graphs` is a list of [first, last, step] (ends included); `cuda_graph_sizes` a plain list of sizes.

    Raises:
        ConfigError: unknown, missing or wrong field.
    """
    _check_keys(row, EngineProfile, where, extra=("cuda_graphs", "aliases"))
    values = {k: v for k, v in row.items() if k not in ("cuda_graphs", "aliases")}
    if values.get("pipeline_depth", 0) not in (0, 1):
        raise ConfigError(f"{where}: pipeline_depth: got {values['pipeline_depth']!r}, expected 0 or 1")
    for key, value in values.items():
        if key in _SWITCHES and not isinstance(value, bool):
            raise ConfigError(f"{where}: {key}: got {value!r}, expected true or false")
        if key.endswith("_s") or key == "moe_skew":
            values[key] = _number(value, f"{where}: {key}", zero=True)
    sizes = tuple(values.get("cuda_graph_sizes", ())) or _graph_sizes(row.get("cuda_graphs", ()), where)
    values["cuda_graph_sizes"] = sizes
    values.setdefault("max_graph_tokens", max(sizes, default=0))
    values.setdefault("source", where)
    return EngineProfile(**values)


def model_extras(spec: ModelSpec, row: Row) -> ModelSpec:
    """`spec` with what a row of the catalogue states beside its config."""
    changes = {k: row[k] for k in ("unpriced", "encoder_layers") if k in row}
    return replace(spec, **changes)


def _graph_sizes(ranges: Any, where: str) -> tuple[int, ...]:
    try:
        return tuple(size for first, last, step in ranges for size in range(first, last + 1, step))
    except (TypeError, ValueError):
        raise ConfigError(
            f"{where}: cuda_graphs: got {ranges!r}, expected [first, last, step] lists"
        ) from None


def _check_keys(row: Row, kind: type[GpuSpec | EngineProfile], where: str, extra: tuple[str, ...]) -> None:
    known = [f.name for f in fields(kind)]
    for key in row:
        if key not in known and key not in extra:
            raise ConfigError(f"{where}: {key}: unknown field{nearest(key, [*known, *extra])}")
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    for key in required:
        if key not in row:
            raise ConfigError(f"{where}: {key}: missing")


def _number(value: Any, where: str, *, zero: bool) -> float:
    wrong = isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)
    if wrong or value < 0 or (value == 0 and not zero):
        raise ConfigError(f"{where}: got {value!r}, expected a number {'>=' if zero else '>'} 0")
    return float(value)
