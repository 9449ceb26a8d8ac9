"""Reading CSV by column name: one pass of the csv module a block, the exact line where a value is wrong."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import TraceError, nearest
from .base import Chunk, Context
from .rows import FIELDS, Columns, chunk_of
from .source import Source

Table = tuple[dict[str, list[str]], list[int]]
"""Columns of text by header name, and the line number of each row."""

_INTEGER = re.compile(r"[+-]?\d+(\.0*)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def read_tables(source: Source, context: Context, header: Sequence[str] | None = None) -> Iterator[Table]:
    """Blocks of rows by column name; the first line that is not blank is the header unless one is given.

    Raises: TraceError for text that is not UTF-8 and for rows with more or fewer values than the header.
    """
    names = None if header is None else list(header)
    for block in source.blocks():
        raw, numbers = block.filled()
        rows = _parse(raw, numbers, context.name)
        if names is None and rows:
            names = [name.strip() for name in rows.pop(0)]
            _check_header(names, f"{context.name}:{numbers.pop(0)}")
        if rows and names is not None:
            if set(map(len, rows)) != {len(names)}:
                i = next(i for i, row in enumerate(rows) if len(row) != len(names))
                raise TraceError(
                    f"{context.name}:{numbers[i]}: got {len(rows[i])} values, expected {len(names)} ({', '.join(names)})"
                )
            yield dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)), numbers


@dataclass(frozen=True, slots=True)
class Column:
    """A column that has a meaning: the native `field`, the header `names` it may have (any case), how to read it.

    `kind`: int, float or str. Values that are none are passed on as text, for the check of the field to refuse.
    """

    field: str
    names: tuple[str, ...]
    kind: type
    required: bool = True


def read_columns(
    source: Source,
    context: Context,
    columns: Sequence[Column],
    *,
    unit_s: float = 1.0,
    absolute: bool = False,
    edit: Callable[[dict[str, Any], list[int]], tuple[dict[str, Any], list[int]]] | None = None,
) -> Iterator[Chunk]:
    """Chunks of a CSV file; columns that are none of `columns` are unknown keys. Times are in `unit_s` seconds.

    `edit` may change or leave out rows; it gets and returns columns by native field or header name, and lines.
    `absolute`: times may lie before the first row's.
    """
    for text, lines in read_tables(source, context):
        table: dict[str, Any] = {}
        names: dict[str, str] = dict.fromkeys(FIELDS, "")
        for column in columns:
            header = find(text, column, context)
            if header is not None:
                names[column.field] = header
                table[header] = _CONVERT[column.kind](text.pop(header))
        table |= text
        if edit is not None:
            table, lines = edit(table, lines)
            names |= {name: name for name in FIELDS if not names[name] and name in table and name not in text}
        if lines:
            timeless = not names["timestamp"]
            low_s = -math.inf if absolute else 0.0
            yield chunk_of(
                Columns(table), lines, context, names=names, unit_s=unit_s, low_s=low_s, timeless=timeless
            )


def find(table: Mapping[str, Any], column: Column, context: Context) -> str | None:
    """The header name of `column` (None: it is optional and absent). Raises: TraceError where it is required."""
    by_lower = {name.lower(): name for name in table}
    for name in column.names:
        if name.lower() in by_lower:
            return by_lower[name.lower()]
    if column.required:
        wanted = column.names[0]
        raise TraceError(f"{context.name}:1: {wanted}: no such column in the header{nearest(wanted, table)}")
    return None


def as_integers(values: Sequence[str]) -> list[Any]:
    """Integers of a text column; what is none stays text, for the check of the field to name it."""
    try:
        if "_" not in "".join(values):
            return list(map(int, values))
    except ValueError:
        pass
    return [_integer(text.strip()) for text in values]


def as_numbers(values: Sequence[str]) -> list[Any]:
    """Floats of a text column; what is none stays text, and blank is None."""
    try:
        if "_" not in "".join(values):
            return list(map(float, values))
    except ValueError:
        pass
    return [_number(text.strip()) for text in values]


def as_texts(values: Sequence[str]) -> list[str | None]:
    """Stripped text, None where blank."""
    return [text.strip() or None for text in values]


_CONVERT: dict[type, Callable[[Sequence[str]], list[Any]]] = {
    int: as_integers,
    float: as_numbers,
    str: as_texts,
}


def _integer(text: str) -> Any:
    if len(text) < 40 and _INTEGER.fullmatch(text):
        return int(text.partition(".")[0])
    return text or None


def _number(text: str) -> Any:
    return float(text) if _NUMBER.fullmatch(text) else text or None


def _parse(raw: list[bytes], numbers: list[int], name: str) -> list[list[str]]:
    try:
        rows = list(csv.reader(b"\n".join(raw).decode().split("\n"), strict=True)) if raw else []
    except (UnicodeDecodeError, csv.Error):
        rows = []
    if len(rows) == len(raw):
        return rows
    for line, number in zip(raw, numbers, strict=True):
        try:
            if len(list(csv.reader([line.decode()], strict=True))) == 1:
                continue
            problem = "a quoted value runs over the end of the line"
        except UnicodeDecodeError:
            problem = "not valid UTF-8"
        except csv.Error as error:
            problem = f"not valid CSV: {error}"
        raise TraceError(f"{name}:{number}: {problem}")
    raise TraceError(f"{name}:{numbers[0]}: not valid CSV")


def _check_header(names: list[str], where: str) -> None:
    lower = [name.lower() for name in names]
    for name in lower:
        if lower.count(name) > 1:
            raise TraceError(f"{where}: column {name!r} appears twice in the header, expected once")
