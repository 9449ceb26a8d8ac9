"""Chat sessions: a prompt is continued, branched off or left, and its successors share its leading blocks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..trace import Trace
from .arrivals import ARRIVALS
from .conversations import BlockIds, Draws, Turn, conversations
from .laws import Uniform, law
from .registry import number
from .workloads import WORKLOADS

Streams = Callable[..., np.random.Generator]


@dataclass(frozen=True, slots=True)
class ByInput:
    """A probability by prompt length: `steps` of [upper bound (exclusive), probability], the last bound is open."""

    bounds: tuple[float, ...]
    values: tuple[float, ...]

    @classmethod
    def parse(cls, steps: Any, name: str) -> ByInput:
        """From a number or a list of [bound, probability]."""
        rows = [[float("inf"), steps]] if isinstance(steps, int | float) else steps
        for i, (_, value) in enumerate(rows):
            number(f"{name}[{i}]", value, low=0)
            if value > 1:
                raise ConfigError(f"{name}[{i}]: got {value!r}, expected a probability in 0..1")
        return cls(tuple(float(b) for b, _ in rows[:-1]), tuple(float(v) for _, v in rows))

    def __call__(self, tokens: int) -> float:
        """The probability for a prompt of `tokens`."""
        return self.values[bisect_right(self.bounds, tokens)]


@WORKLOADS.add("sessions")
@dataclass(frozen=True, slots=True)
class Sessions:
    """Conversations that start with `arrivals`; every turn is a prompt with prefix-chained ids.

    `first_input`: law of first prompts (tokens), whose first blocks are one of `systems` ([{blocks, weight}]).
    `continue_first`: chance of a second turn by length of the first prompt; `continue_later`: chances of a third, a
    fourth turn and so on (the last one repeats). `gap_s`: law of the time from turn to turn.
    A next prompt appends with chance `append` by length of the last one: its length is the last input plus the last
    output plus a draw of `append_delta`, and it keeps all whole blocks of the last input. Otherwise it branches: its
    length is a draw of `branch_ratio` times the last one, and it keeps a share `branch_kept_frac` of its blocks.
    No prompt is longer than `max_input_tokens`. `outputs` is the law of output lengths.
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
    block_size: int = 512
    systems: Any = ()
    max_input_tokens: int = 131_072
    warmup_s: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.arrivals, dict):
            object.__setattr__(self, "arrivals", ARRIVALS.build(self.arrivals, "arrivals"))
        for name in ("first_input", "outputs", "gap_s", "append_delta", "branch_ratio", "branch_kept_frac"):
            if not hasattr(getattr(self, name), "ppf"):
                object.__setattr__(self, name, law(getattr(self, name), name))
        for name in ("continue_first", "append"):
            if not isinstance(getattr(self, name), ByInput):
                object.__setattr__(self, name, ByInput.parse(getattr(self, name), name))
        for i, chance in enumerate(self.continue_later):
            number(f"continue_later[{i}]", chance, low=0)
            if chance >= 1:
                raise ConfigError(f"continue_later[{i}]: got {chance!r}, expected a probability below 1")
        number("block_size", self.block_size, low=1)
        number("warmup_s", self.warmup_s, low=0)
        number("max_input_tokens", self.max_input_tokens, low=1)

    def scaled(self, rate_scale: float) -> Sessions:
        """The same conversations, starting at `rate_scale` times the rate."""
        return replace(self, arrivals=self.arrivals.scaled(rate_scale))

    def blocks(self, streams: Streams) -> Iterator[Trace]:
        """See `Workload`."""
        ids = BlockIds(self.block_size, [int(s["blocks"]) for s in self.systems])
        starts = partial(streams, "starts")
        return conversations(self.arrivals, _Chat(self, streams), ids, starts, self.warmup_s)


class _Chat:
    """The script of `Sessions`."""

    def __init__(self, spec: Sessions, streams: Streams) -> None:
        self.spec = spec
        self.chance = Draws(Uniform(0.0, 1.0), streams("chance"))
        laws = ("first_input", "outputs", "gap_s", "append_delta", "branch_ratio", "branch_kept_frac")
        self.draw = {name: Draws(getattr(spec, name), streams(name)) for name in laws}
        self.shares = np.cumsum([s["weight"] for s in spec.systems]).tolist()

    def first(self) -> Turn:
        """A first prompt behind its system prompt."""
        tokens = self._tokens(self.draw["first_input"]())
        system = bisect_right(self.shares, self.chance() * self.shares[-1]) if self.shares else 0
        kept = int(self.spec.systems[system]["blocks"]) if self.shares else 0
        return Turn(tokens, self._output(), kept_blocks=kept, system=system)

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
        later = Turn(self._tokens(tokens), self._output(), kept_blocks=kept, number=turn.number + 1)
        later.kept_blocks = min(kept, later.input_tokens // self.spec.block_size)
        return self.draw["gap_s"](), later

    def _continues(self, turn: Turn) -> float:
        later = self.spec.continue_later
        if turn.number == 0:
            return float(self.spec.continue_first(turn.input_tokens))
        return float(later[min(turn.number - 1, len(later) - 1)]) if later else 0.0

    def _tokens(self, value: float) -> int:
        return int(min(max(1, round(value)), self.spec.max_input_tokens))

    def _output(self) -> int:
        return max(1, round(self.draw["outputs"]()))
