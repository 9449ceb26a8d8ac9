"""Figures of conversations: how many turns, how far apart, how much the prompt grows."""

from __future__ import annotations

from typing import Any

import numpy as np

from .tallies import IntegerTally, TimeTally
from .trace import Trace


class Sessions:
    """Running figures of the rows that have a `session_id`; memory grows with the number of sessions."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, float, int]] = {}
        self._gaps_s, self._delays_s = TimeTally(), TimeTally()
        self._grown, self._shrunk = 0, 0

    def add(self, trace: Trace) -> None:
        """Take in the next rows, in order of arrival."""
        sessions = trace.columns.get("session_id")
        if sessions is None:
            return
        gaps = []
        rows = zip(sessions, trace.arrival_s.tolist(), trace.input_tokens.tolist(), strict=True)
        for session, at_s, tokens in rows:
            if session is None:
                continue
            turns, before_s, before_tokens = self._last.get(session, (0, at_s, tokens))
            if turns:
                gaps.append(at_s - before_s)
                self._grown += tokens >= before_tokens
                self._shrunk += tokens < before_tokens
            self._last[session] = (turns + 1, at_s, tokens)
        self._gaps_s.add(np.array(gaps, dtype=np.float64))
        delays = [d for d in trace.columns.get("delay_s", ()) if d is not None]
        self._delays_s.add(np.array(delays, dtype=np.float64))

    def figures(self) -> dict[str, Any] | None:
        """Sessions, turns of each, time between turns, stated delays, share of turns with a shorter prompt."""
        if not self._last:
            return None
        turns = IntegerTally()
        turns.add(np.array([n for n, _, _ in self._last.values()], dtype=np.int64))
        later = self._grown + self._shrunk
        return {
            "sessions": len(self._last),
            "turns": turns.figures(),
            "turn_gap_s": self._gaps_s.figures(),
            "delay_s": self._delays_s.figures(),
            "shrinking_turn_frac": self._shrunk / later if later else 0.0,
        }
