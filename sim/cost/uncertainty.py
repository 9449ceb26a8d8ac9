"""What is not known about a calibration, as draws of its constants: intervals of a run come from runs on draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .calibration import Calibration, KernelFit

TRANSFERRED_SD = 0.2
"""Log standard deviation of a kernel's seconds where its constants are of another GPU or dtype (forms carried
over unfitted miss the tables of H200, B200, A100 and L40S by 6-30 %, PHYSICS section 2)."""

STATED_SD = 0.3
"""The same for constants that were stated, not fitted (elementwise kernels: 2-3 us, 1.3-2 TB/s)."""

SD_PER_MAPE = 1.2533
"""Standard deviation of a normal law over its mean absolute deviation, sqrt(pi / 2)."""


def draw(calibration: Calibration, rng: np.random.Generator) -> Calibration:
    """One calibration that the data would allow as well.

    Each kernel's fitted constants are drawn from their bootstrap covariance (logarithms), then its seconds
    are scaled by one log-normal factor for what a shape family that was not measured does to the form
    (`unseen_sd`). Efficiencies stay at most 1, so the physical floor holds in every draw.
    """
    kernels = {name: _drawn(fit, rng) for name, fit in sorted(calibration.kernels.items())}
    return replace(calibration, kernels=kernels)


def unseen_sd(fit: KernelFit) -> float:
    """Log standard deviation of the mean error of a shape family that the fit never saw.

    From the held-out split `unseen` where the calibration records it, else from the error on the fitted rows;
    wide where constants were carried over or only stated.
    """
    if "transferred_from" in fit.provenance:
        return TRANSFERRED_SD
    if not fit.rows:
        return STATED_SD
    model = "residual" if fit.residual is not None else "formula"
    family = fit.errors.get("family_sd", {}).get(model)
    if family is not None:
        return float(family)
    return SD_PER_MAPE * float(fit.errors.get("train", {}).get(model, TRANSFERRED_SD))


def _drawn(fit: KernelFit, rng: np.random.Generator) -> KernelFit:
    constants = dict(fit.constants)
    if fit.covariance:
        shift = rng.multivariate_normal(np.zeros(len(fit.fitted)), np.array(fit.covariance), method="eigh")
        for name, log_shift in zip(fit.fitted, shift, strict=True):
            constants[name] = constants[name] * float(np.exp(log_shift))
    factor = float(np.exp(rng.normal(0.0, unseen_sd(fit))))
    return replace(fit, constants={name: _scaled(name, value, factor) for name, value in constants.items()})


def _scaled(name: str, value: float, factor: float) -> float:
    """A constant such that the kernel takes `factor` times as long, kept where the form allows it."""
    if name.endswith("exponent"):
        return max(value, 1.0)
    if name.endswith("_bytes"):  # where a path ends, not how long it takes
        return value
    if name.endswith("_eff"):
        return min(value / factor, 1.0)
    return value * factor
