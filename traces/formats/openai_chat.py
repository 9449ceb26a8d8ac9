"""Logs of the OpenAI API (JSONL): responses, request-response pairs, or batch output, with or without `usage`.

Tokens come from usage (prompt_tokens or input_tokens, completion_tokens or output_tokens, cached tokens); a line
without it but with messages is counted from its text. Times come from `timestamp`, `created_at` or `created`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .base import Chunk, Context, Format, Sample
from .fields import bad
from .jsonl import read_lines
from .prompts import BLOCK_TOKENS, Prompts, text_of
from .records import clock_s, first, measured
from .rows import FIELDS, Rows, chunk_of
from .source import Source

_BODIES = ("", "response.body.", "response.", "body.")
_ASKED = ("request.body.", "request.", "body.", "")
_KNOWN = {
    "timestamp",
    "created_at",
    "created",
    "usage",
    "messages",
    "request",
    "response",
    "body",
    "choices",
    "object",
}
_KNOWN |= {"id", "custom_id", "model", "user", "session_id", "conversation_id", "prompt", "max_tokens"}
_KNOWN |= {"max_completion_tokens"}


def _paths(places: tuple[str, ...], *names: str) -> list[str]:
    return [place + name for name in names for place in places]


_USAGE = _paths(_BODIES, "usage")
_MESSAGES = _paths(_ASKED, "messages")
_TIMES = _paths(("", "request.", "response.body.", "response."), "timestamp", "created_at", "created")


def sniff(sample: Sample) -> bool:
    """An object with usage or messages somewhere where the API puts them."""
    row = sample.row
    if "input_length" in row or "payload" in row:
        return False
    usage = first(row, *_USAGE)
    counted = isinstance(usage, dict) and (usage.keys() & {"prompt_tokens", "input_tokens"})
    return bool(counted) or isinstance(first(row, *_MESSAGES), list)


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Wall-clock times count from the first one; responses with an error are left out and counted."""
    prompts = Prompts(context)
    names = {"input_length": "usage.prompt_tokens", "output_length": "usage.completion_tokens"}
    for records, numbers in read_lines(source, context):
        rows, lines = [], []
        for record, line in zip(records, numbers, strict=True):
            if first(record, "error", "response.error", "response.body.error"):
                context.count("failed request", "left out", 1)
                continue
            rows.append(_row(record, prompts, f"{context.name}:{line}"))
            lines.append(line)
        if rows:
            timeless = all(row.get("timestamp") is None for row in rows)
            named = [{names.get(k, k): v for k, v in row.items()} for row in rows]
            yield chunk_of(Rows(named), lines, context, names=names, unit_s=1.0, timeless=timeless)


def _row(record: dict[str, Any], prompts: Prompts, where: str) -> dict[str, Any]:
    usage = first(record, *_USAGE)
    row = {k: v for k, v in record.items() if k not in _KNOWN and k not in FIELDS} | _tokens(
        record, usage, prompts, where
    )
    cached = first(usage, "prompt_tokens_details.cached_tokens", "input_tokens_details.cached_tokens", "cached_tokens",
                   "cache_read_input_tokens")  # fmt: skip
    fields = {
        "timestamp": clock_s(first(record, *_TIMES), where, "timestamp"),
        "model": first(record, *_paths(_BODIES, "model"), "request.model"),
        "request_id": first(record, "custom_id", *_paths(_BODIES, "id")),
        "session_id": first(record, "session_id", "conversation_id"),
        "tenant": first(record, *_paths(_ASKED, "user")),
        "max_output_length": first(record, *_paths(_ASKED, "max_completion_tokens", "max_tokens")),
        "observed": measured(cached_tokens=cached),
    }
    return row | {name: value for name, value in fields.items() if value is not None}


def _tokens(record: dict[str, Any], usage: Any, prompts: Prompts, where: str) -> dict[str, Any]:
    if isinstance(usage, dict):
        return {
            "input_length": first(usage, "prompt_tokens", "input_tokens"),
            "output_length": first(usage, "completion_tokens", "output_tokens"),
        }
    messages = first(record, *_MESSAGES)
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        bad(where, "usage", usage, "usage with prompt_tokens and completion_tokens, or messages")
    answer = first(record, *_paths(_BODIES, "choices.0.message.content", "choices.0.text"))
    if answer is None and messages and messages[-1].get("role") == "assistant":
        answer, messages = messages[-1].get("content"), messages[:-1]
    if not text_of(answer) or not messages:
        bad(where, "messages", None, "usage, or a prompt and an answer to count")
    n_in, ids = prompts.prompt("".join(f"{m.get('role')}: {text_of(m.get('content'))}\n" for m in messages))
    return {
        "input_length": n_in,
        "output_length": prompts.tokens(text_of(answer)),
        "hash_ids": ids,
        "block_size": BLOCK_TOKENS,
    }


FORMAT = Format(
    name="openai",
    about="JSONL: logs of the OpenAI API with usage, or with messages whose tokens are counted or estimated",
    sniff=sniff,
    read=read,
    absolute=True,
)
