"""A trace that is one JSON document: its value, and the line on which any part of it begins."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import orjson

from ..errors import TraceError

_SPACE = " \t\n\r"


@dataclass(frozen=True, slots=True)
class Document:
    """The text and value of a JSON file."""

    name: str
    text: bytes
    value: Any

    @classmethod
    def parse(cls, name: str, text: bytes) -> Document:
        """Raises: TraceError with the line at which `text` stops being JSON."""
        try:
            return cls(name, text, orjson.loads(text))
        except orjson.JSONDecodeError as problem:
            raise TraceError(f"{name}:{problem.lineno}: not valid JSON: {problem.msg}") from None

    def where(self, path: tuple[str | int, ...]) -> str:
        """`file:line` of the value at `path`, a sequence of keys and indices; scans the text again."""
        text = self.text.decode("utf-8", "replace")
        return f"{self.name}:{text.count(chr(10), 0, _position(text, path)) + 1}"


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
