"""Inputs of genai-perf and aiperf: payload files (JSONL) and the `inputs.json` both tools write.

A payload line has a `payload` (an OpenAI request body) or `text_input`, with `timestamp` and `delay` in milliseconds
if it is scheduled. Only what was asked is known: the output length is the payload's own limit (max_completion_tokens,
max_tokens, min_tokens) or `output_length`; a line without one is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .base import Chunk, Context, Format, Sample
from .document import Place
from .fields import bad
from .jsonl import read_lines
from .prompts import BLOCK_TOKENS, Prompts, text_of
from .records import Found, first, listed, start_sessions
from .rows import Rows, chunk_of
from .source import Source

_TEXTS = ("text_input", "text", "prompt")
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "min_tokens")
_PAYLOAD = {"payload", *_TEXTS, "messages", *_LIMITS}


def sniff(sample: Sample) -> bool:
    """A line with payload or text_input and no length, or an object whose `data` holds payloads."""
    row = sample.row
    if {"payload", "text_input"} & row.keys() and "input_length" not in row:
        return True
    document = row or sample.document
    item = first(document, "data.0") if isinstance(document, dict) else None
    return isinstance(item, dict) and bool({"payload", "payloads"} & item.keys())


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Milliseconds; a session whose first line has neither timestamp nor delay starts when `--request-rate` says."""
    prompts = Prompts(context)
    sample = Sample(source)
    if isinstance(first(sample.row or sample.document, "data.0"), dict):
        return _inputs(source, context, prompts)
    return _payloads(source, context, prompts)


def _payloads(source: Source, context: Context, prompts: Prompts) -> Iterator[Chunk]:
    seen: set[Any] = set()
    for records, lines in read_lines(source, context):
        rows = []
        for record, line in zip(records, lines, strict=True):
            payload = record.get("payload", record)
            payload = payload[0] if isinstance(payload, list) and payload else payload
            kept = {k: v for k, v in record.items() if k not in _PAYLOAD}
            rows.append(kept | _asked(payload, record, prompts, f"{context.name}:{line}"))
        start_sessions(rows, context, seen, per_s=1e3)
        yield chunk_of(Rows(rows), lines, context)


def _inputs(source: Source, context: Context, prompts: Prompts) -> Iterator[Chunk]:
    """`inputs.json`: sessions of payloads, without times."""
    found, document = Found(), source.document()
    for i, item in enumerate(listed(document, "data")):
        payloads = first(item, "payloads", "payload")
        for turn, payload in enumerate(payloads if isinstance(payloads, list) else [payloads]):
            row = _asked(payload, {}, prompts, Place(document, ("data", i)))
            if (session := first(item, "session_id")) is not None:
                row |= {"session_id": session, "turn": turn}
            found.add(row, "data", i)
    start_sessions(found.rows, context, set())
    yield from found.chunks(source, context, {})


def _asked(payload: Any, record: dict[str, Any], prompts: Prompts, where: str | Place) -> dict[str, Any]:
    if not isinstance(payload, dict):
        bad(where, "payload", payload, "a request body")
    messages = payload.get("messages")
    if isinstance(messages, list) and all(isinstance(m, dict) for m in messages) and messages:
        text = "".join(f"{m.get('role')}: {text_of(m.get('content'))}\n" for m in messages)
    else:
        text = text_of(first(payload, *_TEXTS))
    if not text:
        bad(where, "payload", None, "messages, text_input, text or prompt")
    limit = first(record, "output_length") or first(payload, *_LIMITS)
    if limit is None:
        bad(
            where,
            "max_tokens",
            None,
            "a limit of the output, or output_length: nothing else tells how long it is",
        )
    n_in, ids = prompts.prompt(text)
    row = {"input_length": n_in, "output_length": limit, "hash_ids": ids, "block_size": BLOCK_TOKENS}
    model = payload.get("model")
    return row if model is None else row | {"model": model}


FORMAT = Format(
    name="genai-perf",
    about="JSONL payloads (payload or text_input, timestamp in ms), or inputs.json (genai-perf, aiperf)",
    sniff=sniff,
    read=read,
)
