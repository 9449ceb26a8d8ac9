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

from .step_seconds import LogFactor

Array = NDArray[np.float64]


def gemm_features(m: Any, n: Any, k: Any) -> dict[str, Any]:
    """Shape of a GEMM as its residual sees it: its rows, outputs and inputs."""
    return {"m": m, "n": n, "k": k}


def moe_features(tokens: Any, width: Any, n_experts: Any, top_k: Any) -> dict[str, Any]:
    """Routed experts as their residual sees them: copies an expert if all were touched, expert width, experts, k."""
    shape = {"m": tokens, "width": width, "n_experts": n_experts, "top_k": top_k}
    return shape | {"per_expert": tokens * top_k / n_experts}


TILE_ROWS = 128
"""Rows of a query tile of FlashAttention-3 with one query head a KV head."""


def prefill_features(tokens: Any, pairs: Any, heads: Any, kv_heads: Any) -> dict[str, Any]:
    """Chunks as fresh prompts of equal length with the same pairs: s = 2 pairs / tokens - 1, b = tokens / s.

    For fresh prompts of one length this is their length and number; a chunk on a long history becomes a fraction of
    a long prompt, where the residual fades (no published table has a history). `kv_rows`: KV heads over all prompts,
    what a kernel deals to the processors; `group`: query heads that share one; `tiles`: query tiles over all heads,
    along which the rounds of the processors show.
    """
    length = np.maximum(2.0 * pairs / tokens - 1.0, 1.0)
    batch = tokens / length
    features = {"batch": batch, "query_tokens": length, "heads": heads, "kv_heads": kv_heads}
    rows = {"kv_rows": batch * kv_heads, "tiles": tokens * heads / TILE_ROWS}
    return features | rows | {"group": heads / kv_heads}


def decode_features(sequences: Any, context: Any, heads: Any, kv_heads: Any) -> dict[str, Any]:
    """Decodes of one mean context; `kv_rows`: the tasks of the kernel, one a sequence and KV head, for `group` heads."""
    shape = {"batch": sequences, "context_tokens": context, "heads": heads, "kv_heads": kv_heads}
    return shape | {"kv_rows": sequences * kv_heads, "group": heads / kv_heads}


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

    def scalar2(self) -> LogFactor:
        """A fast scalar `log_factor` of a grid with two axes left, arguments in the order of the axes.

        Raises:
            CalibrationError: the grid has not exactly two axes.
        """
        if len(self.axes) != 2:
            raise CalibrationError(f"residual: got axes {', '.join(self.axes)}, expected two open ones")
        xs, ys = ([math.log(x) for x in knots] for knots in self.axes.values())
        return LogFactor(xs, ys, self.values.tolist(), self.fade)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; log ratios as whole thousandths (0.1 %), which keeps the files small."""
        return {
            "axes": {name: list(knots) for name, knots in self.axes.items()},
            "axis_order": list(self.axes),
            "milli_log": np.rint(1000.0 * self.values).astype(int).tolist(),
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
            values = np.asarray(data["milli_log"], dtype=float) / 1000.0
            fade = float(data["fade"])
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(
                f"{where}: expected axes, axis_order, milli_log, fade: {error!r}"
            ) from None
        if values.shape != tuple(len(knots) for knots in axes.values()) or not np.isfinite(values).all():
            raise CalibrationError(
                f"{where}.milli_log: got shape {values.shape}, expected finite values on the axes"
            )
        for name, knots in axes.items():
            if any(b <= a for a, b in pairwise(knots)) or knots[0] <= 0:
                raise CalibrationError(f"{where}.axes.{name}: got {knots}, expected increasing knots > 0")
        return cls(axes, values, fade)
