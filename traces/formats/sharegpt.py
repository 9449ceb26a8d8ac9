"""ShareGPT conversations (JSON): [{"id", "conversations": [{"from": "human" | "gpt", "value"}]}].

Each answer becomes one request whose prompt is everything before it; the requests of a conversation are the turns of
a session without think time. There are no times: conversations start by `--request-rate`, or all at 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .base import Chunk, Context, Format, Sample
from .fields import bad
from .prompts import BLOCK_TOKENS, Prompts
from .records import Found, start_sessions
from .source import Source

_ANSWERS = ("gpt", "chatgpt", "assistant", "bing", "bard")


def sniff(sample: Sample) -> bool:
    """A list of objects with `conversations`, or one such object a line."""
    if "conversations" in sample.row:
        return True
    items = sample.document
    return (
        isinstance(items, list) and bool(items) and isinstance(items[0], dict) and "conversations" in items[0]
    )


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Conversations without an answer are left out and counted."""
    prompts, found, empty = Prompts(context), Found(), 0
    for number, item in enumerate(_items(source, context.name)):
        requests = list(_requests(item, number, prompts, lambda: source.document().where((number,))))  # noqa: B023
        empty += not requests
        for row in requests:
            found.add(row, number)
    context.count("conversation", "without an answer left out", empty)
    start_sessions(found.rows, context, set())
    yield from found.chunks(source, context, {})


def _items(source: Source, name: str) -> list[Any]:
    value = source.document(lines=True).value
    if not isinstance(value, list):
        bad(f"{name}:1", "conversations", value, "a list of conversations")
    return value


def _requests(item: Any, number: int, prompts: Prompts, where: Any) -> Iterator[dict[str, Any]]:
    messages = item.get("conversations") if isinstance(item, dict) else None
    if not isinstance(messages, list):
        bad(where(), "conversations", messages, "a list of messages")
    before, turn = "", 0
    for message in messages:
        speaker, text = (
            (message.get("from"), message.get("value")) if isinstance(message, dict) else (None, None)
        )
        if not isinstance(speaker, str) or not isinstance(text, str):
            bad(where(), "conversations", message, "messages with from and value")
        if speaker in _ANSWERS and before and text:
            n_in, ids = prompts.prompt(before)
            yield {
                "input_length": n_in,
                "output_length": prompts.tokens(text),
                "hash_ids": ids,
                "block_size": BLOCK_TOKENS,
                "session_id": str(item.get("id", number)),
                "turn": turn,
            }
            turn += 1
        before += f"{text}\n"


FORMAT = Format(
    name="sharegpt",
    about='JSON: [{"id", "conversations": [{"from", "value"}]}]; no times, tokens counted or estimated',
    sniff=sniff,
    read=read,
)
