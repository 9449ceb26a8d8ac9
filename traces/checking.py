"""Oddities of a trace that every reader accepts but that are probably mistakes."""

from __future__ import annotations

from collections import Counter

import numpy as np

from .joining import RowNumbers
from .key_tables import Keys, KeyTable, digests
from .reuse import IdTable, previous
from .trace import Trace

_NONE_BEFORE = -1.0

_LIMIT = "rows have an output_length over their max_output_length"
_TWICE = "rows have a request_id that was used before"
_CHAIN = "hash ids follow another id than before: they are not prefix-chained"
_TURNS = "turns arrive before an earlier turn of their session, or twice"
_SINGULAR = {
    _LIMIT: "row has an output_length over its max_output_length",
    _TWICE: "row has a request_id that was used before",
    _CHAIN: "hash id follows another id than before: it is not prefix-chained",
    _TURNS: "turn arrives before an earlier turn of its session, or twice",
}


class Checker:
    """Looks at a stream of chunks in order of arrival; 8 bytes a request id, 16 a session and a block id."""

    def __init__(self) -> None:
        self._odd: Counter[str] = Counter()
        self._parents = IdTable(np.nan)
        self._request_ids: list[Keys] = []
        self._turns = KeyTable(turn=np.int64)

    def add(self, trace: Trace) -> None:
        """Take in the next rows."""
        self._chains(trace)
        self._names(trace)
        self._order_of_turns(trace)
        limits = trace.columns.get("max_output_tokens")
        if limits is not None:
            over = sum(
                1
                for limit, n in zip(limits, trace.output_tokens.tolist(), strict=True)
                if limit is not None and n > limit
            )
            self._odd[_LIMIT] += over

    def warnings(self) -> list[str]:
        """What was odd, each with the number of rows or ids."""
        if self._request_ids:
            keys = np.concatenate(self._request_ids)
            self._odd[_TWICE] = len(keys) - len(np.unique(keys))
        return [f"{n} {_SINGULAR[what] if n == 1 else what}" for what, n in self._odd.items() if n]

    def _chains(self, trace: Trace) -> None:
        """An id stands for a whole prefix, so it must always have the same id before it."""
        if trace.hash_ids is None:
            return
        offsets = trace.hash_ids.offsets
        ids = trace.hash_ids.values[offsets[0] : offsets[-1]]
        if not len(ids):
            return
        parents = np.concatenate([[_NONE_BEFORE], ids[:-1].astype(np.float64)])
        starts = offsets[:-1][np.diff(offsets) > 0] - offsets[0]
        parents[starts] = _NONE_BEFORE
        before = previous(ids, parents, self._parents)
        broken = int((~np.isnan(before) & (before != parents)).sum())
        self._odd[_CHAIN] += broken

    def _names(self, trace: Trace) -> None:
        names = trace.columns.get("request_id")
        if names is None or isinstance(names, RowNumbers):
            return
        self._request_ids.append(digests([name for name in names if name is not None]))

    def _order_of_turns(self, trace: Trace) -> None:
        sessions, turns = trace.columns.get("session_id"), trace.columns.get("turn")
        if sessions is None or turns is None:
            return
        names = [name for name in dict.fromkeys(sessions) if name is not None]
        keys = digests(names)
        known, before = self._turns.find(keys)
        latest = dict(zip(names, np.where(known, before["turn"], -1).tolist(), strict=True))
        for session, turn in zip(sessions, turns, strict=True):
            if session is None or turn is None:
                continue
            if turn <= latest[session]:
                self._odd[_TURNS] += 1
            latest[session] = max(turn, latest[session])
        self._turns.store(keys, turn=np.array([*latest.values()], dtype=np.int64))
