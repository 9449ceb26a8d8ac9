"""Helpers for formats that are results or logs of other tools: nested objects, documents, clocks, failed requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .azure import clock_ns
from .base import Chunk, Context
from .document import Document, Place
from .fields import MAX_TIME_S, bad
from .rows import Rows, chunk_of
from .source import Source

EPOCH_MS = 1e11
"""Clock values from here on are milliseconds since 1970: as seconds they would lie beyond the year 5138."""

UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0}


def first(record: Any, *paths: str) -> Any:
    """The first value that is not None under one of the dotted `paths`; numbers are places in lists.

    >>> first({"a": {"b": [7]}}, "x", "a.b.0")
    7
    """
    for path in paths:
        value = record
        for step in path.split("."):
            if isinstance(value, Mapping):
                value = value.get(step)
            elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
                value = value[int(step)]
            else:
                value = None
                break
        if value is not None:
            return value
    return None


def listed(document: Document, key: str) -> list[Any]:
    """The list under the top-level `key` of a document. Raises: TraceError where it is none."""
    value = first(document.value, key)
    if not isinstance(value, list):
        bad(document.where((key,)), key, value, "a list")
    return value


def clock_s(value: Any, where: str | Place, name: str) -> float | None:
    """A wall clock in seconds: seconds or milliseconds since 1970, or an ISO 8601 text (None stays None).

    Raises: TraceError for anything else.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return clock_ns(value.strip(), where, name) / 1e9
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TIME_S * 1e3:
        bad(where, name, value, "seconds or milliseconds since 1970, or a date and time")
    return value / 1e3 if value >= EPOCH_MS else float(value)


def measured(**values: Any) -> dict[str, Any] | None:
    """The `observed` field without what is None; None where nothing is left."""
    kept = {name: value for name, value in values.items() if value is not None}
    return kept or None


def to_ms(seconds: Any) -> Any:
    """Seconds as milliseconds; what is no number is passed on for the check of the field to refuse."""
    return seconds * 1e3 if isinstance(seconds, int | float) and not isinstance(seconds, bool) else seconds


def start_sessions(
    rows: list[dict[str, Any]], context: Context, seen: set[Any], *, per_s: float = 1.0
) -> None:
    """Give rows without a timestamp one: drawn where a session begins, none but a `delay` where it goes on.

    `seen` are the sessions that have begun; `per_s` time units make a second.
    """
    begins = []
    for row in rows:
        session = row.get("session_id")
        if row.get("timestamp") is None and row.get("delay") is None:
            if session is None or session not in seen:
                begins.append(row)
            else:
                row["delay"] = 0
        if isinstance(session, int | str):
            seen.add(session)
    if begins:
        starts = context.draw_arrivals(len(begins)).tolist()
        for row, start_s in zip(begins, starts, strict=True):
            row["timestamp"] = start_s * per_s


@dataclass(slots=True)
class Found:
    """Requests gathered from a document: rows by native name, with the place of each in the document."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    paths: list[tuple[str | int, ...]] = field(default_factory=list)

    def add(self, row: dict[str, Any], *path: str | int) -> None:
        """Note a row that stands at `path`."""
        self.rows.append(row)
        self.paths.append(path)

    def chunks(
        self, source: Source, context: Context, names: Mapping[str, str], *, unit_s: float = 1.0
    ) -> Iterator[Chunk]:
        """All rows as one chunk; `names` is what the document calls the native fields, for errors."""
        if not self.rows:
            return
        document = source.document()
        labels = dict(names)
        rows = [{labels.get(k, k): v for k, v in row.items()} for row in self.rows]
        timeless = all(row.get("timestamp") is None for row in self.rows)
        lines: Sequence[int] = range(1, len(rows) + 1)
        yield chunk_of(
            Rows(rows), lines, context, names=labels, unit_s=unit_s,
            where=lambda i: document.where(self.paths[i]), timeless=timeless,
        )  # fmt: skip
