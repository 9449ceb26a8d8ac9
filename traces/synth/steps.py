"""Things that depend on a number in steps: a probability by prompt length, a law by prompt length or time."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np

from .laws import Law, law
from .registry import ascending, fraction


@dataclass(frozen=True, slots=True)
class StepChance:
    """A probability in steps: `values[i]` below `bounds[i]`, the last one above them all."""

    bounds: tuple[float, ...]
    values: tuple[float, ...]

    @classmethod
    def parse(cls, spec: Any, name: str) -> StepChance:
        """From one probability or a list of [upper bound (exclusive), probability]; the last bound is open."""
        rows = spec if isinstance(spec, list) else [[float("inf"), spec]]
        for i, (_, value) in enumerate(rows):
            fraction(f"{name}[{i}]", value)
        ascending(f"{name} bounds", [bound for bound, _ in rows], strict=True)
        return cls(tuple(float(bound) for bound, _ in rows[:-1]), tuple(float(value) for _, value in rows))

    def __call__(self, at: float) -> float:
        """The probability at `at`."""
        return self.values[bisect_right(self.bounds, at)]

    def at(self, where: Any) -> Any:
        """The probabilities at each of `where`."""
        if not self.bounds:
            return np.full(np.shape(where), self.values[0])
        return np.array(self.values)[np.searchsorted(self.bounds, where, side="right")]


@dataclass(frozen=True, slots=True)
class StepLaw:
    """A law in steps: `laws[i]` below `bounds[i]`, the last one above them all."""

    bounds: tuple[float, ...]
    laws: tuple[Law, ...]

    @classmethod
    def parse(cls, spec: Any, name: str) -> StepLaw:
        """From one law or a list of [upper bound (exclusive), law]; the last bound is open."""
        rows = spec if isinstance(spec, list) else [[float("inf"), spec]]
        built = tuple(law(part, f"{name}[{i}]") for i, (_, part) in enumerate(rows))
        ascending(f"{name} bounds", [bound for bound, _ in rows], strict=True)
        return cls(tuple(float(bound) for bound, _ in rows[:-1]), built)

    def __call__(self, at: float) -> Law:
        """The law at `at`."""
        return self.laws[bisect_right(self.bounds, at)]

    def steps(self, at: Any) -> Any:
        """Numbers of the laws that rule at each of `at`."""
        return np.searchsorted(self.bounds, at, side="right")

    def ppf(self, at: Any, u: Any) -> Any:
        """Quantiles at `u`, each of the law that rules at its `at` (of the same shape)."""
        each = np.array([one.ppf(u) for one in self.laws])
        return np.take_along_axis(each, self.steps(at)[None], axis=0)[0]
