"""Room for the names beside points of a chart, so that none is written over another."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

LETTER_PX = 6.0
"""Mean width of a letter at the charts' 11 px."""

LINE_PX = 12.0
"""Height of a line of it."""

BESIDE_PX = 9.0
"""From the middle of a point to its name."""

LIMIT_PX = 230.0
"""A longer name is cut."""

OFFSETS_PX = (-8.0, 8.0, -20.0, 20.0, -32.0, 32.0, -44.0, 44.0)
"""How far from its point's height a name may stand, in order of preference; down is positive."""


def shares(values: Sequence[float], *, is_log: bool = False) -> list[float]:
    """Where values stand on an axis that spans them, 0 to 1; in the middle where they are one.

    >>> shares([1.0, 10.0, 100.0], is_log=True)
    [0.0, 0.5, 1.0]
    """
    at = [log(v) for v in values] if is_log else list(values)
    low, high = min(at, default=0.0), max(at, default=0.0)
    return [(v - low) / (high - low) if high > low else 0.5 for v in at]


def offsets(
    names: Sequence[str], across: Sequence[float], up: Sequence[float], width_px: float, height_px: float
) -> list[float | None]:
    """The height of each name over its point in px (down is positive); None: there is no room for it.

    across, up: shares of the plot, from the left and from below. A point in the left half has its name to the right,
    another one to the left (`chart_parts.name_beside`). Names take the first free place, in the order given.
    """
    taken: list[tuple[float, float, float]] = []
    out: list[float | None] = []
    for name, x, y in zip(names, across, up, strict=True):
        wide = min(LIMIT_PX, LETTER_PX * len(name))
        at = x * width_px
        left = at - BESIDE_PX - wide if x > 0.5 else at + BESIDE_PX
        middle = (1 - y) * height_px
        free = (dy for dy in OFFSETS_PX if _is_free(taken, left, left + wide, middle + dy))
        chosen = next(free, None)
        if chosen is not None:
            taken.append((left, left + wide, middle + chosen))
        out.append(chosen)
    return out


def _is_free(taken: Sequence[tuple[float, float, float]], left: float, right: float, line: float) -> bool:
    return all(right <= a or b <= left or abs(line - other) >= LINE_PX for a, b, other in taken)
