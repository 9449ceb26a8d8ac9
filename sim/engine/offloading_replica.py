"""A replica with tiers behind its KV pool: prompts wait for what they have there, beside the steps of the others."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from .clock import wake_at
from .fetcher import Fetcher
from .replica import Replica
from .sequence import DONE, WAITING, Sequence

if TYPE_CHECKING:
    from .contracts import EvictionPolicy, Plan
    from .fetcher import Fetch
    from .offload import Offload


class OffloadingReplica(Replica):
    """A `Replica` that asks its fetcher before anybody is admitted; a load that ends is heard of like an arrival."""

    __slots__ = ("fetcher",)

    def use(self, offload: Offload) -> None:
        """Put these tiers behind the pool, before anything happens."""
        self.fetcher = Fetcher(offload, self.kv, self.price)
        self.kv.below = offload
        offload.clock = self
        if offload.rules.stalls:
            self.link = offload
        if offload.rules.write == "on-evict":
            self.glides = False  # `_leap_limit` must be asked
        self.ask = self._ask

    # -- who loads --------------------------------------------------------------------------------------------------

    def _ask(self, view: Any) -> Plan:
        """The policy's plan; anew without those who have something to load first."""
        plan = self.policy.plan(view)
        while plan.chunks and not plan.preempt and self._begin_loads(plan):
            plan = self.policy.plan(view)
        return plan

    def _start(self, plan: Plan) -> bool:
        """Who joins in place of those that are preempted may have something to load, too."""
        if plan.preempt and plan.chunks:
            for seq in plan.preempt:
                self.seats.preempt(seq, self.now_s)
            plan.preempt = ()
            if self._begin_loads(plan):
                return self._begin()
        return super()._start(plan)

    def _begin_loads(self, plan: Plan) -> bool:
        """Whether anybody whom the plan would admit loads first."""
        if not any([seq.state == WAITING for seq, _ in plan.chunks]):
            return False
        needed = [self.seats.blocks_needed(s, c) for s, c in plan.chunks if s.state != WAITING]
        begun = self.fetcher.begin(plan, sum(needed) + self.view.decode_blocks, self.now_s)
        for seq in begun:
            self._await(seq)
        return bool(begun)

    def _await(self, seq: Sequence) -> None:
        """Out of the queue until the load has ended; or steps wait for it, and it is as good as there."""
        if self.fetcher.offload.rules.stalls:
            self.fetcher.land(seq, self.now_s)
            return
        self.waiting.remove(seq)
        fetch = self.fetcher.loading[seq]
        wake_at(self.env, fetch.ready_s, partial(self._on_loaded, seq, fetch))
        self.horizon_s = min(self.horizon_s, fetch.ready_s)

    def _leap_limit(self, plan: Plan) -> int:
        """A step whose evictions, or departures, start transfers that matter is taken alone: each at its time."""
        limit, rules = super()._leap_limit(plan), self.fetcher.offload.rules
        if limit > 1 and rules.stalls and self.seats.leaving:
            return 1
        if limit > 1 and rules.write == "on-evict":
            return max(1, self.decode.steps_within(self.kv.free, limit))
        return limit

    # -- who has loaded ---------------------------------------------------------------------------------------------

    def _on_loaded(self, seq: Sequence, fetch: Fetch, _: Any) -> None:
        if self.fetcher.loading.get(seq) is not fetch:
            return  # the replica has failed meanwhile
        fetch.is_there = True
        if not self.idle:
            self.inbox.append((self.env.now, seq))
            if self.n_steps > 1:
                self._cut_leap()
            return
        self.now_s = self.env.now
        self._hear(seq, self.now_s)
        self.proceed()

    def _hear(self, seq: Sequence, until_s: float) -> None:
        """Of a load that has ended: its sequence is next in the queue."""
        fetch = self.fetcher.loading.get(seq)
        if fetch is None or not fetch.is_there:
            super()._hear(seq, until_s)
            return
        self.fetcher.land(seq, self.now_s)
        if seq.state != DONE:
            self.waiting.appendleft(seq)

    def _heard(self, plan: Plan) -> bool:
        return super()._heard(plan) or any([seq in self.fetcher.loading for _, seq in self.inbox])

    def unheard(self) -> Collection[tuple[float, Sequence]]:
        """As for any replica, in order of time, and those who load."""
        super().unheard()
        if len(self.inbox) > 1:
            ordered = sorted(self.inbox, key=lambda entry: entry[0])
            self.inbox.clear()
            self.inbox.extend(ordered)
        loads = [(f.ready_s, seq) for seq, f in self.fetcher.loading.items() if not f.is_there]
        return [*self.inbox, *loads]

    # -- idle, or dead ----------------------------------------------------------------------------------------------

    def _awaits(self) -> bool:
        return super()._awaits() or self.is_loading

    @property
    def is_loading(self) -> bool:
        """Whether KV comes from the tiers below."""
        return bool(self.fetcher.loading)

    def _wake(self, event: Any) -> None:
        awaited: Any = self.event
        if event is awaited:  # else a load has ended before that arrival
            super()._wake(event)

    def crash(self, eviction: EvictionPolicy | None) -> list[Sequence]:
        """It fails (now): the host's memory is lost, too."""
        lost = super().crash(eviction)
        self.fetcher.wipe()
        return lost
