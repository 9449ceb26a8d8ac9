"""How long prompts and outputs are, and how they hang together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .laws import law, whole
from .registry import Registry, ascending

Lengths = NDArray[np.int64]
Streams = Callable[..., np.random.Generator]
LENGTHS = Registry("length model")


class LengthModel(Protocol):
    """Draws (input, output) lengths; its draws are the same however they are cut into blocks."""

    def sampler(self, streams: Streams) -> Callable[[int], tuple[Lengths, Lengths]]:
        """A function that gives the next n pairs, int64 (n,), each >= 1."""
        ...


@LENGTHS.add("independent")
@dataclass(frozen=True, slots=True)
class Independent:
    """Input and output lengths drawn apart, each from its own law (tokens)."""

    input: Any
    output: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "input", law(self.input, "input"))
        object.__setattr__(self, "output", law(self.output, "output"))

    def sampler(self, streams: Streams) -> Callable[[int], tuple[Lengths, Lengths]]:
        """See `LengthModel`; one uniform each."""
        u_input, u_output = streams("input"), streams("output")

        def draw(n: int) -> tuple[Lengths, Lengths]:
            return whole(self.input.ppf(u_input.random(n))), whole(self.output.ppf(u_output.random(n)))

        return draw


@LENGTHS.add("conditional")
@dataclass(frozen=True, slots=True)
class Conditional:
    """Output law by input length: bin i holds inputs in [edges[i], edges[i + 1]), the outer bins are open.

    `outputs[i]` is the law of outputs in bin i.
    """

    input: Any
    edges: Any
    outputs: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "input", law(self.input, "input"))
        ascending("edges", self.edges)
        if len(self.outputs) != len(self.edges) - 1:
            raise ConfigError(
                f"outputs: got {len(self.outputs)} rows, expected {len(self.edges) - 1} (edges − 1)"
            )
        rows = [law(row, f"outputs[{i}]") for i, row in enumerate(self.outputs)]
        object.__setattr__(self, "outputs", tuple(rows))

    def sampler(self, streams: Streams) -> Callable[[int], tuple[Lengths, Lengths]]:
        """See `LengthModel`; one uniform each."""
        u_input, u_output = streams("input"), streams("output")
        inner = np.asarray(self.edges[1:-1], dtype=np.float64)

        def draw(n: int) -> tuple[Lengths, Lengths]:
            inputs = whole(self.input.ppf(u_input.random(n)))
            which = np.searchsorted(inner, inputs, side="right")
            u, outputs = u_output.random(n), np.empty(n)
            for i, row in enumerate(self.outputs):
                outputs[which == i] = row.ppf(u[which == i])
            return inputs, whole(outputs)

        return draw
