"""Arrival processes from data: a renewal process under a slow curve and an OU swing, or ON/OFF bursts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .measure import counts_per, index_of_dispersion
from .tables import quantile_table, tidy

Array = NDArray[np.float64]
WINDOWS_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)  # windows of counting that the swing must explain
FEW = 200  # fewer values than this are fitted by a two-parameter law, not by a table


def fit_arrivals(arrival_s: Any, span_s: float, *, window_s: float = 300.0) -> dict[str, Any]:
    """An arrival process (`bursts` or `renewal`) for these arrivals, which fill `span_s` seconds.

    Bursts are chosen where pauses far longer than the usual gap take up more than 30 % of the time.
    `window_s`: width of the windows that the slow curve of a renewal process passes through.
    """
    times = np.asarray(arrival_s, dtype=np.float64)
    gaps = np.diff(times)
    pause_s = pause_threshold_s(gaps)
    if gaps[gaps > pause_s].sum() > 0.3 * (times[-1] - times[0]):
        return fit_bursts(times, pause_s)
    return fit_renewal(times, span_s, window_s)


def pause_threshold_s(gaps_s: Array) -> float:
    """Gaps above this are pauses: 30 times the mean of the shorter 95 % of gaps, at least one second."""
    usual = np.sort(gaps_s)[: max(1, int(0.95 * len(gaps_s)))]
    return max(1.0, 30.0 * float(usual.mean()))


def fit_bursts(times: Array, pause_s: float) -> dict[str, Any]:
    """ON periods end where a gap exceeds `pause_s`."""
    gaps = np.diff(times)
    cuts = np.flatnonzero(gaps > pause_s)
    starts, ends = np.concatenate([[0], cuts + 1]), np.concatenate([cuts, [len(times) - 1]])
    inside = gaps[gaps <= pause_s]
    # A burst of n requests lasts its n − 1 gaps and one more that the pause swallowed.
    on = times[ends] - times[starts] + inside.mean()
    share, memory = fit_memory(gaps, np.repeat(np.arange(len(starts)), ends - starts + 1))
    return {
        "kind": "bursts",
        "on_s": period_law(on),
        "off_s": period_law(np.maximum(gaps[cuts] - inside.mean(), 1e-3)),
        "gaps_s": quantile_table(inside, 0.005, whole=False),
        "memory_frac": round(share, 3),
        "memory_gaps": round(memory, 1),
    }


def period_law(values: Array) -> dict[str, Any]:
    """A table, or from few values a gamma law of the same mean and variance."""
    if len(values) >= FEW:
        return quantile_table(values, 0.01, whole=False)
    squared_variation = max(float(values.var()) / float(values.mean()) ** 2, 0.05)
    return {
        "kind": "gamma",
        "shape": round(1.0 / squared_variation, 3),
        "mean": round(float(values.mean()), 4),
    }


def fit_memory(gaps: Array, burst: NDArray[np.int64]) -> tuple[float, float]:
    """Share and length (in gaps) of the AR(1) behind the normal scores of gaps within bursts.

    Correlations at lags 1..50 of pairs of the same burst are fitted by share·exp(−lag/memory), least squares on a grid.
    """
    scores = _normal_scores(gaps)
    same = burst[:-1] == burst[1:]
    spread = scores[same].var()
    if same.sum() < 100 or spread == 0:
        return 0.0, 1.0
    centred = (scores - scores[same].mean()) / np.sqrt(spread)
    lags = np.array([1, 2, 3, 5, 7, 10, 15, 20, 30, 50])
    seen, weight = [], []
    for lag in lags:
        a, b = centred[:-lag], centred[lag:]
        pair = same[:-lag] & same[lag:] & (burst[:-1][:-lag] == burst[:-1][lag:])
        seen.append(float(np.mean(a[pair] * b[pair])) if pair.any() else 0.0)
        weight.append(float(pair.sum()))
    grid = np.geomspace(1.0, 500.0, 60)
    shapes = np.exp(-lags[None, :] / grid[:, None])
    share = (shapes * weight) @ seen / ((shapes**2) @ weight)
    miss = ((seen - share[:, None] * shapes) ** 2) @ weight
    best = int(np.argmin(miss))
    return float(np.clip(share[best], 0.0, 0.95)), float(grid[best])


def _normal_scores(values: Array) -> Array:
    from scipy.special import ndtri
    from scipy.stats import rankdata

    return np.asarray(ndtri((rankdata(values) - 0.5) / len(values)))


def fit_renewal(times: Array, span_s: float, window_s: float) -> dict[str, Any]:
    """Mean rate, curve through windows, gaps in operational time, OU swing from the index of dispersion."""
    rate = len(times) / span_s
    modulation: list[dict[str, Any]] = []
    factor = np.ones(1)
    middles = np.array([span_s / 2])
    if span_s >= 3 * window_s and len(times) >= 50 * span_s / window_s:
        edges = np.linspace(0.0, span_s, round(span_s / window_s) + 1)
        factor = np.histogram(times, edges)[0] / np.diff(edges) / rate
        middles = (edges[1:] + edges[:-1]) / 2
        modulation.append(
            {
                "kind": "curve",
                "time_s": [tidy(round(v, 1)) for v in middles],
                "factor": [round(float(v), 3) for v in factor],
                "period_s": tidy(round(span_s, 1)),
            }
        )
    flat = operational(times, middles, factor) * rate
    sigma, tau_s, variation = fit_swing(flat / rate, rate)
    if sigma > 0:
        modulation.append({"kind": "ou", "sigma": round(sigma, 3), "tau_s": round(tau_s, 1)})
    return {
        "kind": "renewal",
        "rate_per_s": round(rate, 5),
        "gaps": {"kind": "gamma", "shape": round(1.0 / variation, 3)},
        "modulation": modulation,
    }


def operational(times: Array, middles: Array, factor: Array) -> Array:
    """Times on a clock that runs at the curve's factor."""
    grid = np.arange(0.0, np.ceil(times[-1]) + 2.0)
    speed = np.interp(grid[:-1] + 0.5, middles, factor)
    return np.asarray(np.interp(times, grid, np.concatenate([[0.0], np.cumsum(speed)])))


def fit_swing(times: Array, rate: float) -> tuple[float, float, float]:
    """(sigma, tau_s) of an OU swing and the squared variation of gaps that explain the index of dispersion.

    For a rate that is a lognormal OU process, dispersion at window w is about
    v + rate·s·w·2(τ/w)²(w/τ − 1 + exp(−w/τ)) with s = exp(sigma²) − 1 (variance of an averaged OU process);
    v, the squared coefficient of variation of gaps, is what remains at small windows.
    """
    windows = np.array([w for w in WINDOWS_S if times[-1] / w >= 20])
    if len(windows) < 3:
        return 0.0, 1.0, 1.0
    seen = np.array([index_of_dispersion(times, w) for w in windows])
    sure = np.array([len(counts_per(times, w)) for w in windows]) ** 0.5
    best = (np.inf, 0.0, 1.0, 1.0)
    for tau_s in np.geomspace(2.0, 40.0, 30):
        shape = rate * windows * 2 * (tau_s / windows) ** 2 * (windows / tau_s - 1 + np.exp(-windows / tau_s))
        weight = sure / seen
        basis = np.stack([np.ones_like(shape), shape], axis=1) * weight[:, None]
        (v, s), *_ = np.linalg.lstsq(basis, seen * weight, rcond=None)
        v, s = float(np.clip(v, 0.05, 20.0)), max(float(s), 0.0)
        miss = float((((v + s * shape - seen) * weight) ** 2).sum())
        if miss < best[0]:
            best = (miss, float(np.sqrt(np.log1p(s))), float(tau_s), v)
    return best[1:]
