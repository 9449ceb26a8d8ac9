"""The simulation's clock: SimPy, and nothing of it elsewhere but the run's own loop. It knows time and wake-ups only."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import simpy
from simpy.events import EventPriority
from stepline.traces.errors import InvariantError

Environment = simpy.Environment
Event = simpy.Event
NothingLeft = simpy.core.EmptySchedule

AFTER_ALL = EventPriority(2)
"""Behind simpy's URGENT and NORMAL: a step's end sees what arrives at the same instant."""


def wake_at(env: Environment, time_s: float, callback: Callable[[Event], None], value: Any = None) -> None:
    """Call back at a time, or now if it is past; `value` is the event's. Raises InvariantError for NaN and infinity.

    SimPy itself accepts a NaN delay, and from then on time is NaN.
    """
    delay_s = time_s - env.now
    if not delay_s < inf:
        raise InvariantError(f"a wake-up at {time_s} s")
    event = simpy.Timeout(env, delay_s if delay_s > 0.0 else 0.0, value)
    event.callbacks.append(callback)


class StepEnd(simpy.Event):
    """End of a step: like a Timeout, but after everything else that happens at the same instant."""

    def __init__(self, env: Environment, delay_s: float, callback: Callable[[Any], None]) -> None:
        if not 0.0 <= delay_s < inf:
            raise InvariantError(f"a step ends {delay_s} s from now")
        self.env = env  # set as simpy.Timeout does, which this is but for its priority
        self.callbacks = [callback]
        self._value = None
        self._ok = True
        env.schedule(self, AFTER_ALL, delay_s)
