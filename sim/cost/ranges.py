"""Which work lies outside the data behind a calibration: noted once a quantity, with the extreme seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration import KernelFit


@dataclass(slots=True, eq=False)
class RangeLog:
    """Largest (or smallest) value seen of each quantity that left its range."""

    seen: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    history_rule: str | None = None

    def check(self, kernel: str, fit: KernelFit, **values: Any) -> None:
        """Compare values (scalars or arrays) with the range of the fit's data, stretched by its reach.

        Quantities that the fit does not state pass.
        """
        for name, value in values.items():
            bounds = fit.valid.get(name)
            array = np.asarray(value, dtype=float)
            if bounds is None or not array.size:
                continue
            low, high = bounds[0], max(bounds[1], fit.reach.get(name, 0.0))
            if float(array.max()) > high:
                self._keep(kernel, name, float(array.max()), high)
            elif float(array.min()) < low:
                self._keep(kernel, name, float(array.min()), low)

    def check_chunks(self, columns: Mapping[str, NDArray[np.float64]], rule: str) -> None:
        """Remember that chunks ran on cached keys: no published table times that, the rule decides."""
        if np.any(columns["prefill_kv_tokens"] > columns["prefill_tokens"]):
            self.history_rule = rule

    def notes(self) -> tuple[str, ...]:
        """One line for all that left its range, what is furthest out first; one for the history rule."""
        lines = []
        if self.seen:
            parts = [
                f"{kernel} {name} {value:g} (data: {'to' if value > border else 'from'} {border:g})"
                for (kernel, name), (value, border) in sorted(self.seen.items(), key=_times_out, reverse=True)
            ]
            lines.append("outside the range of the kernel timings: " + "; ".join(parts))
        if self.history_rule is not None:
            lines.append(
                "prefill attention on cached tokens is in no kernel table: "
                f"priced by the rule {self.history_rule!r} (chunk_history)"
            )
        return tuple(lines)

    def _keep(self, kernel: str, name: str, value: float, border: float) -> None:
        known = self.seen.get((kernel, name))
        if known is None or abs(value - border) > abs(known[0] - border):
            self.seen[kernel, name] = (value, border)


def _times_out(seen: tuple[tuple[str, str], tuple[float, float]]) -> float:
    """How many times beyond the border of its data a quantity went."""
    _, (value, border) = seen
    return max(value, border) / max(min(value, border), 1e-12)
