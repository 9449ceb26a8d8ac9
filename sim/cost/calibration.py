"""Calibrations: fitted kernel constants of one (GPU, library version, dtype), as JSON files with their
provenance.

`sim` owns the schema; files are found through the entry-point group `stepline.calibrations`, each entry a
callable that returns a directory of `*.json`. Constants that stand for a rate are efficiencies (fraction of
the datasheet peak), so they can be carried to a GPU without tables; those in seconds carry over as they are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from stepline.traces.errors import CalibrationError, nearest

from .registry import registered
from .residual import ResidualGrid

SCHEMA_VERSION = 1
ENTRY_POINT_GROUP = "stepline.calibrations"

FORMS: dict[str, tuple[str, ...]] = {
    "k-chain": ("t0_s", "compute_eff", "memory_eff", "chain_s_per_k", "exponent"),
    "p-norm": ("t0_s", "compute_eff", "memory_eff", "exponent"),
    "tile-walk": ("t0_s", "wave_s", "chain_s_per_key", "compute_eff", "memory_eff", "exponent"),
    "fused-moe": ("t0_s", "compute_eff", "memory_eff", "activation_eff", "exponent"),
    "chained-moe": ("t0_s", "chain_s_per_k", "compute_eff", "memory_eff", "activation_eff", "exponent"),
    "waves": ("t0_s", "wave_s", "memory_eff"),
    "launch-bytes": ("t0_s", "memory_eff"),
    "alpha-beta": ("t0_s", "one_shot_eff", "two_shot_s", "two_shot_eff"),
}
"""Form name -> the constants it needs; `forms.py` holds the formula of each, and what else it may take."""

KERNEL_FORMS: dict[str, str] = {
    "gemm": "k-chain",
    "gemm_serving": "k-chain",
    "attention_prefill": "tile-walk",
    "attention_prefill_mha": "tile-walk",
    "attention_decode": "waves",
    "attention_decode_mha": "waves",
    "attention_decode_serving": "waves",
    "attention_decode_mha_serving": "waves",
    "mla_prefill": "p-norm",
    "mla_decode": "waves",
    "moe": "chained-moe",
    "moe_serving": "chained-moe",
    "elementwise": "launch-bytes",
    "all_reduce": "alpha-beta",
    "all_gather": "alpha-beta",
    "all_to_all": "alpha-beta",
}
"""Kernel -> its form. `_mha`: as many KV heads as query heads, where a calibration tells them apart.

`_serving`: as in a running engine, operands from memory (see `calibration.tasks_serving`).
Collectives carry the number of GPUs at the end of the name: `all_reduce_8`.
"""


SIMPLER_FORMS: dict[str, str] = {
    "attention_prefill": "p-norm",
    "attention_prefill_mha": "p-norm",
    "moe": "fused-moe",
    "moe_serving": "fused-moe",
}
"""Forms that a kernel's fullest form contains, its missing constants being 0."""


@dataclass(frozen=True, slots=True)
class KernelFit:
    """Constants of one kernel with what is known about them.

    constants        by name, see `FORMS`; `*_s` seconds, `*_eff` fraction of a datasheet peak in (0, 1]
    standard_errors  of each fitted constant, same unit; absent: stated, not fitted
    covariance       of the logarithms of the constants in `fitted`, row by row, for bootstrap draws
    fitted           names in the order of `covariance`
    valid            shape name -> (low, high) of the data
    reach            shape name -> highest value accepted beyond them, tried on held-out rows (errors["wider"])
    errors           split -> regime -> mean absolute error (fraction), held out
    rows             timings used
    provenance       source, files, hashes, notes; `transferred_from` marks constants of another GPU or dtype
    residual         optional smoothed log-residual layer
    """

    form: str
    constants: Mapping[str, float]
    standard_errors: Mapping[str, float] = field(default_factory=dict)
    covariance: tuple[tuple[float, ...], ...] = ()
    fitted: tuple[str, ...] = ()
    valid: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    reach: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, Any] = field(default_factory=dict)
    rows: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    residual: ResidualGrid | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Kernel constants of one GPU, library version and weight dtype.

    `gpu_spec`: fields of `GpuSpec` for a device that is in no catalogue (measured on the user's machine): the
    efficiencies are fractions of these peaks.
    """

    gpu: str
    library: str
    dtype: str
    kernels: Mapping[str, KernelFit]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    gpu_spec: Mapping[str, Any] | None = None

    @property
    def id(self) -> str:
        """`gpu/library/dtype`, for manifests."""
        return f"{self.gpu}/{self.library}/{self.dtype}"

    def without_residuals(self) -> Calibration:
        """The same formulas without their residual layers."""
        kernels = {name: replace(fit, residual=None) for name, fit in self.kernels.items()}
        return replace(self, kernels=kernels)

    def kernel(self, name: str, *fallbacks: str) -> KernelFit:
        """The fit of `name`, else of the first of `fallbacks` that exists.

        Raises:
            CalibrationError: none of them is in this calibration.
        """
        for candidate in (name, *fallbacks):
            if candidate in self.kernels:
                return self.kernels[candidate]
        raise CalibrationError(
            f"calibration {self.id}: kernel: got none for {name!r}{nearest(name, self.kernels)}"
        )


# --- files


def load_calibration(path: Path | str) -> Calibration:
    """Read and validate one calibration JSON.

    Raises:
        CalibrationError: not readable, not JSON, wrong schema version, unknown or missing fields or
        constants.
    """
    path = Path(path)
    try:
        data = orjson.loads(path.read_bytes())
    except OSError as error:
        raise CalibrationError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise CalibrationError(f"{path}: not JSON: {error}") from None
    return calibration_from_dict(data, str(path))


def dump_calibration(calibration: Calibration, path: Path | str) -> None:
    """Write a calibration as JSON, keys sorted, floats to 6 significant digits, so that a refit shows a small diff."""
    text = json.dumps(_rounded(calibration_to_dict(calibration)), indent=1, sort_keys=True)
    Path(path).write_text(_dense_numbers(text) + "\n", encoding="utf-8")


def calibration_to_dict(calibration: Calibration) -> dict[str, Any]:
    """JSON-able form of a calibration."""
    return {
        "schema": SCHEMA_VERSION,
        "gpu": calibration.gpu,
        "library": calibration.library,
        "dtype": calibration.dtype,
        "provenance": dict(calibration.provenance),
        "kernels": {name: _kernel_to_dict(fit) for name, fit in calibration.kernels.items()},
        **({"gpu_spec": dict(calibration.gpu_spec)} if calibration.gpu_spec is not None else {}),
    }


def calibration_from_dict(data: Any, where: str) -> Calibration:
    """Build and validate a calibration from JSON data; `where` starts the message of an error."""
    if not isinstance(data, dict):
        raise CalibrationError(f"{where}: got {type(data).__name__}, expected an object")
    if data.get("schema") != SCHEMA_VERSION:
        raise CalibrationError(f"{where}: schema: got {data.get('schema')!r}, expected {SCHEMA_VERSION}")
    _known(data, {"schema", "gpu", "library", "dtype", "provenance", "kernels", "gpu_spec"}, where)
    for key in ("gpu", "library", "dtype"):
        if not isinstance(data.get(key), str):
            raise CalibrationError(f"{where}: {key}: got {data.get(key)!r}, expected a name")
    kernels = data.get("kernels")
    if not isinstance(kernels, dict) or not kernels:
        raise CalibrationError(
            f"{where}: kernels: got {type(kernels).__name__}, expected at least one kernel"
        )
    fits = {name: _kernel_from_dict(name, fit, f"{where}: kernels.{name}") for name, fit in kernels.items()}
    return Calibration(
        data["gpu"],
        data["library"],
        data["dtype"],
        fits,
        data.get("provenance") or {},
        gpu_spec=data.get("gpu_spec"),
    )


_KERNEL_KEYS = {
    "form",
    "constants",
    "standard_errors",
    "covariance",
    "fitted",
    "valid",
    "reach",
    "errors",
    "rows",
    "provenance",
    "residual",
}


def _kernel_to_dict(fit: KernelFit) -> dict[str, Any]:
    data: dict[str, Any] = {
        "form": fit.form,
        "constants": dict(fit.constants),
        "standard_errors": dict(fit.standard_errors),
        "covariance": [list(row) for row in fit.covariance],
        "fitted": list(fit.fitted),
        "valid": {name: list(bounds) for name, bounds in fit.valid.items()},
        "errors": dict(fit.errors),
        "rows": fit.rows,
        "provenance": dict(fit.provenance),
    }
    if fit.reach:
        data["reach"] = dict(fit.reach)
    if fit.residual is not None:
        data["residual"] = fit.residual.to_dict()
    return data


def _kernel_from_dict(name: str, data: Any, where: str) -> KernelFit:
    family = re.sub(r"_\d+$", "", name)
    if family not in KERNEL_FORMS:
        raise CalibrationError(f"{where}: unknown kernel{nearest(family, KERNEL_FORMS)}")
    if not isinstance(data, dict):
        raise CalibrationError(f"{where}: got {type(data).__name__}, expected an object")
    _known(data, _KERNEL_KEYS, where)
    form = str(data.get("form"))
    if form not in (KERNEL_FORMS[family], SIMPLER_FORMS.get(family)):
        raise CalibrationError(f"{where}.form: got {form!r}, expected {KERNEL_FORMS[family]!r}")
    constants = _numbers(data.get("constants"), f"{where}.constants")
    _check_constants(form, constants, f"{where}.constants")
    residual = data.get("residual")
    return KernelFit(
        form=form,
        constants=constants,
        standard_errors=_numbers(data.get("standard_errors") or {}, f"{where}.standard_errors"),
        covariance=tuple(tuple(float(x) for x in row) for row in data.get("covariance") or ()),
        fitted=tuple(data.get("fitted") or ()),
        valid={k: (float(low), float(high)) for k, (low, high) in (data.get("valid") or {}).items()},
        reach=_numbers(data.get("reach") or {}, f"{where}.reach"),
        errors=data.get("errors") or {},
        rows=int(data.get("rows") or 0),
        provenance=data.get("provenance") or {},
        residual=ResidualGrid.from_dict(residual, f"{where}.residual") if residual is not None else None,
    )


def _check_constants(form: str, constants: Mapping[str, float], where: str) -> None:
    for name in FORMS[form]:
        if name not in constants:
            raise CalibrationError(f"{where}: missing {name!r}, which the form {form!r} needs")
    for name, value in constants.items():
        if not math.isfinite(value) or value < 0:
            raise CalibrationError(f"{where}.{name}: got {value}, expected a finite number >= 0")
        if name.endswith("_eff") and not 0 < value <= 1:
            raise CalibrationError(f"{where}.{name}: got {value}, expected a fraction of the peak in (0, 1]")
        if name.endswith("exponent") and value < 1:
            raise CalibrationError(
                f"{where}.{name}: got {value}, expected >= 1 (below, terms would not overlap)"
            )


def _numbers(data: Any, where: str) -> dict[str, float]:
    if not isinstance(data, dict):
        raise CalibrationError(f"{where}: got {type(data).__name__}, expected an object of numbers")
    for key, value in data.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CalibrationError(f"{where}.{key}: got {value!r}, expected a number")
    return {key: float(value) for key, value in data.items()}


def _known(data: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in data:
        if key not in known:
            raise CalibrationError(f"{where}: unknown key {key!r}{nearest(key, known)}")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        if abs(value) >= 1e6 and value.is_integer():
            return value  # a count, say of bytes
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def _dense_numbers(text: str) -> str:
    """Put arrays of plain numbers on one line: grids would otherwise take a line a number."""
    return re.sub(
        r"\[\s*(-?[\d.eE+-]+(?:,\s*-?[\d.eE+-]+)*)\s*\]",
        lambda found: "[" + re.sub(r"\s+", "", found.group(1)) + "]",
        text,
    )


# --- registry


def calibration_files() -> Iterator[Path]:
    """Every `*.json` of the directories registered as `stepline.calibrations`, by entry name, then file."""
    for entry in registered(ENTRY_POINT_GROUP).values():
        yield from sorted(Path(entry.load()()).glob("*.json"))


@cache
def registered_calibrations() -> tuple[Calibration, ...]:
    """All registered calibrations, read once a process."""
    return tuple(load_calibration(path) for path in calibration_files())


SIXTEEN_BIT = ("bf16", "fp16", "fp32")

NEAREST_ARCHITECTURE: dict[str, tuple[str, ...]] = {
    "hopper": ("h100-sxm", "h200"),
    "blackwell": ("b200", "h100-sxm"),
    "ampere": ("a100-80", "h100-sxm"),
    "ada": ("l40s", "h100-sxm"),
}
"""Which calibrated GPU lends its efficiencies to a GPU of an architecture; unknown GPUs borrow from h100-sxm."""


def find_calibration(gpu: str, dtype: str = "bf16", library: str | None = None) -> Calibration:
    """The registered calibration of a GPU and weight dtype; without a `library`, the latest version.

    A GPU or dtype without tables borrows: first another dtype of the same GPU (weight bytes are scaled by the
    cost model), then the nearest architecture. What was borrowed stands in `notes` and in the provenance of
    each kernel.

    Raises:
        CalibrationError: no calibration at all is registered, or none of `library`.
    """
    known = [c for c in registered_calibrations() if library in (None, c.library)]
    if not known:
        libraries = {c.library for c in registered_calibrations()}
        raise CalibrationError(f"calibration library: got {library!r}{nearest(library or '', libraries)}")
    wanted = "bf16" if dtype in SIXTEEN_BIT else dtype
    for name in (gpu, *_lenders(gpu)):
        for candidate_dtype in (wanted, "bf16"):
            found = [c for c in known if c.gpu == name and c.dtype == candidate_dtype]
            if found:
                return _borrowed(max(found, key=lambda c: _version(c.library)), gpu, wanted)
    return _borrowed(max(known, key=lambda c: _version(c.library)), gpu, wanted)


def _lenders(gpu: str) -> tuple[str, ...]:
    prefixes = {"hopper": ("h", "gh"), "blackwell": ("b", "gb"), "ampere": ("a",), "ada": ("l", "rtx")}
    for architecture, starts in prefixes.items():
        if any(gpu.startswith(s) and gpu[len(s) :][:1].isdigit() for s in starts):
            return NEAREST_ARCHITECTURE[architecture]
    return ("h100-sxm",)


def _version(library: str) -> tuple[int, ...]:
    digits = "".join(c if c.isdigit() else " " for c in library)
    return tuple(int(part) for part in digits.split())


def _borrowed(calibration: Calibration, gpu: str, dtype: str) -> Calibration:
    """Mark what is not this GPU's or dtype's own."""
    notes = []
    if calibration.gpu != gpu:
        notes.append(f"no kernel tables for {gpu}: efficiencies transferred from {calibration.id}")
    if calibration.dtype != dtype:
        notes.append(
            f"no {dtype} kernel tables for {calibration.gpu}: forms of {calibration.id} with weight bytes scaled; "
            "expect errors of 15 to 30 %"
        )
    if not notes:
        return calibration
    kernels = {
        name: replace(fit, provenance={**fit.provenance, "transferred_from": calibration.id}, residual=None)
        for name, fit in calibration.kernels.items()
    }
    return replace(calibration, kernels=kernels, notes=(*calibration.notes, *notes))
