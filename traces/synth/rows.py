"""Generated rows as native JSONL text, block by block (10 million rows in bounded memory)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..trace import Ragged, Trace


def jsonl_lines(trace: Trace) -> Iterator[str]:
    """The rows of a generated trace as compact JSON lines with their newline: milliseconds to 1 µs, lengths, ids."""
    times = np.round(trace.arrival_s * 1e3, 3).tolist()
    head = zip(times, trace.input_tokens.tolist(), trace.output_tokens.tolist(), _tails(trace), strict=True)
    return (f'{{"timestamp":{t},"input_length":{i},"output_length":{o}{tail}}}\n' for t, i, o, tail in head)


def _tails(trace: Trace) -> Iterator[str]:
    """The optional part of each row."""
    parts = []
    if trace.hash_ids is not None:
        parts.append(_ids(trace.hash_ids))
    for name, key in (("session_id", "session_id"), ("turn", "turn"), ("delay_s", "delay")):
        if name in trace.columns:
            parts.append(_column(key, trace.columns[name]))
    return (
        ("".join(texts) for texts in zip(*parts, strict=True)) if parts else ("" for _ in range(len(trace)))
    )


def _ids(rows: Ragged) -> Iterator[str]:
    values = rows.values.tolist()
    for lo, hi in zip(rows.offsets[:-1].tolist(), rows.offsets[1:].tolist(), strict=True):
        yield f',"hash_ids":[{",".join(map(str, values[lo:hi]))}]' if hi > lo else ""


def _column(key: str, values: list[object]) -> Iterator[str]:
    for value in values:
        if value is None:
            yield ""
        elif isinstance(value, str):
            yield f',"{key}":"{value}"'
        else:
            yield f',"{key}":{round(value * 1e3, 3) if isinstance(value, float) else value}'
