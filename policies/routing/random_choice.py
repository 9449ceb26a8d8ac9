"""A random replica, or the better of a few random ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError
from stepline.traces.random_streams import stream

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence

DRAWS = 4096


class _Uniforms:
    """Uniform numbers in [0, 1) from a named stream, drawn a block at a time."""

    def __init__(self, seed: int, name: str) -> None:
        self._stream = stream(seed, "routing", name)
        self._block: list[float] = []

    def __call__(self) -> float:
        if not self._block:
            self._block = self._stream.random(DRAWS).tolist()
        return self._block.pop()


class RandomPolicy:
    """Each replica with the same probability. The baseline that every informed policy must beat."""

    def __init__(self, *, seed: int = 0) -> None:
        self._uniform = _Uniforms(seed, "random")

    def choose(self, request: Sequence, replicas: list[Any]) -> int:
        """One of the replicas."""
        return int(self._uniform() * len(replicas))


class PowerOfTwoPolicy:
    """The one with fewer outstanding requests of `choices` different random replicas (the first drawn, if equal).

    Nearly as short queues as asking everybody, and no herd when signals are old. Source: M. Mitzenmacher, "The Power of
    Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001.
    """

    def __init__(self, *, choices: int = 2, seed: int = 0) -> None:
        if not isinstance(choices, int) or choices < 1:
            raise ConfigError(f"choices: got {choices!r}, expected an integer >= 1")
        self._choices = choices
        self._uniform = _Uniforms(seed, "power-of-two")

    def choose(self, request: Sequence, replicas: list[Any]) -> int:
        """The best of a few."""
        left = list(range(len(replicas)))
        drawn = [left.pop(int(self._uniform() * len(left))) for _ in range(min(self._choices, len(left)))]
        return min(drawn, key=lambda i: replicas[i].n_outstanding)
