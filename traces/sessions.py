"""Figures of conversations: how many turns, how far apart, how much the prompt grows."""

from __future__ import annotations

from typing import Any

import numpy as np

from .key_tables import KeyTable, digests
from .tallies import IntegerTally, TimeTally
from .trace import Trace


class Sessions:
    """Running figures of the rows that have a `session_id`: some 30 bytes a session."""

    def __init__(self) -> None:
        self._last = KeyTable(turns=np.int32, at_s=np.float64, tokens=np.int32)
        self._gaps_s, self._delays_s = TimeTally(), TimeTally()
        self._grown, self._shrunk = 0, 0

    def add(self, trace: Trace) -> None:
        """Take in the next rows, in order of arrival."""
        sessions = trace.columns.get("session_id")
        if sessions is None:
            return
        numbers: dict[str, int] = {}
        code = np.array([-1 if s is None else numbers.setdefault(s, len(numbers)) for s in sessions])
        if numbers:
            self._add_turns(code, list(numbers), trace)
        delays = [d for d in trace.columns.get("delay_s", ()) if d is not None]
        self._delays_s.add(np.array(delays, dtype=np.float64))

    def _add_turns(self, code: np.typing.NDArray[np.int64], names: list[str], trace: Trace) -> None:
        rows = np.argsort(code, kind="stable")[(code < 0).sum() :]
        code, at_s, tokens = code[rows], trace.arrival_s[rows], trace.input_tokens[rows]
        first = np.concatenate([[True], code[1:] != code[:-1]])
        starts = np.flatnonzero(first)
        keys = digests(names)
        known, before = self._last.find(keys)
        # the turn before: the row above, or for the first row of a session what an earlier chunk left
        before_s, before_tokens = np.roll(at_s, 1), np.roll(tokens, 1)
        before_s[starts], before_tokens[starts] = before["at_s"], before["tokens"]
        later = ~first
        later[starts] = known
        self._gaps_s.add((at_s - before_s)[later])
        self._shrunk += int((tokens < before_tokens)[later].sum())
        self._grown += int((tokens >= before_tokens)[later].sum())
        lasts = np.append(starts[1:], len(rows)) - 1
        turns = np.bincount(code) + np.where(known, before["turns"], 0)
        self._last.store(keys, turns=turns, at_s=at_s[lasts], tokens=tokens[lasts])

    def figures(self) -> dict[str, Any] | None:
        """Sessions, turns of each, time between turns, stated delays, share of turns with a shorter prompt."""
        if not len(self._last):
            return None
        turns = IntegerTally()
        turns.add(self._last.column("turns").astype(np.int64))
        later = self._grown + self._shrunk
        return {
            "sessions": len(self._last),
            "turns": turns.figures(),
            "turn_gap_s": self._gaps_s.figures(),
            "delay_s": self._delays_s.figures(),
            "shrinking_turn_frac": self._shrunk / later if later else 0.0,
        }
