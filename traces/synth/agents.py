"""Closed loops: users and agents who wait for an answer, think or run a tool, and ask again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, nearest
from ..trace import Trace
from .agent_plans import OWN, SCORES, Planner
from .arrivals import ARRIVALS
from .conversations import BlockIds, Draws, Systems, Turn, conversations
from .laws import Uniform, law
from .lengths import LENGTHS
from .registry import build_fields, fraction, number
from .steps import StepChance, StepLaw
from .workloads import WORKLOADS

Streams = Callable[..., np.random.Generator]


@dataclass(frozen=True, slots=True)
class Service:
    """Nominal time to answer: `base_s` + `per_output_token_s`·output.

    It only places timestamps for an open replay; a closed replay uses the delays and the simulated time.
    """

    base_s: float = 0.5
    per_output_token_s: float = 0.02

    def __call__(self, output_tokens: int) -> float:
        """Seconds."""
        return self.base_s + self.per_output_token_s * output_tokens


@WORKLOADS.add("users")
@dataclass(frozen=True, slots=True)
class ClosedUsers:
    """`users` clients, each with one request at a time and `think_s` seconds (a law) between answer and next request.

    Lengths come from `lengths`; nothing is shared between prompts. Starts are spread over `within_s` seconds.
    """

    users: int
    lengths: Any
    think_s: Any = 0.0
    within_s: float = 0.0
    service: Any = Service()  # frozen

    def __post_init__(self) -> None:
        ARRIVALS.parts["users"](self.users, self.within_s)
        if isinstance(self.lengths, dict):
            object.__setattr__(self, "lengths", LENGTHS.build(self.lengths, "lengths"))
        if not hasattr(self.think_s, "ppf"):
            object.__setattr__(self, "think_s", law(self.think_s, "think_s"))
        object.__setattr__(self, "service", service(self.service))

    def scaled(self, rate_scale: float) -> ClosedUsers:
        """`rate_scale` times as many users."""
        return replace(self, users=max(1, round(self.users * rate_scale)))

    def blocks(self, streams: Streams) -> Iterator[Trace]:
        """See `Workload`."""
        arrivals = ARRIVALS.parts["users"](self.users, self.within_s)
        return conversations(
            arrivals, _User(self, streams), BlockIds(None, Systems()), streams, 0.0, label="u"
        )


class _User:
    """The script of `ClosedUsers`."""

    def __init__(self, spec: ClosedUsers, streams: Streams) -> None:
        self.spec, self.draw = spec, spec.lengths.sampler(streams)
        self.think_s = Draws(spec.think_s, streams("think"))

    def first(self, time_s: float) -> Turn:
        """A request."""
        inputs, outputs = self.draw(1)
        return Turn(int(inputs[0]), int(outputs[0]))

    def following(self, turn: Turn) -> tuple[float, Turn]:
        """Always another request."""
        later, think_s = self.first(0.0), round(self.think_s(), 3)
        later.number, later.delay_s = turn.number + 1, think_s
        return self.spec.service(turn.output_tokens) + think_s, later


@WORKLOADS.add("agents")
@dataclass(frozen=True, slots=True)
class Agents:
    """Agentic sessions: `turns` requests each, whose context grows turn by turn and is nearly all prefix hit.

    Laws (tokens, seconds): `first_input`; `growth` of the prompt from turn to turn (answer, tool result, new question),
    one law or steps of [upper bound of the last prompt, law]; `outputs`; `think_s` between an answer and the next prompt.
    `session_frac`: share of the variance of normal scores of growth, outputs and think_s that is the session's own
    (a Gaussian copula: laws stay as they are); `correlation`: how the scores of a session's turns, first_input, growth,
    outputs and think_s hang together (a matrix in this order; None: not at all). A prompt keeps all whole blocks of the last one, but for:
    with chance `break_chance` only `break_kept_blocks` (a law); with chance `compact_chance` by length of the last
    prompt, or where it would exceed `max_input_tokens`, the context is cut to a share `compact_frac` of its length
    (a law) and keeps `break_kept_blocks`.
    With chance `early_chance` by think time a prompt's timestamp is `early_gap_s` (laws by think time) after that of the
    prompt before: in logs, agents ask on before the last answer and pause are through.
    A session also ends before a turn later than `max_session_s` seconds after its first (None: no such limit).
    `inputs`: law of all prompts; where given, each session is the best of `candidates` drawn, see `Balance`; then
    `session_s`, the law of seconds from first to last prompt, may be given too.
    `sessions`: how many start in all (None: endless). `restart_s`: pause after which the same user starts another
    session (None: no one does). `systems`: as in `Sessions`; `warmup_s` too.
    """

    arrivals: Any
    turns: Any
    first_input: Any
    growth: Any
    outputs: Any
    think_s: Any
    session_frac: Any = None
    inputs: Any = None
    session_s: Any = None
    candidates: int = 48
    correlation: Any = None
    break_chance: float = 0.0
    break_kept_blocks: Any = 0
    compact_chance: Any = 0.0
    compact_frac: Any = 0.5
    max_input_tokens: int = 200_000
    early_chance: Any = 0.0
    early_gap_s: Any = 0.0
    max_session_s: float | None = None
    sessions: int | None = None
    restart_s: Any = None
    systems: Any = ()
    block_size: int = 512
    warmup_s: float = 0.0
    service: Any = Service()  # frozen

    def __post_init__(self) -> None:
        if isinstance(self.arrivals, dict):
            object.__setattr__(self, "arrivals", ARRIVALS.build(self.arrivals, "arrivals"))
        laws = ["turns", "first_input", "outputs", "think_s", "break_kept_blocks", "compact_frac"]
        laws += [name for name in ("restart_s", "inputs", "session_s") if getattr(self, name) is not None]
        for name in laws:
            if not hasattr(getattr(self, name), "ppf"):
                object.__setattr__(self, name, law(getattr(self, name), name))
        for name in ("growth", "early_gap_s"):
            if not isinstance(getattr(self, name), StepLaw):
                object.__setattr__(self, name, StepLaw.parse(getattr(self, name), name))
        for name in ("compact_chance", "early_chance"):
            if not isinstance(getattr(self, name), StepChance):
                object.__setattr__(self, name, StepChance.parse(getattr(self, name), name))
        object.__setattr__(self, "service", service(self.service))
        shares = dict.fromkeys(OWN, 0.0) | dict(self.session_frac or {})
        for name, value in shares.items():
            if name not in OWN:
                raise ConfigError(f"session_frac: unknown key {name!r}{nearest(name, OWN)}")
            fraction(f"session_frac.{name}", value)
        object.__setattr__(self, "session_frac", shares)
        object.__setattr__(self, "correlation", correlation_matrix(self.correlation))
        if self.sessions is not None:
            number("sessions", self.sessions, low=1)
        if self.max_session_s is not None:
            number("max_session_s", self.max_session_s, low=0, above=True)
        fraction("break_chance", self.break_chance)
        if not isinstance(self.systems, Systems):
            object.__setattr__(self, "systems", Systems.parse(self.systems))
        number("block_size", self.block_size, low=1)
        number("warmup_s", self.warmup_s, low=0)
        if not isinstance(self.candidates, int) or self.candidates < 1:
            raise ConfigError(f"candidates: got {self.candidates!r}, expected an integer >= 1")
        number("max_input_tokens", self.max_input_tokens, low=1)

    def scaled(self, rate_scale: float) -> Agents:
        """The same sessions, starting at `rate_scale` times the rate."""
        return replace(self, arrivals=self.arrivals.scaled(rate_scale))

    def blocks(self, streams: Streams) -> Iterator[Trace]:
        """See `Workload`."""
        ids = BlockIds(self.block_size, self.systems)
        starts = partial(streams, "starts")
        script = _Agent(self, streams)
        return conversations(self.arrivals, script, ids, starts, self.warmup_s, most=self.sessions)


class _Agent:
    """The script of `Agents`."""

    def __init__(self, spec: Agents, streams: Streams) -> None:
        self.spec, self.plan = spec, Planner(spec, streams)
        self.chance = Draws(Uniform(0.0, 1.0), streams("chance"))
        self.pause = None if spec.restart_s is None else Draws(spec.restart_s, streams("restart_s"))

    def first(self, time_s: float) -> Turn:
        """The first prompt of a session."""
        plan = self.plan()
        system, kept = self.spec.systems.pick(self.chance())
        return Turn(plan.tokens[0], plan.outputs[0], kept_blocks=kept, system=system, script=plan)

    def following(self, turn: Turn) -> tuple[float, Turn] | None:
        """The next prompt of the session, or the user's next session."""
        plan, k = turn.script, turn.number + 1
        if k == len(plan.tokens):
            return self._over(self.spec.service(turn.output_tokens))
        later = Turn(plan.tokens[k], plan.outputs[k], plan.kept_blocks[k], number=k, script=plan)
        later.delay_s = plan.think_s[k]
        return plan.gap_s[k], later

    def _over(self, served_s: float) -> tuple[float, Turn] | None:
        """The same user's next session, if users come back."""
        if self.pause is None:
            return None
        later = self.first(0.0)
        later.delay_s = round(self.pause(), 3)
        return served_s + later.delay_s, later


def correlation_matrix(rows: Any) -> NDArray[np.float64]:
    """`rows` as a matrix of the normal scores `SCORES`; None: they are independent."""
    if rows is None:
        return np.eye(len(SCORES))
    matrix = np.array(rows, dtype=np.float64)
    good = matrix.shape == (len(SCORES),) * 2 and np.all(np.diag(matrix) == 1)
    if not good or not np.array_equal(matrix, matrix.T) or np.linalg.eigvalsh(matrix)[0] <= 0:
        raise ConfigError(
            f"correlation: got {str(rows)[:60]}, expected a symmetric positive definite matrix of {', '.join(SCORES)} "
            "with ones on its diagonal"
        )
    return matrix


def service(spec: Any) -> Service:
    """A `Service` from its fields."""
    if isinstance(spec, Service):
        return spec
    return build_fields(Service, dict(spec), "service")
