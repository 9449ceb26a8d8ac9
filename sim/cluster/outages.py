"""Replicas that fail and come back; what was on them is sent again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError
from stepline.traces.random_streams import stream

from .roster import State

if TYPE_CHECKING:
    from ..engine.contracts import EvictionPolicy
    from ..engine.replica import Replica
    from ..engine.sequence import Sequence
    from .roster import Roster

SHOWN = 1000
"""Outages that the result lists one by one; all are counted."""

IN_VAIN = 1000
"""Failures in a row, of replicas that had requests, without any request having ended, after which a run is given up. A
request that needs x mean times between failures to itself lives through one with e^-x: of those with x <= 4.5 all
1000 fail with a chance below 2e-5, of those with x = 10 one in 22 000 would end."""


@dataclass(frozen=True, slots=True)
class Outages:
    """When replicas fail, and how long until they serve again (restart and loading of the model included).

    Either `planned` ((replica, at_s, for_s), ...), or at random: each replica fails after an exponential time of mean
    `mtbf_s` since it last came up, for an exponential time of mean `mttr_s`, from streams of its own under `seed`.
    """

    planned: tuple[tuple[int, float, float], ...] = ()
    mtbf_s: float | None = None
    mttr_s: float = 60.0
    seed: int = 0

    def check(self, n_replicas: int) -> None:
        """Raise ConfigError for what cannot happen."""
        for replica, at_s, for_s in self.planned:
            if not 0 <= replica < n_replicas:
                raise ConfigError(f"--failures: replica: got {replica}, expected 0..{n_replicas - 1}")
            if at_s < 0 or for_s <= 0:
                raise ConfigError(f"--failures: got at={at_s:g}, for={for_s:g}, expected at >= 0 and for > 0")
        if self.mtbf_s is not None and not (self.mtbf_s > 0 and self.mttr_s > 0):
            raise ConfigError(
                f"--failures: got mtbf={self.mtbf_s:g}, mttr={self.mttr_s:g}, expected seconds > 0"
            )
        if not self.planned and self.mtbf_s is None:
            raise ConfigError("--failures: expected mtbf=SECONDS or replica=N,at=SECONDS,for=SECONDS")


@dataclass(slots=True, eq=False)
class _Outage:
    replica: int
    at_s: float
    back_s: float
    lost: int
    open: set[int] = field(default_factory=set)  # rows of lost requests that have not ended yet
    recovered_s: float = 0.0


class Failing:
    """Makes replicas fail. `submit(seq)`: sends a lost request again; `eviction_of(replica)`: a fresh cache policy."""

    def __init__(
        self,
        rule: Outages,
        roster: Roster,
        *,
        restart: Callable[[Sequence], None],
        submit: Callable[[Sequence], Any],
        eviction_of: Callable[[Replica], EvictionPolicy | None],
        over: Callable[[], bool],
    ) -> None:
        self.rule = rule
        self.roster = roster
        self.restart, self.submit = restart, submit
        self.eviction_of = eviction_of
        self.over = over
        self.outages: list[_Outage] = []
        self.retries = 0
        self._in_vain = 0
        self._of_row: dict[int, _Outage] = {}
        self._draws = [stream(rule.seed, "failures", r.index) for r in roster.replicas]
        for number, at_s, for_s in rule.planned:
            replica = roster.replicas[number]
            roster.at(at_s, lambda replica=replica, for_s=for_s: self._fail(replica, for_s))  # type: ignore[misc]  # defaults bind the loop's values
        if rule.mtbf_s is not None:
            for replica in roster.replicas:
                self._draw_next(replica)

    def _exponential(self, replica: Replica, mean_s: float) -> float:
        return -mean_s * log(1.0 - float(self._draws[replica.index].random()))

    def _draw_next(self, replica: Replica) -> None:
        if self.rule.mtbf_s is not None:
            after_s = self._exponential(replica, self.rule.mtbf_s)
            for_s = self._exponential(replica, self.rule.mttr_s)
            self.roster.at(after_s, lambda: self._fail(replica, for_s))

    def _fail(self, replica: Replica, for_s: float) -> None:
        if self.over():
            return
        roster = self.roster
        if roster.states[replica] not in (State.ON, State.DRAINING):
            self._draw_next(replica)  # nothing is there to fail
            return
        now = roster.env.now
        lost = replica.crash(self.eviction_of(replica))
        roster.set(replica, State.DOWN)
        outage = _Outage(replica.index, now, now + for_s, len(lost), {seq.index for seq in lost})
        self.outages.append(outage)
        self._check_hope(bool(lost))
        for seq in lost:
            roster.router.ended(replica, seq)
            self.restart(seq)
            self.retries += 1
            self._of_row[seq.index] = outage
        for seq in lost:
            self.submit(seq)
        roster.at(for_s, lambda: self._return(replica))

    def _check_hope(self, has_lost: bool) -> None:
        """Raise ConfigError where random failures leave no request the time that it needs: such a run has no end."""
        self._in_vain += has_lost
        if self._in_vain >= IN_VAIN and self.rule.mtbf_s is not None:
            raise ConfigError(
                f"--failures: no request has ended in {IN_VAIN} failures in a row, up to {self.roster.env.now:.6g} s: got "
                f"mtbf={self.rule.mtbf_s:g}, expected longer than requests take, or --client-timeout"
            )

    def _return(self, replica: Replica) -> None:
        self.roster.set(replica, State.ON)
        if not self.over():
            self._draw_next(replica)

    def ended(self, seq: Sequence, time_s: float) -> None:
        """A request has ended for good."""
        self._in_vain = 0
        outage = self._of_row.pop(seq.index, None)
        if outage is not None:
            outage.open.discard(seq.index)
            outage.recovered_s = max(outage.recovered_s, time_s - outage.at_s)

    def figures(self, end_s: float) -> dict[str, Any]:
        """Outages, requests sent again, and recovery: from a failure to the end of the last request that it hit."""
        recoveries = [o.recovered_s for o in self.outages if o.lost]
        return {
            "outages": len(self.outages),
            "retried_requests": self.retries,
            "down_s": sum([min(o.back_s, end_s) - o.at_s for o in self.outages if o.at_s < end_s]),
            "mean_recovery_s": sum(recoveries) / len(recoveries) if recoveries else 0.0,
            "longest_recovery_s": max(recoveries, default=0.0),
            "listed": [
                {
                    "replica": o.replica,
                    "at_s": o.at_s,
                    "back_s": o.back_s,
                    "lost": o.lost,
                    "recovered_s": o.recovered_s,
                }
                for o in self.outages[:SHOWN]
            ],
        }
