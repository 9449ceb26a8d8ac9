"""A random leaf goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepline.traces.random_streams import stream

from .base import RankedEviction

if TYPE_CHECKING:
    import numpy as np
    from stepline.sim.engine.segment import Segment

DRAWS = 1024
"""Uniforms drawn at a time."""


class RandomPolicy(RankedEviction):
    """Evicts a uniformly random segment among those that no cached one continues: no history to keep or to defeat.

    `seed`: of the stream ("eviction", "random").
    """

    leaves_only = True

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self._heap = Lot(stream(seed, "eviction", "random"))  # type: ignore[assignment]  # the same four methods

    def rank(self, segment: Segment, now_s: float) -> None:
        """None: they are all alike."""


class Lot:
    """A set of segments whose `first` is drawn at random, and stays it until it is gone; each method O(1)."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._uniforms: list[float] = []
        self._segments: list[Segment] = []
        self._place: dict[Segment, int] = {}
        self._drawn: Segment | None = None

    def __contains__(self, segment: Segment) -> bool:
        return segment in self._place

    def push(self, segment: Segment, rank: Any) -> None:
        """Put a segment in."""
        self._place[segment] = len(self._segments)
        self._segments.append(segment)

    def discard(self, segment: Segment) -> bool:
        """Take a segment out; False if it was not in."""
        place = self._place.pop(segment, None)
        if place is None:
            return False
        last = self._segments.pop()
        if last is not segment:
            self._segments[place] = last
            self._place[last] = place
        if segment is self._drawn:
            self._drawn = None
        return True

    def first(self) -> Segment | None:
        """The one drawn."""
        if self._drawn is None and self._segments:
            if not self._uniforms:
                self._uniforms = self._rng.random(DRAWS).tolist()
            self._drawn = self._segments[int(self._uniforms.pop() * len(self._segments))]
        return self._drawn

    def lowest(self) -> None:
        """They are all alike."""
