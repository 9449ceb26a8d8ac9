"""Everything between clients and replicas: routers, pools, outages, scaling, and what they cost."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .autoscaler import Autoscaler
from .handoff import Handoff, Inlet, Ones, Outlet
from .outages import Failing
from .roster import Roster
from .router import Router

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..engine.clock import Environment
    from ..engine.contracts import EvictionPolicy, RoutingPolicy
    from ..engine.replica import Replica
    from ..engine.sequence import Sequence
    from ..engine.step_log import Columns
    from .router import Dropped
    from .spec import ClusterSpec


class Fleet:
    """The replicas of a run behind their router.

    `restart(seq)`: makes a lost request new; `over()`: whether every request has ended; `on_dropped`: see `Router`.
    """

    def __init__(
        self,
        env: Environment,
        spec: ClusterSpec,
        replicas: list[Replica],
        *,
        on_dropped: Dropped,
        over: Callable[[], bool],
        restart: Callable[[Sequence], None],
        eviction_of: Callable[[Replica], EvictionPolicy | None],
    ) -> None:
        self.env, self.spec, self.replicas = env, spec, replicas
        self._on_dropped, self._over = on_dropped, over
        pools = spec.disaggregation
        self.router = self._router(replicas if pools is None else replicas[: pools.prefill], spec.routing)
        self.handoff = None if pools is None else self._handoff()
        self.roster = self.failing = self.autoscaler = None
        if spec.outages is not None or spec.autoscaling is not None:
            on = len(replicas) if spec.autoscaling is None else spec.autoscaling.least
            self.roster = Roster(env, self.router, on)
        if spec.outages is not None and self.roster is not None:
            self.failing = Failing(
                spec.outages, self.roster, restart=restart, submit=self.router.submit, eviction_of=eviction_of, over=over
            )  # fmt: skip
        if spec.autoscaling is not None and self.roster is not None:
            self.autoscaler = Autoscaler(spec.autoscaling, self.roster, over)
        self.door: Router | Handoff = self.handoff or self.router

    def _router(self, replicas: list[Replica], policy: RoutingPolicy | None) -> Router:
        return Router(
            self.env,
            replicas,
            copy.deepcopy(policy),  # type: ignore[arg-type]  # `check` has refused None
            on_dropped=self._on_dropped,
            over=self._over,
            scrape_interval_s=self.spec.scrape_interval_s,
        )

    def _handoff(self) -> Handoff | None:
        """What carries requests from the prefill pool to the decode pool."""
        spec, pools = self.spec, self.spec.disaggregation
        if pools is None:
            return None
        for replica in self.replicas:
            copy_s = pools.copy_s(spec.replicas[replica.index])
            if replica.index < pools.prefill:
                replica.seats.outputs = Ones()  # type: ignore[assignment]  # of outputs only an index is asked for
                replica.seats.parked = {}
                replica.link = Outlet(replica, copy_s)
            else:
                replica.seats.swap = replica.link = Inlet(copy_s)
        back = self._router(self.replicas[pools.prefill :], spec.decode_routing or spec.routing)
        return Handoff(self.env, pools, spec.replicas, self.router, back, self._on_dropped)

    # -- what happens -----------------------------------------------------------------------------------------------

    def takes(self, seq: Sequence, replica: Replica, status: int) -> bool:
        """Whether a request that has ended on a replica goes on elsewhere."""
        return self.handoff is not None and self.handoff.takes(replica, seq, status)

    def ended(self, seq: Sequence, replica: Replica, time_s: float) -> None:
        """A request has ended for good on a replica."""
        (self.handoff or self.router).ended(replica, seq)
        self.gone(seq, time_s)

    def gone(self, seq: Sequence, time_s: float) -> None:
        """A request has ended for good, wherever it was."""
        if self.failing is not None:
            self.failing.ended(seq, time_s)

    @property
    def stands_still(self) -> bool:
        """Whether every replica is idle, and nothing is on its way to one."""
        moves = () if self.handoff is None else self.handoff.moves.values()
        return all([r.idle and not r.is_loading for r in self.replicas]) and not any(
            [m.target for m in moves]
        )

    def check(self) -> None:
        """Raise if somebody is left anywhere after the run."""
        self.router.check()
        if self.handoff is not None:
            self.handoff.check()

    # -- what it cost -----------------------------------------------------------------------------------------------

    def paid_s(self, begin_s: float, end_s: float) -> list[float]:
        """Seconds that each replica is paid for in a run that lasted from `begin_s` to `end_s`."""
        if self.roster is None:
            return [end_s - begin_s] * len(self.replicas)
        paid = self.roster.paid_until(begin_s, end_s)
        return [paid[r] for r in self.replicas]

    def figures(self, end_s: float) -> dict[str, Any]:
        """What only a fleet has, by part; empty for plain replicas."""
        parts: dict[str, Any] = {}
        if self.handoff is not None:
            parts["disaggregation"] = self.handoff.figures()
        if self.failing is not None:
            parts["failures"] = self.failing.figures(end_s)
        if self.autoscaler is not None:
            parts["autoscaling"] = self.autoscaler.figures()
        return parts


class BusyLog:
    """A sink of the step log: seconds that each replica has computed."""

    def __init__(self, n_replicas: int) -> None:
        self.seconds = np.zeros(n_replicas)

    def __call__(self, columns: Columns) -> None:
        """Take in a block of rows."""
        replicas = columns["replica"].astype(np.int64)
        self.seconds += np.bincount(replicas, columns["duration_s"], minlength=len(self.seconds))


def are_alike(spec: ClusterSpec) -> bool:
    """Whether all replicas are on the same hardware at the same price."""
    return len({(r.gpu.name, r.gpus, r.usd_per_gpu_hour) for r in spec.replicas}) == 1


def mean_peaks(spec: ClusterSpec, busy_s: NDArray[np.float64]) -> dict[str, float]:
    """FLOP/s and bytes/s of one GPU, where replicas differ weighted by the time they computed (so that a run's work over
    these peaks is its utilisation)."""
    gpus = [replica.gpu for replica in spec.replicas]
    weights = busy_s if busy_s.sum() > 0 else np.ones(len(gpus))
    flops = [g.peak_flops.get("bf16") or next(iter(g.peak_flops.values())) for g in gpus]
    return {
        "flops_per_s": float(np.average(flops, weights=weights)) if not are_alike(spec) else flops[0],
        "bytes_per_s": float(np.average([g.hbm_bytes_per_s for g in gpus], weights=weights))
        if not are_alike(spec)
        else gpus[0].hbm_bytes_per_s,
    }


def hardware(spec: ClusterSpec, paid_s: list[float], busy_s: NDArray[np.float64]) -> dict[str, Any]:
    """GPU hours and dollars of a fleet whose replicas differ or come and go, by kind of replica.

    `busy_s`: by replica. Dollars None: a price is unknown.
    """
    kinds: dict[tuple[Any, ...], dict[str, Any]] = {}
    for i, (replica, paid) in enumerate(zip(spec.replicas, paid_s, strict=True)):
        key = (replica.gpu.name, replica.gpus, replica.usd_per_gpu_hour)
        kind = kinds.setdefault(
            key,
            {"gpu": replica.gpu.name, "tp": replica.tp, "usd_per_gpu_hour": replica.usd_per_gpu_hour, "replicas": 0,
             "gpu_hours": 0.0, "busy_gpu_hours": 0.0},
        )  # fmt: skip
        kind["replicas"] += 1
        kind["gpu_hours"] += replica.gpus * paid / 3600
        kind["busy_gpu_hours"] += replica.gpus * float(busy_s[i]) / 3600
    prices = [kind["usd_per_gpu_hour"] for kind in kinds.values()]
    usd = None if None in prices else sum(k["gpu_hours"] * k["usd_per_gpu_hour"] for k in kinds.values())
    return {
        "gpu_hours": sum(k["gpu_hours"] for k in kinds.values()),
        "usd": usd,
        "kinds": list(kinds.values()),
    }
