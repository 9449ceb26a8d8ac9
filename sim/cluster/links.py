"""Links over which KV goes from one replica to another: rate, latency, who waits for whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepline.traces.errors import ConfigError, nearest

if TYPE_CHECKING:
    from .spec import ReplicaSpec

LINKS: dict[str, tuple[float | None, float]] = {
    "nvlink": (None, 10e-6),
    "ib-ndr": (50e9, 10e-6),
    "ib-hdr": (25e9, 10e-6),
    "roce-100g": (12.5e9, 20e-6),
    "tcp-100g": (12.5e9, 100e-6),
    "tcp-25g": (3.125e9, 100e-6),
    "tcp-10g": (1.25e9, 100e-6),
}
"""Bytes per second and direction of one GPU's port (None: the GPU's NVLink, or PCIe where it has none), and seconds
before the first byte. Rates are line rates (InfiniBand NDR 400 Gb/s, HDR 200 Gb/s; Ethernet as named): an upper bound
of what transfers reach. Latencies are orders of magnitude of a verbs write and of a socket round trip, not measured."""


@dataclass(frozen=True, slots=True)
class Link:
    """One GPU's port: `bytes_per_s` (None: NVLink of the slower GPU), `latency_s` a transfer."""

    name: str = "nvlink"
    bytes_per_s: float | None = None
    latency_s: float = 10e-6

    @classmethod
    def named(cls, name: str, bytes_per_s: float | None = None, latency_s: float | None = None) -> Link:
        """A link of `LINKS`, with its own rate or latency where given. Raises ConfigError."""
        if name not in LINKS:
            raise ConfigError(f"--disaggregate: link: unknown name {name!r}{nearest(name, LINKS)}")
        rate, latency = LINKS[name]
        for key, value in (("bandwidth", bytes_per_s), ("latency", latency_s)):
            if value is not None and not (value >= 0 if key == "latency" else value > 0):
                raise ConfigError(f"--disaggregate: {key}: got {value!r}, expected a number > 0")
        return cls(
            name,
            rate if bytes_per_s is None else float(bytes_per_s),
            latency if latency_s is None else float(latency_s),
        )

    def rate(self, source: ReplicaSpec, target: ReplicaSpec) -> float:
        """Bytes per second between one GPU of each replica."""
        if self.bytes_per_s is not None:
            return self.bytes_per_s
        return min(source.gpu.nvlink_bytes_per_s, target.gpu.nvlink_bytes_per_s)


class Ports:
    """Every replica's way out and way in: a transfer takes both, first come first served, at the link's full rate.

    Serving transfers one after the other gives each a sooner or equal end than sharing the rate among them would.
    """

    def __init__(self, n_replicas: int) -> None:
        self._out_s = [0.0] * n_replicas
        self._in_s = [0.0] * n_replicas
        self.busy_s = 0.0
        self.moved_bytes = 0.0

    def send(self, source: int, target: int, n_bytes: float, bytes_per_s: float, ready_s: float) -> float:
        """Seconds at which the last byte of a transfer that could begin at `ready_s` has arrived."""
        lasts_s = n_bytes / bytes_per_s
        begin_s = max(ready_s, self._out_s[source], self._in_s[target])
        self._out_s[source] = self._in_s[target] = begin_s + lasts_s
        self.busy_s += lasts_s
        self.moved_bytes += n_bytes
        return begin_s + lasts_s
