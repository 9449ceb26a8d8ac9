"""Fair shares among tenants: the virtual token counter."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING, Any, SupportsIndex

from .ordered import OrderedPolicy

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence

Tenant = str | None


class FairQueue:
    """A `WaitingQueue` that serves the tenant with the smallest weighted service first, FCFS within a tenant.

    Service is `prompt_cost` per prompt token when a sequence joins and `output_cost` per token generated, divided by
    the tenant's weight. A tenant that comes back after having had nothing waiting starts at no less than the
    smallest counter of those who wait, or, where nobody does, than that of whom was the last to: idleness earns no credit.
    """

    def __init__(self, prompt_cost: float, output_cost: float, weights: Mapping[str, float]) -> None:
        self.prompt_cost, self.output_cost = prompt_cost, output_cost
        self.weights = weights
        self.counters: dict[Tenant, float] = {}
        self._queues: dict[Tenant, deque[Sequence]] = {}
        self._charged: dict[
            Sequence, int
        ] = {}  # output tokens of running sequences that are on their counter
        self._paid: set[int] = set()  # rows whose prompt is on their tenant's counter
        self._last: Tenant = None  # whose queue ran empty last
        self._size = 0
        self._view: Any = None

    def attach(self, view: Any) -> None:
        """Knows progress."""
        self._view = view

    # -- the queue --------------------------------------------------------------------------------------------------

    def append(self, seq: Sequence) -> None:
        """A request arrives; its tenant's counter is lifted if it had nothing waiting."""
        self._lift(seq.tenant)
        self._queues.setdefault(seq.tenant, deque()).append(seq)
        self._size += 1

    def appendleft(self, seq: Sequence) -> None:
        """A preempted sequence returns to the head of its tenant's queue; what it was charged stays."""
        self._settle(seq)
        self._charged.pop(seq, None)
        self._queues.setdefault(seq.tenant, deque()).appendleft(seq)
        self._size += 1

    def popleft(self) -> Sequence:
        """Admit the first."""
        seq = self[0]
        self.remove(seq)
        return seq

    def remove(self, seq: Sequence) -> None:
        """Admit one, unless its client has gone; only computing pays, so a recomputed prompt is not charged again."""
        queue = self._queues[seq.tenant]
        if queue[0] is seq:
            queue.popleft()
        else:
            queue.remove(seq)
        self._size -= 1
        if not queue:
            self._last = seq.tenant
        if seq.aborted:
            return
        if seq.index not in self._paid:  # else it was preempted, or has loaded its KV and joins now
            self._paid.add(seq.index)
            self._charge(seq.tenant, self.prompt_cost * seq.input_tokens)
        self._charged[seq] = seq.generated_tokens

    def ended(self, seq: Sequence) -> None:
        """The rest of its output is charged."""
        self._paid.discard(seq.index)
        if seq in self._charged:
            self._charge(seq.tenant, self.output_cost * (seq.generated_tokens - self._charged.pop(seq)))

    def __getitem__(self, index: SupportsIndex) -> Sequence:
        return next(iter(self))

    def __contains__(self, seq: object) -> bool:
        return any([seq in queue for queue in self._queues.values()])

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        """As they would be admitted one after the other, each charged its prompt before the next is chosen."""
        for seq in self._charged:
            self._settle(seq)
        heap = [
            (self.counters.get(t, 0.0), t or "", place, iter(queue))  # "" may be a tenant's name, beside none
            for place, (t, queue) in enumerate(self._queues.items())
            if queue
        ]
        heapify(heap)
        while heap:
            counter, name, place, ahead = heap[0]
            first = next(ahead, None)
            if first is None:
                heappop(heap)
                continue
            yield first
            new = first.index not in self._paid  # who was preempted has paid
            cost = self.prompt_cost * first.input_tokens / self._weight(name) if new else 0.0
            heapreplace(heap, (counter + cost, name, place, ahead))

    # -- counters ---------------------------------------------------------------------------------------------------

    def _weight(self, tenant: Tenant) -> float:
        return self.weights.get(tenant or "", 1.0)

    def _charge(self, tenant: Tenant, cost: float) -> None:
        self.counters[tenant] = self.counters.get(tenant, 0.0) + cost / self._weight(tenant)

    def _settle(self, seq: Sequence) -> None:
        """Charge what a running sequence has generated since it was looked at last."""
        if seq in self._charged:
            now = self._view.generated_tokens(seq)
            self._charge(seq.tenant, self.output_cost * (now - self._charged[seq]))
            self._charged[seq] = now

    def _lift(self, tenant: Tenant) -> None:
        if self._queues.get(tenant):
            return
        active = [self.counters.get(t, 0.0) for t, queue in self._queues.items() if queue]
        least = min(active) if active else self.counters.get(self._last, 0.0)
        self.counters[tenant] = max(self.counters.get(tenant, 0.0), least)


class FairPolicy(OrderedPolicy):
    """Tenants share service by weight: the least served tenant's first request joins next (VTC).

    `fair:prompt_cost=1,output_cost=2,gold=2` gives tenant `gold` twice the share of others (weight 1). Requests without
    a tenant are one tenant together. The service that two tenants with requests waiting get differs by a bound that
    does not grow with time. Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, Algorithm 2
    with w_p = 1, w_q = 2.
    """

    def __init__(
        self, *, prompt_cost: float = 1.0, output_cost: float = 2.0, **tenant_weights: float
    ) -> None:
        super().__init__()
        for name, value in {"prompt_cost": prompt_cost, "output_cost": output_cost}.items():
            if not value >= 0:
                raise ValueError(f"{name}: got {value}, expected a number >= 0")
        for name, value in tenant_weights.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{name}: got {value!r}, expected a tenant's weight > 0")
        self.prompt_cost, self.output_cost, self.tenant_weights = prompt_cost, output_cost, tenant_weights

    def make_queue(self) -> FairQueue:  # type: ignore[override]  # another container with the same methods
        """A queue of tenants."""
        return FairQueue(self.prompt_cost, self.output_cost, self.tenant_weights)
