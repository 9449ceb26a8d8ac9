"""Tiers behind a replica's KV pool as settings: host memory, an SSD, their links, who is kept there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError, nearest

from ..engine.channel import Channel
from ..engine.offload import LOADS, WRITES, Offload, Rules
from ..engine.plugins import load_plugin, parse_plugin, plugin_factory
from ..engine.tier import Tier

if TYPE_CHECKING:
    from ..engine.contracts import EvictionPolicy
    from .spec import ReplicaSpec

BACKENDS = ("native",)
"""Names that `--kv-offloading-backend` takes; vLLM's other one, lmcache, is not modelled."""

SSDS: dict[str, tuple[float, float, float]] = {
    "nvme-gen4": (6.9e9, 4.1e9, 100e-6),
    "nvme-gen5": (13.0e9, 6.6e9, 100e-6),
}
"""Sequential reads and writes, bytes per second, and seconds before a read is there. Rates: Samsung PM9A3 datasheet (PCIe
4.0), Samsung PM1743 announcement of 2021 (PCIe 5.0): upper bounds. The latency is the order of magnitude of a NAND
read through a file system, not measured."""

COPY_LATENCY_S = 10e-6
"""Seconds from a copy's last byte to its use: the order of magnitude of a CUDA event between streams, not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offloading:
    """What is behind the KV pool of a replica. GiB are of the replica's whole TP group, as in vLLM.

    cpu_gib, ssd_gib  room in host memory, and on an SSD behind it (None: no SSD)
    write             write-through: content goes to all tiers when the sequence that computed it lets go of it;
                      on-evict: to the next tier when it is lost from the one above
    load              cost: content comes back when that is sooner than computing it again; always
    stall             steps wait for transfers to and from the GPU (false: transfers run beside them)
    eviction, ssd_eviction  eviction policies, the same as for the GPU (None: the SSD's is that of host memory)
    pcie_gb_per_s     10^9 bytes per second and direction of a GPU's host link (None: the GPU table's rate)
    copy_s            seconds a block takes on that link beside its bytes, for engines that copy block by block
    ssd               one of `SSDS`, shared by the TP group
    """

    cpu_gib: float
    ssd_gib: float | None = None
    write: str = "write-through"
    load: str = "cost"
    stall: bool = False
    eviction: str = "lru"
    ssd_eviction: str | None = None
    pcie_gb_per_s: float | None = None
    copy_s: float = 0.0
    ssd: str = "nvme-gen4"

    def __post_init__(self) -> None:
        where = "--kv-offloading-backend native"
        for name, known in (("write", WRITES), ("load", LOADS), ("ssd", tuple(SSDS))):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"{where}: {name}: got {value!r}, expected one of {', '.join(known)}")
        if not isinstance(self.stall, bool):
            raise ConfigError(f"{where}: stall: got {self.stall!r}, expected true or false")
        for name, value, least in (
            ("pcie_gb_per_s", self.pcie_gb_per_s, "> 0"),
            ("copy_s", self.copy_s, ">= 0"),
        ):
            if value is not None and not (
                _is_number(value) and (value > 0 or (value == 0 and least == ">= 0"))
            ):
                raise ConfigError(f"{where}: {name}: got {value!r}, expected a number {least}")
        for policy in (self.eviction, self.ssd_eviction or self.eviction):
            leaves_only = getattr(load_plugin(EVICTION, policy), "leaves_only", False)
            if leaves_only and self.write == "on-evict":
                raise ConfigError(
                    f"{where}: eviction={policy}: needs write=write-through (it must know what continues what, and on "
                    "eviction a tail comes before its head)"
                )

    @classmethod
    def parse(cls, text: str, cpu_gib: float | None, ssd_gib: float | None) -> Offloading | None:
        """From `native[:key=value,...]` and sizes; None without any. Raises ConfigError."""
        backend = parse_plugin(text, "--kv-offloading-backend")
        if backend.target not in BACKENDS:
            raise ConfigError(
                f"--kv-offloading-backend: unknown name {backend.target!r}{nearest(backend.target, BACKENDS)}"
            )
        if cpu_gib is None:
            for name, value in (("ssd-size", ssd_gib), ("backend", backend.parameters or None)):
                if value is not None:
                    raise ConfigError(
                        f"--kv-offloading-{name}: needs --kv-offloading-size, the host memory in between"
                    )
            return None
        known = [f.name for f in fields(cls) if f.name not in ("cpu_gib", "ssd_gib")]
        for name in backend.parameters:
            if name not in known:
                raise ConfigError(
                    f"--kv-offloading-backend native: unknown parameter {name!r}{nearest(name, known)}"
                )
        parameters: dict[str, Any] = dict(backend.parameters)
        return cls(cpu_gib=cpu_gib, ssd_gib=ssd_gib, **parameters)

    def build(
        self, spec: ReplicaSpec, fresh: Callable[[Callable[[], EvictionPolicy]], EvictionPolicy]
    ) -> Offload:
        """The tiers of one replica, empty. `fresh(make)`: a new policy, told what it must know before the run."""
        link_s = self.block_s(spec)
        from_gpu, to_gpu = Channel(link_s, COPY_LATENCY_S), Channel(link_s, COPY_LATENCY_S)
        tiers = [Tier("cpu", self.cpu_blocks(spec), self._policy(self.eviction, fresh), from_gpu, to_gpu)]
        if self.ssd_gib is not None:
            read, write, latency_s = SSDS[self.ssd]
            n_bytes = spec.kv_block_bytes * spec.tp * spec.pp
            policy = self._policy(self.ssd_eviction or self.eviction, fresh)
            links = Channel(n_bytes / write, latency_s), Channel(n_bytes / read, latency_s)
            tiers.append(Tier("ssd", self._blocks(spec, self.ssd_gib), policy, *links))
        return Offload(tuple(tiers), from_gpu, to_gpu, Rules(self.write, self.load, self.stall))  # type: ignore[arg-type]  # checked above

    def block_s(self, spec: ReplicaSpec) -> float:
        """Seconds a block takes one way between each GPU of the group and its host."""
        rate = spec.gpu.pcie_bytes_per_s if self.pcie_gb_per_s is None else 1e9 * self.pcie_gb_per_s
        if not rate:
            raise ConfigError(
                f"--kv-offloading-size: no host link known of {spec.gpu.name}: give pcie_gb_per_s"
            )
        return spec.kv_block_bytes / rate + self.copy_s

    def cpu_blocks(self, spec: ReplicaSpec) -> int:
        """KV blocks that host memory holds."""
        return self._blocks(spec, self.cpu_gib)

    def _blocks(self, spec: ReplicaSpec, gib: float) -> int:
        return int(gib * 2**30 / (spec.kv_block_bytes * spec.tp * spec.pp))

    def _policy(
        self, text: str, fresh: Callable[[Callable[[], EvictionPolicy]], EvictionPolicy]
    ) -> Callable[[], EvictionPolicy]:
        make = plugin_factory(EVICTION, text)
        return lambda: fresh(make)


EVICTION = "stepline.eviction_policies"
"""Entry-point group of the policies that decide who stays in a tier."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
