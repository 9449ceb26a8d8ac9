"""Alibaba's qwen-bailian usage traces (JSONL): seconds, hash ids of 16 tokens, chats as chains of parents.

A chat starts with the row whose `parent_chat_id` is -1; each later turn is a new `chat_id` that names the one before
it. The conversation is therefore named after its first chat.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .base import Chunk, Context, Format, Sample
from .jsonl import read_lines
from .rows import Rows, chunk_of
from .source import Source

_NO_PARENT = -1


def sniff(sample: Sample) -> bool:
    """A JSON object with chat ids and lengths."""
    return {"chat_id", "parent_chat_id", "input_length"} <= sample.row.keys()


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Native rows with times in seconds; `session_id` is the first chat of the chain, `type` stays unknown."""
    first_chat: dict[Any, Any] = {}
    names = {"request_id": "chat_id", "parent_id": "parent_chat_id"}
    for rows, lines in read_lines(source, context):
        for row in rows:
            chat, parent = row.get("chat_id"), row.get("parent_chat_id")
            if isinstance(chat, int | str) and isinstance(parent, int | str | None):
                known = first_chat.get(parent, chat if parent in (_NO_PARENT, None) else parent)
                row["session_id"] = first_chat[chat] = known
            if parent == _NO_PARENT:
                row["parent_chat_id"] = None
        yield chunk_of(Rows(rows), lines, context, names=names, unit_s=1.0)


FORMAT = Format(
    name="qwen-bailian",
    about="JSONL: chat_id, parent_chat_id, timestamp (s), lengths, hash_ids of 16 tokens",
    sniff=sniff,
    read=read,
    hash_block_size=16,
)
