"""Stands between a replica and a policy of the user's own: what it answers is checked, what it raises is told by its line.

Built-in policies go unguarded: tests vouch for them, and a check costs time in each step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from numbers import Integral, Real
from typing import Any

import numpy as np
from stepline.traces.errors import ConfigError, PolicyError, SteplineError

from ..cost.user_code import described, is_ours
from .contracts import Plan
from .segment import Segment
from .sequence import Sequence

Check = Callable[[Any, tuple[Any, ...]], str | None]
"""What is wrong with an answer, given what was asked (None: nothing)."""
Plain = Callable[[Any], Any]
"""The same answer in Python's own numbers and the containers of the contract: the engine's core takes no others."""

RESERVATIONS = ("paged", "prompt", "contiguous")
"""See `contracts.Reservation`."""
MODES = ("recompute", "swap")
"""See `contracts.PreemptionPolicy`."""


def guarded(cls: type[Any], group: str) -> type[Any]:
    """A subclass of a user's class for a plug-in `group`, of the same name; a class of ours, or of no known group, as is.

    Its methods raise PolicyError for an answer that is none, and for whatever else they raise.
    """
    if is_ours(cls) or group not in NEEDED:
        return cls
    home = inspect.getfile(cls)
    checks = CHECKS.get(group, {})
    body: dict[str, Any] = {
        name: _watched(method, cls.__name__, home, *checks.get(name, (_anything, _itself)))
        for name, method in _methods(cls).items()
    }
    if group == "stepline.batch_policies" and "plan" in body:
        body["plan"] = _pure(body["plan"], cls.__name__)
    if group == "stepline.eviction_policies" and "expired" in body:
        body["expired"] = _expiring(body["expired"], cls.__name__, home)
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), {**body, **names})


def check_members(plugin: Any, group: str, where: str) -> None:
    """Refuse a plug-in of a `group` that lacks what its protocol asks for; `where` is the flag with its text.

    Raises:
        ConfigError: names what is missing, and all that is expected.
    """
    needed = NEEDED.get(group, ())
    for name in needed:
        if not hasattr(plugin, name):
            raise ConfigError(
                f"{where}: {type(plugin).__name__} has no {name!r}, expected {', '.join(needed)}"
            )
    for name, (is_fine, expected) in MEMBERS.get(group, {}).items():
        value = getattr(plugin, name, None)
        if (name in needed or value is not None) and not is_fine(value):
            raise ConfigError(f"{where}: {name}: got {value!r}, expected {expected}")


def _methods(cls: type[Any]) -> dict[str, Any]:
    """Public methods that the user wrote, and those of ours that they inherit and that are checked."""
    return {
        name: method
        for name, method in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") and not isinstance(inspect.getattr_static(cls, name), staticmethod)
    }


def _watched(
    method: Callable[..., Any], policy: str, home: str, check: Check, plain: Plain
) -> Callable[..., Any]:
    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            answer = method(self, *args, **kwargs)
        except SteplineError:
            raise
        except Exception as error:
            raise PolicyError(f"{policy}: {described(error, home)}") from error
        problem = check(answer, args)
        if problem is not None:
            raise PolicyError(f"{policy}: {method.__name__}: {problem}")
        return plain(answer)

    return call


def _pure(plan: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """`plan` that must leave the live queues of its view as they are."""

    @wraps(plan)
    def call(self: Any, view: Any) -> Any:
        before = (len(view.waiting), len(view.running), len(view.prefilling))
        answer = plan(self, view)
        after = (len(view.waiting), len(view.running), len(view.prefilling))
        if before != after:
            raise PolicyError(
                f"{policy}: plan: step {view.step}: changed waiting, running, prefilling from {before} to {after}: "
                "a view is read-only"
            )
        return answer

    return call


def _expiring(expired: Callable[..., Any], policy: str, home: str) -> Callable[..., Any]:
    """`expired` whose every segment is one that may be dropped; an error between two of them is told like any other."""

    @wraps(expired)
    def call(self: Any, now_s: float) -> Iterator[Any]:
        try:
            for segment in expired(self, now_s):
                problem = _evictable(segment, ())
                if problem is not None:
                    raise PolicyError(f"{policy}: expired: {problem}")
                yield segment
        except SteplineError:
            raise
        except Exception as error:
            raise PolicyError(f"{policy}: {described(error, home)}") from error

    return call


# -- answers ----------------------------------------------------------------------------------------------------------


def _anything(answer: Any, asked: tuple[Any, ...]) -> None:
    del answer, asked


def _itself(answer: Any) -> Any:
    return answer


def _plan(plan: Any, asked: tuple[Any, ...]) -> str | None:
    """A `Plan` of chunks of whole tokens, each sequence at most once."""
    if not isinstance(plan, Plan):
        return f"got {_what(plan)}, expected a Plan"
    at = f"step {asked[0].step}: " if asked else ""
    for name in ("decode", "ask_every_step", "deaf"):
        if not _is_bool(getattr(plan, name)):
            return f"{at}Plan.{name}: got {getattr(plan, name)!r}, expected True or False"
    problem = _chunks(plan.chunks) or _preempted(plan)
    return problem and at + problem


def _plain_plan(plan: Plan) -> Plan:
    plan.chunks = [(seq, int(tokens)) for seq, tokens in plan.chunks]
    plan.preempt = tuple(plan.preempt)
    plan.decode, plan.ask_every_step, plan.deaf = (
        bool(plan.decode), bool(plan.ask_every_step), bool(plan.deaf),
    )  # fmt: skip
    return plan


def _chunks(chunks: Any) -> str | None:
    if not isinstance(chunks, list | tuple):
        return f"Plan.chunks: got {_what(chunks)}, expected a list of (sequence, tokens)"
    for chunk in chunks:
        if not (isinstance(chunk, tuple) and len(chunk) == 2 and isinstance(chunk[0], Sequence)):
            return f"Plan.chunks: got {chunk!r}, expected (sequence, tokens)"
        if not isinstance(chunk[1], Integral):
            return f"sequence {chunk[0].index}: a chunk of {chunk[1]!r} tokens, expected an integer"
    twice = _repeated([seq for seq, _ in chunks])
    return None if twice is None else f"sequence {twice.index}: two chunks in one step"


def _preempted(plan: Plan) -> str | None:
    if not isinstance(plan.preempt, list | tuple):
        return f"Plan.preempt: got {_what(plan.preempt)}, expected a tuple of sequences"
    for seq in plan.preempt:
        if not isinstance(seq, Sequence):
            return f"Plan.preempt: got {seq!r}, expected a sequence"
    both = _repeated([*dict.fromkeys(plan.preempt), *[seq for seq, _ in plan.chunks]])
    return None if both is None else f"sequence {both.index}: preempted and given a chunk in one step"


def _repeated(sequences: list[Sequence]) -> Sequence | None:
    seen: set[Sequence] = set()
    for seq in sequences:
        if seq in seen:
            return seq
        seen.add(seq)
    return None


def _evictable(segment: Any, asked: tuple[Any, ...]) -> str | None:
    del asked
    if not isinstance(segment, Segment):
        return f"got {_what(segment)}, expected one of the evictable segments"
    if segment.refs or not segment.blocks:
        return f"got {segment!r}, expected a segment that nobody holds and that has blocks"
    return None


def _candidate(seq: Any, asked: tuple[Any, ...]) -> str | None:
    if seq is None or any(seq is one for one in asked[1]):
        return None
    return f"got {seq!r}, expected one of the candidates, or None"


def _replica(place: Any, asked: tuple[Any, ...]) -> str | None:
    del asked
    if place is None or isinstance(place, Integral):
        return None
    return f"got {place!r}, expected an index into the replicas, or None"


def _yes_or_no(answer: Any, asked: tuple[Any, ...]) -> str | None:
    del asked
    return None if _is_bool(answer) else f"got {answer!r}, expected True or False"


def _length(answer: Any, asked: tuple[Any, ...]) -> str | None:
    del asked
    fine = isinstance(answer, Real) and 0 <= float(answer) < float("inf")
    return None if fine else f"got {answer!r}, expected a number of tokens >= 0"


def _whole(answer: Any, asked: tuple[Any, ...]) -> str | None:
    del asked
    return None if isinstance(answer, Integral) else f"got {answer!r}, expected an integer"


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _is_count(value: Any, low: int) -> bool:
    return isinstance(value, Integral) and not _is_bool(value) and int(value) >= low


def _is_budget(value: Any) -> bool:
    return value is None or _is_count(value, 1)


def _what(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _index(place: Any) -> int | None:
    return None if place is None else int(place)


CHECKS: dict[str, dict[str, tuple[Check, Plain]]] = {
    "stepline.batch_policies": {"plan": (_plan, _plain_plan)},
    "stepline.eviction_policies": {"victim": (_evictable, _itself)},
    "stepline.preemption_policies": {"victim": (_candidate, _itself)},
    "stepline.routing_policies": {"choose": (_replica, _index)},
    "stepline.admission_policies": {"admit": (_yes_or_no, bool)},
    "stepline.length_predictors": {"predict": (_length, _itself)},
    "stepline.kv_compressions": {"kept_tokens": (_whole, int)},
}
"""How answers are checked and made plain, by group and method."""

YES_OR_NO = (_is_bool, "True or False")
BUDGET = (_is_budget, "tokens >= 1, or None")

MEMBERS: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "stepline.batch_policies": {
        "reservation": (lambda value: value in RESERVATIONS, f"one of {', '.join(RESERVATIONS)}"),
        "pads": YES_OR_NO,
        "whole_prompts": YES_OR_NO,
        "spare_blocks": (lambda value: _is_count(value, 0), "an integer >= 0"),
        "oracle": YES_OR_NO,
    },
    "stepline.preemption_policies": {"mode": (lambda value: value in MODES, f"one of {', '.join(MODES)}")},
    "stepline.kv_compressions": {"cap_tokens": BUDGET, "prefill_window": BUDGET},
}
"""What members that are no methods must be, and how that is said, by group; those not in `NEEDED` may be absent."""

NEEDED: dict[str, Iterable[str]] = {
    "stepline.batch_policies": (
        "plan",
        "reservation",
        "pads",
        "whole_prompts",
        "spare_blocks",
        "oracle",
    ),
    "stepline.eviction_policies": ("on_insert", "on_hit", "on_release", "victim", "on_evict"),
    "stepline.preemption_policies": ("victim",),
    "stepline.routing_policies": ("choose",),
    "stepline.admission_policies": ("admit",),
    "stepline.length_predictors": ("predict",),
    "stepline.kv_compressions": ("cap_tokens", "prefill_window", "kept_tokens"),
}
"""What a class of each group must have (see `contracts`)."""
