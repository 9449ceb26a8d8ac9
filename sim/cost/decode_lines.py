"""Pure-decode steps as lines in the total context, by number of decodes: what the engine reads in place of asking."""

from __future__ import annotations

from collections.abc import Callable

Lines = tuple[list[float], list[tuple[float, float]]]
"""Ends of the pieces and (fixed_s, slope_s) of each, see `work.CostModel`."""


class DecodeLines(dict[int, Lines]):
    """Lines by number of decodes, made when first asked for: a look-up costs what a dict's does."""

    def __init__(self, make: Callable[[int], list[tuple[float, float, float]]]) -> None:
        self._make = make

    def __missing__(self, n: int) -> Lines:
        lines = self._make(n)
        found = self[n] = ([end for _, _, end in lines], [(fixed, slope) for fixed, slope, _ in lines])
        return found


def above(
    least: float, fixed: float, slope: float, start: float, end: float
) -> list[tuple[float, float, float]]:
    """The pieces of max(least, fixed + slope · x) for x in start..end, each (fixed, slope, end)."""
    line, flat = (fixed, slope, end), (least, 0.0, end)
    at_start = fixed + slope * start
    at_end = at_start if slope == 0.0 else fixed + slope * end
    if min(at_start, at_end) >= least:
        return [line]
    if max(at_start, at_end) <= least:
        return [flat]
    cross = (least - fixed) / slope
    return [(least, 0.0, cross), line] if slope > 0 else [(fixed, slope, cross), flat]
