"""Robust fits of positive constants: least squares on log(predicted / measured), with standard errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stepline.traces.errors import CalibrationError

Array = NDArray[np.float64]
Predict = Callable[[Mapping[str, float]], Array]

MAX_EVALUATIONS = 5_000
"""Of a fit: noisy timings of a busy machine need more than the few hundred of scipy's default."""

OUTLIER_SCALE = 0.1
"""Residuals above 10 % count linearly instead of squared (soft L1): stray rows do not move the constants."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted constants (fixed ones included), standard errors, covariance of the fitted logarithms, and the loss."""

    constants: dict[str, float]
    standard_errors: dict[str, float]
    covariance: tuple[tuple[float, ...], ...]
    fitted: tuple[str, ...]
    loss: float


def fit_constants(
    predict: Predict,
    seconds: Array,
    start: Mapping[str, float],
    fixed: Mapping[str, float] | None = None,
    weights: Array | None = None,
) -> Fit:
    """Fit the constants of `start` so that predict(constants) ≈ seconds in log ratio.

    All constants are positive and fitted as logarithms; `*_eff` stay at most 1, `*exponent` at least 1.

    Args:
        predict: seconds of every row, shape (rows,), from a mapping of constants.
        seconds: measured, shape (rows,).
        start: first guess of each constant to fit.
        fixed: constants that stay.
        weights: of the rows, shape (rows,); None: equal.

    Raises:
        CalibrationError: fewer than two rows a constant, or no convergence.
    """
    from scipy.optimize import least_squares

    names = tuple(start)
    if len(seconds) < 2 * len(names):
        raise CalibrationError(
            f"got {len(seconds)} rows for {len(names)} constants ({', '.join(names)}): too few"
        )
    fixed = dict(fixed or {})
    root = 1.0 if weights is None else np.sqrt(weights)
    low, high = _bounds(names)
    x0 = np.clip(np.log([start[name] for name in names]), low + 1e-6, high - 1e-6)

    def residuals(x: Array) -> Any:
        constants = {**fixed, **dict(zip(names, np.exp(x), strict=True))}
        return root * np.log(predict(constants) / seconds)

    found = least_squares(
        residuals,
        x0,
        bounds=(low, high),
        loss="soft_l1",
        f_scale=OUTLIER_SCALE,
        x_scale=1.0,
        max_nfev=MAX_EVALUATIONS,
    )
    if not found.success or not np.isfinite(found.x).all():
        raise CalibrationError(f"fit of {', '.join(names)} did not converge: {found.message}")
    values = dict(zip(names, np.exp(found.x).tolist(), strict=True))
    covariance = _covariance(found.jac, residuals(found.x))
    spread = np.sqrt(
        np.maximum(np.diag(covariance), 0.0)
    )  # a constant that nothing moves: rounding may say < 0
    errors = {name: values[name] * float(sd) for name, sd in zip(names, spread, strict=True)}
    return Fit(
        {**values, **fixed}, errors, tuple(tuple(row) for row in covariance.tolist()), names, found.cost
    )


def best_fit(
    predict: Predict,
    seconds: Array,
    starts: tuple[Mapping[str, float], ...],
    fixed: Mapping[str, float],
    choices: tuple[Mapping[str, float], ...] = ({},),
) -> Fit:
    """The fit of least loss over first guesses and choices of fixed constants; one that converges is enough.

    See `fit_constants`. Of equal losses the earlier choice wins.
    """
    fits, failed = [], CalibrationError("got no first guess, expected one or more")
    for choice, start in product(choices, starts):
        try:
            fits.append(fit_constants(predict, seconds, start, {**fixed, **choice}))
        except CalibrationError as error:
            failed = error
    if not fits:
        raise failed
    return min(fits, key=lambda fit: fit.loss)


BOOTSTRAP_DRAWS = 24
"""Refits on reweighted shape families: a standard error to within 15 %."""


def bootstrap_covariance(
    predict: Predict,
    seconds: Array,
    family: NDArray[np.integer[Any]],
    fit: Fit,
    seed: int = 0,
) -> tuple[tuple[float, ...], ...]:
    """Covariance of the fitted logarithms over refits with random weights of whole shape families.

    Rows of one family share their error (the kernel that a library picks for it), so families are weighted, not rows:
    Rubin's Bayesian bootstrap (1981), exponential weights, which never leaves too few rows for the form.

    Args:
        predict: as in `fit_constants`.
        seconds: measured, shape (rows,).
        family: family of each row, 0 .. n - 1.
        fit: fit on all rows: the start of each refit; its constants that were not fitted stay.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    n = int(family.max()) + 1
    start = {name: fit.constants[name] for name in fit.fitted}
    fixed = {name: value for name, value in fit.constants.items() if name not in start}
    logs = []
    for _ in range(BOOTSTRAP_DRAWS):
        weight = rng.exponential(size=n)[family]
        found = fit_constants(predict, seconds, start, fixed, weight)
        logs.append([np.log(found.constants[name]) for name in fit.fitted])
    return tuple(tuple(row) for row in np.atleast_2d(np.cov(np.array(logs), rowvar=False)).tolist())


_LOW = {"t0_s": float(np.log(1e-6)), "store_block_s": float(np.log(1e-7))}
"""Least logarithms: terms overlap or add (p >= 1), no kernel launches in less than a microsecond and no CTA is gone in
less than a tenth of one."""


def _bounds(names: tuple[str, ...]) -> tuple[Array, Array]:
    pairs = [_log_range(name) for name in names]
    return np.array([low for low, _ in pairs]), np.array([high for _, high in pairs])


def _log_range(name: str) -> tuple[float, float]:
    if name.endswith("exponent"):
        return 0.0, float(np.log(8.0))
    if name.endswith("_eff"):
        return float(np.log(1e-3)), 0.0
    return _LOW.get(name, -40.0), 5.0


def _covariance(jacobian: Array, residuals: Array) -> Array:
    """Covariance of the fitted logarithms: s² (JᵀJ)⁺ with s² the mean squared residual a degree of freedom.

    Rows of one shape family are not independent, so this is a lower bound; held-out errors say more.
    """
    freedom = max(len(residuals) - jacobian.shape[1], 1)
    variance = float((residuals**2).sum()) / freedom
    return np.asarray(np.linalg.pinv(jacobian.T @ jacobian) * variance)


def mape(predicted: Array, seconds: Array) -> float:
    """Mean absolute relative error, a fraction; NaN for no rows."""
    return float(np.mean(np.abs(predicted / seconds - 1.0))) if len(seconds) else float("nan")
