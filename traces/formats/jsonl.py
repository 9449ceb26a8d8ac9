"""Reading JSON Lines of flat objects: the fast way for good lines, the exact line for a bad one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from ..errors import TraceError
from .base import Chunk, Context
from .document import why
from .fields import shown
from .rows import Rows, chunk_of
from .source import Block, Source


def read_lines(source: Source, context: Context) -> Iterator[tuple[list[dict[str, Any]], list[int]]]:
    """The objects of a JSON Lines file with their line numbers, a block at a time.

    Raises: TraceError for a line that is no JSON object or that names a key twice.
    """
    for block in source.blocks():
        rows, numbers = parse_block(block, context.name)
        if rows:
            yield rows, numbers


def parse_block(block: Block, name: str) -> tuple[list[dict[str, Any]], list[int]]:
    """The objects on the lines of `block`, and their line numbers."""
    lines, numbers = block.filled()
    try:
        rows = [orjson.loads(line) for line in lines]
    except orjson.JSONDecodeError:
        _explain(lines, numbers, name)
    if not set(map(type, rows)) <= {dict}:
        i = next(i for i, row in enumerate(rows) if not isinstance(row, dict))
        raise TraceError(f"{name}:{numbers[i]}: got {shown(rows[i])}, expected a JSON object")
    # A flat object has one colon per key; JSON parsers keep the last of two equal keys without a word.
    if sum(line.count(b":") for line in lines) != sum(map(len, rows)):
        for line, row, number in zip(lines, rows, numbers, strict=True):
            if line.count(b":") != _colons(row):
                _refuse_duplicates(line, f"{name}:{number}")
    return rows, numbers


def read_objects(
    source: Source, context: Context, *, names: Mapping[str, str] | None = None, unit_s: float = 1e-3
) -> Iterator[Chunk]:
    """Chunks of a file whose lines are requests under the keys `names` (see `rows.chunk_of`)."""
    for rows, numbers in read_lines(source, context):
        yield chunk_of(Rows(rows), numbers, context, names=names, unit_s=unit_s)


def _explain(lines: list[bytes], numbers: list[int], name: str) -> None:
    for line, number in zip(lines, numbers, strict=True):
        try:
            orjson.loads(line)
        except orjson.JSONDecodeError as problem:
            text = f"{name}:{number}: not valid JSON: {why(problem)} (column {problem.colno})"
            raise TraceError(text) from None


def _colons(value: Any) -> int:
    """How many colons a value has when written as JSON, where its strings are not escaped."""
    if isinstance(value, dict):
        inside = sum(_colons(v) for v in value.values() if isinstance(v, dict | list | str))
        return len(value) + inside + sum(str(key).count(":") for key in value)
    if isinstance(value, list):
        return sum(_colons(v) for v in value if isinstance(v, dict | list | str))
    if isinstance(value, str):
        return value.count(":")
    return 0


def _refuse_duplicates(line: bytes, where: str) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise TraceError(f"{where}: {twice}: the key appears twice in one object, expected once")
        return found

    try:
        json.loads(line, object_pairs_hook=unique)
    except (RecursionError, ValueError):
        raise TraceError(f"{where}: not valid JSON: nested too deeply") from None
