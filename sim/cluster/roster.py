"""Which replicas take requests, and for how long each has been paid for."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from ..engine.clock import Environment, Event, wake_at

if TYPE_CHECKING:
    from ..engine.replica import Replica
    from .router import Router


class State(Enum):
    """Of a replica: OFF costs nothing, STARTING and DOWN take no requests, DRAINING finishes those it has."""

    OFF = "off"
    STARTING = "starting"
    ON = "on"
    DRAINING = "draining"
    DOWN = "down"


class Roster:
    """The replicas behind a router. Times are simulated seconds; a replica is paid for unless it is OFF."""

    def __init__(self, env: Environment, router: Router, on: int) -> None:
        self.env = env
        self.router = router
        self.replicas = list(router.signals)
        self.states = {r: State.ON if i < on else State.OFF for i, r in enumerate(self.replicas)}
        self._since_s = dict.fromkeys(self.replicas, 0.0)
        self._paid: dict[Replica, list[tuple[float, float]]] = {r: [] for r in self.replicas}
        self.changes: list[tuple[float, int]] = [(0.0, on)]
        if on < len(self.replicas):
            self._publish()

    def of(self, *states: State) -> list[Replica]:
        """The replicas in one of these states, by number."""
        return [r for r in self.replicas if self.states[r] in states]

    def set(self, replica: Replica, state: State) -> None:
        """A replica changes its state (now)."""
        was = self.states[replica]
        if was is State.OFF:
            self._since_s[replica] = self.env.now
        elif state is State.OFF:
            self._paid[replica].append((self._since_s[replica], self.env.now))
        self.states[replica] = state
        if State.ON in (was, state) and was is not state:
            self._publish()
        if State.OFF in (was, state):
            paid = len(self.replicas) - len(self.of(State.OFF))
            self.changes.append((self.env.now, paid))

    def _publish(self) -> None:
        self.router.set_open(self.of(State.ON))

    def paid_until(self, begin_s: float, end_s: float) -> dict[Replica, float]:
        """Seconds that each has been paid for in a run that lasted from `begin_s` until then."""
        paid = {}
        for replica in self.replicas:
            spells = list(self._paid[replica])
            if self.states[replica] is not State.OFF:
                spells.append((self._since_s[replica], end_s))
            paid[replica] = sum([max(0.0, min(end_s, b) - max(begin_s, a)) for a, b in spells])
        return paid

    def at(self, after_s: float, action: Callable[[], None]) -> None:
        """Do something later, then let replicas take up what it sent them."""

        def act(_: Event) -> None:
            action()
            self.router.settle()

        wake_at(self.env, self.env.now + after_s, act)
