"""Quota sampling: of several candidates, take the one that keeps all values so far nearest to their laws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .laws import Law

Array = NDArray[np.float64]
CELLS = 64  # of equal mass: distribution functions are compared at their borders
POWER = 4  # of the misses that are averaged over borders: between least squares (2) and the largest miss
_POINTS = 16_384  # midpoints of a law from which its mass in each cell is counted


@dataclass(frozen=True, slots=True)
class Quota:
    """`per_pick` values of `law` are due with each pick; `weight` is that of this quota among others."""

    law: Law
    per_pick: float = 1.0
    weight: float = 1.0


class Balance:
    """Picks, one after another, candidates whose values together fill `quotas`.

    A few dozen sessions drawn independently are far from their law: the prompts of one hang together, so that two
    samples of 63 sessions are 0.05 apart (Kolmogorov–Smirnov distance) in the lengths of their prompts. Of the candidates
    offered, this takes the one after which the number of values up to each border of `CELLS` cells is nearest to
    the number due. What is picked is nearer to the laws than independent draws would be, and varies less with the seed.
    """

    def __init__(self, quotas: Mapping[str, Quota]) -> None:
        self.quotas = quotas
        self._borders: dict[str, Array] = {}
        self._step: dict[str, Array] = {}
        for name, quota in quotas.items():
            values = np.floor(quota.law.ppf((np.arange(_POINTS) + 0.5) / _POINTS) + 0.5)
            self._borders[name] = np.unique(np.quantile(values, (np.arange(CELLS) + 1) / CELLS))
            self._step[name] = self._counts(name, values[None], np.ones((1, _POINTS), bool))[0] / _POINTS
        self._due = {name: np.zeros(len(borders)) for name, borders in self._borders.items()}

    def pick(self, values: Mapping[str, Array], there: Mapping[str, NDArray[np.bool_]]) -> int:
        """The best candidate, which counts as taken from now on.

        `values[name]`: one row a candidate (any width); `there[name]`: which of them are values, the rest is padding.
        """
        left = {
            name: self._due[name]
            + self._step[name]
            - self._counts(name, values[name], there[name]) / quota.per_pick
            for name, quota in self.quotas.items()
        }
        misses = sum(
            self.quotas[name].weight * np.mean(part**POWER, axis=1) ** (2 / POWER)
            for name, part in left.items()
        )
        best = int(np.argmin(misses))
        self._due = {name: part[best] for name, part in left.items()}
        return best

    def _counts(self, name: str, values: Array, there: NDArray[np.bool_]) -> Array:
        """Number of values at or below each border, one row a candidate."""
        cells = len(self._borders[name]) + 1
        cell = np.searchsorted(self._borders[name], values, side="left")
        owner = np.arange(len(values))[:, None] * cells
        counts = np.bincount((owner + cell)[there], minlength=len(values) * cells)
        return counts.reshape(len(values), cells)[:, :-1].cumsum(axis=1).astype(np.float64)
