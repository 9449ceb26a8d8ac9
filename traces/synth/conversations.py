"""The event loop behind all workloads with sessions: who speaks next, and which blocks a prompt shares.

Block ids are chained: an id stands for the whole prefix up to its block. A turn keeps a number of its predecessor's
leading blocks; the rest of its ids are fresh, counted from 0 in order of appearance.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count, islice
from typing import Any, Protocol

import numpy as np

from ..errors import ConfigError
from ..trace import Ragged, Trace
from .arrivals import Arrivals
from .laws import Law, seconds
from .registry import number

Streams = Callable[..., np.random.Generator]
_ROWS = 2_048  # rows per block
_Event = tuple[
    int, int, "Turn | None", "Turn | None", str
]  # microseconds, order, turn, previous turn, session


@dataclass(slots=True, eq=False)
class Turn:
    """One request of a conversation, before it has block ids.

    `kept_blocks`: leading blocks shared with the previous turn (first turn: with system prompt number `system`).
    `delay_s`: think time after the previous turn completed, where known.
    """

    input_tokens: int
    output_tokens: int
    kept_blocks: int = 0
    number: int = 0
    delay_s: float | None = None
    system: int = 0
    script: Any = None  # what the script remembers of this conversation
    ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Systems:
    """System prompts by number: `blocks[i]` whole blocks each, `shares` the cumulated chances of being used."""

    blocks: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()

    @classmethod
    def parse(cls, rows: Any) -> Systems:
        """From a list of {"blocks": n, "weight": w}."""
        for i, row in enumerate(rows):
            if set(row) != {"blocks", "weight"}:
                raise ConfigError(f"systems[{i}]: got {row!r}, expected blocks and weight")
            number(f"systems[{i}].blocks", row["blocks"], low=0)
            number(f"systems[{i}].weight", row["weight"], low=0, above=True)
        sums = np.cumsum([row["weight"] for row in rows], dtype=np.float64)
        return cls(
            tuple(int(row["blocks"]) for row in rows), tuple((sums / sums[-1]).tolist()) if rows else ()
        )

    def pick(self, u: float) -> tuple[int, int]:
        """Number of the system prompt that the uniform `u` picks, and its blocks."""
        if not self.blocks:
            return 0, 0
        i = min(bisect_right(self.shares, u), len(self.blocks) - 1)
        return i, self.blocks[i]


class Script(Protocol):
    """What happens within a conversation."""

    def first(self, time_s: float) -> Turn:
        """The first turn of a conversation that starts at `time_s`."""
        ...

    def following(self, turn: Turn) -> tuple[float, Turn] | None:
        """Seconds from `turn`'s arrival to the next turn's, and that turn; None: the conversation is over.

        A next turn of number 0 begins a new conversation of the same user.
        """
        ...


class Draws:
    """Values of a law, one at a time, from a stream of its own.

    `even`: of each `even` values in a row, every `even`-th part of the law gives one (stratified sampling), so that short
    traces have the law's quantiles too; 1: independent values.
    """

    def __init__(self, law: Law, random: np.random.Generator, even: int = 1) -> None:
        self._values = self._endless(law, random, even)

    def __call__(self) -> float:
        """The next value."""
        return next(self._values)

    @staticmethod
    def _endless(law: Law, random: np.random.Generator, even: int) -> Iterator[float]:
        while True:
            u = random.random(_ROWS)
            if even > 1:
                order = np.argsort(random.random((_ROWS // even, even)), axis=1, kind="stable").ravel()
                u = (order + u[: order.size]) / even
            yield from law.ppf(u).tolist()


class BlockIds:
    """Gives prompts their block ids of `block_size` tokens (None: prompts have no ids).

    Blocks first used before time 0 (warm-up) get negative numbers, renamed when a live row shows them first.
    """

    def __init__(self, block_size: int | None, systems: Systems) -> None:
        self.block_size = block_size
        self._live, self._warm = count(), count(-1, -1)
        self._names: dict[int, int] = {}
        self._systems = [[next(self._warm) for _ in range(n)] for n in systems.blocks] or [[]]

    def fill(self, turn: Turn, previous: Turn | None, *, live: bool) -> None:
        """Set `turn.ids`; with `live` they are final."""
        if self.block_size is None:
            return
        shared = self._systems[turn.system] if previous is None else previous.ids
        blocks = -(-turn.input_tokens // self.block_size)
        turn.ids = shared[: min(turn.kept_blocks, blocks)]
        if live and turn.ids and min(turn.ids) < 0:
            turn.ids = [self._final(i) for i in turn.ids]
        turn.ids += islice(self._live if live else self._warm, blocks - len(turn.ids))

    def _final(self, block: int) -> int:
        if block >= 0:
            return block
        if block not in self._names:
            self._names[block] = next(self._live)
        return self._names[block]


def conversations(
    arrivals: Arrivals,
    script: Script,
    blocks: BlockIds,
    streams: Streams,
    warmup_s: float,
    *,
    label: str = "s",
    most: int | None = None,
) -> Iterator[Trace]:
    """Blocks of rows of conversations that start with `arrivals`, in order of arrival; endless if
    arrivals are.

    Conversations of the `warmup_s` seconds before time 0 run too (their starts are mirrored arrivals of a copy of the
    process), so that the trace begins in mid-traffic; only rows from time 0 on are given. At most `most`
    conversations start.
    """
    rows: list[tuple[int, Turn, str]] = []
    for row in _turns(islice(_starts(arrivals, streams, warmup_s), most), script, blocks, label):
        rows.append(row)
        if len(rows) == _ROWS:
            yield _as_trace(rows, blocks.block_size)
            rows = []
    if rows:
        yield _as_trace(rows, blocks.block_size)


def _starts(arrivals: Arrivals, streams: Streams, warmup_s: float) -> Iterator[int]:
    """Start times in microseconds, ascending, from -warmup on."""
    before: list[int] = []
    for chunk in arrivals.chunks(lambda *names: streams("warmup", *names)) if warmup_s > 0 else ():
        before += chunk[chunk < warmup_s * 1e6].tolist()
        if chunk[-1] >= warmup_s * 1e6:
            break
    yield from (-t for t in reversed(before))
    for chunk in arrivals.chunks(streams):
        yield from chunk.tolist()


def _turns(
    starts: Iterator[int], script: Script, blocks: BlockIds, label: str
) -> Iterator[tuple[int, Turn, str]]:
    """(time in microseconds, turn, session id) in order of time, from time 0 on."""
    waiting: list[_Event] = []
    order = count()
    sessions = ((start, next(order), None, None, f"{label}{i}") for i, start in enumerate(starts))
    heappush(waiting, next(sessions))
    while waiting:
        time_us, _, turn, previous, session = heappop(waiting)
        if turn is None:
            for event in islice(sessions, 1):
                heappush(waiting, event)
            turn = script.first(time_us / 1e6)
        blocks.fill(turn, previous, live=time_us >= 0)
        if time_us >= 0:
            yield time_us, turn, session
        following = script.following(turn)
        if following is not None:
            gap_s, later = following
            before = turn if later.number else None
            heappush(waiting, (time_us + max(1, round(gap_s * 1e6)), next(order), later, before, session))


def _as_trace(rows: list[tuple[int, Turn, str]], block_size: int | None) -> Trace:
    turns = [turn for _, turn, _ in rows]
    columns: dict[str, Any] = {"session_id": [s for _, _, s in rows], "turn": [t.number for t in turns]}
    if any(t.delay_s is not None for t in turns):
        columns["delay_s"] = [t.delay_s for t in turns]
    return Trace(
        seconds([t for t, _, _ in rows]),
        np.array([t.input_tokens for t in turns], dtype=np.int64),
        np.array([t.output_tokens for t in turns], dtype=np.int64),
        hash_ids=None if block_size is None else Ragged.from_rows(t.ids for t in turns),
        block_size=None if block_size is None else np.full(len(rows), block_size, dtype=np.int64),
        columns=columns,
    )
