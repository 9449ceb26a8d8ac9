"""The datasheet roofline: perfect overlap at 100 % of every peak. A floor to compare with, not a prediction."""

from __future__ import annotations

import math
from typing import Any

from .calibration import KERNEL_FORMS, Calibration, KernelFit
from .roofline import RooflineCostModel
from .specs import GpuSpec, ModelSpec

_CONSTANTS: dict[str, dict[str, float]] = {
    "k-chain": {
        "t0_s": 0.0,
        "compute_eff": 1.0,
        "memory_eff": 1.0,
        "chain_s_per_k": 0.0,
        "exponent": math.inf,
    },
    "p-norm": {"t0_s": 0.0, "compute_eff": 1.0, "memory_eff": 1.0, "exponent": math.inf},
    "tile-walk": {
        "t0_s": 0.0,
        "wave_s": 0.0,
        "chain_s_per_key": 0.0,
        "compute_eff": 1.0,
        "memory_eff": 1.0,
        "exponent": math.inf,
    },
    "chained-moe": {
        "t0_s": 0.0,
        "chain_s_per_k": 0.0,
        "compute_eff": 1.0,
        "memory_eff": 1.0,
        "activation_eff": 1.0,
        "exponent": math.inf,
    },
    "waves": {"t0_s": 0.0, "wave_s": 0.0, "memory_eff": 1.0},
    "launch-bytes": {"t0_s": 0.0, "memory_eff": 1.0},
    # a link at its datasheet rate, no start-up; the one-shot algorithm is never better and is left out
    "alpha-beta": {"t0_s": math.inf, "one_shot_eff": 1.0, "two_shot_s": 0.0, "two_shot_eff": 1.0},
}


def datasheet_calibration(gpu: str) -> Calibration:
    """Constants that leave only max(FLOPs / peak, bytes / bandwidth) of each kernel, and wire bytes / link."""
    kernels: dict[str, KernelFit] = {}
    for name, form in KERNEL_FORMS.items():
        fit = KernelFit(form=form, constants=_CONSTANTS[form], provenance={"source": "datasheet peaks"})
        names = [f"{name}_{world}" for world in (2, 4, 8)] if form == "alpha-beta" else [name]
        kernels |= dict.fromkeys(names, fit)
    return Calibration(gpu, "datasheet", "any", kernels, {"source": "datasheet peaks"})


class DatasheetCostModel(RooflineCostModel):
    """`RooflineCostModel` with datasheet constants; same arguments but for the calibration."""

    def __init__(self, model: ModelSpec, gpu: GpuSpec, **options: Any) -> None:
        super().__init__(model, gpu, datasheet_calibration(gpu.name), **options)
