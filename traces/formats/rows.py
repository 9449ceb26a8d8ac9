"""From rows as dicts to checked columns: the one place that knows what every field of a request must look like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TraceError
from ..key_tables import KeyTable, digests
from ..trace import Ragged, Trace
from .base import Chunk, Context
from .fields import (
    Where,
    bad,
    id_lists,
    integers,
    observations,
    optional_integers,
    optional_times,
    texts,
    times,
)

FIELDS = (
    "timestamp", "input_length", "output_length", "hash_ids", "block_size", "session_id", "delay",
    "output_hash_ids", "request_id", "turn", "parent_id", "max_output_length", "priority", "tenant", "model",
    "adapter", "slo_class", "observed",
)  # fmt: skip
"""The native names of every field that has a meaning; all others are unknown keys."""

_TEXTS = ("request_id", "session_id", "parent_id", "tenant", "model", "adapter", "slo_class")
_MANY = ("request_id", "session_id", "parent_id")
_REQUIRED = ("input_length", "output_length")
_MEANT = {
    "timestamp": ("time", "ts", "t", "arrival", "arrival_time", "arrived_at", "start_time", "created"),
    "input_length": (
        "input",
        "input_len",
        "input_tokens",
        "prompt",
        "prompt_len",
        "prompt_length",
        "prompt_tokens",
    ),
    "output_length": (
        "output",
        "output_len",
        "output_tokens",
        "completion_tokens",
        "generated_tokens",
        "decode_tokens",
    ),
}
"""What other tools call a field that every row needs; a row without the field is searched for them."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as dicts: what JSON gives."""

    rows: Sequence[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self) -> set[str]:
        """Every key that some row has."""
        return set().union(*self.rows)

    def column(self, key: str) -> list[Any]:
        """The values under `key`, None where a row lacks it."""
        return [row.get(key) for row in self.rows]

    def row(self, i: int) -> Mapping[str, Any]:
        """Row i."""
        return self.rows[i]

    def without(self, known: Set[str]) -> list[dict[str, Any]]:
        """The rows without the keys in `known`."""
        return [{k: v for k, v in row.items() if k not in known} for row in self.rows]


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows as columns of equal length: what CSV gives."""

    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def keys(self) -> set[str]:
        """The names of the columns."""
        return set(self.columns)

    def column(self, key: str) -> Sequence[Any]:
        """The column `key`, None throughout where there is none."""
        return self.columns[key] if key in self.columns else [None] * len(self)

    def row(self, i: int) -> Mapping[str, Any]:
        """Row i."""
        return {name: values[i] for name, values in self.columns.items()}

    def without(self, known: Set[str]) -> list[dict[str, Any]]:
        """The rows without the keys in `known`, nor those that are blank."""
        names = [name for name in self.columns if name not in known]
        rows = zip(*(self.columns[name] for name in names), strict=True)
        return [{k: v for k, v in zip(names, row, strict=True) if v not in (None, "")} for row in rows]


def chunk_of(
    table: Rows | Columns,
    lines: Sequence[int] | NDArray[np.int64],
    context: Context,
    *,
    names: Mapping[str, str] | None = None,
    unit_s: float = 1e-3,
    where: Where | None = None,
    low_s: float = 0.0,
    timeless: bool = False,
) -> Chunk:
    """Check the rows of `table` and turn them into columns.

    `names` maps a native field to its key in the rows where that differs; a field mapped to "" does not exist in
    this format. Times are in units of `unit_s` seconds. `where` gives `file:line` of row i where that is more than
    the line number. `low_s` is the earliest time in seconds (wall clocks may run behind their first row).
    `timeless`: the rows have no arrival times; they are drawn, or all 0 (see `Context.draw_arrivals`).

    Raises: TraceError naming file, line, field, the value and what was expected.
    """
    keys = {name: name for name in FIELDS} | dict(names or {})
    take = _Taker(table, table.keys(), keys, where or (lambda i: f"{context.name}:{lines[i]}"))
    tokens = [take.tokens(name) for name in _REQUIRED]
    columns = _columns(take, context, unit_s)
    arrival_s = (
        context.draw_arrivals(len(table)) if timeless else _arrivals(take, columns, context, unit_s, low_s)
    )
    sizes = take.optional("block_size")
    trace = Trace(
        arrival_s,
        tokens[0],
        tokens[1],
        hash_ids=_ids(take, "hash_ids"),
        output_hash_ids=_ids(take, "output_hash_ids"),
        block_size=None if sizes is None else _sizes(sizes, keys["block_size"], take.where),
        columns=columns,
        source=context.name,
    )
    known = set(keys.values())
    if not names:
        _misspelt(take.present, context)
    unknown = context.options.keep_extra and not take.present <= known
    return Chunk(trace, np.asarray(lines, dtype=np.int64), table.without(known) if unknown else None)


@dataclass(frozen=True, slots=True)
class _Taker:
    """Columns of a table by native name."""

    table: Rows | Columns
    present: Set[str]
    keys: Mapping[str, str]
    where: Where

    def tokens(self, name: str) -> NDArray[np.int64]:
        key = self.keys[name]
        values = self.table.column(key)
        if None in values:
            i = values.index(None)
            raise TraceError(missing(self.where(i), key, self.table.row(i), self.keys.values()))
        return integers(values, key, self.where)

    def optional(self, name: str) -> Sequence[Any] | None:
        """The column, None for rows without it; None where no row has it."""
        key = self.keys[name]
        if key not in self.present:
            return None
        values = self.table.column(key)
        return values if any(v is not None for v in values) else None


def missing(where: str, key: str, row: Mapping[str, Any], known: Iterable[str]) -> str:
    """The message for a row without `key`, with an unknown key that was perhaps meant."""
    return f"{where}: {key}: got nothing, expected an integer >= 1{perhaps(key, row, known)}"


def perhaps(key: str, row: Mapping[str, Any], known: Iterable[str]) -> str:
    """Says which unknown key of a row may stand for `key`: another tool's name for it, or one spelt like it.

    >>> perhaps("input_length", {"prompt_len": 7, "output_len": 3}, ["input_length", "output_length"])
    "; there is a key 'prompt_len'"
    """
    strangers = [name for name in row if name not in set(known)]
    usual = [name for name in strangers if name.lower() in _MEANT.get(key, ())]
    others = {name for names in _MEANT.values() for name in names}
    near = usual or get_close_matches(key, [name for name in strangers if name.lower() not in others], n=1)
    return f"; there is a key {near[0]!r}" if near else ""


OTHERS_OWN = frozenset({"type", "extra", "messages", "payload", "text_input", "text", "tools"})
"""Keys that other tools give a meaning in such rows."""

_ALIKE = 0.8
"""`difflib` ratio from which an unknown key counts as a field misspelt: one letter off in five."""


def _misspelt(present: Set[str], context: Context) -> None:
    """Tell of unknown keys that are spelt like an optional field that the rows do not have."""
    for key in sorted(present - set(FIELDS) - OTHERS_OWN):
        near = get_close_matches(key.lower(), [n for n in FIELDS if n not in present], n=1, cutoff=_ALIKE)
        if near:
            context.remark(f"the key {key!r} has no meaning and is passed over; did you mean {near[0]!r}?")


def _ids(take: _Taker, name: str) -> Ragged | None:
    values = take.optional(name)
    return None if values is None else id_lists(values, take.keys[name], take.where)


def _sizes(values: Sequence[Any], name: str, where: Where) -> NDArray[np.int64]:
    return np.array([v or 0 for v in optional_integers(values, name, where, 1)], dtype=np.int64)


def _columns(take: _Taker, context: Context, unit_s: float) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    if len(take.present) <= 3 and take.present <= {take.keys[n] for n in ("timestamp", *_REQUIRED)}:
        return columns
    for name in _TEXTS:
        if (values := take.optional(name)) is not None:
            # names that most rows have for themselves are shared within a block only
            shared = {} if name in _MANY else context.strings
            columns[name] = texts(values, take.keys[name], take.where, shared)
    for name, field, low in (("turn", "turn", 0), ("max_output_length", "max_output_tokens", 1)):
        if (values := take.optional(name)) is not None:
            columns[field] = optional_integers(values, take.keys[name], take.where, low)
    if (values := take.optional("priority")) is not None:
        columns["priority"] = optional_integers(values, take.keys["priority"], take.where, -(2**31))
    if (values := take.optional("delay")) is not None:
        columns["delay_s"] = optional_times(values, take.keys["delay"], take.where, unit_s)
    if (values := take.optional("observed")) is not None:
        columns["observed"] = observations(values, take.keys["observed"], take.where)
    return columns


def _arrivals(
    take: _Taker, columns: dict[str, Any], context: Context, unit_s: float, low_s: float
) -> NDArray[np.float64]:
    """Seconds of arrival. A turn with only `delay` is placed that long after the previous turn's arrival.

    That is the earliest it can come: the service time of the previous turn is not in the trace, so such traces are
    marked as made for closed-loop replay (`meta["closed_loop_rows"]`).
    """
    name = take.keys["timestamp"]
    stamps = take.table.column(name)
    sessions = columns.get("session_id")
    if None not in stamps:
        arrival_s = times(stamps, name, take.where, unit_s, low_s)
        if sessions is not None:
            _note_clocks(context.session_clock, dict(zip(sessions, arrival_s.tolist(), strict=True)))
        return arrival_s
    given = [i for i, stamp in enumerate(stamps) if stamp is not None]
    known = times([stamps[i] for i in given], name, lambda k: take.where(given[k]), unit_s, low_s)
    out = np.full(len(stamps), np.nan)
    out[given] = known
    clock = _clocks(context.session_clock, sessions or ())
    delays = columns.get("delay_s")
    for i, at in enumerate(out.tolist()):
        session = sessions[i] if sessions is not None else None
        if at != at:
            if session is None or delays is None or delays[i] is None:
                hint = perhaps(name, take.table.row(i), take.keys.values())
                bad(take.where(i), name, None, f"a number >= 0, or session_id and delay{hint}")
            at = out[i] = clock.get(session, 0.0) + delays[i]
        if session is not None:
            clock[session] = at
    _note_clocks(context.session_clock, clock)
    context.meta["closed_loop_rows"] = context.meta.get("closed_loop_rows", 0) + len(stamps) - len(given)
    return out


def _clocks(table: KeyTable, sessions: Iterable[str | None]) -> dict[str | None, float]:
    """The last arrival in seconds of those of `sessions` that have begun before this block."""
    names = [name for name in dict.fromkeys(sessions) if name is not None]
    known, values = table.find(digests(names))
    return {n: float(at) for n, k, at in zip(names, known, values["at_s"], strict=True) if k}


def _note_clocks(table: KeyTable, clock: dict[str | None, float]) -> None:
    clock.pop(None, None)
    table.store(digests([name for name in clock if name is not None]), at_s=np.array([*clock.values()]))
