"""Fair shares among tenants: the virtual token counter."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING, Any, SupportsIndex

from .base import Chunks
from .ordered import OrderedPolicy

if TYPE_CHECKING:
    from stepline.sim.engine.contracts import Plan
    from stepline.sim.engine.sequence import Sequence

Tenant = str | None


@dataclass(slots=True)
class Account:
    """A tenant: its weight, its service so far over that weight, who waits, and how many of its sequences decode."""

    weight: float
    service: float = 0.0
    waiting: deque[Sequence] = field(default_factory=deque)
    n_decoding: int = 0

    def charge(self, cost: float) -> None:
        """More service."""
        self.service += cost / self.weight


class FairQueue:
    """A `WaitingQueue` that serves the tenant with the smallest weighted service first, FCFS within a tenant.

    Service is `prompt_cost` per prompt token when a sequence joins and `output_cost` per token generated, divided by
    the tenant's weight. A tenant that comes back after having had nothing waiting starts at no less than the
    smallest counter of those who wait, or, where nobody does, than that of whom was the last to: idleness earns no credit.

    What running sequences generate is charged by tenant, a token a decode step for each that decodes, so that looking at
    the counters costs as many additions as there are tenants (and prompts under way; with speculation, sequences).
    """

    def __init__(self, prompt_cost: float, output_cost: float, weights: Mapping[str, float]) -> None:
        self.prompt_cost, self.output_cost = prompt_cost, output_cost
        self.weights = weights
        self._accounts: dict[Tenant, Account] = {}
        self._charged: dict[Sequence, int] = {}  # admitted, not known to decode: output tokens on the account
        self._ahead: dict[Sequence, int] = {}  # who decodes: output tokens on the account, less the clock
        self._clock = 0  # decode steps charged
        self._steps = 0  # decode steps of the view at the last look
        self._paid: set[int] = set()  # rows whose prompt is on the account
        self._last: Account | None = None  # whose queue ran empty last
        self._size = 0
        self._view: Any = None

    def attach(self, view: Any) -> None:
        """Knows progress."""
        self._view = view

    # -- the queue --------------------------------------------------------------------------------------------------

    def append(self, seq: Sequence) -> None:
        """A request arrives; its tenant's counter is lifted if it had nothing waiting."""
        account = self._account(seq.tenant)
        if not account.waiting:
            self._settle()
            account.service = max(account.service, self._least())
        account.waiting.append(seq)
        self._size += 1

    def appendleft(self, seq: Sequence) -> None:
        """A preempted sequence returns to the head of its tenant's queue; what it was charged stays."""
        account = self._account(seq.tenant)
        self._close(account, seq, self._view.generated_tokens(seq))
        account.waiting.appendleft(seq)
        self._size += 1

    def popleft(self) -> Sequence:
        """Admit the first."""
        seq = self[0]
        self.remove(seq)
        return seq

    def remove(self, seq: Sequence) -> None:
        """Admit one, unless its client has gone; only computing pays, so a recomputed prompt is not charged again."""
        account = self._accounts[seq.tenant]
        queue = account.waiting
        if queue[0] is seq:
            queue.popleft()
        else:
            queue.remove(seq)
        self._size -= 1
        if not queue:
            self._last = account
        if seq.aborted:
            return
        if seq.index not in self._paid:  # else it was preempted, or has loaded its KV and joins now
            self._paid.add(seq.index)
            account.charge(self.prompt_cost * seq.input_tokens)
        self._charged[seq] = seq.generated_tokens

    def ended(self, seq: Sequence) -> None:
        """The rest of its output is charged."""
        self._paid.discard(seq.index)
        self._close(self._account(seq.tenant), seq, seq.generated_tokens)

    def __getitem__(self, index: SupportsIndex) -> Sequence:
        return next(iter(self))

    def __contains__(self, seq: object) -> bool:
        return any([seq in account.waiting for account in self._accounts.values()])

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        """As they would be admitted one after the other, each charged its prompt before the next is chosen."""
        self._settle()
        queues = [
            # by place where names are equal: "" may be one, beside none
            (account.service, tenant or "", place, account, iter(account.waiting))
            for place, (tenant, account) in enumerate(self._accounts.items())
            if account.waiting
        ]
        heapify(queues)
        while queues:
            service, name, place, account, ahead = queues[0]
            first = next(ahead, None)
            if first is None:
                heappop(queues)
                continue
            yield first
            new = first.index not in self._paid  # who was preempted has paid
            cost = self.prompt_cost * first.input_tokens / account.weight if new else 0.0
            heapreplace(queues, (service + cost, name, place, account, ahead))

    @property
    def has_rivals(self) -> bool:
        """Whether several tenants wait."""
        return sum([bool(account.waiting) for account in self._accounts.values()]) > 1

    # -- counters ---------------------------------------------------------------------------------------------------

    def service(self, tenant: Tenant) -> float:
        """What a tenant has been served over its weight, as of the last look at the queue."""
        account = self._accounts.get(tenant)
        return 0.0 if account is None else account.service

    def _account(self, tenant: Tenant) -> Account:
        found = self._accounts.get(tenant)
        if found is None:
            found = self._accounts[tenant] = Account(self.weights.get(tenant or "", 1.0))
        return found

    def _least(self) -> float:
        """Where a tenant starts that has been idle."""
        active = [account.service for account in self._accounts.values() if account.waiting]
        if active:
            return min(active)
        return self._last.service if self._last is not None else 0.0

    def _settle(self) -> None:
        """Charge what running sequences have generated since the last look."""
        view, cost = self._view, self.output_cost
        passed = view.decode_steps - self._steps
        self._steps += passed
        if passed > 0:  # fewer: nobody has decoded in between, and those of then have ended or are about to
            self._clock += passed
            for account in self._accounts.values():
                if account.n_decoding:
                    account.charge(cost * account.n_decoding * passed)
        for seq, charged in list(self._charged.items()):
            account = self._accounts[seq.tenant]
            generated = view.generated_tokens(seq)
            if generated != charged:
                account.charge(cost * (generated - charged))
                self._charged[seq] = generated
            if view.emits_one and view.decodes(seq):
                del self._charged[seq]
                account.n_decoding += 1
                self._ahead[seq] = generated - self._clock

    def _close(self, account: Account, seq: Sequence, generated: int) -> None:
        """Charge what is left of `generated` tokens of a sequence that runs no longer."""
        ahead = self._ahead.pop(seq, None)
        if ahead is not None:
            account.n_decoding -= 1
            account.charge(self.output_cost * (generated - ahead - self._clock))
        elif seq in self._charged:
            account.charge(self.output_cost * (generated - self._charged.pop(seq)))


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

    def plan(self, view: Any) -> Plan:
        """The next step; while tenants wait beside each other, each token that one of theirs gets may change who is first."""
        plan = super().plan(view)
        plan.ask_every_step = not plan.chunks and view.waiting.has_rivals
        return plan

    def _admit(self, view: Any, chunks: Chunks, budget: int, free: int) -> bool:
        """As others; when a request comes decides where its tenant's counter starts, so that no step is deaf to it."""
        super()._admit(view, chunks, budget, free)
        return False
