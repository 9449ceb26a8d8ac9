"""Whole workloads: who asks what and when. Each yields blocks of requests in order of arrival, without end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from ..errors import ConfigError
from ..joining import concatenate
from ..trace import Ragged, Trace
from .arrivals import ARRIVALS
from .laws import seconds
from .lengths import LENGTHS
from .registry import Registry

Streams = Callable[..., np.random.Generator]
WORKLOADS = Registry("workload")


class Workload(Protocol):
    """What a profile generates."""

    def scaled(self, rate_scale: float) -> Workload:
        """The same workload at `rate_scale` times the rate."""
        ...

    def blocks(self, streams: Streams) -> Iterator[Trace]:
        """Endless blocks of rows in order of arrival (times in whole microseconds)."""
        ...


@WORKLOADS.add("open")
@dataclass(frozen=True, slots=True)
class Open:
    """Independent requests: `arrivals` say when, `lengths` how long."""

    arrivals: Any
    lengths: Any

    def __post_init__(self) -> None:
        if isinstance(self.arrivals, dict):
            object.__setattr__(self, "arrivals", ARRIVALS.build(self.arrivals, "arrivals"))
            object.__setattr__(self, "lengths", LENGTHS.build(self.lengths, "lengths"))

    def scaled(self, rate_scale: float) -> Open:
        """The same requests, arriving at `rate_scale` times the rate."""
        return replace(self, arrivals=self.arrivals.scaled(rate_scale))

    def blocks(self, streams: Streams) -> Iterator[Trace]:
        """See `Workload`."""
        draw = self.lengths.sampler(streams)
        for times_us in self.arrivals.chunks(streams):
            yield Trace(seconds(times_us), *draw(len(times_us)))


@WORKLOADS.add("mix")
@dataclass(frozen=True, slots=True)
class Mix:
    """Several workloads at once, merged in order of arrival: applications whose shares change over time.

    `tenants` names the parts in the column `tenant` where given. Block ids of different parts never meet.
    """

    parts: Any
    tenants: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.parts, list | tuple) or not self.parts:
            raise ConfigError(f"parts: got {self.parts!r}, expected a list of workloads")
        if self.tenants is not None and len(self.tenants) != len(self.parts):
            raise ConfigError(f"tenants: got {len(self.tenants)} names, expected {len(self.parts)}")
        built = [
            WORKLOADS.build(p, f"parts[{i}]") if isinstance(p, dict) else p for i, p in enumerate(self.parts)
        ]
        object.__setattr__(self, "parts", tuple(built))

    def scaled(self, rate_scale: float) -> Mix:
        """Every part at `rate_scale` times its rate."""
        return replace(self, parts=tuple(part.scaled(rate_scale) for part in self.parts))

    def blocks(self, streams: Streams) -> Iterator[Trace]:
        """See `Workload`."""
        sources = [part.blocks(partial(streams, "part", i)) for i, part in enumerate(self.parts)]
        held = [self._marked(next(source), i) for i, source in enumerate(sources)]
        while True:
            until = min(float(block.arrival_s[-1]) for block in held)
            ready = [int(np.searchsorted(block.arrival_s, until, side="right")) for block in held]
            merged = concatenate([block.take(np.arange(n)) for block, n in zip(held, ready, strict=True)])
            yield merged.take(np.argsort(merged.arrival_s, kind="stable"))
            for i, n in enumerate(ready):
                rest = held[i].take(np.arange(n, len(held[i])))
                held[i] = rest if len(rest) else self._marked(next(sources[i]), i)

    def _marked(self, block: Trace, part: int) -> Trace:
        """`block` with ids of its own and its tenant's name."""
        changes: dict[str, Any] = {}
        if block.hash_ids is not None:
            own = block.hash_ids.values * len(self.parts) + part
            changes["hash_ids"] = Ragged(own, block.hash_ids.offsets)
        if self.tenants is not None:
            changes["columns"] = {**block.columns, "tenant": [self.tenants[part]] * len(block)}
        return replace(block, **changes)
