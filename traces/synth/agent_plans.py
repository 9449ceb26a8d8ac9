"""Agentic sessions planned in whole before they start: lengths, kept blocks and pauses of all their turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .balance import Balance, Quota
from .laws import Law, normal_cdf, normal_ppf, whole

if TYPE_CHECKING:
    from .agents import Agents

Streams = Callable[..., np.random.Generator]
Array = NDArray[np.float64]
Ints = NDArray[np.int64]
OWN = ("growth", "outputs", "think_s")  # what a session may have its own bent for
SCORES = ("turns", "first_input", *OWN)  # what may hang together from session to session
_BATCH = 64  # sessions drawn at once
_CHANCES = ("break_chance", "compact_chance", "early_chance")
_PLAIN = ("break_kept_blocks", "compact_frac")
_WEIGHTS = {
    "inputs": 20.0,
    "outputs": 10.0,
    "think_s": 4.0,
    "turns": 2.0,
    "first_input": 2.0,
    "session_s": 2.0,
}  # lengths first


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Turn by turn: prompt and output (tokens), blocks kept of the prompt before, seconds of think time before it,
    seconds from the arrival of the one before to its own.

    Only the first two mean anything in the first turn.
    """

    tokens: list[int]
    kept_blocks: list[int]
    outputs: list[int]
    think_s: list[float]
    gap_s: list[float]


@dataclass(frozen=True, slots=True, eq=False)
class _Draft:
    """Candidates, one row each; a row is valid for its number of `turns`."""

    turns: Ints
    tokens: Ints
    kept_blocks: Ints
    outputs: Ints
    think_s: Array
    gap_s: Array

    def plan(self, row: int) -> Plan:
        n = int(self.turns[row])
        columns = (self.tokens, self.kept_blocks, self.outputs, self.think_s, self.gap_s)
        return Plan(*(column[row, :n].tolist() for column in columns))


class Planner:
    """Draws plans of `spec`'s sessions."""

    def __init__(self, spec: Agents, streams: Streams) -> None:
        self.spec = spec
        self.random = {name: streams(name) for name in ("session", *OWN, *_CHANCES, *_PLAIN, "early_gap_s")}
        self.mixing = np.linalg.cholesky(spec.correlation)
        self.balance = None if spec.inputs is None else Balance(self._quotas())
        self._free = self._drawn()

    def __call__(self) -> Plan:
        """The next session: the best of `spec.candidates` where there is a law of all inputs."""
        return next(self._free) if self.balance is None else self._balanced(self.balance)

    def _drawn(self) -> Iterator[Plan]:
        """Sessions as they are drawn, a batch at a time."""
        while True:
            draft = self._draft(_BATCH)
            yield from (draft.plan(row) for row in range(_BATCH))

    def _balanced(self, balance: Balance) -> Plan:
        draft = self._draft(self.spec.candidates)
        turn = np.arange(draft.tokens.shape[1])
        there, one = turn < draft.turns[:, None], np.ones((len(draft.turns), 1), dtype=bool)
        spans_s = np.sum(np.where(there, draft.gap_s, 0.0), axis=1, keepdims=True)
        values = {
            "session_s": spans_s,
            "turns": draft.turns[:, None],
            "first_input": draft.tokens[:, :1],
            "inputs": draft.tokens,
            "outputs": draft.outputs,
            "think_s": draft.think_s,
        }
        masks = {"turns": one, "first_input": one, "session_s": one, "think_s": there & (turn > 0)}
        return draft.plan(balance.pick(values, {name: masks.get(name, there) for name in values}))

    def _quotas(self) -> dict[str, Quota]:
        spec, turns = self.spec, self.spec.turns.mean
        per_pick = {"inputs": turns, "outputs": turns, "think_s": max(turns - 1.0, 1.0)}
        return {
            name: Quota(getattr(spec, name), per_pick.get(name, 1.0), weight)
            for name, weight in _WEIGHTS.items()
            if getattr(spec, name) is not None
        }

    def _draft(self, n: int) -> _Draft:
        spec = self.spec
        scores = normal_ppf(self.random["session"].random((n, len(SCORES)))) @ self.mixing.T
        own = dict(zip(SCORES, scores.T, strict=True))
        turns = whole(spec.turns.ppf(normal_cdf(own["turns"])))
        first = whole(spec.first_input.ppf(normal_cdf(own["first_input"])))
        shape = (n, int(turns.max()))
        there = np.arange(shape[1]) < turns[:, None]
        bent = {name: self._bent(name, own[name], shape) for name in OWN}
        outputs = whole(_quantiles(spec.outputs, bent["outputs"], there))
        think_s = np.round(_quantiles(spec.think_s, bent["think_s"], there), 3)
        growths = np.array([_quantiles(law, bent["growth"], there) for law in spec.growth.laws])
        tokens, kept = self._contexts(np.minimum(first, spec.max_input_tokens), growths)
        gap_s = self._gaps(outputs, think_s)
        return _Draft(self._in_time(turns, gap_s), tokens, kept, outputs, think_s, gap_s)

    def _gaps(self, outputs: Ints, think_s: Array) -> Array:
        """Seconds from arrival to arrival: the answer and the think time, or less for early prompts."""
        spec, gap_s = self.spec, np.zeros(think_s.shape)
        gap_s[:, 1:] = (
            spec.service.base_s + spec.service.per_output_token_s * outputs[:, :-1] + think_s[:, 1:]
        )
        early = self.random["early_chance"].random(gap_s.shape) < spec.early_chance.at(think_s)
        sooner_s = spec.early_gap_s.ppf(think_s, self.random["early_gap_s"].random(gap_s.shape))
        return np.where(early, np.minimum(gap_s, sooner_s), gap_s)

    def _in_time(self, turns: Ints, gap_s: Array) -> Ints:
        """`turns`, but none later than `max_session_s` after the first."""
        if self.spec.max_session_s is None:
            return turns
        in_time: Ints = np.sum(np.cumsum(gap_s, axis=1) <= self.spec.max_session_s, axis=1)
        return np.minimum(turns, in_time)

    def _contexts(self, first: Ints, growths: Array) -> tuple[Ints, Ints]:
        """Lengths of the prompts, and the blocks that each keeps of the one before; `growths` by law, row and turn."""
        spec, shape = self.spec, (growths.shape[1], growths.shape[2])
        broken = self.random["break_chance"].random(shape) < spec.break_chance
        compact_u = self.random["compact_chance"].random(shape)
        shrunk, survive = (
            self._plain("compact_frac", shape),
            whole(self._plain("break_kept_blocks", shape), 0),
        )
        tokens, cut, rows = np.empty(shape, np.int64), np.zeros(shape, np.bool_), np.arange(len(first))
        tokens[:, 0] = first
        for k in range(1, shape[1]):
            last = tokens[:, k - 1]
            grown = whole(last + growths[spec.growth.steps(last), rows, k])
            cut[:, k] = (grown > spec.max_input_tokens) | (compact_u[:, k] < spec.compact_chance.at(last))
            short = np.minimum(whole(last * shrunk[:, k]), spec.max_input_tokens)
            tokens[:, k] = np.where(cut[:, k], short, grown)
        blocks, kept = tokens // spec.block_size, np.zeros(shape, np.int64)
        most = np.minimum(blocks[:, :-1], blocks[:, 1:])
        kept[:, 1:] = np.where((cut | broken)[:, 1:], np.minimum(survive[:, 1:], most), most)
        return tokens, kept

    def _plain(self, name: str, shape: tuple[int, int]) -> Array:
        marginal: Law = getattr(self.spec, name)
        return marginal.ppf(self.random[name].random(shape))

    def _bent(self, name: str, own: Array, shape: tuple[int, int]) -> Array:
        """Uniforms that lean to each session's own normal score."""
        share: float = self.spec.session_frac[name]
        each = normal_ppf(self.random[name].random(shape))
        return normal_cdf(sqrt(share) * own[:, None] + sqrt(1.0 - share) * each)


def _quantiles(law: Law, u: Array, there: NDArray[np.bool_]) -> Array:
    """Of a law where there is a turn, 0 elsewhere: turns are few beside the longest session's."""
    values = np.zeros(u.shape)
    values[there] = law.ppf(u[there])
    return values
