"""Agentic sessions as kv-cache-tester and GuideLLM's `weka` data hold them: t (s), in, out, hash_ids of 64 tokens.

One object with `requests` is one session; rows may also stand one a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .base import Chunk, Context, Format, Sample
from .fields import bad
from .jsonl import read_objects
from .records import Found, first, listed
from .source import Source

BLOCK_TOKENS = 64

_NAMES = {"timestamp": "t", "input_length": "in", "output_length": "out"}
_ROW = set(_NAMES.values())


def sniff(sample: Sample) -> bool:
    """Rows with t, in and out, alone or in a list of requests."""
    document = sample.row or sample.document
    row = first(document, "requests.0") if isinstance(document, dict) else None
    return sample.row.keys() >= _ROW or (isinstance(row, dict) and row.keys() >= _ROW)


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Seconds; an object's own `block_size` counts where it has one."""
    if Sample(source).row.keys() >= _ROW:
        return read_objects(source, context, names=_NAMES, unit_s=1.0)
    return _session(source, context)


def _session(source: Source, context: Context) -> Iterator[Chunk]:
    document, found = source.document(), Found()
    session, size = first(document.value, "id"), first(document.value, "block_size")
    for i, request in enumerate(listed(document, "requests")):
        if not isinstance(request, dict):
            bad(document.where(("requests", i)), "requests", request, "an object with t, in, out")
        found.add(_row(request, i, session, size), "requests", i)
    yield from found.chunks(source, context, _NAMES)


def _row(request: dict[str, Any], i: int, session: Any, size: Any) -> dict[str, Any]:
    natives = {native: request.get(name) for native, name in _NAMES.items()}
    row = {k: v for k, v in request.items() if k not in _ROW} | natives
    if size is not None:
        row.setdefault("block_size", size)
    return row if session is None else row | {"session_id": session, "turn": i}


FORMAT = Format(
    name="weka",
    about="JSON or JSONL: t (s), in, out, hash_ids of 64 tokens (kv-cache-tester, GuideLLM weka)",
    sniff=sniff,
    read=read,
    hash_block_size=BLOCK_TOKENS,
)
