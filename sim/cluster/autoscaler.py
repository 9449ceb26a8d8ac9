"""A fleet that grows and shrinks with its load."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

from stepline.traces.errors import ConfigError, nearest

from .roster import State

if TYPE_CHECKING:
    from ..engine.replica import Replica
    from .roster import Roster

Metric = Literal["queue", "outstanding", "kv", "tpot"]
METRICS = ("queue", "outstanding", "kv", "tpot")


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """Between `least` and `most` replicas, so that `metric` per replica stays near `target`.

    metric      "queue": requests without a seat; "outstanding": requests in all; "kv": share of blocks held (0..1);
                "tpot": seconds of the step in progress, over replicas that decode
    interval_s  between two looks; startup_s: from the decision to the first request (machine, weights, warm-up)
    tolerance   relative distance from the target within which nothing happens
    scale_in_s  the fleet shrinks to the largest size wanted in that time
    The rule is that of Kubernetes' horizontal pod autoscaler, with its defaults: wanted = ceil(on * metric / target),
    looked at every 15 s, tolerance 0.1, 300 s before it scales in. Starting replicas count as present with no load, so
    that they are not asked for twice. A replica that leaves finishes what it has.
    """

    least: int = 1
    most: int = 8
    metric: Metric = "outstanding"
    target: float = 32.0
    interval_s: float = 15.0
    startup_s: float = 120.0
    tolerance: float = 0.1
    scale_in_s: float = 300.0

    def check(self) -> None:
        """Raise ConfigError for values that make no rule."""
        if not 1 <= self.least <= self.most:
            raise ConfigError(f"--autoscale: got min={self.least}, max={self.most}, expected 1 <= min <= max")
        if self.metric not in METRICS:
            raise ConfigError(
                f"--autoscale: metric: unknown name {self.metric!r}{nearest(self.metric, METRICS)}"
            )
        for name, value, low in (
            ("target", self.target, True), ("interval", self.interval_s, True), ("startup", self.startup_s, False),
            ("tolerance", self.tolerance, False), ("scale-in", self.scale_in_s, False),
        ):  # fmt: skip
            if not (value > 0 if low else value >= 0):
                raise ConfigError(
                    f"--autoscale: {name}: got {value!r}, expected a number {'>' if low else '>='} 0"
                )


class Autoscaler:
    """Looks at a roster now and then, and changes it."""

    def __init__(self, rule: Autoscaling, roster: Roster, over: Callable[[], bool]) -> None:
        self.rule = rule
        self.roster = roster
        self.over = over
        self.wanted: deque[tuple[float, int]] = deque()
        self.scale_outs = self.scale_ins = 0
        roster.at(rule.interval_s, self._look)

    def _look(self) -> None:
        if self.over():
            return
        self._retire()
        on = self.roster.of(State.ON)
        present = len(on) + len(self.roster.of(State.STARTING))
        wanted = self._clamped(self._want(on, present))
        now = self.roster.env.now
        self.wanted.append((now, wanted))
        while self.wanted[0][0] < now - self.rule.scale_in_s:
            self.wanted.popleft()
        if wanted > present:
            self._grow(wanted - present)
        else:
            steady = max(n for _, n in self.wanted)
            self._shrink(present - max(steady, self.rule.least))
        self.roster.at(self.rule.interval_s, self._look)

    def _want(self, on: list[Replica], present: int) -> int:
        """Replicas at which the metric would be at its target; starting ones count as empty."""
        if not on:
            return present
        total = sum([self._metric(replica) for replica in on])
        ratio = total / present / self.rule.target
        if self.rule.metric == "queue" or self.rule.metric == "outstanding":
            total += len(self.roster.router.pending)
            ratio = total / present / self.rule.target
        if abs(ratio - 1.0) <= self.rule.tolerance:
            return present
        return ceil(present * ratio)

    def _clamped(self, n: int) -> int:
        return max(self.rule.least, min(self.rule.most, n))

    def _metric(self, replica: Replica) -> float:
        signals = self.roster.router.signals[replica]
        if self.rule.metric == "queue":
            return signals.n_waiting
        if self.rule.metric == "outstanding":
            return signals.n_outstanding
        if self.rule.metric == "kv":
            return 1.0 - signals.free_blocks / signals.total_blocks
        return replica.first_s if replica.decode.n and not replica.idle else 0.0

    def _grow(self, n: int) -> None:
        roster = self.roster
        for replica in roster.of(State.DRAINING)[:n]:  # what is still there need not be started
            roster.set(replica, State.ON)
            n -= 1
        for replica in roster.of(State.OFF)[:n]:
            roster.set(replica, State.STARTING)
            self.scale_outs += 1
            roster.at(self.rule.startup_s, lambda replica=replica: roster.set(replica, State.ON))  # type: ignore[misc]  # a default binds the loop's value

    def _shrink(self, n: int) -> None:
        """Those with the fewest requests go; of equals the last in number."""
        if n <= 0:
            return
        signals = self.roster.router.signals
        for replica in sorted(self.roster.of(State.ON), key=lambda r: (signals[r].n_outstanding, -r.index))[
            :n
        ]:
            self.roster.set(replica, State.DRAINING)
            self.scale_ins += 1
        self._retire()

    def _retire(self) -> None:
        """Draining replicas that are empty are switched off."""
        for replica in self.roster.of(State.DRAINING):
            if not self.roster.router.signals[replica].n_outstanding:
                self.roster.set(replica, State.OFF)

    def figures(self) -> dict[str, Any]:
        """Decisions, and how many replicas were paid for over time ([time_s, replicas] at each change)."""
        return {
            "scale_outs": self.scale_outs,
            "scale_ins": self.scale_ins,
            "most_replicas": max(n for _, n in self.roster.changes),
            "replicas_over_time": [[t, n] for t, n in self.roster.changes],
        }
