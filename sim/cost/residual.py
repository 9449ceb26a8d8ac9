"""The optional residual layer: a smoothed grid of log(measured / formula) that fades to 1 off the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stepline.traces.errors import CalibrationError

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class ResidualGrid:
    """log(measured / formula) on a rectangular grid of log shapes.

    axes    shape name -> knots (the shape's own unit, increasing), in the order of the dimensions of `values`
    values  log ratios at the knots, shape (len(axis 0), len(axis 1), ...); each fades linearly to 0 within
            `fade` of log distance outside the outermost knot of any axis
    """

    axes: Mapping[str, tuple[float, ...]]
    values: Array
    fade: float = math.log(4.0)

    def log_factor(self, shapes: Mapping[str, Any]) -> Array:
        """log(measured / formula) at shapes (arrays that broadcast), multilinear in the logarithms."""
        points = np.broadcast_arrays(*(np.asarray(shapes[name], dtype=float) for name in self.axes))
        lows, fractions, weight = [], [], np.ones(points[0].shape)
        for knots, x in zip(self.axes.values(), points, strict=True):
            low, fraction, inside = self._locate(np.log(np.maximum(x, 1e-9)), np.log(np.asarray(knots)))
            lows.append(low)
            fractions.append(fraction)
            weight = weight * inside
        return self._blend(lows, fractions) * weight

    def at(self, fixed: Mapping[str, float]) -> ResidualGrid:
        """The grid with the axes named in `fixed` set to those shapes; names that are no axis are ignored."""
        names = list(self.axes)
        open_axes = {name: knots for name, knots in self.axes.items() if name not in fixed}
        values, weight = self.values, 1.0
        for name in reversed(names):  # last first, so that the positions of the others stay
            if name in open_axes:
                continue
            x = np.log(np.asarray(fixed[name], dtype=float))
            low, fraction, inside = self._locate(x, np.log(np.asarray(self.axes[name])))
            high = np.minimum(low + 1, len(self.axes[name]) - 1)
            axis = names.index(name)
            values = values.take(low, axis=axis) * (1.0 - fraction) + values.take(high, axis=axis) * fraction
            weight *= float(inside)
        return ResidualGrid(open_axes, values * weight, self.fade)

    def _locate(self, x: Array, knots: Array) -> tuple[NDArray[np.intp], Array, Array]:
        """Cell index, position inside it and the fade weight of log coordinates on one axis."""
        outside = np.maximum(knots[0] - x, 0.0) + np.maximum(x - knots[-1], 0.0)
        weight = np.clip(1.0 - outside / self.fade, 0.0, 1.0)
        if len(knots) == 1:
            return np.zeros(x.shape, dtype=np.intp), np.zeros(x.shape), weight
        low = np.clip(np.searchsorted(knots, x, side="right") - 1, 0, len(knots) - 2)
        fraction = np.clip((x - knots[low]) / (knots[low + 1] - knots[low]), 0.0, 1.0)
        return low, fraction, weight

    def _blend(self, lows: list[NDArray[np.intp]], fractions: list[Array]) -> Array:
        total = np.zeros(lows[0].shape)
        for corner in range(1 << len(lows)):
            weight = np.ones(lows[0].shape)
            index = []
            for axis, (low, fraction) in enumerate(zip(lows, fractions, strict=True)):
                high = corner >> axis & 1
                weight = weight * (fraction if high else 1.0 - fraction)
                index.append(np.minimum(low + high, self.values.shape[axis] - 1))
            total = total + weight * self.values[tuple(index)]
        return total

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; log ratios to 4 decimals (0.01 %)."""
        return {
            "axes": {name: list(knots) for name, knots in self.axes.items()},
            "axis_order": list(self.axes),
            "values": np.round(self.values, 4).tolist(),
            "fade": self.fade,
        }

    @classmethod
    def from_dict(cls, data: Any, where: str) -> ResidualGrid:
        """Read what `to_dict` wrote.

        Raises:
            CalibrationError: keys missing, knots not increasing, a value not finite, shapes that do not
            match.
        """
        try:
            axes = {name: tuple(float(x) for x in data["axes"][name]) for name in data["axis_order"]}
            values = np.asarray(data["values"], dtype=float)
            fade = float(data["fade"])
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(f"{where}: expected axes, axis_order, values, fade: {error!r}") from None
        if values.shape != tuple(len(knots) for knots in axes.values()) or not np.isfinite(values).all():
            raise CalibrationError(
                f"{where}.values: got shape {values.shape}, expected finite values on the axes"
            )
        for name, knots in axes.items():
            if any(b <= a for a, b in pairwise(knots)) or knots[0] <= 0:
                raise CalibrationError(f"{where}.axes.{name}: got {knots}, expected increasing knots > 0")
        return cls(axes, values, fade)
