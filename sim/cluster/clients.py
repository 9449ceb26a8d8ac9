"""Clients: when requests are sent, how long they wait, and what a finished turn sets off."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from stepline.traces.continuing import carried_on

from ..engine.clock import Environment, Event, wake_at
from ..engine.kv_cache import Generated, block_ends
from ..engine.sequence import DONE, Sequence

if TYPE_CHECKING:
    from stepline.traces.trace import Trace

Replay = Literal["open", "closed"]
CHUNK_ROWS = 65_536


ADAPTER_IDS = 1 << 64
"""Ids of a trace are 64-bit numbers: those of each adapter are moved beyond all others'."""


class SequenceFactory:
    """Makes the `Sequence` of a trace row: hot columns as Python numbers, the optional ones only where present.

    `adapters`: keys and values depend on the LoRA adapter, so that no prefix is shared between two (vLLM hashes its id
    into every block).
    """

    def __init__(
        self, trace: Trace, max_model_len: int, block_size: int, *, caching: bool, adapters: bool = False
    ) -> None:
        self.trace = trace
        self.inputs = array("q", trace.input_tokens.astype(np.int64).tobytes())
        self.max_model_len = max_model_len
        self.block_size = block_size
        columns = trace.columns
        self.limits = columns.get("max_output_tokens")
        self.hashed = caching and trace.hash_ids is not None
        self.labels = {
            k: columns[k]
            for k in ("priority", "tenant", "session_id", "slo_class", "adapter")
            if k in columns
        }

        self.carried = carried_on(trace) if self.hashed else None
        named = columns.get("adapter", ()) if adapters else ()
        self.adapters = {name: i for i, name in enumerate(dict.fromkeys(named)) if name is not None}

    def make(self, index: int, sent_s: float, arrival_s: float) -> Sequence:
        """The sequence of row `index`, sent at `sent_s`, at the engine's queue at `arrival_s`."""
        tokens = self.inputs[index]
        limit = None if self.limits is None else self.limits[index]
        seq = Sequence(
            index, sent_s, arrival_s, tokens, self.max_model_len - tokens if limit is None else int(limit)
        )
        for name, column in self.labels.items():
            if column[index] is not None:
                setattr(seq, name, column[index])
        if self.hashed:
            seq.hash_ids, seq.hash_ends = self._hashes(index)
        return seq

    def arrivals(self, rows: list[int], sent_s: list[float], due_s: list[float]) -> Iterator[Sequence]:
        """`make` of one row after the other."""
        if self.labels or self.hashed or self.limits is not None:
            yield from map(self.make, rows, sent_s, due_s)
            return
        inputs, most = self.inputs, self.max_model_len
        for index, sent, due in zip(rows, sent_s, due_s, strict=True):
            tokens = inputs[index]
            yield Sequence(index, sent, due, tokens, most - tokens)

    def _hashes(self, index: int) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
        trace = self.trace
        ids = None if trace.hash_ids is None else trace.hash_ids.row(index)
        if ids is None or trace.block_size is None:
            return None, ()
        size, tokens = int(trace.block_size[index]), self.inputs[index]
        if (
            self.carried is not None
            and self.carried[index]
            and trace.output_hash_ids is not None
            and tokens % size
        ):
            # decoding completes the prompt's last block, which is then found by the id of the whole
            ids = (*ids[:-1], (trace.output_hash_ids.row(index) or ids)[0])
            tokens = len(ids) * size
        return self._of_adapter(index, ids), block_ends(len(ids), size, self.block_size, tokens)

    def generated(self, seq: Sequence) -> Generated | None:
        """Ids of what a sequence generates, beyond those that it has from its prompt; None where nothing goes on with it."""
        index, trace = seq.index, self.trace
        if self.carried is None or not self.carried[index]:
            return None
        ids = () if trace.output_hash_ids is None else trace.output_hash_ids.row(index) or ()
        size, tokens = int(trace.block_size[index]), self.inputs[index]  # type: ignore[index]  # `carried_on` has seen them
        n_prompt = -(-tokens // size)
        if tokens % size:
            ids = ids[1:]
        n = n_prompt + len(ids)
        ends = block_ends(n, size, self.block_size, n * size)[n_prompt:]
        return Generated(n_prompt, self._of_adapter(index, ids), ends)

    def _of_adapter(self, index: int, ids: tuple[int, ...]) -> tuple[int, ...]:
        """The ids as they are, or moved where the request's LoRA adapter makes its KV its own."""
        if self.adapters and (adapter := self.trace.columns["adapter"][index]) is not None:
            own = (self.adapters[adapter] + 1) * ADAPTER_IDS
            return tuple([key + own for key in ids])
        return ids

    def renew(self, seq: Sequence, now_s: float) -> None:
        """Make a sequence whose replica was lost as it was when it arrived; for its client it goes on waiting."""
        seq.start_over(now_s, *(self._hashes(seq.index) if self.hashed else (None, ())))


class Clients:
    """Sends a trace's requests into the cluster.

    open    each row at its timestamp
    closed  the first turn of a session at its timestamp, each later one `delay_s` after the one before has ended
            (however it ended); rows without a session as in open replay
    `max_concurrency`: at most so many outstanding; the next is sent when one ends. `ingest_s` / `ingest_per_token_s`:
    API server and tokeniser, between sending and the engine's queue. `timeout_s`: clients give up after that long.
    """

    def __init__(
        self,
        env: Environment,
        trace: Trace,
        factory: SequenceFactory,
        *,
        submit: Callable[[Sequence], bool],
        abort: Callable[[Sequence], bool],
        settle: Callable[[], None],
        replay: Replay = "open",
        max_concurrency: int | None = None,
        timeout_s: float | None = None,
        ingest_s: float = 0.0,
        ingest_per_token_s: float = 0.0,
    ) -> None:
        self.env = env
        self.trace = trace
        self.factory = factory
        self.submit = submit
        self.abort = abort
        self.settle = settle
        self.limit = max_concurrency
        self.timeout_s = timeout_s
        self.ingest_s = ingest_s
        self.ingest_per_token_s = ingest_per_token_s
        self.outstanding = 0
        self.due_later = 0
        self.held: deque[int] = deque()
        self.deadlines: list[tuple[float, int, Sequence]] = []  # a heap
        self.watched_s = inf
        self.next_turn = _next_turns(trace) if replay == "closed" else {}
        self._order(trace, replay)
        self.at = 0
        self._load()

    def _order(self, trace: Trace, replay: Replay) -> None:
        """Rows that are sent by the clock, in order of reaching the engine."""
        later = set(self.next_turn.values()) if replay == "closed" else set()
        rows = np.arange(len(trace))
        if later:
            rows = rows[~np.isin(rows, np.fromiter(later, dtype=np.int64))]
        due = trace.arrival_s[rows] + self._ingest(trace.input_tokens[rows])
        order = np.argsort(due, kind="stable")
        self.rows, self.due = rows[order], due[order]

    def _ingest(self, tokens: Any) -> Any:
        return self.ingest_s + self.ingest_per_token_s * tokens if self.limit is None else tokens * 0.0

    # -- by the clock -----------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """The next chunk of rows as Python lists."""
        part = slice(self.at, self.at + CHUNK_ROWS)
        self.at += CHUNK_ROWS
        rows = self.rows[part]
        self.chunk_rows = rows.tolist()
        self.chunk_due = self.due[part].tolist()
        self.chunk_sent = self.trace.arrival_s[rows].tolist()
        self.i = 0

    @property
    def are_open(self) -> bool:
        """Whether nothing but the trace decides what is sent when, and clients wait for as long as it takes."""
        return self.limit is None and self.timeout_s is None and not self.next_turn

    @property
    def are_silent(self) -> bool:
        """Whether nobody will send anything, or give up, before a request that is under way has ended."""
        return not (self.chunk_rows or self.due_later or self.deadlines)

    def arrivals(self) -> Iterator[Sequence]:
        """All requests of open clients, in order of reaching the engine; instead of `start`."""
        while self.chunk_rows:
            yield from self.factory.arrivals(self.chunk_rows, self.chunk_sent, self.chunk_due)
            self._load()

    def start(self) -> None:
        """Schedule the first arrival."""
        if self.chunk_rows:
            self._wait()

    def _wait(self) -> None:
        wake_at(self.env, self.chunk_due[self.i], self._on_due)

    def _on_due(self, _: Event) -> None:
        """Send every row that is due now, then let the replicas take them up."""
        dues, at = self.chunk_due, self.i
        now = dues[at]
        heard = False
        while dues[at] == now:
            heard = self._send_or_hold(self.chunk_rows[at], self.chunk_sent[at]) or heard
            at += 1
            if at == len(dues):
                self._load()
                dues, at = self.chunk_due, 0
                if not dues:
                    break
        self.i = at
        if dues:
            self._wait()
        if heard:
            self.settle()

    # -- sending ----------------------------------------------------------------------------------------------------

    def _send_or_hold(self, row: int, sent_s: float) -> bool:
        if self.limit is None:
            return self._arrive(row, sent_s)
        if self.outstanding < self.limit:
            return self._send(row)
        self.held.append(row)
        return False

    def _send(self, row: int) -> bool:
        """Send now; the request reaches the engine after its ingest time."""
        sent_s = self.env.now
        self.outstanding += 1
        delay = self.ingest_s + self.ingest_per_token_s * self.factory.inputs[row]
        if delay == 0.0:
            return self._arrive(row, sent_s)
        self._at(sent_s + delay, lambda: self._arrive(row, sent_s))
        return False

    def _arrive(self, row: int, sent_s: float) -> bool:
        seq = self.factory.make(row, sent_s, self.env.now)
        if self.timeout_s is not None:
            seq.deadline_s = sent_s + self.timeout_s
            heappush(self.deadlines, (seq.deadline_s, row, seq))
            self._watch()
        return self.submit(seq)

    # -- endings ----------------------------------------------------------------------------------------------------

    def ended(self, seq: Sequence, time_s: float) -> None:
        """A request has ended for its client at `time_s`: perhaps the next turn or a held one follows."""
        if self.limit is not None:
            self._at(time_s, self._free_slot)
        follower = self.next_turn.get(seq.index)
        if follower is not None:
            delays = self.trace.columns.get("delay_s")
            delay = (delays[follower] if delays is not None else None) or 0.0
            self._at(time_s + delay, lambda: self._follow(follower))

    def _at(self, time_s: float, action: Callable[[], bool]) -> None:
        """Do something at a time (not before now), then let the replicas take up what it sent."""

        def act(_: Event) -> None:
            self.due_later -= 1
            if action():
                self.settle()

        self.due_later += 1
        wake_at(self.env, time_s, act)

    def _free_slot(self) -> bool:
        self.outstanding -= 1
        if self.held and self.limit is not None and self.outstanding < self.limit:
            return self._send(self.held.popleft())
        return False

    def _follow(self, row: int) -> bool:
        if self.limit is None or self.outstanding < self.limit:
            return self._send(row)
        self.held.append(row)
        return False

    # -- patience ---------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Wait for the first deadline that still matters, unless one before it is waited for."""
        deadlines = self.deadlines
        while deadlines and deadlines[0][2].state == DONE:
            heappop(deadlines)
        if deadlines and deadlines[0][0] < self.watched_s:
            self.watched_s = deadlines[0][0]
            wake_at(self.env, self.watched_s, self._on_deadline, self.watched_s)

    def _on_deadline(self, event: Event) -> None:
        """Give up on whatever is due: the server hears of it in its own time, the next turn does not wait for that."""
        if event.value != self.watched_s:
            return  # an earlier deadline has come up since
        deadlines = self.deadlines
        heard = False
        while deadlines and deadlines[0][0] <= self.env.now:
            seq = heappop(deadlines)[2]
            if seq.state != DONE:
                heard = self.abort(seq) or heard
                self.ended(seq, seq.patient_until_s)
        self.watched_s = inf
        self._watch()
        if heard:
            self.settle()


def _next_turns(trace: Trace) -> dict[int, int]:
    """Row of the following turn of the same session, by row."""
    sessions = trace.columns.get("session_id")
    if sessions is None:
        return {}
    last: dict[Any, int] = {}
    follows: dict[int, int] = {}
    for row, session in enumerate(sessions):
        if session is not None:
            if session in last:
                follows[last[session]] = row
            last[session] = row
    return follows
