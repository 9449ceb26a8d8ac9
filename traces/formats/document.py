"""A trace that is one JSON document: its value, and the line on which any part of it begins."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import orjson

from ..errors import TraceError

_SPACE = " \t\n\r"
_NOT_FINITE = re.compile(r"-?(nan|inf(inity)?)\b", re.IGNORECASE)


def why(problem: json.JSONDecodeError) -> str:
    """What a parser did not take: a NaN or infinity by name, which other writers put where JSON has no number."""
    found = _NOT_FINITE.match(problem.doc, problem.pos)
    return f"got {found[0]}, expected a finite number" if found else problem.msg


@dataclass(frozen=True, slots=True)
class Document:
    """The text and value of a JSON file."""

    name: str
    text: bytes
    value: Any

    @classmethod
    def parse(cls, name: str, text: bytes, *, lines: bool = False, one_of_many: str = "") -> Document:
        """The document `text`; see `Source.document`. Raises: TraceError with the line where it stops being JSON."""
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as problem:
            rows = _objects(text) if lines or one_of_many else None
            if rows is None:
                raise TraceError(f"{name}:{problem.lineno}: not valid JSON: {why(problem)}") from None
            if one_of_many:
                raise TraceError(f"{name}:{problem.lineno}: holds {len(rows)} {one_of_many}") from None
            return cls(name, b"[" + b",\n".join(text.split(b"\n")).rstrip(b",\n") + b"]", rows)
        return cls(name, text, [value] if lines and isinstance(value, dict) else value)

    def where(self, path: tuple[str | int, ...]) -> str:
        """`file:line` of the value at `path`, a sequence of keys and indices; scans the text again."""
        text = self.text.decode("utf-8", "replace")
        try:
            at = _position(text, path)
        except (RecursionError, ValueError, IndexError):
            at = 0  # nested deeper than the scanner goes: the document as a whole is named
        return f"{self.name}:{text.count(chr(10), 0, at) + 1}"


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a document that is looked for only when it is printed: finding it means scanning the text."""

    document: Document
    path: tuple[str | int, ...]

    def __str__(self) -> str:
        return self.document.where(self.path)


def _objects(text: bytes) -> list[Any] | None:
    """The objects on the lines of `text` (None: some line is no object)."""
    try:
        rows = [orjson.loads(line) for line in text.split(b"\n") if line.strip()]
    except orjson.JSONDecodeError:
        return None
    return rows if all(isinstance(row, dict) for row in rows) else None


def _position(text: str, path: tuple[str | int, ...]) -> int:
    """Where in `text` the value at `path` starts, or the last part of the path that exists."""
    at = _skip(text, 0)
    for step in path:
        found = _item(text, at, step) if isinstance(step, int) else _member(text, at, step)
        if found is None:
            return at
        at = found
    return at


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _end(text: str, at: int) -> int:
    """Just behind the value that starts at `at`, and the space and comma after it."""
    at = _skip(text, json.JSONDecoder().raw_decode(text, at)[1])
    return _skip(text, at + 1) if text[at] in ",:" else at


def _item(text: str, at: int, index: int) -> int | None:
    if text[at] != "[":
        return None
    at = _skip(text, at + 1)
    for _ in range(index):
        if text[at] == "]":
            return None
        at = _end(text, at)
    return None if text[at] == "]" else at


def _member(text: str, at: int, key: str) -> int | None:
    if text[at] != "{":
        return None
    at, found = _skip(text, at + 1), None
    while text[at] != "}":
        name, _ = json.JSONDecoder().raw_decode(text, at)
        at = _end(text, at)
        if name == key:
            found = at
        at = _end(text, at)
    return found
