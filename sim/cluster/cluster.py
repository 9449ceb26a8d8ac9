"""A run: clients, a router and replicas on one SimPy clock."""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from stepline.traces.errors import InvariantError

from ..engine.accounting import StepAccounting, combine
from ..engine.block_watch import BlockLog, WatchedEviction
from ..engine.clock import Environment, NothingLeft
from ..engine.kv_cache import KVCache
from ..engine.life_log import LifeLog
from ..engine.offloading_replica import OffloadingReplica
from ..engine.replica import Replica
from ..engine.request_log import FINISHED, TIMED_OUT, UNFINISHED, RequestLog
from ..engine.result import STEP_COLUMNS, RunResult, empty_table
from ..engine.step_log import GapLog, StepLog
from .clients import Clients, SequenceFactory
from .fleet import BusyLog, Fleet, are_alike, hardware, mean_peaks
from .mechanisms import VerificationLog, mechanisms
from .spec import ClusterSpec, ReplicaSpec

if TYPE_CHECKING:
    from stepline.traces.trace import Trace

    from ..engine.contracts import EvictionPolicy
    from ..engine.sequence import Sequence

__all__ = ["ClusterSpec", "Progress", "ReplicaSpec", "run_cluster"]

EVENTS_PER_CHECK = 256

CHECKS_AT_STANDSTILL = 40
"""Checks in a row that find all replicas idle, clients silent and requests left, after which a run is given up: 10 000 looks
of scrapes, scaling and failures have then moved nothing."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: requests done of all, simulated seconds, wall seconds."""

    done: int
    total: int
    now_s: float
    wall_s: float


def run_cluster(
    trace: Trace, spec: ClusterSpec, on_progress: Callable[[Progress], None] | None = None
) -> RunResult:
    """Simulate until every request has ended.

    Raises ConfigError for a spec that cannot run, PolicyError for a wrong policy, InvariantError for a bug of ours.
    """
    return _Run(trace, spec).run(on_progress)


class _Run:
    """The objects of one run."""

    def __init__(self, trace: Trace, spec: ClusterSpec) -> None:
        spec.check()
        self.trace, self.spec = trace, spec
        self.env = Environment()
        self.requests = RequestLog()
        self.gaps = GapLog()
        self.lives = LifeLog(with_chunks=spec.record_steps)
        self.block_log = BlockLog()
        self.blocks: list[Mapping[str, Any]] = []
        asked = _outputs(trace)
        self.stopped = int((asked < trace.output_tokens).sum())
        self.outputs = array("q", asked.tobytes())
        self.accountings: list[StepAccounting] = []
        self.logs: dict[tuple[int, bool], StepLog] = {}  # by cost model, and whether contexts grow evenly
        self.busy = BusyLog(len(spec.replicas))
        self.verified = VerificationLog()
        self.replicas = [self._replica(i, r) for i, r in enumerate(spec.replicas)]
        first = spec.replicas[0]
        caching = any(r.eviction is not None for r in spec.replicas)
        lora = any(r.max_loras is not None for r in spec.replicas)
        self.factory = SequenceFactory(
            trace, first.max_model_len, first.block_size, caching=caching, adapters=lora
        )
        if self.factory.carried is not None:
            for replica in self.replicas:
                replica.kv.generated = self.factory.generated
        self.fleet = self._fleet()
        door: Any = self.replicas[0] if self.fleet is None else self.fleet.door
        self.clients = Clients(
            self.env,
            trace,
            self.factory,
            submit=door.submit,
            abort=door.abort,
            settle=door.proceed if self.fleet is None else door.settle,
            replay=spec.replay,
            max_concurrency=spec.max_concurrency,
            timeout_s=spec.client_timeout_s,
            ingest_s=first.engine.request_ingest_s,
            ingest_per_token_s=first.engine.request_ingest_per_token_s,
        )
        self.standstill = 0
        self.watched = bool(self.clients.next_turn) or spec.max_concurrency is not None

    def _fleet(self) -> Fleet | None:
        """What is between clients and replicas; None for a lone replica, where there would be nothing to decide."""
        spec = self.spec
        changes = spec.outages is not None or spec.autoscaling is not None
        if len(self.replicas) == 1 and not changes and not getattr(spec.routing, "holds", False):
            return None
        return Fleet(
            self.env,
            spec,
            self.replicas,
            on_dropped=self._dropped,
            over=lambda: len(self.requests) == len(self.trace),
            restart=lambda seq: self.factory.renew(seq, self.env.now),
            eviction_of=lambda replica: self._eviction(spec.replicas[replica.index]),
        )

    def _replica(self, index: int, spec: ReplicaSpec) -> Replica:
        windows = tuple([w for w, _ in spec.model.windows])
        capped = spec.compression is not None and spec.compression.cap_tokens is not None
        grows_evenly = windows == (None,) and not capped and spec.tape is None and not spec.max_loras
        n_contexts = len(windows) + (spec.max_loras is not None)
        log = self.logs.get((id(spec.cost_model), grows_evenly))
        if log is None:
            accounting = StepAccounting(spec.cost_model, n_contexts, {})
            sinks: list[Any] = [accounting, self.gaps.take_steps, self.busy]
            if spec.tape is not None:
                sinks.append(self.verified)
            if self.spec.record_steps:
                sinks.append(self.blocks.append)
            log = StepLog(n_contexts, sinks, grows_evenly=grows_evenly, speculates=spec.tape is not None)
            self.logs[id(spec.cost_model), grows_evenly] = log
            self.accountings.append(accounting)
        kv = KVCache(spec.kv_blocks, spec.block_size, self._eviction(spec))
        if isinstance(kv.eviction, WatchedEviction):
            kv.eviction.attach(kv)
        log.sinks[0].kv_blocks[index] = kv.usable  # type: ignore[attr-defined]  # the first sink is the accounting
        log.usable_blocks[index] = kv.usable
        kind = Replica if spec.offloading is None else OffloadingReplica
        replica = kind(
            self.env,
            index,
            limits=spec.limits,
            engine=spec.engine.for_tp(spec.tp),
            cost_model=spec.cost_model,
            policy=spec.policy,
            preemption=spec.preemption,
            kv=kv,
            windows=windows,
            outputs=self.outputs,
            step_log=log,
            gap_log=self.gaps,
            life_log=self.lives,
            on_done=self._ended,
            admission=spec.admission() if spec.admission else None,
            swap=spec.swap_space(),
            compression=spec.compression,
            tape=spec.tape,
            adapters=spec.adapter_slots(),
        )
        if spec.offloading is not None and isinstance(replica, OffloadingReplica):
            replica.use(spec.offloading.build(spec, self._foreseeing))
        return replica

    def _eviction(self, spec: ReplicaSpec) -> EvictionPolicy | None:
        """A fresh eviction policy for a GPU's pool."""
        if spec.eviction is None:
            return None
        policy = self._foreseeing(spec.eviction)
        return WatchedEviction(policy, self.block_log) if self.spec.record_blocks else policy

    def _foreseeing(self, make: Callable[[], EvictionPolicy]) -> EvictionPolicy:
        """A fresh eviction policy; an oracle is told the future."""
        policy = make()
        foresee = getattr(policy, "foresee", None)
        if foresee is not None:
            foresee(self.trace.hash_ids)
        return policy

    def _ended(self, seq: Sequence, index: int, time_s: float, tokens: int, status: int) -> None:
        """A request has ended on replica `index`; its client knows at `time_s`."""
        fleet, replica = self.fleet, self.replicas[index]
        if fleet is not None and fleet.takes(seq, replica, status):
            return
        if status == FINISHED and time_s > seq.patient_until_s:
            status, time_s = TIMED_OUT, seq.patient_until_s
        self.requests.add(seq, index, time_s, tokens, status)
        if fleet is not None:
            fleet.ended(seq, replica, time_s)
        if self.watched and not seq.aborted:  # else the client has gone on already
            self.clients.ended(seq, time_s)

    def _dropped(self, seq: Sequence, status: int, time_s: float) -> None:
        """A request ends without having reached a replica."""
        self.requests.add(seq, -1, time_s, 0, status)
        if self.fleet is not None:
            self.fleet.gone(seq, time_s)
        if self.watched and not seq.aborted:
            self.clients.ended(seq, time_s)

    # -- the clock --------------------------------------------------------------------------------------------------

    def run(self, on_progress: Callable[[Progress], None] | None) -> RunResult:
        """Run to the end and collect."""
        began = time.perf_counter()
        events = self._loop(on_progress, began)
        for log in self.logs.values():
            log.flush()
        return self._result(time.perf_counter() - began, events)

    def _loop(self, on_progress: Callable[[Progress], None] | None, began: float) -> int:
        self._open()
        step, total, events = self.env.step, len(self.trace), 0
        gc.disable()  # the loop makes no cycles, so that reference counts alone free what it drops
        try:
            while True:
                for _ in repeat(None, EVENTS_PER_CHECK):
                    step()
                events += EVENTS_PER_CHECK
                if self.fleet is not None:
                    self._check_progress(self.fleet)
                if on_progress is not None:
                    on_progress(
                        Progress(len(self.requests), total, self.env.now, time.perf_counter() - began)
                    )
        except NothingLeft:
            pass
        finally:
            gc.enable()
        return events

    def _check_progress(self, fleet: Fleet) -> None:
        """Raise where a router keeps its requests for ever while something else ticks on, which would have no end."""
        if not self.clients.are_silent or not fleet.stands_still or len(self.requests) == len(self.trace):
            self.standstill = 0
        elif fleet.router.open:  # else one may yet come back
            self.standstill += 1
        if self.standstill >= CHECKS_AT_STANDSTILL:
            fleet.check()
            raise InvariantError(
                f"{len(self.trace)} requests in, {len(self.requests)} ended, nothing goes on"
            )

    def _open(self) -> None:
        """Let the clients begin; a lone replica that hears of nothing but an open trace is fed with it."""
        replica = self.replicas[0]
        if self.fleet is None and replica.admission is None and self.clients.are_open:
            replica.feed(self.clients.arrivals(), self.requests.add)
        else:
            self.clients.start()

    def _result(self, wall_s: float, events: int) -> RunResult:
        requests = self.requests.frame()
        self._check(requests)
        preemptions = self.lives.preemption_table()
        last_step_s = max([replica.end_s for replica in self.replicas])
        end_s = max(float(requests["finish_s"].max()), last_step_s) if len(requests) else 0.0
        totals = combine(self.accountings, len(self.replicas), end_s, requests, preemptions)
        begin_s = float(requests["arrival_s"].min()) if len(requests) else 0.0
        if self.fleet is not None and self.fleet.roster is not None:
            paid_s = sum(self.fleet.paid_s(begin_s, end_s))
            totals = replace(totals, idle_s=max(0.0, paid_s - totals.busy_s))
        caches = [replica.kv for replica in self.replicas]
        offloads = [r.fetcher.offload for r in self.replicas if isinstance(r, OffloadingReplica)]
        return RunResult(
            requests=requests,
            gaps=self.gaps.gaps(),
            totals=totals,
            kv={
                "blocks_total": sum(c.usable + 1 for c in caches),
                "block_size": caches[0].block_size,
                "peak_used_blocks": sum(c.peak_held for c in caches),
                "hit_tokens": sum(c.hit_tokens for c in caches),
                "query_tokens": sum(c.query_tokens for c in caches),
                "evicted_blocks": sum(c.evicted_blocks for c in caches),
                "loads": sum(o.n_loads for o in offloads),
                "load_s": sum(o.load_s for o in offloads),
            },
            config=self.spec.config,
            n_gpus=sum(r.gpus for r in self.spec.replicas),
            peaks=mean_peaks(self.spec, self.busy.seconds),
            simulator={"wall_s": wall_s, "events": events, "steps": totals.steps},
            steps=self._steps(),
            warnings=self._warnings(),
            preemptions=preemptions,
            chunks=self.lives.chunk_table(),
            tiers=_summed([o.figures(caches[0].block_size) for o in offloads]),
            block_times=self.block_log.times() if self.spec.record_blocks else None,
            trace_columns=dict(self.trace.columns),
            fleet=self._parts(begin_s, end_s),
            mechanisms=mechanisms(self.verified, self.replicas),
        )

    def _parts(self, begin_s: float, end_s: float) -> dict[str, Any]:
        """What only a fleet has, by part; empty for plain replicas."""
        fleet, spec = self.fleet, self.spec
        if fleet is None:
            return {}
        parts = fleet.figures(end_s)
        if fleet.roster is not None or not are_alike(spec):
            parts["hardware"] = hardware(spec, fleet.paid_s(begin_s, end_s), self.busy.seconds)
        return parts

    def _warnings(self) -> tuple[str, ...]:
        if not self.stopped:
            return ()
        return (
            f"{self.stopped} requests have an output_length over their max_output_length: they stop there",
        )

    def _steps(self) -> pd.DataFrame | None:
        if not self.spec.record_steps:
            return None
        names = list(STEP_COLUMNS) + [
            n for n in (self.blocks[0] if self.blocks else ()) if "context_" in n and n[-1] in "123456789"
        ]
        kinds = {name: STEP_COLUMNS.get(name, np.float64) for name in names}
        if not self.blocks:
            return empty_table(kinds)
        joined = {name: np.concatenate([block[name] for block in self.blocks]) for name in names}
        return pd.DataFrame({name: joined[name].astype(kind) for name, kind in kinds.items()})

    def _check(self, requests: pd.DataFrame) -> None:
        """Nothing lost: every request ended once, every block came back."""
        if self.fleet is not None:
            self.fleet.check()
        if len(requests) != len(self.trace) or (requests["status"] == UNFINISHED).any():
            raise InvariantError(f"{len(self.trace)} requests in, {len(requests)} ended")
        for replica in self.replicas:
            replica.kv.check()
            if replica.kv.held or replica.running or replica.waiting or replica.inbox:
                raise InvariantError(
                    f"replica {replica.index}: {replica.kv.held} KV blocks held after the run"
                )
            if isinstance(replica, OffloadingReplica):
                replica.fetcher.check()


def _summed(parts: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Figures of tiers by name, summed over replicas."""
    names = list(dict.fromkeys([name for part in parts for name in part]))
    return {
        name: {
            key: sum([part[name][key] for part in parts if name in part])
            for key in next(p[name] for p in parts if name in p)
        }
        for name in names
    }


def _outputs(trace: Trace) -> NDArray[np.int64]:
    """Tokens that each request generates: what the trace says, but a server stops at the client's limit."""
    outputs = trace.output_tokens.astype(np.int64)
    limits = trace.columns.get("max_output_tokens")
    if limits is None:
        return outputs
    at_most = [n if limit is None else limit for limit, n in zip(limits, outputs.tolist(), strict=True)]
    return np.minimum(outputs, np.array(at_most, dtype=np.int64))
