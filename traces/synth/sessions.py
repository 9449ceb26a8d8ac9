"""Chat sessions: a prompt is continued, branched off or left, and its successors share its leading blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..trace import Trace
from .arrivals import ARRIVALS
from .conversations import BlockIds, Draws, Systems, Turn, conversations
from .laws import Uniform, law, whole_number
from .registry import number
from .steps import StepChance, StepLaw
from .workloads import WORKLOADS

Streams = Callable[..., np.random.Generator]


EVEN = 64  # draws in a row that are spread evenly over their law
_LAWS = ("outputs", "later_outputs", "gap_s", "append_delta", "branch_ratio", "branch_kept_frac")


@WORKLOADS.add("sessions")
@dataclass(frozen=True, slots=True)
class Sessions:
    """Conversations that start with `arrivals`; every turn is a prompt with prefix-chained ids.

    `first_input`: law of first prompts (tokens), or laws by time of start, steps of [until second, law]; their first
    blocks are one of `systems` ([{blocks, weight}]).
    `continue_first`: chance of a second turn by length of the first prompt; `continue_later`: chances of a third, a
    fourth turn and so on (the last one repeats). `gap_s`: law of the time from turn to turn.
    A next prompt appends with chance `append` by length of the last one: its length is the last input plus the last
    output plus a draw of `append_delta`, and it keeps all whole blocks of the last input. Otherwise it branches: its
    length is a draw of `branch_ratio` times the last one, and it keeps a share `branch_kept_frac` of its blocks.
    No prompt is longer than `max_input_tokens`. `outputs` is the law of output lengths, `later_outputs` that
    of second and later turns where it differs.
    `warmup_s`: conversations begun so long before time 0 are under way when the trace begins.
    """

    arrivals: Any
    first_input: Any
    outputs: Any
    continue_first: Any
    continue_later: Any
    gap_s: Any
    append: Any
    append_delta: Any
    branch_ratio: Any
    branch_kept_frac: Any
    later_outputs: Any = None
    block_size: int = 512
    systems: Any = ()
    max_input_tokens: int = 131_072
    warmup_s: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.arrivals, dict):
            object.__setattr__(self, "arrivals", ARRIVALS.build(self.arrivals, "arrivals"))
        if not isinstance(self.first_input, StepLaw):
            object.__setattr__(self, "first_input", StepLaw.parse(self.first_input, "first_input"))
        if self.later_outputs is None:
            object.__setattr__(self, "later_outputs", self.outputs)
        for name in _LAWS:
            if not hasattr(getattr(self, name), "ppf"):
                object.__setattr__(self, name, law(getattr(self, name), name))
        for name in ("continue_first", "append"):
            if not isinstance(getattr(self, name), StepChance):
                object.__setattr__(self, name, StepChance.parse(getattr(self, name), name))
        for i, chance in enumerate(self.continue_later):
            number(f"continue_later[{i}]", chance, low=0)
            if chance >= 1:
                raise ConfigError(f"continue_later[{i}]: got {chance!r}, expected a probability below 1")
        if not isinstance(self.systems, Systems):
            object.__setattr__(self, "systems", Systems.parse(self.systems))
        number("block_size", self.block_size, low=1)
        number("warmup_s", self.warmup_s, low=0)
        number("max_input_tokens", self.max_input_tokens, low=1)

    def scaled(self, rate_scale: float) -> Sessions:
        """The same conversations, starting at `rate_scale` times the rate."""
        return replace(self, arrivals=self.arrivals.scaled(rate_scale))

    def blocks(self, streams: Streams) -> Iterator[Trace]:
        """See `Workload`."""
        ids = BlockIds(self.block_size, self.systems)
        starts = partial(streams, "starts")
        return conversations(self.arrivals, _Chat(self, streams), ids, starts, self.warmup_s)


class _Chat:
    """The script of `Sessions`."""

    def __init__(self, spec: Sessions, streams: Streams) -> None:
        self.spec = spec
        self.chance = Draws(Uniform(0.0, 1.0), streams("chance"))
        self.draw = {name: Draws(getattr(spec, name), streams(name), EVEN) for name in _LAWS}
        self.first_u = Draws(Uniform(0.0, 1.0), streams("first_input"), EVEN)

    def first(self, time_s: float) -> Turn:
        """A first prompt behind its system prompt."""
        tokens = self._tokens(float(self.spec.first_input(time_s).ppf(np.array([self.first_u()]))[0]))
        system, kept = self.spec.systems.pick(self.chance())
        return Turn(tokens, self._output("outputs"), kept_blocks=kept, system=system)

    def following(self, turn: Turn) -> tuple[float, Turn] | None:
        """The next prompt, if there is one."""
        if self.chance() >= self._continues(turn):
            return None
        whole = turn.input_tokens // self.spec.block_size
        if self.chance() < self.spec.append(turn.input_tokens):
            tokens = turn.input_tokens + turn.output_tokens + self.draw["append_delta"]()
            kept = whole
        else:
            tokens = turn.input_tokens * self.draw["branch_ratio"]()
            kept = round(len(turn.ids) * self.draw["branch_kept_frac"]())
        later = Turn(
            self._tokens(tokens), self._output("later_outputs"), kept_blocks=kept, number=turn.number + 1
        )
        later.kept_blocks = min(kept, later.input_tokens // self.spec.block_size)
        return self.draw["gap_s"](), later

    def _continues(self, turn: Turn) -> float:
        later = self.spec.continue_later
        if turn.number == 0:
            return float(self.spec.continue_first(turn.input_tokens))
        return float(later[min(turn.number - 1, len(later) - 1)]) if later else 0.0

    def _tokens(self, value: float) -> int:
        return min(whole_number(value), self.spec.max_input_tokens)

    def _output(self, name: str) -> int:
        return whole_number(self.draw[name]())
