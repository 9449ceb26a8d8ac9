"""Quantile tables from data: as few knots as an error bound on the distribution function allows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .laws import Law

Array = NDArray[np.float64]
P_DIGITS = 5  # probabilities are written to 1e-5


def quantile_table(values: Any, tolerance: float, *, whole: bool = True, digits: int = 6) -> dict[str, Any]:
    """A `quantiles` law whose distribution function is within `tolerance` of that of `values` (Kolmogorov distance).

    `whole`: values are integers and draws will be rounded to the nearest; the knots then lie between integers, so an
    atom such as a clipped length keeps its mass. Otherwise knots are rounded to `digits` significant digits.
    The polyline through the empirical distribution function is thinned by Douglas–Peucker in the vertical direction.
    """
    x, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    reached = np.cumsum(counts) / counts.sum()
    if whole:
        q, p = np.concatenate([[x[0] - 0.5], x + 0.5]), np.concatenate([[0.0], reached])
    elif len(x) == 1:
        q, p = np.array([x[0], x[0]]), np.array([0.0, 1.0])
    else:  # the jump at the smallest value is spread up to the next one
        q, p = x, np.concatenate([[0.0], reached[1:]])
    keep = thinned(q, p, tolerance)
    q, p = q[keep], np.round(p[keep], P_DIGITS)
    fresh = np.concatenate([[True], np.diff(p) > 0])
    fresh[np.flatnonzero(fresh)[-1]] = False  # the last probability belongs to the largest value
    fresh[-1] = True
    p, q = p[fresh], q[fresh]
    if not whole:
        q = np.array([float(f"{v:.{digits}g}") for v in q])
    return {"kind": "quantiles", "p": [tidy(v) for v in p], "q": [tidy(v) for v in q]}


def tidy(value: float) -> int | float:
    """An int where the value is whole (shorter JSON), else a float."""
    return int(value) if float(value).is_integer() else float(value)


def thinned(x: Array, y: Array, tolerance: float) -> NDArray[np.int64]:
    """Indices of the points of the polyline (x, y) whose own polyline stays within `tolerance` vertically."""
    keep, todo = {0, len(x) - 1}, [(0, len(x) - 1)]
    while todo:
        a, b = todo.pop()
        if b - a < 2:
            continue
        inner = slice(a + 1, b)
        line = y[a] + (y[b] - y[a]) * (x[inner] - x[a]) / (x[b] - x[a])
        miss = np.abs(y[inner] - line)
        worst = int(np.argmax(miss))
        if miss[worst] > tolerance:
            keep.add(a + 1 + worst)
            todo += [(a, a + 1 + worst), (a + 1 + worst, b)]
    return np.array(sorted(keep), dtype=np.int64)


def equal_mass_edges(values: Any, bins: int) -> list[int | float]:
    """At most `bins` + 1 edges of bins [e[i], e[i+1]) of about equal mass; a heavy atom is a bin of its own."""
    ordered = np.sort(np.asarray(values))
    cuts = ordered[(np.arange(1, bins) * len(ordered)) // bins]
    heavy, counts = np.unique(ordered, return_counts=True)
    atoms = heavy[counts * bins >= len(ordered)]
    edges = np.unique(np.concatenate([[ordered[0]], cuts, atoms, atoms + 1, [ordered[-1] + 1]]))
    return [tidy(v) for v in edges]


def conditional_tables(x: Any, y: Any, *, bins: int, tolerance: float) -> dict[str, Any]:
    """`edges` over x and one quantile table of y per bin (`outputs`), each within `tolerance` of its bin's data."""
    x, y = np.asarray(x), np.asarray(y)
    edges = equal_mass_edges(x, bins)
    which = np.searchsorted(edges, x, side="right") - 1
    filled = [i for i in range(len(edges) - 1) if np.any(which == i)]
    tables = [quantile_table(y[which == i], tolerance) for i in filled]
    return {"edges": [edges[i] for i in filled] + [edges[-1]], "outputs": tables}


def transported(source: Law, made: Any, wanted: Any, points: int = 4_000) -> Array:
    """`points` even quantiles of `source`, each moved as the monotone map from `made` to `wanted` moves it."""
    values = source.ppf((np.arange(points) + 0.5) / points)
    at = np.linspace(0.0, 1.0, 2_001)
    have, want = np.quantile(made, at), np.quantile(wanted, at)
    moved: Array = np.maximum(values + np.interp(values, have, want - have), 1.0)
    return moved
