"""Whole workloads: who asks what and when. Each yields blocks of requests in order of arrival, without end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ..trace import Trace
from .arrivals import ARRIVALS
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


def seconds(times_us: Any) -> Any:
    """Microseconds (int64) as seconds, by way of the milliseconds a trace file holds, so that reading gives the same."""
    return np.asarray(times_us, dtype=np.int64) / 1000.0 / 1000.0
