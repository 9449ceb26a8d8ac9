"""The router: sends each request to a replica, or keeps it until one has room for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from stepline.traces.errors import InvariantError, PolicyError

from ..engine.clock import Environment, Event, wake_at
from ..engine.request_log import TIMED_OUT
from ..engine.sequence import DONE
from .signals import LiveSignals, ScrapedSignals

if TYPE_CHECKING:
    from ..engine.contracts import RoutingPolicy
    from ..engine.replica import Replica
    from ..engine.sequence import Sequence

Dropped = Callable[["Sequence", int, float], None]


class Router:
    """In front of a pool of replicas, under one policy.

    `on_dropped(seq, status, time_s)`: a request ended before it reached a replica. `over()`: whether all requests of
    the run have ended (then nothing is scraped any more).

    A request for which the policy chooses nobody waits here, first come first served; the policy is asked again for
    the one that has waited longest whenever a request ends anywhere in the pool, or the pool grows.
    """

    def __init__(
        self,
        env: Environment,
        replicas: Iterable[Replica],
        policy: RoutingPolicy,
        *,
        on_dropped: Dropped,
        over: Callable[[], bool],
        scrape_interval_s: float = 0.0,
    ) -> None:
        self.env = env
        self.policy = policy
        self.on_dropped = on_dropped
        self.over = over
        self.signals = {replica: LiveSignals(replica) for replica in replicas}
        self.open: list[Replica] = list(self.signals)
        self.scrape_interval_s = scrape_interval_s
        self.shown: list[Any] = []
        self.pending: deque[Sequence] = deque()
        self.where: dict[Sequence, Replica] = {}
        self.touched: dict[Replica, None] = {}
        self.asked = False
        self.on_scrape: Callable[[], None] | None = None  # whoever else waits for what a scrape shows
        self._show()
        if scrape_interval_s:
            self._wait_scrape()

    # -- requests ---------------------------------------------------------------------------------------------------

    def submit(self, seq: Sequence) -> bool:
        """A request arrives (now). True: call `settle` once everything of this instant has arrived."""
        if self.pending:  # nobody overtakes those who wait
            self.pending.append(seq)
            return self._serve()
        replica = self._choose(seq)
        if replica is None:
            self.pending.append(seq)
            return False
        return self._send(seq, replica)

    def _choose(self, seq: Sequence) -> Replica | None:
        return self._ask(seq, self.open, self.shown) if self.open else None

    def _ask(self, seq: Sequence, replicas: list[Replica], shown: list[Any]) -> Replica | None:
        chosen = self.policy.choose(seq, shown)
        if chosen is None:
            return None
        if not 0 <= chosen < len(replicas):
            self._fail(seq, f"chose replica {chosen} of {len(replicas)}")
        return replicas[chosen]

    def claim(self, seq: Sequence, fits: Callable[[Replica], bool]) -> Replica | None:
        """The policy's choice among the replicas that fit, where the request counts from now on; `deliver` it later."""
        able = [i for i, replica in enumerate(self.open) if fits(replica)]
        if not able:
            return None
        replica = self._ask(seq, [self.open[i] for i in able], [self.shown[i] for i in able])
        if replica is not None:
            self._count(seq, replica)
        return replica

    def _count(self, seq: Sequence, replica: Replica) -> None:
        signals = self.signals[replica]
        signals.n_outstanding += 1
        signals.outstanding_tokens += seq.input_tokens

    def _send(self, seq: Sequence, replica: Replica) -> bool:
        self._count(seq, replica)
        return self.deliver(seq, replica)

    def deliver(self, seq: Sequence, replica: Replica) -> bool:
        """Hand over a request that counts there already."""
        if seq.deadline_s is not None:
            self.where[seq] = replica
        if replica.submit(seq):
            self.touched[replica] = None
            return True
        return False

    def abort(self, seq: Sequence) -> bool:
        """The client has given up on a request (now)."""
        replica = self.where.pop(seq, None)
        if replica is None:
            self.pending.remove(seq)
            seq.aborted = True
            seq.state = DONE
            self.on_dropped(seq, TIMED_OUT, seq.patient_until_s)
            return self._serve()  # whoever stands behind it may fit
        if replica.abort(seq):
            self.touched[replica] = None
            return True
        return False

    def settle(self) -> None:
        """Let the replicas that something has just reached take it up, in the order in which it did."""
        touched, self.touched = self.touched, {}
        for replica in touched:
            replica.proceed()

    def ended(self, replica: Replica, seq: Sequence) -> None:
        """A request has left a replica (at the replica's own time)."""
        signals = self.signals[replica]
        signals.n_outstanding -= 1
        signals.outstanding_tokens -= seq.input_tokens
        if self.where:
            self.where.pop(seq, None)
        if self.pending:
            self.ask_again(replica.now_s)

    def output_tokens(self, seq: Sequence) -> int:
        """True output length of a request (for the engine's own checks, not for policies)."""
        return next(iter(self.signals)).seats.outputs[seq.index]

    @property
    def block_size(self) -> int:
        """Tokens of a KV block in this pool."""
        return next(iter(self.signals)).kv.block_size

    # -- those who wait ---------------------------------------------------------------------------------------------

    def ask_again(self, time_s: float) -> None:
        """Ask the policy for those who wait at a time (not before now)."""
        if not self.asked:
            self.asked = True
            wake_at(self.env, time_s, self._on_asked)

    def _on_asked(self, _: Event) -> None:
        self.asked = False
        if self._serve():
            self.settle()

    def _serve(self) -> bool:
        """Send those who wait, in order, until the policy keeps one; True if a replica must be settled."""
        heard = False
        while self.pending:
            replica = self._choose(self.pending[0])
            if replica is None:
                break
            heard = self._send(self.pending.popleft(), replica) or heard
        return heard

    def check(self) -> None:
        """Raise PolicyError if somebody still waits although the run is over, InvariantError if counts are off."""
        if self.pending:
            self.refuse(self.pending)
        for replica, signals in self.signals.items():
            if signals.n_outstanding or signals.outstanding_tokens:
                raise InvariantError(f"router: replica {replica.index} has {signals.n_outstanding} left")

    def refuse(self, pending: Collection[Sequence]) -> NoReturn:
        """Raise PolicyError: nothing goes on, and these still wait for the policy to choose."""
        what = "1 request waits" if len(pending) == 1 else f"{len(pending)} requests wait"
        self._fail(next(iter(pending)), f"{what} and every replica is idle")

    def _fail(self, seq: Sequence, what: str) -> NoReturn:
        raise PolicyError(f"{type(self.policy).__name__}: routing of sequence {seq.index}: {what}")

    # -- what the policy sees ---------------------------------------------------------------------------------------

    def set_open(self, replicas: list[Replica]) -> None:
        """From now on only these take new requests."""
        self.open = replicas
        self._show()
        if self.pending:
            self.ask_again(self.env.now)

    def _show(self) -> None:
        live = [self.signals[replica] for replica in self.open]
        self.shown = [ScrapedSignals(s) for s in live] if self.scrape_interval_s else list(live)

    def _wait_scrape(self) -> None:
        wake_at(self.env, self.env.now + self.scrape_interval_s, self._on_scrape)

    def _on_scrape(self, _: Event) -> None:
        if not self.over():
            self._show()
            if self.pending:
                self.ask_again(self.env.now)
            if self.on_scrape is not None:
                self.on_scrape()
            self._wait_scrape()
